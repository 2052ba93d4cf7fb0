"""Pairs of ways that are timed turn by turn, the bar of each, and the cases they become."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from flops import count_flops
from harness import figures, network_times
from next_frequency_cost import Sizes, cached_macs, recomputed_macs
from next_frequency_runs import Way, Work, between_events, counted_macs, draw, equal_tokens, make_pipe
from paired import PairedTiming, compare_runs
from timing import Timing, time_runs

GROUPS = ("cache", "schedules", "short", "sizes")
GUIDED = 2.5
SIDES: dict[str, Callable[[float, float], bool]] = {
    "at least": lambda value, bar: value >= bar,
    "1 within": lambda value, bar: abs(value - 1) <= bar,
}
BARS: dict[str, tuple[str, float]] = {"cache": ("at least", 2.0), "schedules": ("1 within", 0.05)}
"""Group of pairs -> side and bar of their ratio."""
COUNTED = ("1 within", 0.02)
"""Of counted over predicted multiply-adds."""


@dataclass(frozen=True)
class Pair:
    """Two ways whose ratio is of interest.

    Attributes:
        name: GROUP/WHICH.
        words: what the ratio is.
        slow, quick: seconds of the first over those of the second.
        equal: whether both must return the same, bit for bit.
    """

    name: str
    words: str
    slow: Way
    quick: Way
    equal: bool = False

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    @property
    def predicted(self) -> float:
        """The ratio of their multiply-adds."""
        return way_macs(self.slow) / way_macs(self.quick)


def way_macs(way: Way) -> int:
    """Multiply-adds of one call by formula, the network alone."""
    return way.rows * sum((cached_macs if way.use_cache else recomputed_macs)(way.sizes))


def pairs_of(work: Work, batches: Sequence[int], groups: Sequence[str] = GROUPS) -> list[Pair]:
    """All pairs, in an order in which few pipelines are needed at a time."""
    preset = work.sizes
    sizes = Sizes(preset.stages, preset.width, preset.depth, preset.codes, preset.channels)
    main = Way(sizes)
    pairs = []
    for batch in batches:
        for guidance in (1.0, GUIDED):
            quick = replace(main, batch=batch, guidance=guidance)
            which = f"batch {batch}{', guided' if guidance != 1 else ''}"
            words = f"no cache / cache, {which}"
            pairs.append(Pair(f"cache/{which}", words, replace(quick, use_cache=False), quick))
    words = "next-frequency / next-scale"
    pairs.append(Pair("schedules/batch 1", words, main, replace(main, bands="none"), equal=True))
    for stages in preset.short:
        shown = ",".join(map(str, stages))
        quick = replace(main, sizes=replace(sizes, stages=stages))
        pairs.append(Pair(f"short/{shown}", f"{len(preset.stages)} stages / {shown}", main, quick))
    small, large = (replace(sizes, width=preset.head_dim * depth, depth=depth) for depth in preset.depths)
    words = f"size ratio: d{large.depth} / d{small.depth}"
    pairs.append(Pair(f"sizes/d{large.depth}", words, Way(large), Way(small)))
    return [pair for pair in pairs if pair.group in groups]


def measure_pair(
    pair: Pair, work: Work, calibration: Mapping[str, float], **stop: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Timed cases of both ways, and the cell of their ratio.

    Args:
        stop: `warmup`, `min_pairs`, `max_pairs`, `precision`, `budget_s` of `paired.compare_runs`.
    """
    ways = (pair.slow, pair.quick)
    pipes = [make_pipe(work, way.sizes, way.bands) for way in ways]
    device = torch.device(work.device)
    runs, events = [], []
    for pipe, way in zip(pipes, ways, strict=True):
        run, seconds = between_events(partial(_latents, pipe, way, work.seed), device)
        runs.append(run)
        events.append(seconds)
    # A cached sum of stages may differ by a code, see `equal_tokens`; other pairs draw other pictures.
    found = compare_runs(*runs, tolerance=0.0 if pair.equal else math.inf, device=device, **stop)
    cases = []
    for side, way, pipe, timing, marked in zip(
        ("slow", "quick"), ways, pipes, (found.ours, found.peer), events, strict=True
    ):
        once = draw(pipe, way, work.seed).stats
        cases.append(
            {
                **_identity(f"{pair.name}/{side}", way, pipe, work),
                **figures(timing, way.batch, work.dtype, calibration, once.network_calls, once.flops),
                "cpu_s": cpu_seconds(timing),
                "event_s": marked()[-len(timing.timings_s) :] or None,
                "formula_macs": way_macs(way),
                "cache_bytes": once.cache_bytes,
            }
        )
    return cases, _ratio_cell(pair, found, bars=work.preset == "paper")


def _latents(pipe: Any, way: Way, seed: int) -> torch.Tensor:
    return draw(pipe, way, seed).images


def _identity(name: str, way: Way, pipe: Any, work: Work) -> dict[str, Any]:
    sizes = way.sizes
    return {
        "id": name,
        "pipeline": f"{type(pipe).__name__} (random weights)",
        "checkpoint_sha256": None,
        "params": sum(parameter.numel() for parameter in pipe.transformer.parameters()),
        "shape": [sizes.channels, sizes.stages[-1], sizes.stages[-1]],
        "steps": len(sizes.stages),
        "guidance": way.guidance,
        "scheduler": type(pipe.scheduler).__name__,
        "seed": work.seed,
        "stages": list(sizes.stages),
        "tokens": sizes.ends[-1],
        "width": sizes.width,
        "depth": sizes.depth,
        "bands": way.bands,
        "use_cache": way.use_cache,
    }


def _ratio_cell(pair: Pair, found: PairedTiming, bars: bool) -> dict[str, Any]:
    cell = {"metric": pair.name, "words": pair.words, "value": found.ratio_p50, "n": len(found.ours.timings_s)}
    cell |= {"ci95": list(found.ratio_ci95), "predicted": pair.predicted, "noisy": found.noisy}
    seconds = [cpu_seconds(timing) for timing in (found.ours, found.peer)]
    cell["cpu_ratio"] = None if None in seconds else seconds[0] / seconds[1]  # type: ignore[operator]
    side, bar = BARS.get(pair.group, ("", None)) if bars else ("", None)
    return cell | {"side": side, "bar": bar, "met": None if bar is None else SIDES[side](found.ratio_p50, bar)}


def cpu_seconds(timing: Timing) -> float | None:
    """Median process seconds of a run; None on an accelerator."""
    if not timing.cpu_shares:
        return None
    threads = torch.get_num_threads()
    return statistics.median(s * w * threads for s, w in zip(timing.cpu_shares, timing.timings_s, strict=True))


def count_cell(work: Work, sizes: Sizes, use_cache: bool) -> dict[str, Any]:
    """Multiply-adds of a network that torch's counter finds, over those by formula."""
    counted = counted_macs(make_pipe(work, sizes, "area").transformer, use_cache)
    formula = sum((cached_macs if use_cache else recomputed_macs)(sizes))
    ratio, (side, bar) = counted / formula, COUNTED
    return {
        "metric": "counted",
        "value": ratio,
        "n": sizes.ends[-1],
        "counted": counted,
        "formula": formula,
        "width": sizes.width,
        "depth": sizes.depth,
        "stages": list(sizes.stages),
        "use_cache": use_cache,
        "side": side,
        "bar": bar,
        "met": SIDES[side](ratio, bar),
    }


def time_decoder(work: Work, way: Way, calibration: Mapping[str, float], **stop: Any) -> dict[str, Any]:
    """Timed case of what all ways share: from the sum of stages to one image."""
    pipe = make_pipe(work, way.sizes, way.bands)
    total = _latents(pipe, replace(way, batch=1), work.seed)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return pipe.vqvae.decode(f_hat=total)

    timing = time_runs(run, device=work.device, **stop)
    case = {**_identity("decoder", replace(way, batch=1), pipe, work), "params": None}
    case |= figures(timing, 1, "float32", calibration, None, count_flops(run))
    return {**case, "shape": [3, work.sizes.image, work.sizes.image], "cpu_s": cpu_seconds(timing)}


def stage_seconds(work: Work, way: Way, repeats: int) -> list[float]:
    """Median seconds of the network at each stage."""
    pipe = make_pipe(work, way.sizes, way.bands)
    draw(pipe, way, work.seed)
    times = [network_times(partial(draw, pipe, way, work.seed), pipe.transformer, work.device) for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def same_pictures(work: Work, way: Way) -> dict[str, Any]:
    """Cell of the tokens that do not depend on the cache."""
    share, count = equal_tokens(make_pipe(work, way.sizes, way.bands), way, replace(way, use_cache=False), work.seed)
    return {"metric": "equal_tokens", "value": share, "n": count}
