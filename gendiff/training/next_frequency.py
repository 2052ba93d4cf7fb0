"""How a transformer over stages is built, trained and previewed, on the tokens of a tokenizer that stays as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gendiff.models.next_frequency import NextFrequencyTransformer2DModel
from gendiff.pipelines.next_frequency import NextFrequencyPipeline, NextFrequencyPipelineOutput
from gendiff.samplers.next_frequency import NextFrequencyScheduler

from .image_data import check_labelled, image_shape
from .image_draws import augmented
from .methods import Method
from .recipe import check_arguments, check_share
from .tokenizer_files import OF_STAGES, load_tokenizer
from .tokenizer_health import report_stages


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    label_dropout: float = 0.1,
    stage_loss_weights: Sequence[float] | None = None,
    shift: int = 0,
    flip: bool = False,
) -> dict[str, Tensor]:
    """Cross-entropy of all tokens in one pass, each stage given the true ones before it (teacher forcing).

    Args:
        models: "transformer", and "vqvae", which gets no gradient.
        batch: "image" (B, C, S, S) in [-1, 1] and "label" (B,).
        generator: CPU generator of every draw of this step.
        label_dropout: share of images trained without their class, so that guidance has its contrast.
        stage_loss_weights: weight of each stage's tokens, scaled to a mean of 1 over all tokens; None for 1.
        shift: images move by up to so many pixels along each side.
        flip: mirror half of the images left to right.

    Returns: "cross_entropy", weighted, in nats a token; "nats", unweighted; and `nats_k` of each stage.

    Raises:
        ValueError: a share outside [0, 1], or weights that are not one positive number for each stage.
    """
    check_share(label_dropout, "objective.label_dropout")
    transformer, vqvae = models["transformer"], models["vqvae"]
    weights = _token_weights(transformer.counts, stage_loss_weights).to(batch["image"].device)
    images, labels = augmented(batch["image"], shift, flip, generator), batch["label"]
    # In full precision: a rounded map has other tokens.
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        tokens = vqvae.encode(images).tokens
        inputs = vqvae.tokens_to_inputs(tokens)
    hidden = (torch.rand(len(labels), generator=generator) < label_dropout).to(labels.device)
    condition = labels.masked_fill(hidden, transformer.config["num_classes"])
    logits = transformer(inputs, condition, return_dict=False)[0]
    nats = cross_entropy(logits.flatten(0, 1), torch.cat(tokens, dim=1).flatten(), reduction="none")
    by_token = nats.unflatten(0, logits.shape[:2]).mean(dim=0)
    stages = by_token.detach().split(transformer.counts)
    return {
        "cross_entropy": (by_token * weights).mean(),
        "nats": by_token.detach().mean(),
        **{f"nats_{k}": stage.mean() for k, stage in enumerate(stages)},
    }


def _token_weights(counts: Sequence[int], weights: Sequence[float] | None) -> Tensor:
    """(L,) with a mean of 1."""
    given = [1.0] * len(counts) if weights is None else list(weights)
    if len(given) != len(counts) or not all(isinstance(w, int | float) and 0 < w < math.inf for w in given):
        raise ValueError(f"objective.stage_loss_weights must be {len(counts)} positive numbers, got {weights!r}.")
    spread = torch.tensor(given, dtype=torch.float32).repeat_interleave(torch.tensor(counts))
    return spread / spread.mean()


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> NextFrequencyPipeline:
    """Untrained transformer for `dataset` behind a trained tokenizer.

    Args:
        models: `vqvae: {path: FOLDER}`, where the tokenizer was saved, a model's folder or a pipeline's; keyword
            arguments of the "transformer" and of the "scheduler". Stages, codes and classes need not be given.
        dataset: has `images` (N, C, S, S), `labels` (N,) and `classes`, their names.

    Raises:
        OSError: there is no tokenizer at that path.
        ValueError: an unknown component or argument, no path, another model at that path, a tokenizer for other
            images, or data without classes.
    """
    check_arguments("models", models, ["vqvae", "transformer", "scheduler"])
    check_arguments("models.vqvae", models.get("vqvae", {}), ["path"])
    path = models.get("vqvae", {}).get("path")
    if path is None:
        raise ValueError("models.vqvae.path is missing: the folder of a trained tokenizer.")
    check_labelled(dataset)
    vqvae = load_tokenizer(path, image_shape(dataset), "vqvae", OF_STAGES)
    vqvae.requires_grad_(False)
    defaults = {
        "transformer": {
            "stages": vqvae.stages,
            "latent_channels": vqvae.config["latent_channels"],
            "codebook_size": vqvae.config["codebook_size"],
            "num_classes": len(dataset.classes),
        },
        "scheduler": {"stages": vqvae.stages},
    }
    classes = {"transformer": NextFrequencyTransformer2DModel, "scheduler": NextFrequencyScheduler}
    components = {}
    for name, component in classes.items():
        arguments = defaults[name] | dict(models.get(name, {}))
        check_arguments(f"models.{name}", arguments, component)
        components[name] = component(**arguments)
    return NextFrequencyPipeline(vqvae=vqvae, **components, class_names=dataset.classes)


def finish(pipeline: NextFrequencyPipeline, dataset: Any) -> str:
    """Measure how each stage of the tokenizer is used; see `report_stages`."""
    return report_stages(pipeline.vqvae, dataset)


def preview(
    pipeline: NextFrequencyPipeline, dataset: Any, generator: torch.Generator, rows: int = 6, columns: int = 10
) -> Tensor:
    """Picture (C, H, W) in [0, 1]: one column for each class, or for each of the first ones."""
    count = min(len(pipeline.class_names), columns)
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(list(range(count)) * rows, generator=generator, output_type="pt")
    assert isinstance(output, NextFrequencyPipelineOutput)
    return torch.cat([torch.cat(list(row), dim=2) for row in output.images.cpu().split(count)], dim=1)


METHOD = Method(build=build, objective=objective, finish=finish, preview=preview)
