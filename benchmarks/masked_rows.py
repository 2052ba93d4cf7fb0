"""What is measured of one way to decode: scores of samples, operations, calls and staleness."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flops import count_flops
from masked_plans import Plan
from next_frequency_bars import BASELINE, REAL, TRAINING
from next_frequency_rows import baseline_row, held_out_row, training_row
from next_frequency_samples import kept_images
from next_frequency_scores import as_bytes
from next_frequency_yardstick import Yardstick, drawn
from provenance import checkpoint_sha256, model_folder
from torch import Tensor

from gendiff.data.pipeline_source import PipelineSource
from gendiff.data.rendered import from_bytes
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline

RECONSTRUCTIONS = "tokenizer: reconstructions of test images"
BATCH = 250
Job = tuple[str | None, Callable[[Yardstick], dict[str, Any]]]
"""Hash of the weights, and what measures the fields of a case."""


def jobs_of(
    args: argparse.Namespace, pipe: MaskedGenerationPipeline, sha256: str, plans: Mapping[str, Plan], train: Any
) -> dict[tuple[str, int], Job]:
    """What is to be measured, by row and seed: real images, reconstructions, the baseline, every plan."""
    jobs: dict[tuple[str, int], Job] = {
        (REAL, 0): (None, partial(held_out_row, args)),
        (TRAINING, 0): (None, partial(training_row, args, train)),
        (RECONSTRUCTIONS, 0): (sha256, partial(reconstruction_row, args, pipe)),
    }
    if args.baseline != "none":
        jobs[BASELINE, 0] = (checkpoint_sha256(model_folder(args.baseline)), partial(baseline_row, args))
    for seed in args.seeds:
        for plan in plans.values():
            jobs[plan.row, seed] = (sha256, partial(plan_row, args, pipe, plan, seed))
    return jobs


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments that all plans are called with."""
    return {"guidance_scale": args.guidance}


@torch.no_grad()
def reconstruction_row(
    args: argparse.Namespace, pipe: MaskedGenerationPipeline, yardstick: Yardstick
) -> dict[str, Any]:
    """Scores of what the tokenizer makes of test images, which no way to decode its tokens can beat."""
    tokenizer = pipe.image_tokenizer
    rows = drawn(args.num, len(yardstick.images), 0)
    parts = []
    for images in yardstick.images[rows].split(BATCH):
        parts.append(as_bytes(tokenizer.decode(tokenizer.encode(from_bytes(images).to(tokenizer.device)))))
    pictures = torch.cat(parts)
    error = (pictures.double() - yardstick.images[rows].double()).square().flatten(1).mean(dim=1).clamp(min=1e-6)
    psnr = {"metric": "psnr", "value": (10 * torch.log10(255**2 / error)).mean().item(), "n": len(rows)}
    return {"cells": [*yardstick.cells(pictures, yardstick.labels[rows]), psnr]}


def plan_row(
    args: argparse.Namespace, pipe: MaskedGenerationPipeline, plan: Plan, seed: int, yardstick: Yardstick
) -> dict[str, Any]:
    """Scores of samples, and what one block of them costs; image i of seed s is drawn from s * num + i."""
    call, threads = plan.call(options_of(args)), torch.get_num_threads()
    source = PipelineSource(pipe, args.num, seed * args.num, args.batch_size, "balanced", threads=threads, **call)
    # The row is part of the name, since a source says of a plan what fits into few letters.
    name = f"{Path(args.model).name}-{plan.row.replace('/', '-')}"
    images, labels = kept_images(source, name, args.samples), source.labels(args.num)
    assert labels is not None
    cells = [*yardstick.cells(images, labels), *cost_cells(pipe, plan, labels, args, seed)]
    return {"cells": cells, "plan": {"steps": plan.steps, "words": plan.words, "base": plan.base}}


def cost_cells(
    pipe: MaskedGenerationPipeline, plan: Plan, labels: Tensor, args: argparse.Namespace, seed: int
) -> list[dict[str, Any]]:
    """Operations of an image by part, calls by kind, and how stale light steps were, of the first block of a seed."""
    count = min(args.batch_size, len(labels))
    generators = [torch.Generator().manual_seed(seed * args.num + index) for index in range(count)]
    output: Any = pipe(
        labels[:count].tolist(),
        generator=generators,
        measure_staleness=plan.recap is not None,
        output_type="tokens",
        **plan.call(options_of(args)),
    )
    found = output.stats.plan
    with torch.no_grad():
        decoding = count_flops(lambda: pipe.image_tokenizer.decode(output.tokens))
    flops = {**found["flops"], "tokenizer": decoding}
    cells = [{"metric": "flops", "of": part, "value": value / count, "n": count} for part, value in flops.items()]
    for kind in ("full", "light"):
        calls = found["calls"]["conditional"][kind]
        cells.append({"metric": f"{kind}_calls", "value": len(calls), "n": count})
    both = sum(len(rows) for branch in found["calls"].values() for rows in branch.values())
    cells.append({"metric": "network_calls", "value": both, "n": count})
    cells.append({"metric": "cache_bytes", "value": output.stats.cache_bytes / count, "n": count})
    stale = found.get("staleness") or []
    for metric in sorted({key for entry in stale for key in entry} - {"step"}):
        value = statistics.fmean(entry[metric] for entry in stale)
        cells.append({"metric": metric, "value": value, "n": len(stale)})
    return cells
