"""`gendiff data`: bring in data sets that the package may not or need not ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Bring in data sets that do not ship with the package.")
imports = typer.Typer(help="Check files you have and lay them out for training.")
app.add_typer(imports, name="import")


@imports.callback()
def _group() -> None:
    """Check files you have and lay them out for training."""


@imports.command("mnist")
def import_mnist_files(
    source: Annotated[Path, typer.Argument(help="A folder with MNIST's four IDX files, or a tarball of them.")],
    root: Annotated[Path, typer.Option(help="Folder of all data sets.")] = Path("data"),
) -> None:
    """Import MNIST from files on this machine; every byte is checked, nothing is downloaded."""
    from gendiff.data.mnist import import_mnist

    typer.echo(import_mnist(source, root))
