"""Which rollouts are timed, how often, and in which order, so that a run ends within minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from arguments import say
from causal_video_cost import Sizes, rollout_flops
from causal_video_runs import VARIANTS, Rollout, Work, roll_out

SLOW_STEPS = 16
"""Most chunks of a variant without a cache, and of the cached one at other windows than the model's own, unless all are
asked for."""
OTHER_STEPS = 8
"""Most chunks of a variant without a cache at other windows."""
PROCESS_S = 6.0
"""About what a process takes to import and load, in which the memory of a job is watched."""
EXPECTED_SHARE = 0.5
"""Of the machine's matrix rate, for the forecast."""


@dataclass(frozen=True)
class Job:
    """One variant at one window.

    Attributes:
        variant: name in `VARIANTS`.
        window: W of the group it is compared in; `fixed` and `unbounded` do without.
        chunks: n.
        repeats: timed rollouts.
    """

    variant: str
    window: int
    chunks: int
    repeats: int


def jobs_of(
    sizes: Sizes, windows: Sequence[int], chunks: int, repeats: int, budget_s: float, rate: float, all_steps: bool
) -> list[Job]:
    """All variants at the model's window; at others those whose cost depends on it.

    The cache and what it is held against first of all, `recompute`, run `repeats` times at the model's window; others
    as often as fits into `budget_s`, but once at least.

    Args:
        sizes: at the model's window.
        windows: W of all groups, the model's among them or added.
        chunks: largest n.
        rate: 10^9 operations a second of the machine's matrix product.
        all_steps: let slow variants run to the largest n too.
    """
    jobs = []
    for window in sorted({*windows, sizes.window}):
        main = window == sizes.window
        for name, variant in VARIANTS.items():
            if not main and variant.kind in ("fixed", "unbounded"):
                continue
            cached = name == "cached"
            limit = (chunks if cached else SLOW_STEPS) if main else (SLOW_STEPS if cached else OTHER_STEPS)
            most = chunks if all_steps else min(chunks, limit)
            job = Job(name, window, most, repeats)
            if not (main and name in ("cached", "recompute")):
                fitting = int(budget_s / max(_seconds(job, sizes, rate), 1e-9))
                job = replace(job, repeats=max(1, min(repeats, fitting)))
            jobs.append(job)
    return jobs


def predicted_seconds(jobs: Sequence[Job], sizes: Sizes, rate: float, memory: bool) -> float:
    """Seconds of all rollouts, if the network reaches EXPECTED_SHARE of the matrix rate.

    Args:
        memory: whether that of each job at the model's window is watched in a process of its own.
    """
    total = 0.0
    for job in jobs:
        timed = _seconds(job, sizes, rate)
        single = timed * 2 / sizes.steps  # one step a chunk and at most a write
        # Counting operations takes about as long again.
        total += job.repeats * timed + 2 * single
        total += PROCESS_S + 2 * single if memory and job.window == sizes.window else 0.0
    return total


def run_jobs(jobs: Sequence[Job], pipes: Any, work: Work, steps: int, warmup: int = 1) -> dict[Job, list[Rollout]]:
    """Timed rollouts of each job, in rounds over all jobs, so that a slow minute of the machine meets every variant.

    Before its clock starts, each job runs all its chunks with a single step: that warms up every shape, and operations
    are counted there, once for each shape, so that counting takes no time later.

    Args:
        warmup: such runs, at least 1.
    """
    runs: dict[Job, list[Rollout]] = {job: [] for job in jobs}
    for done in range(max(job.repeats for job in jobs)):
        for job in jobs:
            if done >= job.repeats:
                continue
            variant = VARIANTS[job.variant]
            if done == 0:
                for _ in range(max(warmup, 1)):
                    roll_out(pipes, work, variant, job.window, 1, job.chunks)
            run = roll_out(pipes, work, variant, job.window, steps, job.chunks)
            runs[job].append(run)
            say(f"W {job.window}, {job.variant}: {job.chunks} chunks in {run.total_s:.1f} s ({done + 1}/{job.repeats})")
    return runs


def _seconds(job: Job, sizes: Sizes, rate: float) -> float:
    """Predicted seconds of one rollout."""
    kind = VARIANTS[job.variant].kind
    given = sizes.chunk if kind == "fixed" else 1
    flops = sum(rollout_flops(replace(sizes, window=job.window), kind, job.chunks, given))
    return flops / (EXPECTED_SHARE * rate * 1e9)
