"""How the small text-to-image model under LINA is built, trained and previewed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from gendiff.causal.scene_features import CooccurrenceTable
from gendiff.causal.scene_grammar import TemplateGrammar
from gendiff.pipelines.lina import LINAPipeline
from gendiff.pipelines.lina_output import LINAPipelineOutput

from .diffusion import noised
from .lina_calibrate import calibrate
from .methods import Method
from .prompt_text import build_tokenizer
from .recipe import check_arguments


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Any],
    generator: torch.Generator,
    caption_dropout: float = 0.1,
) -> dict[str, Tensor]:
    """The flow-matching loss at logit-normal noise levels, a share of the captions left out for guidance.

    Args:
        models: "transformer", "text_encoder", "tokenizer" and "scheduler".
        batch: "image" (B, 3, S, S) in [-1, 1] and "caption", B prompts.
        generator: CPU generator of every draw of this step.
        caption_dropout: share of images trained without their caption.

    Source: Lipman et al. 2023 (Flow Matching); Esser et al. 2024 (Stable Diffusion 3), section 3.1, for the levels.
    """
    image = batch["image"]
    dropped = torch.rand(len(image), generator=generator) < caption_dropout
    captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), batch["caption"], strict=True)]
    tokens = models["tokenizer"](captions, padding="max_length", return_tensors="pt").input_ids.to(image.device)
    embeds = models["text_encoder"](tokens).last_hidden_state
    noise = torch.randn(image.shape, generator=generator).to(image)
    levels = torch.randn(len(image), generator=generator).sigmoid().to(image)
    noisy, timesteps, target = noised(models["scheduler"], image, noise, levels)
    said = models["transformer"](
        noisy,
        encoder_hidden_states=embeds,
        # The last token has read all others: CLIP's text model is causal.
        pooled_projections=embeds[:, -1],
        timestep=timesteps,
        return_dict=False,
    )[0]
    return {"flow": torch.nn.functional.mse_loss(said.float(), target)}


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> LINAPipeline:
    """Untrained pipeline for `dataset`; sizes that the data decides need not be in the recipe.

    Args:
        models: keyword arguments by component: those of `SD3Transformer2DModel`, `CLIPTextConfig` and
            `FlowMatchEulerDiscreteScheduler`.
        dataset: a world of prompts: `grammar`, `images` (N, 3, S, S), `captions`.

    Raises:
        ValueError: an unknown component or argument.
    """
    tokenizer = build_tokenizer(dataset.grammar)
    transformer = dict(models.get("transformer", {}))
    heads = transformer.get("num_attention_heads", 5)
    width = heads * transformer.get("attention_head_dim", 16)
    known: dict[str, dict[str, Any]] = {
        "transformer": {
            "num_attention_heads": heads,
            "attention_head_dim": 16,
            "num_layers": 3,
            "in_channels": dataset.images.shape[1],
            "out_channels": dataset.images.shape[1],
            "sample_size": dataset.images.shape[2],
            "patch_size": 4,
            "pos_embed_max_size": dataset.images.shape[2] // transformer.get("patch_size", 4),
            "joint_attention_dim": width,
            "caption_projection_dim": width,
            "pooled_projection_dim": width,
        },
        "text_encoder": {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": heads,
            "num_hidden_layers": 1,
            "projection_dim": width,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.pad_token_id,
        },
        "scheduler": {},
    }
    classes: dict[str, Any] = {
        "transformer": SD3Transformer2DModel,
        "text_encoder": CLIPTextConfig,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    check_arguments("models", models, classes)
    made = {}
    for name, component in classes.items():
        given = known[name] | dict(models.get(name, {}))
        check_arguments(f"models.{name}", given, component)
        made[name] = component(**given)
    # Starts as a model that predicts nothing, as other diffusion transformers do (Peebles & Xie 2023).
    torch.nn.init.zeros_(made["transformer"].proj_out.weight)
    torch.nn.init.zeros_(made["transformer"].proj_out.bias)
    made["text_encoder"] = CLIPTextModel(made["text_encoder"])
    grammar = TemplateGrammar(dataset.grammar)
    seen = CooccurrenceTable.from_values([grammar.values(text) for text in dataset.captions])
    return LINAPipeline(
        **made, tokenizer=tokenizer, grammar=dataset.grammar, cooccurrence=seen.to_json(), world=dataset.name
    )


def finish(pipeline: LINAPipeline, dataset: Any) -> str:
    """Calibrate guidance on the plain model, and train the predictor of interventions for it.

    Args:
        dataset: a world: `check` judges images, `calibration` names two kinds of its `prompts`.

    Returns: what came out, in Markdown.
    """
    hard, easy = (dataset.prompts(kind) for kind in dataset.calibration)
    predictor, calibration = calibrate(pipeline, dataset, hard, easy, log=print)
    pipeline.register_modules(predictor=predictor)
    pipeline.register_to_config(guidance_scale=calibration.guidance_scale)
    return calibration.as_markdown()


@torch.no_grad()
def preview(pipeline: LINAPipeline, dataset: Any, generator: torch.Generator, columns: int = 8) -> Tensor:
    """Picture (3, H, W) in [0, 1]: a row for each kind of calibration prompts, drawn by the plain model."""
    rows = []
    for kind in dataset.calibration:
        prompts = dataset.prompts(kind)
        asked = [prompts[i * len(prompts) // columns] for i in range(columns)]
        output = pipeline(asked, intervention="off", generator=generator, output_type="pt")
        assert isinstance(output, LINAPipelineOutput)
        rows.append(torch.cat(list(output.images.float().cpu()), dim=2))
    return torch.cat(rows, dim=1)


METHOD = Method(build=build, objective=objective, finish=finish, preview=preview)
