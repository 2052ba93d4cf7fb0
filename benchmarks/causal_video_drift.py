"""Quality beside speed: how predicted frames of two balls part from the simulator's, for each way to roll out."""

from __future__ import annotations

import time
from typing import Any

import torch
from causal_video_runs import Work, ignoring_long_windows
from timing import synchronize

from gendiff.data.bouncing_balls import BouncingBalls
from gendiff.metrics.paired import psnr, ssim
from gendiff.pipelines.causal_video import CausalVideoPipeline

GIVEN = 5
"""Frames the model is given: 1 + l of the built-in models, from which the balls' speeds can be read."""
WAYS: dict[str, dict[str, Any]] = {
    "cached": {"use_cache": True},
    "cached, rebuilt before each chunk": {"use_cache": True, "cache_refresh": "always"},
    "window recomputed": {"use_cache": "window"},
    "all frames recomputed": {"use_cache": False},
}
"""Words for tables -> arguments of the pipeline; the last one sees all frames."""


def check_balls(pipe: CausalVideoPipeline) -> None:
    """Raise ValueError unless the model was made for frames like those of bouncing balls."""
    channels, height, width = pipe.sample_shape
    if pipe.class_names or channels != 1 or height != width:
        raise ValueError(
            f"drift needs a model of bouncing balls, grey square frames and no classes; got frames {pipe.sample_shape} "
            f"and {len(pipe.class_names)} classes: leave it out with --no-drift."
        )


def drifts(pipe: CausalVideoPipeline, work: Work, videos: int, frames: int, steps: int) -> list[dict[str, Any]]:
    """A row for each way: PSNR and SSIM of each predicted frame against the truth, and seconds of the whole.

    Args:
        videos: of the test split of bouncing balls, predicted side by side.
        frames: predicted after the given ones.
        steps: N.
    """
    data = BouncingBalls("test", videos, GIVEN + frames, pipe.sample_shape[1], seed=work.seed)
    truth = (torch.stack([data[index]["video"] for index in range(videos)]) + 1) / 2
    targets, device = as_bytes(truth[:, GIVEN:]), torch.device(work.device)
    cases = []
    for words, arguments in WAYS.items():
        every = {"context_frames": GIVEN + frames} if arguments["use_cache"] is False else {}
        options: dict[str, Any] = {**arguments, **every, "video": truth[:, :GIVEN], "num_frames": GIVEN + frames}
        # The first time a shape is seen its operations are counted, which takes a while.
        _generate(pipe, work, videos, {**options, "num_inference_steps": 1})
        synchronize(device)
        start = time.perf_counter()
        generated = _generate(pipe, work, videos, {**options, "num_inference_steps": steps})
        synchronize(device)
        cells: list[dict[str, Any]] = [{"metric": "seconds", "value": time.perf_counter() - start, "n": videos}]
        samples = as_bytes(generated[:, GIVEN:])
        for metric in (psnr, ssim):
            result = metric(samples, targets)
            cells.append({"metric": result.metric, "value": result.mean, "n": videos})
            values = result.per_frame or ()
            cells += [
                {"metric": result.metric, "frame": at + 1, "value": v, "n": videos} for at, v in enumerate(values)
            ]
        cases.append({"row": f"drift/{words}", "seed": work.seed, "cells": cells})
    return cases


def _generate(pipe: CausalVideoPipeline, work: Work, videos: int, options: dict[str, Any]) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(work.seed + index) for index in range(videos)]
    with ignoring_long_windows():
        out: Any = pipe(generator=generators, output_type="pt", **options)
    return out.frames


def as_bytes(frames: torch.Tensor) -> torch.Tensor:
    """Frames in [0, 1] as the bytes one would save."""
    return (frames.float().cpu() * 255).round().clamp(0, 255).byte()
