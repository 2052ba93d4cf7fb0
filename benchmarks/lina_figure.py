"""The picture of the README: held-out prompts as the plain model draws them and under LINA, each with its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from lina_fixed import intervention_words
from lina_runs import Outcome
from PIL import Image, ImageDraw, ImageFont

from gendiff.app.pictures import grid, png_bytes, to_pil
from gendiff.files import write_whole

SCALE, BAR, FONT, WIDTH = 5, 54, 13, 24
GOOD, BAD = (0, 114, 178), (213, 94, 0)
"""Blue and vermilion, which also those tell apart who do not see red and green."""
EXAMPLES = 4
"""Prompts of each direction, evenly spaced; of each the first image that base* gets wrong, else the first."""


def draw(directions: Sequence[Any], path: Path) -> None:
    """Write the picture of `lina_shadows.Direction`s: a column for each prompt, base* above LINA adaptive."""
    columns, rows = [], [[], []]
    for one in directions:
        prompts = one.prompts[0]
        count = min(EXAMPLES, len(prompts))
        for index in (round(i * (len(prompts) - 1) / max(count - 1, 1)) for i in range(count)):
            columns.append(prompts[index].replace(", ", ",\n"))
            # argmin is the first of several.
            seed = int(one.rows["base"][0].scores["pap_all"][index].argmin())
            for line, row in zip(rows, ("base", "adaptive"), strict=True):
                line.append(cell(one.rows[row][0], index, seed))
    sheet = grid(rows, ["base*", "LINA\nadaptive"], columns, font_size=FONT)
    write_whole(path, png_bytes(sheet))


def cell(outcome: Outcome, prompt: int, seed: int = 0) -> Image.Image:
    """One image over a bar that names what the verifier finds wrong, and below it what was done."""
    picture = to_pil(outcome.images[prompt, seed] / 255, SCALE)
    failed = [name for name, passed in outcome.checks.items() if not passed[prompt, seed]]
    sheet = Image.new("RGB", (picture.width, picture.height + BAR), BAD if failed else GOOD)
    sheet.paste(picture, (0, 0))
    words = f"wrong: {failed[0]}" + (f" +{len(failed) - 1}" if len(failed) > 1 else "") if failed else "all right"
    done = intervention_words(outcome.interventions[prompt])
    font = ImageFont.load_default(FONT)
    canvas = ImageDraw.Draw(sheet)
    text = words if done == "none" else f"{words}\n{fill(done, WIDTH)}"
    canvas.multiline_text((picture.width / 2, picture.height + BAR / 2), text, "white", font, "mm", align="center")
    return sheet
