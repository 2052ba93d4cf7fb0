"""What the quality benchmark measures of real images, the baseline and each model: the fields of a case each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from calls import Work, load, option
from next_frequency_bars import BASELINE, REAL, TRAINING
from next_frequency_models import Model, facts_of, open_model
from next_frequency_samples import call_seconds, cpu_seconds, kept_images
from next_frequency_scores import nats_cells, reconstruction_cells, tokenizer_cells
from next_frequency_yardstick import Yardstick, drawn
from provenance import checkpoint_sha256, model_folder

from gendiff.data.pipeline_source import PipelineSource
from gendiff.samplers.solvers import solver

Job = tuple[str | None, Callable[[Yardstick], dict[str, Any]]]
"""Hash of the weights, and what measures the fields of a case."""


def jobs_of(args: argparse.Namespace, models: Sequence[Model], test: Any, train: Any) -> dict[tuple[str, int], Job]:
    """What is to be measured, by row and seed: real images, the baseline, every model."""
    jobs: dict[tuple[str, int], Job] = {
        (REAL, 0): (None, partial(held_out_row, args)),
        (TRAINING, 0): (None, partial(training_row, args, train)),
    }
    if args.baseline != "none":
        jobs[BASELINE, 0] = (checkpoint_sha256(model_folder(args.baseline)), partial(baseline_row, args))
    for model in models:
        jobs[model.row, model.seed] = (model.sha256, partial(model_row, args, model, test, train))
    return jobs


def held_out_row(args: argparse.Namespace, yardstick: Yardstick) -> dict[str, Any]:
    """Test images against the other test images, and how often the classifier is right about all of them."""
    accuracy = yardstick.cells(yardstick.images, yardstick.labels, ["accuracy"])
    return {"cells": [*yardstick.held_out(args.num, 0), *accuracy]}


def training_row(args: argparse.Namespace, train: Any, yardstick: Yardstick) -> dict[str, Any]:
    """Training images against the test images; classifiers have seen them, so no accuracy."""
    rows = drawn(args.num, len(train), 0)
    return {"cells": yardstick.cells(train.images[rows], train.labels[rows], ["fd"])}


def baseline_row(args: argparse.Namespace, yardstick: Yardstick) -> dict[str, Any]:
    """Samples of the diffusion model and what they cost."""
    pipe = load(Work(model=args.baseline, device=args.device))
    pipe.scheduler = solver("ddim", pipe.scheduler)
    call = {"num_inference_steps": args.baseline_steps}
    cells, cost = sampled(args, pipe, args.baseline, 0, call, yardstick)
    return {"cells": cells, "cost": {"": cost}}


def model_row(args: argparse.Namespace, model: Model, test: Any, train: Any, yardstick: Yardstick) -> dict[str, Any]:
    """Everything about one model."""
    pipe = open_model(model, args.device)
    count = len(test) if args.images is None else min(args.images, len(test))
    cells = tokenizer_cells(pipe.vqvae, test, count) + nats_cells(pipe, test, count)
    cells += reconstruction_cells(pipe.vqvae, yardstick, (train.images, train.labels), args.num)
    costs = {}
    for guidance in args.guidance:
        call = {"guidance_scale": guidance, **dict(map(option, args.set))}
        some, costs[f"{guidance:g}"] = sampled(args, pipe, model.row, model.seed, call, yardstick, guidance=guidance)
        cells += some
    return {"cells": cells, "cost": costs, "facts": facts_of(pipe)}


def sampled(
    args: argparse.Namespace,
    pipe: Any,
    name: str,
    seed: int,
    call: dict[str, Any],
    yardstick: Yardstick,
    **fields: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Cells of samples, with `fields`, and timed calls of a pipeline; image i of seed s is drawn from s * num + i."""
    threads = torch.get_num_threads()
    source = PipelineSource(pipe, args.num, seed * args.num, args.batch_size, "balanced", threads=threads, **call)
    images, labels = kept_images(source, Path(name).name, args.samples), source.labels(args.num)
    assert labels is not None
    cells = yardstick.cells(images, labels, **fields)
    cost = call_seconds(pipe, args.device, args.repeats, args.budget, call)
    taken = {"seconds": cost["s_per_image"], "cpu_seconds": cpu_seconds(cost)}
    cells += [
        {"metric": metric, "value": value, "n": cost["repeats"], **fields}
        for metric, value in taken.items()
        if value is not None
    ]
    return cells, cost
