"""Result files, and the tables printed from them.

A result file is JSON of schema gendiff-bench/1, which `result_schema.py` spells out: `settings`, `env`, and `cases`.
A case is a row of a table of metrics, one for each row and seed, whose `cells` are `{"metric", "value", "n"}` plus
whatever tells cells of one metric apart; or something timed; or a score.

python benchmarks/report.py check FILE ...          # every field is there and makes sense; exit 1 if not
python benchmarks/report.py table FILE              # timed cases in Markdown
python benchmarks/report.py compare OLD NEW         # exit 1 if something became slower beyond doubt
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from result_schema import SCHEMA, validate

from gendiff.files import write_whole


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
    """Write a result file, whole or not at all.

    Raises:
        InvalidInputError: the result lacks a field, or one makes no sense; nothing is written.
    """
    whole = {"schema": SCHEMA, **result}
    validate(whole)
    write_whole(path, json.dumps(whole, indent=1) + "\n")


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


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    from compare import compare_results
    from timed_tables import timed_markdown

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check result files field by field")
    check.add_argument("files", nargs="+", type=Path)
    table = commands.add_parser("table", help="print a result's timed cases as Markdown")
    table.add_argument("file", type=Path)
    comparison = commands.add_parser("compare", help="what became slower or faster between two results")
    comparison.add_argument("old", type=Path)
    comparison.add_argument("new", type=Path)
    comparison.add_argument("--force", action="store_true", help="though their environments differ")
    args = parser.parse_args(argv)
    try:
        if args.command == "check":
            for path in args.files:
                _valid(path)
            print(f"{len(args.files)} of {len(args.files)} files are valid")
            return 0
        if args.command == "table":
            print(timed_markdown(_valid(args.file)))
            return 0
        text, slower = compare_results(_valid(args.old), _valid(args.new), force=args.force)
    except (ValueError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2 if args.command != "check" else 1
    print(text)
    return 1 if slower else 0


def _valid(path: Path) -> dict[str, Any]:
    result = read_result(path)
    if result is None:
        raise FileNotFoundError(f"{path} is not a file.")
    try:
        validate(result)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return result


if __name__ == "__main__":
    sys.exit(main())
