"""What an evaluation found, with everything it depends on: for machines as JSON, for people as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "gendiff-evaluation/1"
MILLI = "×10³"  # noqa: RUF001
"""Unit of scores that are printed times 1000."""


@dataclass(frozen=True)
class Score:
    """One number and what it means.

    Attributes:
        name: e.g. "fd", "precision".
        label: as it may be printed, with the features it was taken in, e.g. "FD[lite0-112]".
        value: the number itself, never scaled for print.
        better: "lower" or "higher".
        details: parts and settings of this number, e.g. its standard deviation, k, or the size of subsets.
        floor: the same number of real images in the place of samples, about what a perfect model would score:
            `value`, `n` images in the place of samples, `of` what they are, `n_real` the rest that they are compared
            with, `std` where there is one. None where it could not be taken.
    """

    name: str
    label: str
    value: float
    better: str
    details: dict[str, Any] = field(default_factory=dict)
    floor: dict[str, Any] | None = None


@dataclass(frozen=True)
class EvalReport:
    """Scores of one set of samples against one reference.

    Attributes:
        scores: by name.
        conditions: `n_gen`, `n_real`, `extractor`, `samples`, `reference`, `versions` and all settings.
        warnings: why numbers may be hard to trust, one line each.
    """

    scores: dict[str, Score]
    conditions: dict[str, Any]
    warnings: list[str]

    def __getitem__(self, name: str) -> Score:
        return self.scores[name]

    def to_json(self) -> dict[str, Any]:
        """Everything, as `json.dumps` takes it."""
        return {
            "schema": SCHEMA,
            "scores": {name: asdict(score) for name, score in self.scores.items()},
            "conditions": self.conditions,
            "warnings": list(self.warnings),
        }

    def to_markdown(self) -> str:
        """A table of the scores, the warnings, and the conditions they hold under."""
        rows = [
            f"| {label_cell(score)} | {value_cell(score)} | {floor_cell(score)} | {score.better} |"
            for score in self.scores.values()
        ]
        found = self.conditions
        lines = [
            "| metric | value | real against real | better |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"{found['n_gen']} samples, {found['n_real'] or 'an unknown number of'} reference images.",
            "",
        ]
        if self.warnings:
            lines += ["Warnings:", "", *(f"- {warning}" for warning in self.warnings), ""]
        return "\n".join([*lines, "Conditions:", "", *_bullets(found)]) + "\n"


def label_cell(score: Score) -> str:
    """The label, with the unit it is printed in."""
    return f"{score.label} {MILLI}" if score.name == "kid" else score.label


def value_cell(score: Score) -> str:
    """The value as it is printed, with its standard deviation where there is one."""
    return _number(score.value, score.details.get("std"), score.name)


def floor_cell(score: Score) -> str:
    """What real images score in the place of samples, and how many there were against how many."""
    if score.floor is None:
        return "-"
    against = f" / {score.floor['n_real']}" if "n_real" in score.floor else ""
    return f"{_number(score.floor['value'], score.floor.get('std'), score.name)} (N={score.floor['n']}{against})"


def _number(value: float, std: float | None, name: str) -> str:
    factor = 1000 if name == "kid" else 1
    return f"{factor * value:.4g}" + ("" if std is None else f" ± {factor * std:.2g}")


def _bullets(conditions: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each entry, nested ones with the names above them."""
    lines = []
    for name, value in conditions.items():
        if isinstance(value, Mapping):
            lines += _bullets(value, f"{prefix}{name}.")
        elif value is not None and value != []:
            text = ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value
            lines.append(f"- {prefix}{name}: {text}")
    return lines
