"""`gendiff train`: run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train_recipe(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a built-in recipe (see gendiff list).")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME of the recipe if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. train.steps=100.")
    ] = None,
) -> None:
    """Train a pipeline; `accelerate launch -m gendiff train` runs the same recipe on several devices."""
    from gendiff.training.recipe import load_recipe
    from gendiff.training.trainer import TrainingStopped, train

    loaded = load_recipe(recipe, overrides or ())
    try:
        train(loaded, Path("runs", loaded.name) if out is None else out, resume=resume)
    except TrainingStopped as stopped:
        typer.echo(f"gendiff: {stopped}", err=True)
        raise typer.Exit(130) from stopped
