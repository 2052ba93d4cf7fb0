"""Plain and steered pictures one above the other, the verdict under each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .lina_verdicts import Verdict
from .pictures import PAPER, grid, to_pil

SHOWN = 128
"""Side in screen pixels, about, that a picture is enlarged to."""
COLUMNS = 8
"""Pictures in a row, at most."""
NAMES = {"base": "plain", "lina": "LINA"}
GOOD, BAD = (0, 110, 60), (176, 32, 32)
FONT_SIZE, LINES, WIDTH = 12, 2, 20


def pairs(prompts: Sequence[str], images: Mapping[str, Tensor], found: Mapping[str, Sequence[Verdict]]) -> Image.Image:
    """Plain pictures above steered ones, from the same noise.

    Two rows for each prompt; where a few prompts have one picture each, two rows for all.

    Args:
        prompts: P texts.
        images: "base" and "lina", each (P * n, 3, S, S) in [0, 1].
        found: a verdict for each image, or none.
    """
    count = len(images["base"]) // len(prompts)

    def row(name: str, shown: Sequence[int]) -> list[Image.Image]:
        return [_judged(images[name][k], found[name][k] if found[name] else None) for k in shown]

    if count == 1 < len(prompts) <= COLUMNS:
        every = range(len(prompts))
        return grid([row(name, every) for name in NAMES], [*NAMES.values()], [fill(text, WIDTH) for text in prompts])
    rows, labels = [], []
    for i, prompt in enumerate(prompts):
        for name in NAMES:
            rows.append(row(name, range(i * count, i * count + min(count, COLUMNS))))
            labels.append(f"{fill(prompt, 24)}\n{NAMES[name]}" if name == "base" else NAMES[name])
    return grid(rows, labels)


def _judged(image: Tensor, verdict: Verdict | None) -> Image.Image:
    picture = to_pil(image, max(1, SHOWN // image.shape[-1]))
    if verdict is None:
        return picture
    font = ImageFont.load_default(FONT_SIZE)
    sheet = Image.new("RGB", (picture.width, picture.height + LINES * (FONT_SIZE + 4) + 4), PAPER)
    sheet.paste(picture)
    said = "all as asked" if verdict.passed else "not: " + ", ".join(verdict.failed)
    lines = fill(said, WIDTH).split("\n")
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"{lines[LINES - 1][: WIDTH - 3]}..."]
    place = (4, picture.height + 2)
    ImageDraw.Draw(sheet).multiline_text(place, "\n".join(lines), GOOD if verdict.passed else BAD, font)
    return sheet
