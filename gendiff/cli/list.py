"""`gendiff list`: what this installation offers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def list_everything(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Tasks, built-in checkpoints, data sets and training recipes."""
    offers = {"tasks": _tasks(), "checkpoints": _checkpoints(), "datasets": _datasets(), "recipes": _recipes()}
    if as_json:
        typer.echo(json.dumps(offers, indent=2))
        return
    from rich.console import Console

    console = Console()
    for title, rows in offers.items():
        console.print(_table(title, rows) if rows else f"{title}: none\n")


def _tasks() -> list[dict[str, Any]]:
    from gendiff.pipelines.registry import TASKS

    return [{"name": name, "about": task.summary, "default": task.checkpoint} for name, task in TASKS.items()]


def _checkpoints() -> list[dict[str, Any]]:
    from gendiff.cli.bare_models import builtin_models, class_of, task_of
    from gendiff.pipelines.registry import builtin_checkpoints

    found = {name: (checkpoint.task, checkpoint.path) for name, checkpoint in builtin_checkpoints().items()}
    found |= {name: (task_of(class_of(folder)), folder) for name, folder in builtin_models().items()}
    return [
        {"name": name, "task": task, "megabytes": round(_size(folder) / 1e6, 1)}
        for name, (task, folder) in sorted(found.items())
    ]


def _datasets() -> list[dict[str, Any]]:
    from gendiff.data.cards import CARDS

    return [{"name": name, "about": card.about} for name, card in CARDS.items()]


def _recipes() -> list[dict[str, Any]]:
    import yaml

    import gendiff.training

    rows = []
    for path in sorted((Path(gendiff.training.__path__[0]) / "recipes").glob("*.yaml")):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows.append({"name": path.stem, "task": recipe["task"], "data": recipe["data"]["name"]})
    return rows


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _table(title: str, rows: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold", no_wrap=column == "name")  # names are there to be copied
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table
