"""What a data card says, whether its data set is there, and cards as JSON and markdown. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DataCard:
    """Facts about one data set.

    Attributes:
        about: one line.
        source: who made it, and where it is described.
        licence: of the data, not of the code that reads them.
        size: number and shape of the items.
        splits: names and sizes.
        preprocessing: all that happens between the source and an item.
        ships: what can be loaded without any file besides the package; empty if nothing.
        needs: files the rest needs, relative to the folder of all data sets; each may have `.gz` after it.
        get: the command that brings the rest, with `{root}` for that folder; empty if there is no rest.
    """

    about: str
    source: str
    licence: str
    size: str
    splits: str
    preprocessing: str
    ships: str = ""
    needs: tuple[str, ...] = ()
    get: str = ""

    def status(self, root: str | Path = "data") -> str:
        """`here`, `in part` (what ships, and not all files of the rest) or `missing`."""
        if all(Path(root, name).is_file() or Path(root, f"{name}.gz").is_file() for name in self.needs):
            return "here"
        return "in part" if self.ships else "missing"

    def command(self, root: str | Path = "data") -> str:
        """`get` for this folder."""
        return self.get.replace("{root}", str(root))

    def as_dict(self, name: str, root: str | Path = "data") -> dict[str, Any]:
        """The card and the state of its files, for JSON."""
        facts = asdict(self) | {"needs": list(self.needs), "get": self.command(root)}
        return {"name": name, "status": self.status(root), **facts}


def as_markdown(cards: Iterable[tuple[str, DataCard]]) -> str:
    """A table of all cards and a section for each."""
    cards = list(cards)
    lines = ["| name | content | items | licence | ships |", "| --- | --- | --- | --- | --- |"]
    for name, card in cards:
        link = f"[`{name}`](#{name})"
        lines.append(f"| {link} | {card.about} | {card.size} | {card.licence} | {card.ships or 'no'} |")
    for name, card in cards:
        lines += ["", f"## {name}", "", f"{card.about}. {card.size}.", ""]
        lines += [f"- **Splits**: {card.splits}.", f"- **Preprocessing**: {card.preprocessing}."]
        lines += [f"- **Source**: {card.source}.", f"- **Licence**: {card.licence}."]
        if card.ships:
            lines.append(f"- **Ships**: {card.ships}.")
        if card.get:
            lines += ["- **To get the rest**:" if card.ships else "- **To get it**:", ""]
            lines += ["  ```sh", *(f"  {line}" for line in card.command("data").split(" && ")), "  ```"]
    return "\n".join(lines) + "\n"
