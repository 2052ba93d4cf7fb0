"""The table of what each extractor notices, and the page beside its result file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from report import environment_line, markdown_table, shown, summarise

DAMAGES = {
    "test": "test split",
    "noise": "noise, sigma 10",
    "blur": "blur, 0.5 px",
    "jpeg": "JPEG, quality 50",
    "half": "half the classes",
    "few": "100 images x10",
    "shift": "shift, 2 px",
    "mnist": "MNIST",
}
"""Columns of the table."""


def result_table(result: Mapping[str, Any]) -> str:
    """The table, one row an extractor."""
    table = summarise(result["cases"], ["metric"])
    names = list(dict.fromkeys(case["row"] for case in result["cases"]))
    rows = [
        [
            name,
            *(shown(table.get((name, damage)), 2) for damage in _columns(result)),
            shown(table.get((name, "fd_of_halves")), 3),
        ]
        for name in names
    ]
    return markdown_table(["extractor", *(DAMAGES[damage] for damage in _columns(result)), "FD(A, B)"], rows)


def to_markdown(result: Mapping[str, Any], ordered: str) -> str:
    """The page: table, conditions, and whether `ordered` notices things in the order it is chosen for."""
    settings = result["settings"]
    specs = dict.fromkeys((case["extractor"], case["input_spec"]) for case in result["cases"])
    order = " > ".join(DAMAGES[damage] for damage in settings["order"] if damage in _columns(result))
    kept = {True: "is kept", False: "is NOT kept", None: "was not measured"}[settings["order_reproduced"]]
    seeds = ", ".join(map(str, settings["seeds"]))
    return "\n\n".join(
        [
            "# What each extractor notices",
            environment_line(result["env"]),
            f"{settings['num_images']} Fashion-MNIST images a set; FD(A, damaged) / FD(A, B), so that 1 is unnoticed;"
            f" mean ± standard deviation over seeds {seeds}. A and B are from the two halves of the training split,"
            " the last column is FD(A, B) itself. fmnist-cnn was trained on that split: its ratio for the test split"
            " shows what that does.",
            result_table(result),
            f"The order of {ordered}, {order}, {kept}.",
            "\n".join(f"- `{name}`: {spec}" for name, spec in specs),
            f"`{result['command']}`\n",
        ]
    )


def _columns(result: Mapping[str, Any]) -> list[str]:
    measured = {cell["metric"] for case in result["cases"] for cell in case["cells"]}
    return [damage for damage in DAMAGES if damage in measured]
