"""aMUSEd's parts for `MaskedGenerationPipeline`: its prompts as the network takes them, and its components as ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UVit2DModel, VQModel

from gendiff.models.masked.amused_tokenizer import AmusedTokenizer
from gendiff.models.masked.text_condition import TextCondition
from gendiff.models.masked.wrapping import stride_of
from gendiff.samplers.masked import MaskedScheduler

AESTHETIC_SCORE = 6.0
"""Of a picture that people like, on the scale from 0 to 10 of the data's scores; what aMUSEd asks for by default."""


@torch.no_grad()
def encode_prompts(
    tokenizer: Any,
    text_encoder: Any,
    prompts: Sequence[str],
    size: tuple[int, int],
    crop: tuple[int, int] = (0, 0),
    aesthetic_score: float = AESTHETIC_SCORE,
    device: str | torch.device | None = None,
) -> TextCondition:
    """Prompts as a `UVit2DModel` of aMUSEd takes them; negative prompts are encoded like others, "" for none.

    Args:
        tokenizer: a `CLIPTokenizer`; a longer text is cut to what it holds.
        text_encoder: a `CLIPTextModelWithProjection`.
        prompts: a text for each image.
        size: width and height in pixels of the picture that was cropped, of all images.
        crop: where the crop began in it, two pixel coordinates.
        aesthetic_score: 0 to 10.
        device: of the result and of the encoder; None for where the encoder is.

    Returns: the last but one hidden states, the projected text, and size, crop and score, in the encoder's dtype.

    Raises:
        ValueError: no prompt, one that is no text, or a number that is not finite.

    Source: Patil et al. 2024 (aMUSEd, arXiv 2401.01808); micro-conditioning, Podell et al. 2023 (SDXL), section 2.2.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts must be at least one text in a list, got {prompts!r:.60}.")
    micro = [*size, *crop, aesthetic_score]
    if len(micro) != 5 or not all(isinstance(x, int | float) and math.isfinite(x) for x in micro):
        raise ValueError(f"size and crop must be two numbers each and aesthetic_score one, got {micro!r}.")
    device = text_encoder.device if device is None else device
    ids = tokenizer(
        list(prompts),
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
    ).input_ids.to(device)
    output = text_encoder(ids, return_dict=True, output_hidden_states=True)
    states = output.hidden_states[-2]
    conditions = torch.tensor(micro, device=states.device, dtype=states.dtype).expand(len(prompts), -1)
    return TextCondition(states, output.text_embeds, conditions)


def amused_components(pipeline: Any) -> dict[str, Any]:
    """Components for `MaskedGenerationPipeline` from diffusers' `AmusedPipeline`; no weight is copied.

    Args:
        pipeline: has transformer, vqvae, scheduler, tokenizer and text_encoder.

    Returns: "transformer", "image_tokenizer", "scheduler", "tokenizer" and "text_encoder".

    Raises:
        TypeError: transformer or vqvae are not diffusers' `UVit2DModel` and `VQModel`.
        ValueError: another number than the vocabulary's last stands for hidden tokens.
    """
    transformer, vqvae, config = pipeline.transformer, pipeline.vqvae, pipeline.scheduler.config
    for name, part, kind in (("transformer", transformer, UVit2DModel), ("vqvae", vqvae, VQModel)):
        if not isinstance(part, kind):
            raise TypeError(f"{name} must be a {kind.__name__} of diffusers, got {type(part).__name__}.")
    last = transformer.config["vocab_size"] - 1
    if config["mask_token_id"] != last:
        raise ValueError(f"mask_token_id of the scheduler must be {last}, got {config['mask_token_id']}.")
    side = transformer.config["sample_size"] * stride_of(vqvae)
    scheduler = MaskedScheduler(
        schedule=config["masking_schedule"], confidence_temperature=(2.0, 0.0), guidance_schedule="constant"
    )
    return {
        "transformer": transformer,
        "image_tokenizer": AmusedTokenizer.wrap(vqvae, side),
        "scheduler": scheduler,
        "tokenizer": pipeline.tokenizer,
        "text_encoder": pipeline.text_encoder,
    }
