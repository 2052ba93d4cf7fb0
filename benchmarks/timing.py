"""The clock: warm-up, repeats until the median is known well enough, and what the machine was doing meanwhile."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from noise import NOISY_BELOW

from gendiff.errors import InvalidInputError

RESAMPLES = 2000
"""Of a bootstrap; its own error in the ends of a 95 % interval is then far below the interval's width."""


@dataclass(frozen=True)
class Timing:
    """Repeated runs of one thing.

    Attributes:
        timings_s: wall seconds of each timed run, in order.
        cpu_shares: process seconds / (wall seconds x threads) of each; empty on an accelerator, where the CPU waits.
        warmup_s: wall seconds of each run before the clock; the first holds compilation and lazy set-up.
        precise: whether the half-width of `ci95` came below the precision asked for.
        output: what the last timed run returned.
    """

    timings_s: list[float]
    cpu_shares: list[float]
    warmup_s: list[float]
    precise: bool
    output: Any

    @property
    def cpu_share(self) -> float | None:
        """Median share; None on an accelerator."""
        return statistics.median(self.cpu_shares) if self.cpu_shares else None

    @property
    def noisy(self) -> bool:
        """Whether the process did not get the cores it was promised, so that the figures support no claim."""
        return self.cpu_share is not None and self.cpu_share < NOISY_BELOW


def time_runs(
    run: Callable[[], Any],
    *,
    device: str | torch.device = "cpu",
    before: Callable[[], Any] | None = None,
    warmup: int = 3,
    min_repeats: int = 10,
    max_repeats: int = 1000,
    precision: float = 0.03,
    budget_s: float = 60.0,
) -> Timing:
    """Time `run` until its median is known.

    At least `min_repeats` timed runs, then more until the 95 % bootstrap half-width of the median is below
    `precision` of it; no run starts after `budget_s` seconds of timed runs, whatever their number (at least one).

    Args:
        run: the whole work, inputs ready; its result is kept, so that nothing can be optimised away.
        device: where the work runs; CUDA and MPS are synchronised before the clock is read.
        before: called before each run, outside the clock, e.g. to seed generators again.
        warmup: runs before the clock, not counted in the budget.
        min_repeats, max_repeats, precision, budget_s: when to stop.

    Raises:
        InvalidInputError: an argument out of range.
    """
    _check(warmup=warmup, min_repeats=min_repeats, max_repeats=max_repeats, precision=precision, budget_s=budget_s)
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    warmup_s = [time_once(run, device, before)[0] for _ in range(warmup)]
    timings, shares, output, check_at, precise = [], [], None, min_repeats, False
    while True:
        wall, cpu, output = time_once(run, device, before)
        timings.append(wall)
        if on_cpu:
            shares.append(cpu / (max(wall, 1e-9) * torch.get_num_threads()))
        last = len(timings) >= max_repeats or sum(timings) >= budget_s
        if len(timings) >= check_at or (last and len(timings) >= min_repeats):
            precise = half_width(timings) < precision
            # Not after every run: a bootstrap may take longer than a short run does.
            check_at = len(timings) + 1 + len(timings) // 10
        if precise or last:
            return Timing(timings, shares, warmup_s, precise, output)


def time_once(
    run: Callable[[], Any], device: torch.device, before: Callable[[], Any] | None = None
) -> tuple[float, float, Any]:
    """Wall seconds and process seconds of one run, and what it returned."""
    if before is not None:
        before()
    synchronize(device)
    cpu, wall = time.process_time(), time.perf_counter()
    output = run()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu, output


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator's queue, without which the clock would time the launch alone."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def bootstrap_ci(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the median (Efron 1979); the same values give the same interval."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(np.median(array[draws], axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of the median, as a share of the median; infinite for one value, which tells nothing."""
    if len(values) < 2:
        return math.inf
    low, high = bootstrap_ci(values)
    return (high - low) / 2 / statistics.median(values)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """p50, p90, min, iqr and ci95 of seconds; ci95 is None for a single run."""
    q25, p50, q75, p90 = (float(q) for q in np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75, 0.9]))
    ci95 = list(bootstrap_ci(values)) if len(values) > 1 else None
    return {"p50": p50, "p90": p90, "min": float(min(values)), "iqr": q75 - q25, "ci95": ci95}


def _check(**values: float) -> None:
    least = {"warmup": 0, "min_repeats": 1, "max_repeats": 1}
    for name, value in values.items():
        if name in least and (isinstance(value, bool) or not isinstance(value, int) or value < least[name]):
            raise InvalidInputError(f"{name} must be a whole number of at least {least[name]}, got {value!r}.")
        if name not in least and not value > 0:
            raise InvalidInputError(f"{name} must be above 0, got {value!r}.")
    if values["max_repeats"] < values["min_repeats"]:
        raise InvalidInputError(
            f"max_repeats must be at least min_repeats = {values['min_repeats']}, got {values['max_repeats']}."
        )
