"""What a run tells: a bar or plain lines on the screen, every row of numbers in log.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from gendiff.files import write_whole


class Meter:
    """Means of scalars since the last reading, kept on the device until they are read."""

    def __init__(self) -> None:
        self._totals: dict[str, tuple[Tensor | float, int]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of one micro-batch; costs no wait for the device."""
        for name, value in values.items():
            total, count = self._totals.get(name, (0.0, 0))
            self._totals[name] = (total + value.detach().float(), count + 1)

    def read(self, gather: Callable[[list], list]) -> dict[str, float]:
        """Means since the last reading; then start anew.

        Args:
            gather: joins the lists of all processes. A scalar may be missing from some of them, or from some steps.
        """
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for totals in gather([{name: (float(total), count) for name, (total, count) in self._totals.items()}]):
            for name, (total, count) in totals.items():
                sums[name] = sums.get(name, 0.0) + total
                counts[name] = counts.get(name, 0) + count
        self._totals = {}
        return {name: total / counts[name] for name, total in sums.items()}


class Log:
    """log.jsonl of a run: one JSON object per line, each with its step."""

    def __init__(self, path: Path, resumed_at: int):
        """Continue the log of a run that is at step `resumed_at`; rows of later steps are about to be made again."""
        self.path = path
        self.last: dict[str, Any] = {}
        rows = [row for row in _rows(path) if row["step"] <= resumed_at]
        if rows:
            self.last = rows[-1]
        write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; a number that is not finite is written as null."""
        self.last = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.last) + "\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # the last line of a killed run may be cut off
        rows.append(row)
    return rows


class Display:
    """A progress bar on a terminal, plain lines elsewhere, nothing where `quiet`."""

    def __init__(self, name: str, steps: int, start: int, quiet: bool):
        self._console = Console(quiet=quiet)
        self._steps = steps
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = Progress(
            *(*columns, TimeElapsedColumn(), TimeRemainingColumn()),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=steps, completed=start, note="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def step(self, done: int) -> None:
        """`done` steps are done."""
        self._bar.update(self._task, completed=done)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a row of the log."""
        note = f"loss {row['loss']:.4g}, {row['samples_per_second']:.1f} samples/s"
        self._bar.update(self._task, note=note)
        if not self._console.is_terminal:
            self._console.print(f"step {row['step']}/{self._steps}: {note}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)
