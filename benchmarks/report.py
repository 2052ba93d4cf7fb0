"""Result files and the tables printed from them.

A result file is JSON of schema gendiff-bench/1: `settings`, `env`, and `cases`, one for each row and seed. A case holds
`cells`, each `{"metric", "value", "n"}` plus whatever tells cells of one metric apart.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gendiff.files import write_whole

SCHEMA = "gendiff-bench/1"


def read_result(path: Path) -> dict[str, Any] | None:
    """The result file, None if there is none.

    Raises:
        ValueError: the file is something else.
    """
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a result file of schema {SCHEMA}.")
    return result


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"schema": SCHEMA, **result}, indent=1) + "\n")


def summarise(cases: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> dict[tuple, dict[str, Any]]:
    """Mean and spread over seeds of every cell.

    Args:
        cases: with `row`, `seed` and `cells`.
        keys: fields of a cell that, with the row, say what it measures; a missing field is None.
    Returns: (row, *keys) -> {"mean", "spread" (standard deviation, None for one seed), "seeds", "n" (of all seeds)}.
    """
    grouped: dict[tuple, list[Mapping[str, Any]]] = {}
    for case in cases:
        for cell in case["cells"]:
            grouped.setdefault((case["row"], *(cell.get(key) for key in keys)), []).append(cell)
    return {key: _spread([cell["value"] for cell in cells], cells) for key, cells in grouped.items()}


def _spread(values: list[float], cells: list[Mapping[str, Any]]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    total = sum(cell["n"] for cell in cells)
    return {"mean": statistics.fmean(values), "spread": spread, "seeds": len(values), "n": total}


def shown(summary: Mapping[str, Any] | None, digits: int = 3) -> str:
    """`mean ± spread` with so many decimals, small numbers in scientific form; a dash for what was not measured."""
    if summary is None:
        return "-"
    mean, spread = _number(summary["mean"], digits), summary["spread"]
    return mean if spread is None else f"{mean} ± {_number(spread, digits)}"


def _number(value: float, digits: int) -> str:
    if value != 0 and math.isfinite(value) and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with its first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def environment_line(env: Mapping[str, Any]) -> str:
    """One line of Markdown about machine and versions."""
    versions = ", ".join(f"{name} {env[name]}" for name in ("python", "torch", "diffusers"))
    return f"{versions}; {env['device']} ({env['cpu_model']}, {env['threads']} threads), {env['dtype']}."
