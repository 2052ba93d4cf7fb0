"""`gendiff show`: what a checkpoint or a run folder holds, read without loading any weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gendiff.causal.graph import CausalGraph


def show_path(
    path: Annotated[
        str, typer.Argument(help="A saved pipeline or model, a run folder, or the name of a built-in checkpoint.")
    ],
) -> None:
    """What a checkpoint or a run folder holds."""
    from rich.console import Console

    from gendiff.cli.bare_models import builtin_models, is_bare_model
    from gendiff.pipelines.registry import builtin_checkpoints, suggest

    console = Console(highlight=False)
    builtin = {name: found.path for name, found in builtin_checkpoints().items()} | builtin_models()
    folder = builtin[path] if path in builtin and not Path(path).exists() else Path(path)
    if (folder / "model_index.json").is_file():
        _show_checkpoint(console, folder)
    elif is_bare_model(folder):
        _show_model(console, folder)
    elif (folder / "recipe.yaml").is_file():
        _show_run(console, folder)
    elif folder.is_dir():
        raise ValueError(f"{folder} is neither a saved pipeline (model_index.json) nor a run folder (recipe.yaml).")
    else:
        raise ValueError(f"{path!r} is neither a folder nor a built-in checkpoint; {suggest(path, builtin)}")


def _show_checkpoint(console: Console, folder: Path) -> None:
    from rich import box
    from rich.table import Table

    from gendiff.pipelines.registry import task_of
    from gendiff.pipelines.saved import check_folder, components

    index = check_folder(folder)
    _print(console, f"{folder.resolve().name}: {index['_class_name']}", style="bold")
    _print(console, f"task {task_of(index['_class_name']) or 'unknown to this version'}, in {folder}")
    table = Table("component", "class", "weights", "type", "bytes", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, (_, class_name) in components(index).items():
        count, dtypes = _weights(folder / name)
        size = sum(file.stat().st_size for file in (folder / name).rglob("*") if file.is_file())
        table.add_row(name, class_name, f"{count:,}" if count else "", dtypes, f"{size:,}")
    console.print(table)
    for name in components(index):
        graph = _graph(folder / name / "config.json")
        if graph is not None:
            console.print(_graph_table(graph))
            _print(console, f"{draw_graph(graph)}\n")
    _show_card(console, folder / "README.md")


def _show_model(console: Console, folder: Path) -> None:
    from gendiff.cli.bare_models import class_of, task_of

    class_name = class_of(folder)
    count, dtypes = _weights(folder)
    _print(console, f"{folder.resolve().name}: {class_name}", style="bold")
    _print(console, f"task {task_of(class_name) or 'unknown to this version'}, in {folder}")
    _print(console, f"{count:,} weights, {dtypes}")
    _show_card(console, folder / "README.md")


def _show_run(console: Console, folder: Path) -> None:
    import yaml

    from gendiff.cli.bare_models import is_bare_model

    recipe = _read_recipe(folder / "recipe.yaml")
    _print(console, f"{recipe['name']}: run of the task {recipe['task']}", style="bold")
    checkpoints = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    _print(console, f"checkpoints: {', '.join(checkpoints) or 'none'}")
    row = _last_row(folder / "log.jsonl")
    numbers = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    _print(console, f"last log line: {', '.join(numbers) or 'none'}")
    _print(console, f"recipe:\n{yaml.safe_dump(recipe, sort_keys=False)}")
    if (folder / "final" / "model_index.json").is_file():
        _show_checkpoint(console, folder / "final")
    elif is_bare_model(folder / "final"):
        _show_model(console, folder / "final")


def draw_graph(graph: CausalGraph) -> str:
    """A causal graph as text: one line for each set of effects, with all its causes; a variable alone by itself."""
    causes: dict[tuple[str, ...], list[str]] = {}
    for name in graph.topological_order:
        causes.setdefault(graph.children(name), []).append(name)
    lines = [f"{', '.join(names)} ──▶ {', '.join(effects)}" for effects, names in causes.items() if effects]
    alone = [name for name in causes.get((), ()) if not graph.parents(name)]
    return "\n".join([*lines, *alone])


def _graph(config: Path) -> CausalGraph | None:
    """The causal graph in a component's config, if it has one."""
    from gendiff.causal.graph import CausalGraph

    if not config.is_file():
        return None
    graph = json.loads(config.read_text(encoding="utf-8")).get("graph")
    return CausalGraph.from_dict(graph) if isinstance(graph, dict) else None


def _graph_table(graph: CausalGraph) -> Any:
    from rich import box
    from rich.table import Table

    table = Table("variable", "kind", "range", "caused by", box=box.SIMPLE_HEAD, pad_edge=False)
    for variable in graph.variables:
        low, high = (("" if bound is None else f"{bound:g}") for bound in (variable.low, variable.high))
        spread = f"0..{variable.num_classes - 1}" if variable.num_classes else f"{low}..{high}"
        table.add_row(variable.name, variable.kind, spread, ", ".join(graph.parents(variable.name)))
    return table


def _weights(folder: Path) -> tuple[int, str]:
    """How many numbers the safetensors files of a component hold, and of which types; reads their headers only."""
    from safetensors import SafetensorError, safe_open

    from gendiff.pipelines.saved import weight_files

    count, dtypes = 0, set()
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 (a safetensors file cannot be iterated)
                    tensor = file.get_slice(key)
                    count += math.prod(tensor.get_shape())
                    dtypes.add(tensor.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}.") from error
    return count, ", ".join(sorted(dtypes))


def _show_card(console: Console, path: Path) -> None:
    """The model card's title and what follows it, up to its second section; the YAML at its head is for machines."""
    from rich.markdown import Markdown

    if not path.is_file():
        console.print("no model card")
        return
    text = path.read_text(encoding="utf-8")
    if text.startswith("---\n"):
        text = text[4:].partition("\n---\n")[2]
    console.print(Markdown(text.strip().partition("\n## ")[0]))


def _read_recipe(path: Path) -> dict[str, Any]:
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: not YAML.") from error
    if not isinstance(recipe, dict) or not {"name", "task"} <= recipe.keys():
        raise ValueError(f"{path} is not a recipe: it names no task.")
    return recipe


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a run's log; a killed run may have left half of one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return {}


def _print(console: Console, text: str, style: str | None = None) -> None:
    """Text as it is: brackets in a path are not markup, and lines stay whole for a pipe."""
    console.print(text, style=style, markup=False, soft_wrap=True)
