"""Quality against cost: one pipeline scored at several numbers of steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gendiff.data.sources import open_source
from gendiff.metrics.evaluate import evaluate
from gendiff.metrics.report import EvalReport, floor_cell, label_cell, value_cell

from .evaluation_outcome import Outcome, count_cell, run_facts, told_in_the_report
from .evaluation_pipeline import PipelineOrder, open_sources, own_reference
from .picture_plots import sample_grid
from .plots import fd_against_nfe

SHOWN = 32
"""Samples of each row in its picture."""


def score_pipeline(order: PipelineOrder, **arguments: Any) -> Outcome:
    """FD, KID, precision and recall of one pipeline at several numbers of steps.

    Args:
        order: what to draw.
        arguments: the others of `evaluate`.

    Raises:
        GendiffError, OSError, ValueError: before anything is drawn, as `evaluate`, `open_sources`, `own_reference`.
    """
    reference = own_reference(order.path) if order.reference is None else order.reference
    reference = open_source(reference, resize=order.resize)
    reports = []
    sources = open_sources(order)
    for source in sources:
        with told_in_the_report():
            reports.append(
                evaluate(source, reference, ("fd", "kid", "prdc"), seed=order.seed, device=order.device,
                         batch_size=order.batch_size, **arguments)
            )  # fmt: skip
    found = [_row_of_steps(steps, report) for steps, report in zip(order.steps, reports, strict=True)]
    record = {
        "pipeline": order.path,
        "scheduler": order.scheduler,
        "rows": found,
        "reports": [report.to_json() for report in reports],
        "warnings": _warnings(order.steps, reports),
        **run_facts(),
    }
    first = reports[0]
    columns = ["steps", "NFE", first["fd"].label, "floor", label_cell(first["kid"]), "precision", "recall", "N",
               "s/image"]  # fmt: skip
    rows = [
        [
            str(row["steps"]),
            f"{row['nfe']:g}",
            f"{row['fd']:.4g}",
            floor_cell(report["fd"]),
            value_cell(report["kid"]),
            f"{row['precision']:.3f}",
            f"{row['recall']:.3f}",
            count_cell(report),
            f"{row['seconds_per_image']:.3g}",
        ]
        for row, report in zip(found, reports, strict=True)
    ]

    def draw(folder: Path) -> None:
        curve = ([row["nfe"] for row in found], [row["fd"] for row in found])
        name = reports[0].conditions["samples"]["scheduler"]
        fd_against_nfe(folder / "quality-against-nfe", {name: curve}, first["fd"].label, found[0]["fd_floor"])
        seeds = [order.seed + index for index in range(min(SHOWN, order.num))]
        for steps, source in zip(order.steps, sources, strict=True):
            sample_grid(folder / f"samples-{steps}-steps", source.read(range(len(seeds))), seeds)

    return Outcome(columns, rows, record["warnings"], record, plots=draw)


def _row_of_steps(steps: int, report: EvalReport) -> dict[str, Any]:
    cost = report.conditions["sampling_cost"]
    return {
        "steps": steps,
        "nfe": cost["network_calls"] / cost["calls"],
        **{name: report[name].value for name in ("fd", "kid", "precision", "recall", "density", "coverage")},
        "fd_floor": None if report["fd"].floor is None else report["fd"].floor["value"],
        "n": report.conditions["n_gen"],
        "n_real": report.conditions["n_real"],
        "seconds_per_image": cost["seconds"] / cost["images"],
    }


def _warnings(steps: Sequence[int], reports: Sequence[EvalReport]) -> list[str]:
    """Lines that every report has, once; the others with the steps they are about."""
    about: dict[str, list[str]] = {}
    for number, report in zip(steps, reports, strict=True):
        for line in report.warnings:
            about.setdefault(line, []).append(str(number))
    return [
        line if len(numbers) == len(reports) else f"{line} ({', '.join(numbers)} steps)"
        for line, numbers in about.items()
    ]
