"""The leaderboard as Markdown, and as a figure of distance against seconds for an image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report import environment_line, markdown_table, shown, summarise

from gendiff.app.plots import pareto

COLUMNS = (
    ("FD[lite0-112]", "fd", "lite0-112", 2),
    ("FD[fmnist-cnn]", "fd", "fmnist-cnn", 2),
    ("KID[lite0-112]", "kid", "lite0-112", 2),
    ("precision", "precision", "lite0-112", 3),
    ("recall", "recall", "lite0-112", 3),
    ("class accuracy", "accuracy", "fmnist-cnn", 3),
)
"""Heading, metric, features and decimals."""
COSTS = ("network calls", "GFLOP an image", "images/s", "of matmul rate")


def result_table(result: Mapping[str, Any]) -> str:
    """One row for each way to make images, the real ones first; `±` is the spread over seeds."""
    summary = summarise(result["cases"], ("metric", "extractor"))
    names = list(dict.fromkeys(case["row"] for case in result["cases"]))
    rows = []
    for name in names:
        figures = [shown(summary.get((name, metric, extractor)), digits) for _, metric, extractor, digits in COLUMNS]
        rows.append([name, *figures, *_cost(result, name)])
    settings = result["settings"]
    reference = settings["reference"].removeprefix("dataset:")
    note = (
        f"{settings['num']:,} images a row and seed against {reference} (held out: against the rest of it), "
        f"{len({case['seed'] for case in result['cases']})} seed(s); lower is better for FD and KID. "
        f"{_kid_spread(result)}Matmul rate: {result['calibration']['gemm_fp32_gflops']:.0f} GFLOP/s."
    )
    return f"{markdown_table(['images', *(head for head, *_ in COLUMNS), *COSTS], rows)}\n\n{note}"


def markdown(result: Mapping[str, Any]) -> str:
    """The page beside the result file."""
    noisy = sorted({case["row"] for case in result["cases"] if case.get("cost", {}).get("noisy")})
    warning = (
        f"\nTimes of {', '.join(noisy)} were taken on a busy machine and hold as lower bounds only.\n" if noisy else ""
    )
    return (
        f"# Leaderboard: Fashion-MNIST, 28 px\n\n{result_table(result)}\n\n{environment_line(result['env'])}\n{warning}"
        f"\n![Distance against seconds for an image](leaderboard.png)\n\n```sh\n{result['command']}\n```\n"
    )


def figure(result: Mapping[str, Any], path: Path) -> None:
    """FD[lite0-112] against seconds for an image; real images as lines across."""
    summary = summarise(result["cases"], ("metric", "extractor"))
    distance = {
        name: summary[name, "fd", "lite0-112"]["mean"] for name in dict.fromkeys(c["row"] for c in result["cases"])
    }
    costs = {name: _first_cost(result, name) for name in distance}
    points = {name: (costs[name]["s_per_image"], y) for name, y in distance.items() if costs[name]}
    pareto(path.with_suffix(""), points, "FD[lite0-112]", {name: y for name, y in distance.items() if not costs[name]})


def _kid_spread(result: Mapping[str, Any]) -> str:
    """How far the subsets of KID spread: differences below that mean nothing."""
    spreads = [cell["std"] for case in result["cases"] for cell in case["cells"] if "std" in cell]
    return f"KID spreads by {sum(spreads) / len(spreads):.1f} over its subsets. " if spreads else ""


def _first_cost(result: Mapping[str, Any], row: str) -> Mapping[str, Any]:
    return next((case["cost"] for case in result["cases"] if case["row"] == row and "cost" in case), {})


def _cost(result: Mapping[str, Any], row: str) -> list[str]:
    cost = _first_cost(result, row)
    if not cost:
        return ["-"] * len(COSTS)
    share = cost["utilisation"]
    return [
        str(cost["nfe"]),
        f"{cost['flops_per_sample'] / 1e9:.2f}",
        f"{cost['images_per_s']:.1f}{' (busy machine)' if cost['noisy'] else ''}",
        "-" if share is None else f"{100 * share:.0f} %",
    ]
