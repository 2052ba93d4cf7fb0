"""Scores against network calls and numbers of images: table and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import environment_line, markdown_table

from gendiff.app.plots import save_plot
from gendiff.metrics.report import Score, floor_cell, label_cell, value_cell


def quality_markdown(result: Mapping[str, Any], figures: Sequence[str]) -> str:
    """One table a extractor: scores at each number of steps, real images in the last row; then warnings."""
    settings, parts = result["settings"], []
    for extractor in _extractors(result):
        cases = [case for case in result["cases"] if case["quality"]["extractor"] == extractor]
        labels = list(dict.fromkeys((case["quality"]["metric"], case["quality"]["label"]) for case in cases))
        by_place = {(case["steps"], case["quality"]["metric"]): case for case in cases}
        rows = []
        for steps in sorted({case["steps"] for case in cases}):
            nfe = next(case["nfe"] for case in cases if case["steps"] == steps)
            found = [by_place.get((steps, metric)) for metric, _ in labels]
            rows.append(
                [
                    str(steps),
                    f"{nfe:g}",
                    *("-" if case is None else value_cell(_score(case["quality"])) for case in found),
                ]
            )
        most = max(case["steps"] for case in cases)
        last = [_score(by_place[most, metric]["quality"]) for metric, _ in labels]
        rows.append(["real images", "-", *map(floor_cell, last)])
        header = ["steps", "network calls", *map(label_cell, last)]
        parts += [f"### {extractor}", markdown_table(header, rows)]
    said = list(dict.fromkeys(line for report in result["reports"] for line in report["warnings"]))
    first = result["reports"][0]["conditions"]
    conditions = (
        f"{settings['model']}, {settings['num']} images against {first['n_real']} of {settings['reference']}, seeds "
        f"{settings['seed']} to {settings['seed'] + settings['num'] - 1}, labels {settings['labels'] or 'none'}. "
        "Real images: the reference against itself in two parts, with the number of images in the place of samples."
    )
    lines = [environment_line(result["env"]), conditions, *parts]
    lines += [f"Warning: {line}." for line in said]
    lines += [f"![]({name})" for name in figures]
    return "\n\n".join([*lines, f"```sh\n{result['command']}\n```"]) + "\n"


def plot_against_calls(result: Mapping[str, Any], path: Path) -> None:
    """Fréchet distance against network calls, one panel an extractor; dotted: real images."""
    extractors = _extractors(result)
    rows = [
        {
            "steps": case["steps"],
            "nfe": case["nfe"],
            "label": case["quality"]["label"],
            "value": case["quality"]["value"],
        }
        for case in result["cases"]
    ]

    def draw(*panels: Any) -> None:
        for axes, extractor in zip(panels, extractors, strict=True):
            label = extractor
            for metric, mark in (("fd", "o-"), ("fd_infinity", "s--")):
                cases = _cases(result, extractor, metric)
                if not cases:
                    continue
                if metric == "fd":
                    label = cases[0]["quality"]["label"]
                values = [case["quality"]["value"] for case in cases]
                (line,) = axes.plot([case["nfe"] for case in cases], values, mark, label=cases[0]["quality"]["label"])
                floor = cases[-1]["quality"]["floor"]
                if floor is not None:
                    name = f"real images, N={floor['n']}" if metric == "fd" else None
                    axes.axhline(floor["value"], color=line.get_color(), ls=":", label=name)
            calls = sorted({case["nfe"] for case in result["cases"]})
            axes.set_xticks(calls, [f"{count:g}" for count in calls])
            axes.set(xlabel="network calls", title=label)
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            axes.legend()

    columns = {key: [row[key] for row in rows] for key in rows[0]}
    save_plot(path.with_suffix(""), draw, columns, panels=len(extractors))


def plot_against_images(result: Mapping[str, Any], path: Path) -> None:
    """Fréchet distance of fewer and fewer images against 1/N, with the line whose end at 0 is FD∞."""
    extractors = _extractors(result)
    rows = [
        {"label": case["quality"]["label"], "steps": case["steps"], "images": size, "distance": distance}
        for case in result["cases"]
        if case["quality"]["metric"] == "fd_infinity"
        for size, distance in zip(
            case["quality"]["details"]["sizes"], case["quality"]["details"]["distances"], strict=True
        )
    ]

    def draw(*panels: Any) -> None:
        for axes, extractor in zip(panels, extractors, strict=True):
            for case in _cases(result, extractor, "fd_infinity"):
                details, value = case["quality"]["details"], case["quality"]["value"]
                inverse = 1 / np.asarray(details["sizes"], dtype=float)
                # The fit's slope, from its intercept and the fact that it passes through the means.
                slope = (np.mean(details["distances"]) - value) / inverse.mean()
                text = f"{case['steps']} steps, {value:.3g} at N = ∞, R² {details['r2']:.3f}"
                (line,) = axes.plot(inverse, details["distances"], "o", label=text)
                ends = np.array([0, inverse.max()])
                axes.plot(ends, value + slope * ends, color=line.get_color())
            axes.set(xlabel="1 / number of images", title=f"distance in {extractor}")
            axes.set_xlim(left=0)
            axes.legend()

    columns = {key: [row[key] for row in rows] for key in rows[0]}
    save_plot(path.with_suffix(""), draw, columns, panels=len(extractors))


def _extractors(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(case["quality"]["extractor"] for case in result["cases"]))


def _cases(result: Mapping[str, Any], extractor: str, metric: str) -> list[Mapping[str, Any]]:
    """Of one score, by steps."""
    chosen = [case for case in result["cases"] if case["quality"]["extractor"] == extractor]
    return sorted((case for case in chosen if case["quality"]["metric"] == metric), key=lambda case: case["steps"])


def _score(quality: Mapping[str, Any]) -> Score:
    names = ("metric", "label", "value", "better", "details", "floor")
    return Score(*(quality.get(name) for name in names))  # type: ignore[arg-type]
