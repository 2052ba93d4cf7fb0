"""ReCAP against the base decoder at equal cost and at equal quality, and the bars that models are held against."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from masked_rows import RECONSTRUCTIONS
from masked_times import ROW as TIMES
from next_frequency_bars import BASELINE, MOST_DISTANCE, MOST_LOST, REAL, Bar

LEAST_AT_QUALITY, LEAST_AT_STEPS = 1.5, 1.25
"""Times fewer seconds than the base of equal distance, and than the base of as many steps."""
COSTS = ("flops", "seconds")


@dataclass(frozen=True)
class Point:
    """A way to decode.

    Attributes:
        row: its name.
        words: for a table.
        base: row of the base decoder of as many steps.
        flops: of an image, all parts.
        seconds: of an image; None before it is timed.
        distances: in the first features, of each seed.
    """

    row: str
    words: str
    base: str
    flops: float
    seconds: float | None
    distances: list[float]

    @property
    def distance(self) -> float:
        return statistics.fmean(self.distances)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None of one seed."""
        return statistics.stdev(self.distances) if len(self.distances) > 1 else None

    def cost(self, name: str) -> float | None:
        return self.flops if name == "flops" else self.seconds


class Scores:
    """The cells of a result, by what they are of."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.cases = result["cases"]
        self.extractors: list[str] = list(result["settings"]["extractors"])
        self.plans = {case["row"]: case["plan"] for case in self.cases if "plan" in case}

    def values(self, row: str, metric: str, **fields: Any) -> list[float]:
        """One value for each seed, in order of seeds; empty where nothing was measured."""
        found = []
        for case in sorted((case for case in self.cases if case["row"] == row), key=lambda case: case["seed"]):
            cells = [cell for cell in case["cells"] if cell["metric"] == metric]
            found += [c["value"] for c in cells if all(c.get(name) == value for name, value in fields.items())]
        return found

    def mean(self, row: str, metric: str, **fields: Any) -> float | None:
        """Over seeds; None where nothing was measured."""
        values = self.values(row, metric, **fields)
        return statistics.fmean(values) if values else None

    def points(self, extractor: str | None = None) -> list[Point]:
        """All ways whose samples were scored; distances in the first features, or in those named."""
        name = self.extractors[0] if extractor is None else extractor
        found = []
        for row, plan in self.plans.items():
            flops = sum(self.mean(row, "flops", of=part) or 0.0 for part in ("network", "head", "tokenizer"))
            seconds = self.mean(TIMES, "seconds", of=row)
            distances = self.values(row, "fd", extractor=name)
            found.append(Point(row, plan["words"], plan["base"], flops, seconds, distances))
        return found

    def base_points(self) -> list[Point]:
        """Of the base decoder, cheapest first."""
        return sorted((p for p in self.points() if p.row == p.base), key=lambda point: point.flops)

    def recap_points(self) -> list[Point]:
        return [point for point in self.points() if point.row != point.base]


def base_at(base: Sequence[Point], cost: float, name: str) -> tuple[float, float | None] | None:
    """Distance of the base at a cost, and its spread over seeds, between the two ways next to it, over log cost.

    Returns: None for a cost outside of what was measured.
    """
    known = _by_cost(base, name)
    for (low, left), (high, right) in pairwise(known):
        if low <= cost <= high:
            share = math.log(cost / low) / math.log(high / low) if high > low else 0.0
            spreads = [s for s in (left.spread, right.spread) if s is not None]
            return left.distance + share * (right.distance - left.distance), max(spreads) if spreads else None
    return None


def base_cost_of(base: Sequence[Point], distance: float, name: str) -> tuple[float, str] | None:
    """Least cost at which the base reaches a distance, between ways over log cost.

    Returns: the cost, and "" or what it is: "at least" the dearest way's where none gets there, "at most" the cheapest
    way's where that is as good already; None where nothing was timed.
    """
    known = _by_cost(base, name)
    if not known:
        return None
    if known[0][1].distance <= distance:
        return known[0][0], "at most"
    for (low, left), (high, right) in pairwise(known):
        if right.distance <= distance:
            share = (left.distance - distance) / (left.distance - right.distance)
            return low * (high / low) ** share, ""
    return known[-1][0], "at least"


def _by_cost(base: Sequence[Point], name: str) -> list[tuple[float, Point]]:
    """Ways with a known cost, cheapest first."""
    known = [(value, point) for point in base if (value := point.cost(name)) is not None]
    return sorted(known, key=lambda pair: pair[0])


def verdict(point: Point, base: Sequence[Point], name: str) -> str:
    """Which is better at equal cost: "win", "loss", "tie" within the seeds' spread, "one seed", "out of range"."""
    cost = point.cost(name)
    found = None if cost is None else base_at(base, cost, name)
    if found is None:
        return "out of range"
    there, spread = found
    if point.spread is None or spread is None:
        return "one seed"
    margin = max(point.spread, spread)
    if point.distance < there - margin:
        return "win"
    return "loss" if point.distance > there + margin else "tie"


def bars(scores: Scores) -> list[Bar]:
    """All bars; those whose other side was not measured are left out."""
    base, recap, found = scores.base_points(), scores.recap_points(), []
    at_quality = []
    for point in recap:
        cost = base_cost_of(base, point.distance, "seconds")
        # A way that the cheapest base beats has no speed-up that could be told; one that no base reaches has more.
        if point.seconds is not None and cost is not None and cost[1] != "at most":
            at_quality.append((cost[0] / point.seconds, point.words))
    if at_quality:
        value, words = max(at_quality)
        said = f"times fewer seconds than the base of equal FD[{scores.extractors[0]}], best plan: {words}"
        found.append(Bar(said, [value], [LEAST_AT_QUALITY], True))
    ratios = [(value, p.words) for p in recap if (value := scores.mean(TIMES, "speedup", of=p.row)) is not None]
    if ratios:
        value, words = max(ratios)
        said = f"times fewer seconds than the base of as many steps, best plan: {words}"
        found.append(Bar(said, [value], [LEAST_AT_STEPS], True))
    for kind, points in (("base", base), ("ReCAP", recap)):
        if points:
            best = min(points, key=lambda point: point.distance)
            found += _quality_bars(scores, best, f"{kind} at its best ({best.words})")
    return found


def _quality_bars(scores: Scores, point: Point, who: str) -> list[Bar]:
    found = []
    for name in scores.extractors:
        values = scores.values(point.row, "fd", extractor=name)
        for row, factor, words in (
            (BASELINE, 1.0, "that of the baseline"),
            (RECONSTRUCTIONS, MOST_DISTANCE, f"{MOST_DISTANCE:g} times that of the tokenizer's reconstructions"),
        ):
            limit = scores.mean(row, "fd", extractor=name)
            if limit is not None:
                found.append(Bar(f"{who}: FD[{name}], {words}", values, [factor * limit] * len(values), False))
    real = scores.mean(REAL, "accuracy")
    values = scores.values(point.row, "accuracy")
    if real is not None and values:
        words = f"{who}: class accuracy, that of real test images less {100 * MOST_LOST:g} points"
        found.append(Bar(words, values, [real - MOST_LOST] * len(values), True))
    return found
