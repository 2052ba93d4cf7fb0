"""Small networks for tests. Each factory seeds its weights anew, so that two calls give equal networks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: a test that would download must fail at once
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.utils import logging

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.models.causal_encoder import CausalEncoder
from gendiff.models.causal_mechanisms import CausalMechanisms
from gendiff.models.causal_video import CausalVideoTransformer3DModel
from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.models.latent_projection import LatentProjection
from gendiff.models.masked.maskgit import MaskGITTransformer2DModel
from gendiff.models.masked.patch_vq import PatchVQTokenizer
from gendiff.models.next_frequency import NextFrequencyTransformer2DModel
from gendiff.models.patch_unet import PatchUNet2DModel
from gendiff.pipelines.causal_video import CausalVideoPipeline
from gendiff.pipelines.counterfactual import CounterfactualPipeline
from gendiff.pipelines.image_generation import ImageGenerationPipeline
from gendiff.pipelines.lina import LINAPipeline
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.pipelines.next_frequency import NextFrequencyPipeline
from gendiff.samplers.masked import MaskedScheduler
from gendiff.samplers.next_frequency import NextFrequencyScheduler

torch.set_num_threads(1)
logging.disable_progress_bar()

SIDE = 16
WIDTHS = (8, 16)


def make_graph() -> CausalGraph:
    """A collider with a descendant beside a root of its own: thickness, slant -> intensity -> contrast; digit."""
    return CausalGraph(
        [
            Variable("thickness", loc=2.5, scale=2.0, low=0.5, high=7.0, dim=2),
            Variable("slant", loc=0.0, scale=30.0, low=-30.0, high=30.0, dim=2),
            Variable("intensity", loc=160.0, scale=96.0, low=64.0, high=255.0, dim=2),
            Variable("contrast", loc=0.5, scale=0.5, low=0.0, high=1.0, dim=2),
            Variable("digit", kind="categorical", num_classes=3),
        ],
        [("thickness", "intensity"), ("slant", "intensity"), ("intensity", "contrast")],
    )


def make_unet(channels: int = 1, seed: int = 0) -> PatchUNet2DModel:
    torch.manual_seed(seed)
    return PatchUNet2DModel(SIDE, channels, block_out_channels=WIDTHS, norm_num_groups=4).eval()


def make_counterfactual_pipeline(
    graph: CausalGraph | None = None,
    channels: int = 1,
    style_dim: int = 3,
    mechanism: str = "additive",
    p_uncond: float = 0.1,
    p_block: float = 0.1,
    seed: int = 0,
    **scheduler: Any,
) -> CounterfactualPipeline:
    graph = make_graph() if graph is None else graph
    unet = make_unet(channels, seed)
    encoder = CausalEncoder(SIDE, channels, graph.dim, style_dim, block_out_channels=WIDTHS, norm_num_groups=4)
    mechanisms = CausalMechanisms(graph.to_dict(), hidden_dim=8, mechanism=mechanism)
    block_dims = [variable.dim for variable in graph.variables]
    projection = LatentProjection(block_dims, 4 * WIDTHS[0], style_dim, 16, p_uncond, p_block)
    settings = {
        "num_train_timesteps": 100,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
    pipe = CounterfactualPipeline(
        encoder.eval(), mechanisms.eval(), projection.eval(), unet, DDIMScheduler(**{**settings, **scheduler})
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_image_pipeline(names: Sequence[str] = (), side: int = 8) -> ImageGenerationPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=side,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
        num_class_embeds=len(names) + 1 if names else None,
    ).eval()
    pipe = ImageGenerationPipeline(
        unet,
        DDIMScheduler(
            num_train_timesteps=100,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=False,
        ),
        class_names=names,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def randomise_zeros(model: torch.nn.Module, seed: int = 1) -> None:
    """Draw every parameter that is all zero: gates and head start there, and would let any test of a network pass."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.data.any():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)


def make_video_transformer(**settings: Any) -> CausalVideoTransformer3DModel:
    torch.manual_seed(0)
    tiny = {
        "sample_size": (16, 8),
        "patch_size": 4,
        "num_layers": 2,
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "chunk_size": 2,
        "context_frames": 5,
        "prefix_references": 0 if settings.get("attention_layout") == "joint" else 1,
        "num_classes": 3,
    }
    model = CausalVideoTransformer3DModel(**{**tiny, **settings})
    randomise_zeros(model)
    return model.eval()


def make_video_pipeline(
    scheduler: Any = None, dtype: torch.dtype = torch.float32, components: Any = None, **settings: Any
) -> CausalVideoPipeline:
    names = ["one", "two", "three"][: settings.get("num_classes", 3)]
    pipe = CausalVideoPipeline(
        make_video_transformer(**settings).to(dtype),
        FlowMatchEulerDiscreteScheduler() if scheduler is None else scheduler,
        class_names=names,
        **(components or {}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_next_frequency_pipeline(
    names: Sequence[str] = ("one", "two", "three"),
    side: int = 16,
    stages: Sequence[int] = (1, 2, 3, 4),
    channels: int = 1,
    band_spacing: str | Sequence[float] = "area",
    dtype: torch.dtype = torch.float32,
    tokenizer: Mapping[str, Any] | None = None,
    **transformer_settings: Any,
) -> NextFrequencyPipeline:
    torch.manual_seed(0)
    settings = {
        "latent_channels": 8,
        "codebook_size": 32,
        "block_out_channels": WIDTHS,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        **(tokenizer or {}),
    }
    vqvae = FrequencyVQModel(side, channels, stages, band_spacing=band_spacing, **settings)
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, **transformer_settings}
    transformer = NextFrequencyTransformer2DModel(
        stages, settings["latent_channels"], settings["codebook_size"], len(names), **sizes
    )
    # Gates and head start near zero and would let any test of a network pass.
    modulations = [transformer.adaln, *(block.adaln for block in transformer.blocks), transformer.head_adaln]
    for layer in [*modulations, transformer.head]:
        if layer is not None:
            layer.weight.data.normal_(0, 0.3)
    randomise_zeros(transformer)
    for model in (vqvae, transformer):
        torch.nn.Module.to(model.eval(), dtype)  # diffusers' own warns of nothing
    pipe = NextFrequencyPipeline(vqvae, transformer, NextFrequencyScheduler(stages), class_names=names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_masked_pipeline(
    names: Sequence[str] = ("one", "two", "three"),
    grid: int = 4,
    codes: int = 16,
    patch: int = 2,
    channels: int = 1,
    dtype: torch.dtype = torch.float32,
    scheduler: Mapping[str, Any] | None = None,
    **transformer_settings: Any,
) -> MaskedGenerationPipeline:
    torch.manual_seed(0)
    tokenizer = PatchVQTokenizer(grid * patch, channels, patch, codes)
    tokenizer.codebook.data.uniform_(-1, 1)
    settings = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_ratio": 2.0}
    settings |= {"norm": "pre", "long_skips": True, **transformer_settings}
    transformer = MaskGITTransformer2DModel(grid, codes, len(names) or 1, **settings)
    # As initialised it says nearly the same of all tokens, whatever it reads.
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(0, 1.5 / module.in_features**0.5)
        if isinstance(module, torch.nn.Embedding):
            module.weight.data.normal_(0, 0.7)
    transformer.pos_embed.data.normal_(0, 0.7)
    randomise_zeros(transformer)
    for model in (tokenizer, transformer):
        torch.nn.Module.to(model.eval(), dtype)  # diffusers' own warns of nothing
    pipe = MaskedGenerationPipeline(transformer, tokenizer, MaskedScheduler(**(scheduler or {})), class_names=names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_lina_pipeline(world: str = "shadow-world", gate: float | None = None, **transformer: Any) -> LINAPipeline:
    from gendiff.data import load_dataset
    from gendiff.models.lina_predictor import LINAPredictor
    from gendiff.samplers.action_box import PRESETS
    from gendiff.training.lina import build

    settings = {"num_layers": 1, "num_attention_heads": 2, **transformer}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = build({"transformer": settings}, load_dataset(world, num_images=96))
        # Zero at first, which would draw the same picture whatever the prompt.
        torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.3)
        predictor = LINAPredictor(pipe.text_encoder.config.hidden_size, PRESETS["small"].box(()).to_dict())
    if gate is not None:
        with torch.no_grad():
            predictor.out.bias.copy_(torch.tensor([0.3, 0.0, 0.5, 0.0, gate]))
        pipe.register_modules(predictor=predictor.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_graph() -> Callable[..., CausalGraph]:
    return make_graph


@pytest.fixture
def tiny_unet() -> Callable[..., PatchUNet2DModel]:
    """`tiny_unet(channels=1, seed=0)`: 16 px, two levels, condition of width 32."""
    return make_unet


@pytest.fixture
def tiny_counterfactual_pipeline() -> Callable[..., CounterfactualPipeline]:
    """`tiny_counterfactual_pipeline(graph=None, channels=1, style_dim=3, ..., **scheduler)`, untrained, 16 px."""
    return make_counterfactual_pipeline


@pytest.fixture
def tiny_image_pipeline() -> Callable[..., ImageGenerationPipeline]:
    """`tiny_image_pipeline(names=(), side=8)`: one channel, a class for each name, untrained."""
    return make_image_pipeline


@pytest.fixture
def tiny_video_transformer() -> Callable[..., CausalVideoTransformer3DModel]:
    """`tiny_video_transformer(**settings)`: 16 x 8 px, l = 2, W = 5, 3 classes, no zero weights, eval mode."""
    return make_video_transformer


@pytest.fixture
def tiny_video_pipeline() -> Callable[..., CausalVideoPipeline]:
    """`tiny_video_pipeline(scheduler=None, dtype, components=None, **settings)`, else as `tiny_video_transformer`."""
    return make_video_pipeline


@pytest.fixture
def tiny_next_frequency_pipeline() -> Callable[..., NextFrequencyPipeline]:
    """`tiny_next_frequency_pipeline(names, side=16, stages, channels=1, band_spacing="area", dtype, tokenizer=None,
    **transformer)`: 4 px a token of the last stage, C = 8, V = 32, no zero weights, eval mode."""
    return make_next_frequency_pipeline


@pytest.fixture
def tiny_masked_pipeline() -> Callable[..., MaskedGenerationPipeline]:
    """`tiny_masked_pipeline(names, grid=4, codes=16, patch=2, channels=1, dtype, scheduler=None, **transformer)`: 8 px,
    3 blocks of width 16 with a long skip, codes that are random patches, loud weights, eval mode."""
    return make_masked_pipeline


@pytest.fixture
def tiny_lina() -> Callable[..., LINAPipeline]:
    """`tiny_lina(world="shadow-world", gate=None, **transformer)`: one block of width 32, 32 px, untrained; with `gate`
    also a predictor that says lam = 2.3 and a warp of kappa 1.4 of every prompt, heard where `gate` is above 0."""
    return make_lina_pipeline


@pytest.fixture(scope="session")
def tiny_amused(tmp_path_factory):
    """Tiny random parts: 4 x 4 tokens of 8 x 8 pixels, a tokenizer of letters with room for 24."""
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    folder = tmp_path_factory.mktemp("letters")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
    torch.manual_seed(0)
    text_encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            projection_dim=12,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
            pad_token_id=len(words) - 1,
        )
    ).eval()
    transformer = UVit2DModel(
        hidden_size=16,
        cond_embed_dim=12,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=40,
        encoder_hidden_size=16,
        vocab_size=24,
        codebook_size=20,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        sample_size=4,
    ).eval()
    for parameter in transformer.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    vqvae = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=20,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    ).eval()
    vqvae.quantize.embedding.weight.data.normal_()
    pipe = AmusedPipeline(vqvae, tokenizer, text_encoder, transformer, AmusedScheduler(mask_token_id=23))
    pipe.set_progress_bar_config(disable=True)
    return pipe
