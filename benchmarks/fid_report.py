"""Scores against network calls and numbers of images: table and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import environment_line, markdown_table
from timed_plots import save_figure


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
            rows.append([str(steps), f"{nfe:g}", *("-" if case is None else _shown(case["quality"]) for case in found)])
        most = max(case["steps"] for case in cases)
        floors = [_floor(metric, by_place[most, metric]["quality"]["floor"]) for metric, _ in labels]
        rows.append(["real images", "-", *floors])
        header = ["steps", "network calls", *(f"{label}{_scale(metric)[1]}" for metric, label in labels)]
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

    save_figure(path, draw, rows, len(extractors))


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

    save_figure(path, draw, rows, len(extractors))


def _extractors(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(case["quality"]["extractor"] for case in result["cases"]))


def _cases(result: Mapping[str, Any], extractor: str, metric: str) -> list[Mapping[str, Any]]:
    """Of one score, by steps."""
    chosen = [case for case in result["cases"] if case["quality"]["extractor"] == extractor]
    return sorted((case for case in chosen if case["quality"]["metric"] == metric), key=lambda case: case["steps"])


def _scale(metric: str) -> tuple[float, str]:
    """What a score is printed times, and how its label says so."""
    return (1000, " x10³") if metric == "kid" else (1, "")


def _shown(quality: Mapping[str, Any]) -> str:
    """Value, with its standard deviation where there is one."""
    factor, std = _scale(quality["metric"])[0], quality["details"].get("std")
    text = f"{factor * quality['value']:.4g}"
    return text if std is None else f"{text} ± {factor * std:.2g}"


def _floor(metric: str, floor: Mapping[str, Any] | None) -> str:
    return "-" if floor is None else f"{_scale(metric)[0] * floor['value']:.4g} (N={floor['n']})"
