"""Diffusers' own pipelines, a few thousand random weights each, made from config. Nothing is downloaded."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT = "a red blue ball mirror sun on the left right small tall pole shadow of its falls"
WORDS = TEXT.split()
WIDTH = 16
LENGTH = 12


def loud(module: torch.nn.Module) -> torch.nn.Module:
    """Noise on all weights, so that nothing starts at zero and prompts make a difference."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def tokenizer(length: int = LENGTH) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
    )


def clip_config(width: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def t5() -> T5EncoderModel:
    settings = {"vocab_size": len(WORDS) + 4, "d_model": WIDTH, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(**settings)).eval()


def vae(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
    ).eval()


def unet(**settings: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
        **settings,
    )


def stable_diffusion() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    return _quiet(
        StableDiffusionPipeline,
        vae=vae(),
        text_encoder=loud(CLIPTextModel(clip_config())),
        tokenizer=tokenizer(),
        unet=loud(unet(cross_attention_dim=WIDTH)),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    conditioned = unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
    )
    return _quiet(
        StableDiffusionXLPipeline,
        vae=vae(),
        text_encoder=loud(CLIPTextModel(clip_config())),
        text_encoder_2=loud(CLIPTextModelWithProjection(clip_config())),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=loud(conditioned),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
    )
    return _quiet(
        StableDiffusion3Pipeline,
        transformer=loud(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=loud(CLIPTextModelWithProjection(clip_config())),
        tokenizer=tokenizer(),
        text_encoder_2=loud(CLIPTextModelWithProjection(clip_config())),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux(guidance_embeds: bool = True) -> FluxPipeline:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return _quiet(
        FluxPipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=loud(CLIPTextModel(clip_config())),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=loud(transformer),
    )


def wan(boundary_ratio: float | None = None) -> WanPipeline:
    torch.manual_seed(0)

    def transformer() -> torch.nn.Module:
        return loud(
            WanTransformer3DModel(
                patch_size=(1, 2, 2),
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=16,
                out_channels=16,
                text_dim=WIDTH,
                freq_dim=16,
                ffn_dim=32,
                num_layers=1,
                cross_attn_norm=True,
                qk_norm="rms_norm_across_heads",
            )
        )

    settings = {"vocab_size": len(WORDS) + 4, "d_model": WIDTH, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    return _quiet(
        WanPipeline,
        tokenizer=tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(**settings)).eval(),
        vae=AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ).eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        transformer=transformer(),
        transformer_2=None if boundary_ratio is None else transformer(),
        boundary_ratio=boundary_ratio,
    )


FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sd": (stable_diffusion, {"height": 16, "width": 16}),
    "sdxl": (stable_diffusion_xl, {"height": 16, "width": 16}),
    "sd3": (stable_diffusion_3, {"height": 16, "width": 16, "max_sequence_length": 8}),
    "flux": (flux, {"height": 16, "width": 16, "max_sequence_length": LENGTH}),
    "wan": (wan, {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": LENGTH}),
}
"""Name -> builder, and what its call needs to stay small."""


def _quiet(kind: Callable[..., Any], **components: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipe = kind(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Count:
    """Calls and rows of denoisers, seen from outside."""

    calls = rows = 0


@contextmanager
def counted(*modules: torch.nn.Module) -> Iterator[Count]:
    """Count at `forward` itself, so that calls past all hooks are seen too."""
    count = Count()

    def watched(plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            count.calls += 1
            count.rows += len(args[0] if args else kwargs.get("sample", kwargs.get("hidden_states")))
            return plain(*args, **kwargs)

        return forward

    for module in modules:
        module.forward = watched(module.forward)
    try:
        yield count
    finally:
        for module in modules:
            del module.forward
