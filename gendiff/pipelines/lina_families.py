"""How families of diffusers pipelines differ, as far as LINA must know: all of it is data in this file.

What a denoiser reads is seen from the denoiser itself (`TextSlots`), so other pipelines with the same denoisers, as for
image to image or in-painting, need no entry. Only the order of what `encode_prompt` returns goes by the name of a
pipeline's class (`ENCODINGS`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.utils.torch_utils import is_compiled_module
from torch import Tensor, nn

from gendiff.samplers.prompt_embeds import PromptEmbeds

DENOISERS = ("unet", "transformer", "transformer_2")
"""Names of components that denoise; Wan2.2 has two experts."""
EMBEDS = "encoder_hidden_states"
"""What every supported denoiser calls the embedding of its prompt."""
MASKS = ("encoder_attention_mask", "encoder_hidden_states_mask")
"""What it may call the mask of valid tokens."""


class Encoding(NamedTuple):
    """Where things stand in what `encode_prompt` returns: positions, None where a family has no such thing.

    `tokenizers` are those whose tokens stand side by side in the embedding, in order.
    """

    pipelines: str
    embeds: int = 0
    pooled: int | None = None
    mask: int | None = None
    tokenizers: tuple[str, ...] = ("tokenizer",)


ENCODINGS = (
    Encoding(r"StableDiffusionXL", pooled=2),  # embeds, negative, pooled, negative pooled
    Encoding(r"StableDiffusion3", pooled=2, tokenizers=("tokenizer", "tokenizer_3")),  # CLIP, then T5
    Encoding(r"StableDiffusion(?!XL|3)"),
    Encoding(r"Flux(?!\d)", pooled=1, tokenizers=("tokenizer_2",)),  # embeds, pooled, text_ids
    Encoding(r"Wan"),
    Encoding(r"PixArt|LINA", mask=1),
    Encoding(r"ModeWorld", tokenizers=()),
)
"""By a pattern that the name of the pipeline's class, or of a base class, starts with."""

ENCODE_OPTIONS: Mapping[str, Any] = {
    "prompt_2": None,  # None is the first prompt again
    "prompt_3": None,
    "num_images_per_prompt": 1,  # rows are repeated later, by what the denoiser is called with
    "num_videos_per_prompt": 1,
    "do_classifier_free_guidance": False,
}
"""What is handed to `encode_prompt` where its signature has it."""


@dataclass(frozen=True)
class TextSlots:
    """Where a denoiser reads a prompt.

    Attributes:
        pooled: path to the pooled vector in its arguments, e.g. ("added_cond_kwargs", "text_embeds"); None without one.
        argument: what pipelines call that vector.
    """

    pooled: tuple[str, ...] | None
    argument: str = "pooled_prompt_embeds"


def denoisers(pipe: Any) -> list[nn.Module]:
    """The denoisers of a pipeline that take a prompt; empty if there is none."""
    found = [getattr(pipe, name, None) for name in DENOISERS]
    return [one for one in found if isinstance(one, nn.Module) and EMBEDS in forward_signature(one).parameters]


def forward_signature(denoiser: nn.Module) -> inspect.Signature:
    """Of `forward`, also where the module was compiled."""
    plain: Any = denoiser._orig_mod if is_compiled_module(denoiser) else denoiser
    return inspect.signature(plain.forward)


def text_slots(denoiser: nn.Module) -> TextSlots:
    """Where `denoiser` reads a prompt beside `encoder_hidden_states`."""
    if "pooled_projections" in forward_signature(denoiser).parameters:
        return TextSlots(("pooled_projections",))
    if getattr(getattr(denoiser, "config", None), "addition_embed_type", None) == "text_time":
        return TextSlots(("added_cond_kwargs", "text_embeds"))
    return TextSlots(None)


@torch.no_grad()
def encode(pipe: Any, prompt: str | list[str], **options: Any) -> PromptEmbeds:
    """Texts as the pipeline's denoiser will read them, by the pipeline's own `encode_prompt`.

    Args:
        pipe: a diffusers pipeline of a family in `ENCODINGS`.
        prompt: one text or several.
        options: handed on to `encode_prompt`, e.g. `max_sequence_length`, `clip_skip`, `prompt_2`; give what the
            pipeline itself is called with.

    Raises:
        TypeError: the family is unknown: build `PromptEmbeds` from what its `encode_prompt` returns.
        ValueError: an option that its `encode_prompt` does not have.
    """
    name, encoding = type(pipe).__name__, _encoding_of(pipe)
    if encoding is None or not hasattr(pipe, "encode_prompt"):
        raise TypeError(f"{name} is of no known family; build PromptEmbeds from what encodes its prompts yourself.")
    known = inspect.signature(pipe.encode_prompt).parameters
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"encode_prompt of {name} has no {unknown[0]!r}; it has {', '.join(known)}.")
    defaults = {**ENCODE_OPTIONS, "device": getattr(pipe, "_execution_device", None)}
    given = {option: value for option, value in defaults.items() if option in known} | options
    said = pipe.encode_prompt(prompt, **given)
    parts: tuple[Any, ...] = (said,) if isinstance(said, Tensor) else tuple(said)
    # Some pipelines cast what a text encoder says to the denoiser's dtype only later, when they call it.
    dtype = next((one.dtype for one in denoisers(pipe)), parts[encoding.embeds].dtype)
    pooled = None if encoding.pooled is None else parts[encoding.pooled].to(dtype)
    return PromptEmbeds(
        parts[encoding.embeds].to(dtype), pooled, None if encoding.mask is None else parts[encoding.mask]
    )


def valid_tokens(pipe: Any, texts: list[str], said: PromptEmbeds) -> Tensor:
    """Which tokens of `said` hold a text, bool (P, L): its mask, or else what the pipeline's tokenizers say.

    All True where a pipeline has no tokenizer, so that nothing is known of padding.
    """
    if said.mask is not None:
        return said.mask.bool()
    encoding, length, parts = _encoding_of(pipe), said.embeds.shape[1], []
    for name in encoding.tokenizers if encoding is not None else ():
        tokenizer = getattr(pipe, name, None)
        left = length - sum(part.shape[1] for part in parts)
        is_last = encoding is not None and name == encoding.tokenizers[-1]
        if tokenizer is None:  # SD3 without T5 fills its place with zeros
            parts.append(torch.zeros(len(texts), left, dtype=torch.bool))
            continue
        count = left if is_last else tokenizer.model_max_length
        tokens = tokenizer(texts, padding="max_length", max_length=count, truncation=True, return_tensors="pt")
        parts.append(tokens.attention_mask.bool())
    mask = torch.cat(parts, 1) if parts else torch.ones(len(texts), length, dtype=torch.bool)
    return mask.to(said.embeds.device)


def _encoding_of(pipe: Any) -> Encoding | None:
    for base in type(pipe).__mro__:
        for encoding in ENCODINGS:
            if re.match(encoding.pipelines, base.__name__):
                return encoding
    return None
