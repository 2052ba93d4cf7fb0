"""Results of benchmarks/classifiers.py as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from report import markdown_table


def result_table(result: Mapping[str, Any]) -> str:
    """A row for each classifier; for a classifier alone, a second table with a row for each class."""
    header = ("classifier", "test images", "accuracy", "mean of classes", "largest class", "worst class")
    rows = [_row(case) for case in result["cases"]]
    parts = [
        markdown_table(header, rows),
        "Accuracy with the half-width of its 95 % interval over test images; mean of classes: every class counts the "
        "same; largest class: the accuracy of always naming it.",
    ]
    if len(result["cases"]) == 1:
        cells = [cell for cell in result["cases"][0]["cells"] if cell["metric"] == "class_accuracy"]
        shares = [(str(cell["of"]), str(cell["n"]), _percent(cell["value"])) for cell in cells]
        parts.append(markdown_table(("class", "test images", "accuracy"), shares))
    return "\n\n".join(parts)


def _row(case: Mapping[str, Any]) -> tuple[str, ...]:
    whole = {cell["metric"]: cell for cell in case["cells"] if cell["metric"] != "class_accuracy"}
    classes = [cell for cell in case["cells"] if cell["metric"] == "class_accuracy"]
    worst = min(classes, key=lambda cell: cell["value"])
    accuracy, count = whole["accuracy"]["value"], whole["accuracy"]["n"]
    half_width = 1.96 * math.sqrt(accuracy * (1 - accuracy) / count)
    return (
        case["row"],
        f"{count:,} of {case['dataset']}",
        f"{_percent(accuracy)} ± {100 * half_width:.1f}",
        _percent(whole["class_mean"]["value"]),
        _percent(whole["largest_class"]["value"]),
        f"{worst['of']}, {_percent(worst['value'])}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
