"""What LINA costs: the predictor, extra network rows, a shut gate around a pipeline; and planted optima."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lina_planted import planted_cells
from lina_runs import Runner
from lina_tiny import OTHER, PROMPT, tiny_stable_diffusion
from paired import compare_runs
from timing import summary, time_runs
from torch import Tensor, nn

from gendiff.models.lina_predictor import LINAPredictor
from gendiff.pipelines.lina_attach import attach
from gendiff.pipelines.lina_conditions import prompt_conditions
from gendiff.samplers.action_box import PRESETS
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.warps import WarpSpec

PREDICTOR_MS, OVERHEAD, RATIO_OFF = 1.0, 1.01, 1e-9
"""Bars: milliseconds of a prompt; seconds with a shut gate over those without; NFE ratio off its formula."""
WIDTHS = ((80, 18), (768, 77), (4096, 333))
"""(D, L) of prompt embeddings: our own models, Stable Diffusion 1.5, Stable Diffusion 3."""
WINDOWS = (Intervention(lam=1.0, window=(1.0, 0.7)), Intervention(lam=1.0), Intervention(lam=1.0, window=(1.0, 0.0)))
WARPED = Intervention(lam=1.0, warp=WarpSpec("moebius", 2.0))


def cost_cases(pipe: Any, world: Any, args: Any) -> list[dict[str, Any]]:
    """Cases of the predictor, of NFE, of a shut gate, and of planted optima.

    Args:
        pipe: a `LINAPipeline`, whose network rows are counted.
        world: its verifier.
        args: `steps`, `repeats`, `budget`, `planted_seeds`, `seed`.
    """
    parts = {
        "predictor": [predictor_cell(width, length, args) for width, length in WIDTHS],
        "nfe": nfe_cells(Runner(pipe, world, args.steps)),
        "gate": gate_cells(args),
        "planted": [cell for seed in range(args.planted_seeds) for cell in planted_cells(seed)],
    }
    return [{"row": f"cost/{name}", "seed": args.seed, "cells": cells} for name, cells in parts.items()]


def predictor_cell(width: int, length: int, args: Any) -> dict[str, Any]:
    """Milliseconds of the predictor for one prompt, on one thread."""
    box = PRESETS["sd35"].box(["one", "two", "three", "four"])
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        predictor = LINAPredictor(width, box.to_dict()).eval()
        inputs = (torch.randn(1, length, width), torch.ones(1, length, dtype=torch.bool), torch.zeros(1, 16))

    @torch.no_grad()
    def run() -> Tensor:
        return predictor(*inputs).action

    with _threads(1):
        timing = time_runs(run, min_repeats=max(args.repeats, 50), budget_s=args.budget)
    p50 = 1e3 * summary(timing.timings_s)["p50"]
    words = f"predictor, D = {width}, {length} tokens, one thread"
    cell = {"metric": "milliseconds", "words": words, "value": p50, "n": len(timing.timings_s), "bar": PREDICTOR_MS}
    return {**cell, "ci95": [1e3 * end for end in summary(timing.timings_s)["ci95"]], "met": p50 < PREDICTOR_MS}


def nfe_cells(runner: Runner) -> list[dict[str, Any]]:
    """Counted network rows over those of the plain model, beside 1 + f/2 (guidance on) and 1 + f (off)."""
    prompts, cells = runner.pipe.grammar.prompts()[:1], []
    for scale, rows in ((2.0, 2), (1.0, 1)):
        base = runner.run(prompts, [0], scale).nfe.item()
        for one in (*WINDOWS, WARPED) if rows == 2 else WINDOWS[:1]:
            counted = runner.run(prompts, [0], scale, one).nfe.item() / base
            output = runner.pipe(
                prompts, runner.steps, scale, one, output_type="latent", generator=torch.Generator().manual_seed(0)
            )
            shares = output.schedule[0]
            active = sum(one.acts_at(share) for share in shares) / len(shares)
            formula = 1 + active / rows
            warp = "" if one.warp.is_identity else f", {one.warp.label}"
            words = f"NFE ratio, guidance {scale:g}, s > {one.window[1]:g}{warp}, f = {active:g}"
            cell = {"metric": "nfe_ratio", "words": words, "value": counted, "n": 1, "formula": formula}
            cells.append({**cell, "bar": RATIO_OFF, "met": abs(counted - formula) <= RATIO_OFF})
    return cells


def gate_cells(args: Any) -> list[dict[str, Any]]:
    """Seconds and denoiser calls of a StableDiffusionPipeline inside `attach` with a shut gate, over those outside."""
    pipe, conditions = _attachable()
    shut = Intervention(lam=5.0, warp=WarpSpec("moebius", 3.0), gate=False)

    def plain() -> Tensor:
        generator = torch.Generator().manual_seed(args.seed)
        return pipe(
            PROMPT, num_inference_steps=10, guidance_scale=3.0, generator=generator, output_type="latent"
        ).images

    def attached() -> Tensor:
        with attach(pipe, shut, conditions):
            return plain()

    calls = []
    for run in (attached, plain):
        with _counted(pipe.unet) as count:
            run()
        calls.append(count[0])
    found = compare_runs(
        attached, plain, tolerance=0.0, min_pairs=args.repeats, precision=0.002, max_pairs=2000, budget_s=args.budget
    )
    words = "seconds of a tiny StableDiffusionPipeline, 10 steps: shut gate / plain, images equal bit for bit"
    cell = {"metric": "overhead", "words": words, "value": found.ratio_p50, "n": len(found.ours.timings_s)}
    cell |= {"ci95": list(found.ratio_ci95), "noisy": found.noisy, "bar": OVERHEAD, "met": found.ratio_p50 < OVERHEAD}
    same = {
        "metric": "calls",
        "words": "its denoiser calls: shut gate / plain",
        "value": calls[0] / calls[1],
        "n": calls[1],
    }
    return [cell, {**same, "bar": 1.0, "met": calls[0] == calls[1]}]


def _attachable() -> tuple[Any, Any]:
    pipe = tiny_stable_diffusion()
    return pipe, prompt_conditions(pipe, PROMPT, OTHER)


@contextmanager
def _counted(module: nn.Module) -> Iterator[list[int]]:
    """How often a module is called."""
    count = [0]

    def called(*_: Any) -> None:
        count[0] += 1

    hook = module.register_forward_pre_hook(called)
    try:
        yield count
    finally:
        hook.remove()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
