"""What the gallery says of next-frequency prediction, as pieces of HTML, one function for each block."""

from __future__ import annotations

from html import escape
from typing import Any

import torch
from torch import Tensor

from .examples import Examples
from .given_pictures import without
from .markup import Row, plate
from .next_frequency_answers import KeptStages
from .next_frequency_pictures import band_labels, spectra

MOST_COLUMNS = 10
"""Classes that are shown."""
PAINTED = 3
"""Draws of a half of a picture."""


def shown_classes(pipe: Any) -> list[int]:
    """Two classes that are drawn stage by stage."""
    return sorted({pipe.num_classes // 3, pipe.num_classes - 1})


def bands_html(pipe: Any) -> str:
    """The bands of all stages, in one line."""
    return escape("; ".join(typeset(label) for label in band_labels(pipe.vqvae)))


def samples_block(samples: Tensor, names: list[str]) -> str:
    """Rows of draws (rows, classes, C, S, S), a column for each class."""
    half = MOST_COLUMNS // 2
    parts = [slice(0, half), slice(half, None)] if len(names) > half else [slice(None)]
    plates = "".join(plate(_draws(samples[:, part], names[part])) for part in parts)
    return (
        '<section class="block"><h4>By class</h4><p>Drawn from nothing, under guidance that grows from none at the '
        f"first stage to 2.5 at the last.</p>{plates}</section>"
    )


def _draws(samples: Tensor, names: list[str]) -> list[Row]:
    above = [Row(f"Draw {i + 1}", "", [""] * len(names), images, "drawn", "plain") for i, images in enumerate(samples)]
    last = above.pop()
    return [*above, Row(last.label, "", names, last.pictures, "drawn")]


def stages_block(strips: dict[str, tuple[Any, Tensor]], names: list[str]) -> str:
    """Pictures (K, B, C, S, S) of `shown_classes` after each stage, and their spectra, of one model or several.

    Args:
        strips: checkpoint -> (its pipeline, the pictures).
        names: of all classes.
    """
    first = next(iter(strips.values()))[0]
    sides = [f"{p} \N{MULTIPLICATION SIGN} {p}" for p in first.vqvae.stages]
    plates = []
    for number, label in enumerate(shown_classes(first)):
        rows = [Row(escape(names[label]), captions=sides, style="asked")]
        for pipe, pictures in strips.values():
            rows += _strip_rows(pipe, pictures[:, number], names[label])
        plates.append(plate(rows))
    both = " Both models start from the same seed." if len(strips) > 1 else ""
    bands = "" if first.vqvae.radii is None else " Below, the frequencies that each stage was trained to add."
    return (
        '<section class="block"><h4>Coarse to fine</h4><p>The picture after each stage, decoded from the tokens so '
        "far, and the power of each of its frequencies: slow waves in the middle, fine detail at the rim, light where "
        f"there is much. Above, the grid of each stage.{bands}{both}</p>{''.join(plates)}</section>"
    )


def _strip_rows(pipe: Any, pictures: Tensor, name: str) -> list[Row]:
    """A picture (K, C, S, S) after each stage, and its spectra."""
    alone = [""] * len(pictures)
    if pipe.vqvae.radii is None:
        kind, bands, style = "Next scale", alone, "plain"
    else:
        kind, bands, style = "Next frequency", [typeset(band) for band in band_labels(pipe.vqvae)], ""
    return [
        Row(kind, "after each stage", alone, pictures, f"{name} after a stage, {kind.lower()}", "plain"),
        Row("", "its spectrum", bands, spectra(pictures), "its spectrum", style),
    ]


def typeset(label: str) -> str:
    """A label of a band with the signs that a picture's font lacks."""
    return label.replace(" - ", "\N{EN DASH}").replace(">=", "\N{GREATER-THAN OR EQUAL TO}")


def kept_block(pipe: Any, given: Examples, kept: KeptStages, names: list[str]) -> str:
    """The first example under ever more stages that are kept."""
    count = pipe.num_stages
    image = given.images[:1]
    captions = [*(str(number) for number in range(count + 1)), "image"]
    shown = {"Kept alone": kept.alone, **kept.drawn}
    rows = [Row("Stages kept", captions=captions, style="asked")]
    rows += [
        Row(escape(name), "", [""] * len(captions), torch.cat([pictures, image]), name, "plain")
        for name, pictures in shown.items()
    ]
    what = "low frequencies" if pipe.vqvae.radii is not None else "coarse scales"
    return (
        f'<section class="block"><h4>Keep the first stages</h4><p>{_origin(given)} of the class '
        f"{escape(names[given.labels[0]])}. Its first stages are kept, the {what} of it, and the others are drawn: "
        "on the left a new picture, on the right the same one, in between what else it might have been. In the last "
        "row they are drawn as another class, against what is kept.</p>"
        f"{plate(rows, 'With all stages kept nothing is drawn: what differs from the image is the tokenizer&rsquo;s.')}"
        "</section>"
    )


def painted_block(given: Examples, painted: Tensor, mask: Tensor, names: list[str]) -> str:
    """Each example, what `mask` (1, 1, S, S) keeps of it, and what was drawn there, (N, 2 PAINTED, C, S, S)."""
    labels = ["image", "kept", *[f"draw {number + 1}" for number in range(PAINTED)], *["pixels kept"] * PAINTED]
    kept = without(given.images, mask)
    rows = [
        Row(
            escape(names[label]),
            "",
            labels if row == len(painted) - 1 else [""] * len(labels),
            torch.cat([given.images[row : row + 1], kept[row : row + 1], painted[row]]),
            "",
            "" if row == len(painted) - 1 else "plain",
        )
        for row, label in enumerate(given.labels)
    ]
    return (
        '<section class="block"><h4>Fill in a part</h4><p>The upper half is kept: at each stage its tokens take the '
        "place of those drawn. A token speaks for more than its own square, and no token for every thread, so the kept "
        f"half changes a little too; on the right its pixels are put back.</p>{plate(rows)}</section>"
    )


def _origin(given: Examples) -> str:
    return "A test image" if given.unseen else "A picture the model drew (its test images are not on this machine),"
