"""What a command of `gendiff evaluate` found: shown as a table, and written as files, all of them or none."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gendiff.errors import InvalidInputError, MetricWarning
from gendiff.metrics.conditions import versions
from gendiff.metrics.processes import once, process_state
from gendiff.metrics.report import EvalReport

from .command_line import command_line
from .output_folder import write_files

NOTHING = "-"


@dataclass(frozen=True)
class Outputs:
    """Where to write what was found; None is not wanted.

    Attributes:
        json: file of the scores and all their conditions.
        md: file of the same as a table.
        plot: folder of plots.
    """

    json: Path | None = None
    md: Path | None = None
    plot: Path | None = None

    def check(self) -> None:
        """Before any work: take a place among the processes of a launcher, and see that all can be written at the end.

        Raises:
            InvalidInputError: a path that cannot be written to.
            ImportError: plots are wanted, and matplotlib is missing.
        """
        process_state()  # from here on only the main process tells of errors
        for option, path in (("--json", self.json), ("--md", self.md)):
            if path is not None:
                check_file(option, path)
        if self.plot is not None and (self.plot.exists() or self.plot.is_symlink()) and not self.plot.is_dir():
            raise InvalidInputError(f"--plot must be a folder, {self.plot} is a file.")
        if self.plot is not None:
            _check_writable("--plot", self.plot)
            if find_spec("matplotlib") is None:
                raise ImportError('--plot needs matplotlib: pip install "gendiff[plots]".')


@dataclass(frozen=True)
class Outcome:
    """What was found.

    Attributes:
        columns: of the table.
        rows: one cell for each column.
        warnings: what makes the numbers hard to trust, one line each.
        record: all of it with its conditions, as JSON can hold it.
        markdown: all of it for people; None for the table and the warnings.
        plots: writes plots into a folder; only called where they are wanted.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    warnings: Sequence[str]
    record: Mapping[str, Any]
    markdown: str | None = None
    plots: Callable[[Path], Any] | None = None


def deliver(outcome: Outcome, outputs: Outputs) -> None:
    """Write the files, then print the table and the warnings; the main process does it, the others wait.

    Raises:
        OSError: a file cannot be written; none is left then.
    """
    once(lambda: _deliver(outcome, outputs))


def run_facts() -> dict[str, Any]:
    """When, by which command and with which versions: what every record says of its run."""
    from datetime import UTC, datetime

    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "versions": versions(),
    }


def check_file(option: str, path: Path) -> None:
    """Raise InvalidInputError unless a file can be written at `path`."""
    if path.is_dir():
        raise InvalidInputError(f"{option} must be a file, {path} is a folder.")
    _check_writable(option, path)


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> list[str]:
    """Table and warnings in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
    return [*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]


@contextmanager
def told_in_the_report() -> Iterator[None]:
    """What a report holds is printed with it, once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        yield


def count_cell(report: EvalReport) -> str:
    real = report.conditions["n_real"]
    return f"{report.conditions['n_gen']} / {'?' if real is None else real}"


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))  # FD[lite0-112] is no markup
    # A pipe has no width of its own; 80 would fold the labels.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _deliver(outcome: Outcome, outputs: Outputs) -> None:
    files: dict[str, bytes] = {}
    if outputs.json is not None:
        files[str(outputs.json)] = (json.dumps(outcome.record, indent=2, allow_nan=False) + "\n").encode()
    if outputs.md is not None:
        text = outcome.markdown or "\n".join(table_lines(outcome.columns, outcome.rows, outcome.warnings))
        files[str(outputs.md)] = (text.rstrip("\n") + "\n").encode()
    if outputs.plot is not None and outcome.plots is not None:
        files |= {str(outputs.plot / name): content for name, content in _drawn(outcome.plots).items()}
    write_files(Path(), files)
    show_table(outcome.columns, outcome.rows)
    for warning in outcome.warnings:
        print(f"warning: {warning}")


def _drawn(plots: Callable[[Path], Any]) -> dict[str, bytes]:
    """Plots by name, drawn aside, so that none is left where a later one fails."""
    with tempfile.TemporaryDirectory() as folder:
        plots(Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _check_writable(option: str, path: Path) -> None:
    """The nearest folder that exists must take new entries."""
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise InvalidInputError(f"{option} {path}: {nearest} is a file, not a folder.")
    if not os.access(nearest, os.W_OK):
        raise InvalidInputError(f"{option} {path}: {nearest} cannot be written to.")
