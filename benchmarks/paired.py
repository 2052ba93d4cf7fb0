"""Two ways to do the same work, timed turn by turn in one process: A B B A."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timing import Timing, bootstrap_ci, half_width, time_once
from torch import Tensor

from gendiff.errors import InvalidInputError


@dataclass(frozen=True)
class PairedTiming:
    """Times of two ways, pair by pair.

    Attributes:
        ours, peer: the runs of each; entry i of both `timings_s` is one pair.
        max_abs_diff: largest difference of the two outputs, checked before timing.
        ratio_p50: median over pairs of our time / the peer's; below 1, ours is faster.
        ratio_ci95: its 95 % bootstrap interval.
    """

    ours: Timing
    peer: Timing
    max_abs_diff: float
    ratio_p50: float
    ratio_ci95: tuple[float, float]

    @property
    def noisy(self) -> bool:
        return self.ours.noisy or self.peer.noisy

    @property
    def extra_s(self) -> list[float]:
        """Our seconds beyond the peer's, pair by pair."""
        return [ours - peer for ours, peer in zip(self.ours.timings_s, self.peer.timings_s, strict=True)]


def compare_runs(
    ours: Callable[[], Tensor],
    peer: Callable[[], Tensor],
    *,
    tolerance: float,
    device: str | torch.device = "cpu",
    before: Callable[[], Any] | None = None,
    warmup: int = 3,
    min_pairs: int = 10,
    max_pairs: int = 200,
    precision: float = 0.03,
    budget_s: float = 120.0,
) -> PairedTiming:
    """Time two ways to the same result, in blocks A B B A of two pairs, so that drift of the machine hits both alike.

    Args:
        ours, peer: the whole work each; equal tensors come out.
        tolerance: of the largest absolute difference between the two.
        before: called before each run, outside the clock.
        warmup: runs of each before the clock, at least one: on the first, the outputs are compared.
        min_pairs, max_pairs, precision, budget_s: stop after a whole block when the half-width of the ratio's interval
            is below `precision` of it, or at `max_pairs`, or when the timed runs have taken `budget_s` seconds.

    Raises:
        InvalidInputError: the outputs differ; then no ratio would mean anything.
    """
    device = torch.device(device)
    both = (_Runs(ours, device, before), _Runs(peer, device, before))
    difference = max_abs_diff(both[0].warm_up(), both[1].warm_up())
    if not difference <= tolerance:
        raise InvalidInputError(
            f"the two do not do the same work: outputs differ by {difference:.3g}, allowed is {tolerance:g}."
        )
    for _ in range(warmup - 1):
        both[0].warm_up()
        both[1].warm_up()
    while True:
        for turn in (0, 1, 1, 0):
            both[turn].time()
        ratios = paired_ratios(both[0].wall, both[1].wall)
        enough = len(ratios) >= min_pairs and half_width(ratios) < precision
        if enough or len(ratios) >= max_pairs or sum(both[0].wall) + sum(both[1].wall) >= budget_s:
            timings = [runs.timing(half_width(runs.wall) < precision) for runs in both]
            return PairedTiming(timings[0], timings[1], difference, statistics.median(ratios), bootstrap_ci(ratios))


def paired_ratios(ours_s: Sequence[float], peer_s: Sequence[float]) -> list[float]:
    """Our time over the peer's, pair by pair; below 1 we are faster."""
    return [ours / peer for ours, peer in zip(ours_s, peer_s, strict=True)]


def verdict(ratio: float, ci95: Sequence[float]) -> str:
    """The ratio in words; an interval that holds 1 shows no difference, whatever the median says."""
    low, high = ci95
    if low <= 1 <= high:
        return "no difference"
    return f"{ratio:.3f} [{low:.3f}, {high:.3f}]"


def max_abs_diff(ours: Tensor, peer: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape.

    Raises:
        InvalidInputError: the shapes differ.
    """
    if ours.shape != peer.shape:
        raise InvalidInputError(f"outputs must have one shape, got {tuple(ours.shape)} and {tuple(peer.shape)}.")
    return (ours.double() - peer.double().to(ours.device)).abs().max().item()


class _Runs:
    """Timed runs of one of the two."""

    def __init__(self, run: Callable[[], Any], device: torch.device, before: Callable[[], Any] | None):
        self.arguments = (run, device, before)
        self.warmup: list[float] = []
        self.wall: list[float] = []
        self.shares: list[float] = []
        self.output: Any = None

    def warm_up(self) -> Any:
        wall, _, output = time_once(*self.arguments)
        self.warmup.append(wall)
        return output

    def time(self) -> None:
        wall, cpu, self.output = time_once(*self.arguments)
        self.wall.append(wall)
        if self.arguments[1].type == "cpu":
            self.shares.append(cpu / (max(wall, 1e-9) * torch.get_num_threads()))

    def timing(self, precise: bool) -> Timing:
        return Timing(self.wall, self.shares, self.warmup, precise, self.output)
