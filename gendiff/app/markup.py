"""Pieces of HTML that the sections of the gallery are made of."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from torch import Tensor

from .pictures import png_bytes, to_pil

# Largest side in screen pixels to which small pictures are enlarged, and the room for a row of them.
SHOWN, WIDTH, GAP = 96, 736, 8


@dataclass(frozen=True)
class Row:
    """A row of a plate: pictures with captions, or captions alone.

    Attributes:
        label: what the row shows; HTML.
        note: what the captions say; HTML.
        captions: plain text under each picture.
        pictures: (N, C, S, S) in [0, 1], or None.
        alt: what the pictures show, for those who cannot see them; the caption is added.
        style: class of the row.
    """

    label: str
    note: str = ""
    captions: Sequence[str] = field(default_factory=list)
    pictures: Tensor | None = None
    alt: str = ""
    style: str = ""


def picture(image: Tensor, alt: str) -> str:
    """An `<img>` that holds `image` (C, H, W) in [0, 1] itself, shown with sharp pixels."""
    data = base64.b64encode(png_bytes(to_pil(image))).decode("ascii")
    height, width = image.shape[1:]
    return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">'


def animation(gif: bytes, width: int, alt: str) -> str:
    """A `<figure>` with a GIF in it, shown `width` screen pixels wide with sharp pixels."""
    data = base64.b64encode(gif).decode("ascii")
    source = f"data:image/gif;base64,{data}"
    return f'<figure><img class="animation" src="{source}" width="{width}" alt="{escape(alt)}"></figure>'


def plate(rows: Sequence[Row], caption: str = "") -> str:
    """A `<figure>` of pictures in columns; `caption` is HTML."""
    columns = max(len(row.captions) for row in rows)
    side = next((row.pictures.shape[-1] for row in rows if row.pictures is not None), SHOWN)
    cells = "".join(_row(row) for row in rows)
    return (
        f'<figure class="plate" style="--columns:{columns};--side:{enlargement(side, columns) * side}px">'
        f'<div class="rows">{cells}</div>{f"<figcaption>{caption}</figcaption>" if caption else ""}</figure>'
    )


def enlargement(side: int, columns: int = 1) -> int:
    """The whole factor by which `columns` pictures of `side` pixels in a row are enlarged.

    Tiny pictures are doubled even where there is no room: the page then shrinks them as the screen asks.
    """
    fitting = max(2, (WIDTH // columns - GAP) // side)
    return max(1, min(SHOWN // side, fitting))


def _row(row: Row) -> str:
    note = f"<small>{row.note}</small>" if row.note else ""
    cells = [f'<div class="label {row.style}"><b>{row.label}</b>{note}</div>']
    for i, caption in enumerate(row.captions):
        image = "" if row.pictures is None else picture(row.pictures[i], f"{row.alt}, {caption}".strip(", "))
        cells.append(f'<div class="cell {row.style}">{image}<span>{escape(caption)}</span></div>')
    return "".join(cells)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells; the first column names the rows."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A definition list of HTML pairs."""
    return f'<dl class="facts">{"".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in pairs)}</dl>'


def code(text: str) -> str:
    """A block of code, plain text."""
    return f"<pre><code>{escape(text)}</code></pre>"


def listing(names: Sequence[str]) -> str:
    """Names of variables as HTML: "a", "a and b", "a, b and c"."""
    tags = [f"<code>{escape(name)}</code>" for name in names]
    return " and ".join([", ".join(tags[:-1]), tags[-1]] if len(tags) > 1 else tags)


def number(value: float, decimals: int) -> str:
    """`value` with so many decimals and a true minus sign; never a negative zero."""
    text = f"{value:.{decimals}f}"
    return (text if float(text) else text.lstrip("-")).replace("-", "\N{MINUS SIGN}")
