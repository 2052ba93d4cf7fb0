"""The figures that the method stands or falls by, from timed rollouts, each beside its bar."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from causal_video_cost import Kind, Sizes, chunk_flops, rollout_flops, slope
from causal_video_runs import Rollout

STEPS_COMPARED = 10
"""Chunks over which recomputing is held against the cache."""
LATE = 32
"""The chunk that must take no longer than the first one with a full window."""
SIDES: dict[str, Callable[[float, float], bool]] = {
    "at least": lambda value, bar: value >= bar,
    "at most": lambda value, bar: value <= bar,
    "1 within": lambda value, bar: abs(value - 1) <= bar,
}

BARS: dict[str, tuple[str, str, float | None]] = {
    "speedup": ("recompute / cached, 10 chunks, wall clock", "at least", 2.0),
    "speedup_loop": ("recompute / cached, 10 chunks, without decoding", "at least", 2.0),
    "speedup_flops": ("recompute / cached, 10 chunks, operations counted", "", None),
    "speedup_formula": ("recompute / cached, 10 chunks, operations by formula", "", None),
    "fixed": ("fixed prefix / cached, 10 chunks, wall clock", "", None),
    "fixed_formula": ("fixed prefix / cached, 10 chunks, operations by formula", "", None),
    "late_step": ("cached: chunk 32 / first chunk with a full window, seconds", "at most", 1.1),
    "late_step_flops": ("cached: chunk 32 / first chunk with a full window, operations", "at most", 1.1),
    "slope_cached": ("cached: exponent of cumulative seconds, n >= 8", "at most", 1.1),
    "slope_cached_flops": ("cached: exponent of cumulative operations, n >= 8", "at most", 1.1),
    "slope_unbounded": ("all frames recomputed: exponent of cumulative seconds, n >= 8", "at least", 1.6),
    "slope_unbounded_flops": ("all frames recomputed: exponent of cumulative operations, n >= 8", "at least", 1.6),
    "counted": ("cached, full window: operations counted / by formula", "1 within", 0.06),
    "memory_rss": ("cached stream: peak of resident memory, late / early", "at most", 1.01),
    "memory_live": ("cached stream: bytes of live tensors, late / early", "at most", 1.01),
    "memory_cuda": ("cached stream: peak of CUDA's allocator, late / early", "at most", 1.01),
    "matrix_share": ("forward of 4 clips: share of this machine's best matrix product", "at least", 0.5),
}
"""Figure -> words, which side of the bar is good, bar; None where nothing was promised."""
ON_THE_CLOCK = ("speedup", "speedup_loop", "slope_unbounded", "matrix_share")
"""Promised for chunks that cost as much as those of `small` or more: smaller networks are bound by the overhead of
calls, which a cache does not save."""
SMALL = Sizes(blocks=6, width=192, sites=64, references=2, chunk=4, window=13, steps=20)


def figures(
    runs: Mapping[str, Sequence[Rollout]],
    sizes: Sizes,
    memory: Mapping[str, Any] | None,
    share: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Cells {"metric", "value", "n"} with "bar" and "met" where there is one; left out what was not measured.

    Args:
        runs: variant -> its timed rollouts at the window of `sizes`, in the order of the rounds.
        sizes: of the network and rollout.
        memory: of `stream_memory`.
        share: of `matrix_share`.
    """
    found: dict[str, tuple[float, int]] = {}
    cached = runs.get("cached", [])
    others: dict[str, Kind] = {"speedup": "recompute", "fixed": "fixed"}
    for name, other in others.items():
        rounds = [pair for pair in zip(runs.get(other, []), cached, strict=False) if _long(pair, STEPS_COMPARED)]
        if not rounds:
            continue
        found[name] = _ratio([(_sum(slow.wall_s), _sum(quick.wall_s)) for slow, quick in rounds])
        found[f"{name}_formula"] = formula_ratio(sizes, other), 1
        if name == "speedup":
            found["speedup_loop"] = _ratio([(_sum(slow.loop_s), _sum(quick.loop_s)) for slow, quick in rounds])
            found["speedup_flops"] = _sum(rounds[0][0].flops) / _sum(rounds[0][1].flops), 1
    full = sizes.window // sizes.chunk  # index of the first chunk that sees W frames
    if cached and _long(cached, LATE) and full < LATE:
        late, early = ([run.loop_s[at] for run in cached] for at in (LATE - 1, full))
        found["late_step"] = statistics.median(late) / statistics.median(early), len(cached)
        found["late_step_flops"] = cached[0].flops[LATE - 1] / cached[0].flops[full], 1
    if cached and _long(cached, full + 1):
        formula = rollout_flops(sizes, "cached", full + 1)
        found["counted"] = cached[0].flops[full] / formula[full], 1
    for name in ("cached", "unbounded"):
        some = runs.get(name, [])
        if some and (exponent := slope(step_medians(some, "loop_s"))) is not None:
            found[f"slope_{name}"] = exponent, len(some)
            found[f"slope_{name}_flops"] = slope(some[0].flops) or 0.0, 1
    if memory is not None:
        for name, key in (("memory_rss", "rss_peak"), ("memory_live", "live_bytes"), ("memory_cuda", "cuda_peak")):
            if memory.get(key) and None not in memory[key]:
                found[name] = memory[key][1] / memory[key][0], memory["frames"][1]
    if share is not None:
        found["matrix_share"] = share["share"], share["repeats"]
    small = chunk_flops(sizes, "cached", sizes.window) < chunk_flops(SMALL, "cached", SMALL.window)
    return [_cell(name, *found[name], small and name in ON_THE_CLOCK) for name in BARS if name in found]


def formula_ratio(sizes: Sizes, kind: Kind) -> float:
    """Operations of a way without a cache over those with one, for STEPS_COMPARED chunks."""
    given = sizes.chunk if kind == "fixed" else 1
    slow, quick = rollout_flops(sizes, kind, STEPS_COMPARED, given), rollout_flops(sizes, "cached", STEPS_COMPARED)
    return sum(slow) / sum(quick)


def step_medians(runs: Sequence[Rollout], field: str) -> list[float]:
    """Median over rollouts of each chunk's seconds, `loop_s` or `wall_s`."""
    return [statistics.median(values) for values in zip(*(getattr(run, field) for run in runs), strict=True)]


def _cell(name: str, value: float, n: int, unpromised: bool) -> dict[str, Any]:
    side, bar = BARS[name][1:]
    bar = None if unpromised else bar
    return {"metric": name, "value": value, "n": n, "bar": bar, "met": None if bar is None else SIDES[side](value, bar)}


def _ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, int]:
    """Median over rounds, because both of a round met the same machine."""
    return statistics.median(slow / quick for slow, quick in pairs), len(pairs)


def _sum(values: Sequence[float]) -> float:
    return sum(values[:STEPS_COMPARED])


def _long(runs: Sequence[Rollout], chunks: int) -> bool:
    return all(len(run.loop_s) >= chunks for run in runs)
