"""Quality and cost of ways to decode in Markdown, and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masked_rows import RECONSTRUCTIONS
from masked_times import ROW as TIMES
from masked_verdicts import COSTS, Point, Scores, bars, base_at, base_cost_of, verdict
from next_frequency_bars import BASELINE, REAL, TRAINING, Bar
from next_frequency_quality_tables import shown
from report import environment_line, markdown_table

from gendiff.app.plots import save_plot

SCALES = {"flops": 1e9, "seconds": 1e-3}
"""Units of cost in pictures: 10^9 operations, milliseconds."""


def result_table(result: Mapping[str, Any]) -> str:
    """Samples, cost, ReCAP against the base, and bars, as far as they were measured."""
    scores = Scores(result)
    parts = [sample_table(scores, result)]
    if scores.plans:
        parts.append(cost_table(scores))
    if scores.base_points() and scores.recap_points():
        parts.append(verdict_table(scores))
    rows = [[bar.words, shown(bar.values, 3), *_judged(bar)] for bar in bars(scores)]
    if rows:
        parts.append(markdown_table(["figure", "measured", "bar", ""], rows))
    return "\n\n".join(parts)


def sample_table(scores: Scores, result: Mapping[str, Any]) -> str:
    """Quality of real images, reconstructions, the baseline and every way to decode."""
    names = {REAL: REAL, TRAINING: TRAINING, RECONSTRUCTIONS: RECONSTRUCTIONS}
    names |= {BASELINE: result["settings"]["baseline"]} | {row: plan["words"] for row, plan in scores.plans.items()}
    rows = []
    for row, words in names.items():
        distances = [scores.values(row, "fd", extractor=name) for name in scores.extractors]
        if not any(distances):
            continue
        accuracy = [100 * value for value in scores.values(row, "accuracy")]
        seconds = scores.mean(TIMES, "seconds", of=row) if row in scores.plans else scores.mean(row, "seconds")
        time = "-" if seconds is None else f"{1e3 * seconds:.1f}{' (noisy)' if _noisy(scores, row) else ''}"
        rows.append([words, *(shown(values, 2) for values in distances), shown(accuracy, 1), time])
    distances = [f"FD[{name}]" for name in scores.extractors]
    return markdown_table(["images", *distances, "class accuracy, %", "ms / image, batch 16"], rows)


def _noisy(scores: Scores, row: str) -> bool:
    cells = [cell for case in scores.cases if case["row"] == TIMES for cell in case["cells"]]
    return any(cell["metric"] == "seconds" and cell["of"] == row and cell["noisy"] for cell in cells)


def cost_table(scores: Scores) -> str:
    """Calls, operations by part, ratios to the base of as many steps, and staleness of light steps."""
    points, rows = {point.row: point for point in scores.points()}, []
    for point in points.values():
        base = points.get(point.base)
        parts = [scores.mean(point.row, "flops", of=part) or 0.0 for part in ("network", "head", "tokenizer")]
        ratio = "-" if base is None or base is point else f"{base.flops / point.flops:.2f}"
        kl, same = scores.mean(point.row, "kl"), scores.mean(point.row, "top1_agreement")
        off = scores.mean(point.row, "relative_change")
        rows.append(
            [
                point.words,
                f"{scores.mean(point.row, 'full_calls'):.4g} + {scores.mean(point.row, 'light_calls'):.4g}",
                *(f"{part / 1e9:.2f}" for part in parts),
                ratio,
                _number(scores.mean(TIMES, "speedup", of=point.row), 2),
                _number(kl if off is None else off, 3),
                "-" if same is None else f"{100 * same:.1f}",
            ]
        )
    header = ["way to decode", "full + light", "GFLOP / image: network", "head", "tokenizer"]
    header += ["operations of base / its own, same T", "seconds of base / its own, same T"]
    return markdown_table([*header, "staleness, nats", "top-1 agreement, %"], rows)


def verdict_table(scores: Scores) -> str:
    """Each ReCAP way beside the base at equal cost, and what the base needs for its distance."""
    base, rows = scores.base_points(), []
    for point in scores.recap_points():
        row = [point.words, shown(point.distances, 2)]
        for name in COSTS:
            cost = point.cost(name)
            there = None if cost is None else base_at(base, cost, name)
            row += ["-" if there is None else f"{there[0]:.2f}", verdict(point, base, name)]
            row.append(speed_words(point, base, name))
        rows.append(row)
    first = scores.extractors[0]
    header = ["ReCAP against base", f"FD[{first}]"]
    for words in ("operations", "seconds"):
        header += [f"base at equal {words}", "", f"{words} of the base of equal FD / its own"]
    return markdown_table(header, rows)


def speed_words(point: Point, base: list[Point], name: str) -> str:
    """Cost of the base of equal distance over a way's own."""
    cost, found = point.cost(name), base_cost_of(base, point.distance, name)
    if cost is None or found is None:
        return "-"
    sign = {"": "", "at least": "> ", "at most": "< "}[found[1]]
    return f"{sign}{found[0] / cost:.2f}"


def markdown(result: Mapping[str, Any], figure: str) -> str:
    """The page beside the result file.

    Args:
        figure: file name of the plot.
    """
    settings = result["settings"]
    parts = [
        f"# Masked generation with ReCAP: {settings['model']}",
        environment_line(result["env"]),
        f"{settings['num']:,} samples of balanced classes a row and seed, guidance {settings['guidance']:g}, against "
        f"the {settings['reference']:,} test images of {settings['data']} (held out: against the rest of them). "
        "Seconds are medians over rounds of all ways, batches of 16, pixels included. Operations and staleness (mean "
        "divergence of a full pass's answer from the light one's, over tokens still hidden) are of the first "
        f"{settings['batch_size']} samples of each seed.",
        result_table(result),
        "The base at equal cost lies between the two numbers of steps next to it, over the logarithm of the cost. A "
        "win or a loss is a difference beyond the larger standard deviation over seeds; > marks a distance that the "
        "base does not reach at any number of steps tried, < one that it reaches at the fewest.",
        f"![distance over operations and over seconds]({figure})",
        f"```sh\n{result['command']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def plot(result: Mapping[str, Any], stem: Path) -> None:
    """Distance in the first features over operations and over seconds of an image, base and ReCAP."""
    scores = Scores(result)
    label = f"FD[{scores.extractors[0]}]"
    columns: dict[str, list[Any]] = {"way": [], "gflop": [], "ms": [], "fd": [], "spread": []}
    for point in scores.points():
        seconds = "" if point.seconds is None else point.seconds / SCALES["seconds"]
        row = (point.row, point.flops / SCALES["flops"], seconds, point.distance, point.spread or 0.0)
        for key, value in zip(columns, row, strict=True):
            columns[key].append(value)
    floor = scores.mean(RECONSTRUCTIONS, "fd", extractor=scores.extractors[0])

    def draw(left: Any, right: Any) -> None:
        for axes, name, words in ((left, "flops", "10^9 operations an image"), (right, "seconds", "ms an image")):
            for kind, points, style in (("base", scores.base_points(), "o-"), ("ReCAP", scores.recap_points(), "s")):
                known = [(c / SCALES[name], p) for p in points if (c := p.cost(name)) is not None]
                if not known:
                    continue
                x, y = [cost for cost, _ in known], [point.distance for _, point in known]
                errors = [point.spread or 0.0 for _, point in known]
                axes.errorbar(x, y, yerr=errors, fmt=style, capsize=2, label=kind)
                for cost, point in known:
                    place = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7}
                    axes.annotate(point.row.partition("/")[2], (cost, point.distance), **place)
            if floor is not None:
                axes.axhline(floor, linestyle=":", color="0.5", label="tokenizer")
            axes.set(xlabel=words, ylabel=label, xscale="log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
        left.legend()

    save_plot(stem, draw, columns, panels=2)


def _judged(bar: Bar) -> list[str]:
    """The bar, and whether all seeds meet it."""
    limit = f"{'at least' if bar.high else 'at most'} {bar.limits[0]:.3f}"
    missed = len(bar.values) - bar.met
    several = f" by {missed} of {len(bar.values)}" if len(bar.values) > 1 else ""
    return [limit, f"**missed**{several}" if missed else "met"]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
