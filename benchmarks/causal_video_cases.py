"""Timed rollouts as cases of a result file: one for each variant, window and number of chunks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from arguments import say
from causal_video_bars import step_medians
from causal_video_cost import Sizes, rollout_flops
from causal_video_plan import Job
from causal_video_runs import VARIANTS, Rollout, Work, fresh_rollout, roll_out, window_of
from harness import figures
from memory import cuda_peak, rss_growth
from timing import Timing, half_width

PRECISION = 0.03


def timed_cases(
    runs: Mapping[Job, Sequence[Rollout]],
    pipes: Mapping[bool, Any],
    work: Work,
    sizes: Sizes,
    known: Mapping[str, Any],
    chunks: Sequence[int],
    calibration: Mapping[str, float],
    memory: bool = True,
) -> list[dict[str, Any]]:
    """A case for each job and each n it reached.

    Args:
        runs: of `run_jobs`.
        sizes: of network and rollout; each job has its own window.
        known: fields that all cases share.
        chunks: the n that are shown; one rollout to the largest gives all.
        memory: whether to watch the memory of the longest rollout of each job at the model's window, on a CPU in a
            process of its own.
    """
    cases = []
    for job, rollouts in runs.items():
        reached = [n for n in chunks if n <= job.chunks]
        for n in reached:
            case = _case(job, rollouts, n, work, sizes, known, calibration)
            if memory and job.window == sizes.window and n == reached[-1]:
                case |= _memory(job, pipes, work)
            cases.append(case)
    return cases


def _case(
    job: Job,
    runs: Sequence[Rollout],
    n: int,
    work: Work,
    sizes: Sizes,
    known: Mapping[str, Any],
    calibration: Mapping[str, float],
) -> dict[str, Any]:
    variant, sizes = VARIANTS[job.variant], replace(sizes, window=job.window)
    given = sizes.chunk if variant.kind == "fixed" else 1
    seconds = [sum(run.wall_s[:n]) for run in runs]
    # Shares are of whole rollouts: the process clock is not read in between.
    shares = [run.cpu_s / (run.total_s * torch.get_num_threads()) for run in runs] if work.device == "cpu" else []
    timing = Timing(seconds, shares, [runs[0].total_s], half_width(seconds) < PRECISION, None)
    one = runs[0]
    fields = figures(timing, work.batch, work.dtype, calibration, sum(one.calls[:n]), sum(one.flops[:n]))
    return {
        "id": f"W{job.window}/{job.variant}/n{n}",
        **known,
        "variant": job.variant,
        "window": job.window,
        "context_frames": window_of(variant, job.window, sizes.chunk, job.chunks),
        "chunk": sizes.chunk,
        "chunks": n,
        "frames": n * sizes.chunk,
        "steps": sizes.steps,
        **fields,
        "warmup": 1,
        "frames_per_s": n * sizes.chunk * work.batch / fields["p50"],
        "first_frame_s": statistics.median(run.first_s for run in runs),
        "loop_s": statistics.median(sum(run.loop_s[:n]) for run in runs),
        "chunk_s": _rounded(step_medians(runs, "wall_s")[:n]),
        "chunk_loop_s": _rounded(step_medians(runs, "loop_s")[:n]),
        "cumulative_s": _rounded(list(accumulate(step_medians(runs, "wall_s")[:n]))),
        "chunk_flops": one.flops[:n],
        "formula_flops": rollout_flops(sizes, variant.kind, n, given),
        "cache_bytes": one.cache_bytes[n - 1],
    }


def _memory(job: Job, pipes: Mapping[bool, Any], work: Work) -> dict[str, Any]:
    """Peak memory of the job's rollout, or nothing where it cannot be told."""
    device = torch.device(work.device)
    say(f"W {job.window}, {job.variant}: memory")
    if device.type == "cuda":
        return cuda_peak(lambda: roll_out(dict(pipes), work, VARIANTS[job.variant], job.window, 1, job.chunks), device)
    if device.type != "cpu":
        return {}
    try:
        return rss_growth(partial(fresh_rollout, work, job.variant, job.window, job.chunks))
    except RuntimeError as error:
        say(f"memory is unknown: {error}")
        return {}


def _rounded(values: Sequence[float]) -> list[float]:
    """To a microsecond, which is finer than any clock is steady."""
    return [round(value, 6) for value in values]
