"""`gendiff data`: what data sets there are, and how to bring in those that do not ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List data sets, and bring in those that do not ship with the package.")
imports = typer.Typer(help="Check files you have and lay them out for training.")
app.add_typer(imports, name="import")

Root = Annotated[Path, typer.Option(help="Folder of all data sets.")]


@app.callback()
def _data() -> None:
    """List data sets, and bring in those that do not ship with the package."""


@imports.callback()
def _group() -> None:
    """Check files you have and lay them out for training."""


@app.command("list")
def list_datasets(
    name: Annotated[str | None, typer.Argument(help="Print the whole card of this one.")] = None,
    root: Root = Path("data"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False,
) -> None:
    """What data sets there are, which are on this machine, and the command that gets the rest."""
    from gendiff.data.cards import CARDS

    if name is not None and name not in CARDS:
        raise typer.BadParameter(f"no data set {name!r}; known: {', '.join(CARDS)}.", param_hint="NAME")
    cards = [card.as_dict(key, root) for key, card in CARDS.items() if name in (None, key)]
    if as_json:
        typer.echo(json.dumps(cards if name is None else cards[0], indent=2))
    elif name is not None:
        for field, value in cards[0].items():
            typer.echo(f"{field + ':':<15} {', '.join(value) if isinstance(value, list) else value}")
    else:
        _print_table(cards)


def _print_table(cards: list[dict[str, str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ("name", "status", "about", "size", "licence")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "status"))
    for card in cards:
        table.add_row(*(card[column] for column in columns))
    Console().print(table, markup=False)
    # Plain lines after the table: a command must not be broken where it would be copied.
    for card in cards:
        if card["get"] and card["status"] != "here":
            typer.echo(f"{card['name']}: {card['get']}")


@imports.command("mnist")
def import_mnist_files(
    source: Annotated[Path, typer.Argument(help="A folder with MNIST's four IDX files, or a tarball of them.")],
    root: Root = Path("data"),
) -> None:
    """Import MNIST from files on this machine; every byte is checked, nothing is downloaded."""
    from gendiff.data.mnist import import_mnist

    typer.echo(import_mnist(source, root))


@imports.command("fashion-mnist")
def import_fashion_mnist_files(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A folder with the four IDX files, or a tarball of them; without it, the Debian package's folder."
        ),
    ] = None,
    root: Root = Path("data"),
) -> None:
    """Import Fashion-MNIST from files on this machine; every byte is checked, nothing is downloaded."""
    from gendiff.data.fashion_mnist import import_fashion_mnist

    typer.echo(import_fashion_mnist(source, root))


@imports.command("emoji")
def import_emoji_pictures(
    source: Annotated[
        Path | None,
        typer.Argument(help="NotoColorEmoji.ttf or a folder with it; without it, the file of the Debian package."),
    ] = None,
    root: Root = Path("data"),
    table: Annotated[
        Path | None, typer.Option(help="Unicode's emoji-test.txt; by default that of Debian's unicode-data.")
    ] = None,
) -> None:
    """Render the emoji of a font on this machine, with the names and groups of Unicode's table."""
    from gendiff.data.emoji import import_emoji
    from gendiff.data.emoji_table import DEBIAN_TABLE

    typer.echo(import_emoji(source, root, table or DEBIAN_TABLE))
