"""What models over stages are held against, and whether one schedule beats the other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_LOST = 0.05
"""Share of samples by which class accuracy may fall behind the classifier's own on real images."""
MOST_DISTANCE = 3.0
"""Times the distance of the tokenizer's own reconstructions."""
LEAST_SPEEDUP = 10.0
LEAST_PSNR = 24.0
LEAST_USE = 0.5
"""Share of the codes that a stage could use, from the third stage on."""
FIRST_JUDGED = 2
"""Stage 0 holds one token and stage 1 four: all images of a kind may well agree on them."""
REAL, TRAINING, BASELINE = "real: held out", "real: training images", "baseline"
"""Rows that are no models of stages."""
RECONSTRUCTIONS = ("reconstructions of test images", "reconstructions of training images")
BETTER_HIGH = ("psnr", "accuracy")


@dataclass(frozen=True)
class Bar:
    """A figure of all seeds of a model beside what it must reach.

    Attributes:
        words: what is measured.
        values: of each seed.
        limits: of each seed.
        high: whether it must be at least the limit, or at most.
    """

    words: str
    values: list[float]
    limits: list[float]
    high: bool

    @property
    def met(self) -> int:
        """Seeds that reach it; equal is enough."""
        pairs = zip(self.values, self.limits, strict=True)
        return sum(value >= limit if self.high else value <= limit for value, limit in pairs)


class Scores:
    """The cells of a result, by what they are of."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.cases = result["cases"]
        self.facts = {case["row"]: case["facts"] for case in self.cases if "facts" in case}
        self.asked: float | None = result["settings"]["table_guidance"]
        self.extractors: list[str] = list(result["settings"]["extractors"])

    def values(self, row: str, metric: str, **fields: Any) -> list[float]:
        """One value for each seed, in order of seeds; empty where nothing was measured."""
        found = []
        for case in sorted((case for case in self.cases if case["row"] == row), key=lambda case: case["seed"]):
            fits = [cell for cell in case["cells"] if cell["metric"] == metric and _fits(cell, fields)]
            found += [cell["value"] for cell in fits]
        return found

    def seeds(self, row: str) -> list[int]:
        return sorted(case["seed"] for case in self.cases if case["row"] == row)

    def guidances(self, row: str) -> list[float]:
        """Values of guidance that were tried."""
        cells = [cell for case in self.cases if case["row"] == row for cell in case["cells"]]
        return sorted({cell["guidance"] for cell in cells if "guidance" in cell})

    def guidance(self, row: str) -> float:
        """The one that tables show: as asked for, or of the least mean distance in the first features."""
        known = self.guidances(row)
        if self.asked in known:
            assert self.asked is not None
            return self.asked
        return min(
            known, key=lambda g: statistics.fmean(self.values(row, "fd", extractor=self.extractors[0], guidance=g))
        )


def _fits(cell: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Whether a cell is of exactly these fields; `extractor` alone may be left open."""
    telling = ("extractor", "stage", "guidance", "of")
    return all(cell.get(name) == fields.get(name) for name in telling if name in fields or name != "extractor")


def bars(scores: Scores, row: str) -> list[Bar]:
    """All bars of a model; those whose other side was not measured are left out."""
    guidance = scores.guidance(row)
    count = len(scores.seeds(row))
    found = []
    real = scores.values(REAL, "accuracy")
    if real:
        limit = statistics.fmean(real) - MOST_LOST
        values = scores.values(row, "accuracy", guidance=guidance)
        found.append(Bar("class accuracy: that of real test images less 5 points", values, [limit] * count, True))
    for name in scores.extractors:
        values = scores.values(row, "fd", extractor=name, guidance=guidance)
        diffusion = scores.values(BASELINE, "fd", extractor=name)
        if diffusion:
            limits = [statistics.fmean(diffusion)] * count
            found.append(Bar(f"FD[{name}]: that of the baseline", values, limits, False))
        for of in RECONSTRUCTIONS:
            limits = [MOST_DISTANCE * value for value in scores.values(row, "fd", extractor=name, of=of)]
            found.append(Bar(f"FD[{name}]: {MOST_DISTANCE:g} times that of its {of}", values, limits, False))
    for metric, words in (("seconds", ""), ("cpu_seconds", ", CPU time")):
        baseline = scores.values(BASELINE, metric)
        if baseline:
            ratios = [baseline[0] / value for value in scores.values(row, metric, guidance=guidance)]
            found.append(Bar(f"times as fast as the baseline, batch 16{words}", ratios, [LEAST_SPEEDUP] * count, True))
    last = len(scores.facts[row]["stages"]) - 1
    found.append(Bar("PSNR of reconstructions, dB", scores.values(row, "psnr", stage=last), [LEAST_PSNR] * count, True))
    shares = least_use(scores, row)
    if shares:
        words = f"least share of codes in use, stages {FIRST_JUDGED} to {last}"
        found.append(Bar(words, shares, [LEAST_USE] * count, True))
    return found


def least_use(scores: Scores, row: str) -> list[float]:
    """For each seed, the least share of usable codes that a judged stage uses."""
    found = []
    for case in sorted((case for case in scores.cases if case["row"] == row), key=lambda case: case["seed"]):
        shares = [
            cell["value"] / cell["most"]
            for cell in case["cells"]
            if cell["metric"] == "codes" and cell["stage"] >= FIRST_JUDGED
        ]
        if shares:
            found.append(min(shares))
    return found


def verdict(metric: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Which of two is better: "ours", "theirs", or "tie" where their seeds overlap, "one seed" where there is no more.

    Args:
        metric: of `BETTER_HIGH`, or less is better.
    """
    if min(len(ours), len(theirs)) < 2:
        return "one seed"
    if metric in BETTER_HIGH:
        ours, theirs = [-value for value in ours], [-value for value in theirs]
    if max(ours) < min(theirs):
        return "ours"
    return "theirs" if max(theirs) < min(ours) else "tie"


def rivals(scores: Scores) -> list[tuple[str, str]]:
    """Models of bands and models of none with the same stages."""
    facts = scores.facts
    scales = [row for row, fact in facts.items() if fact["bands"] == "none"]
    return [
        (row, other)
        for row, fact in facts.items()
        for other in scales
        if fact["bands"] != "none" and fact["stages"] == facts[other]["stages"]
    ]
