"""A StableDiffusionPipeline of a few thousand random weights: its images do not matter, its cost does."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

WORDS = ["a", "red", "ball", "on", "the", "left", "right"]
WIDTH, LENGTH = 32, 12
PROMPT, OTHER = "a red ball on the left", "a red ball on the right"


def tiny_stable_diffusion(seed: int = 0) -> StableDiffusionPipeline:
    """The pipeline, without progress bar and safety checker."""
    names = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=LENGTH,
    )
    text = CLIPTextConfig(
        vocab_size=len(names),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    scheduler = EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # diffusers warns of every pipeline without a safety checker
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = StableDiffusionPipeline(
            vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
            text_encoder=CLIPTextModel(text).eval(),
            tokenizer=tokenizer,  # type: ignore[arg-type]
            unet=UNet2DConditionModel(
                sample_size=16,
                block_out_channels=(32, 64),
                norm_num_groups=8,
                layers_per_block=1,
                attention_head_dim=8,
                cross_attention_dim=WIDTH,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            ).eval(),
            scheduler=scheduler,  # type: ignore[arg-type]
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
    logging.set_verbosity(verbosity)
    pipe.set_progress_bar_config(disable=True)
    return pipe
