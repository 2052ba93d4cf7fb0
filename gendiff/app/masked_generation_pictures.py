"""A picture as it is revealed: what is hidden after a step, and a map of when each token was decided.

What a step knows is shown as it looks in the end, since a revealed token stays; a tokenizer whose decoder mixes tokens
would draw it a little differently at that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from .pictures import GAP, INK, PAPER, grid, to_pil

SHOWN = 112
"""Side in screen pixels, about, that a picture is enlarged to."""
BETWEEN = 4
PAIRS = 4
"""Pictures, each beside its map, in a row of a sheet, at most."""
COLUMNS = 8
"""Steps in a strip, at most."""
HIDDEN = torch.tensor([0.50, 0.60, 0.72])
"""Of what is not known yet; blue, since pictures are full of greys."""
KNOWN = torch.tensor([0.80, 0.80, 0.80])
"""In a map: of what was known from the start."""
COLOURS = torch.tensor([[46, 24, 92], [128, 36, 130], [204, 62, 96], [246, 134, 66], [252, 234, 150]]) / 255
"""Of steps from the first to the last, evenly spaced."""
BAR = 14
"""Height of a colour scale."""


def on_pixels(values: Tensor, tokenizer: Any) -> Tensor:
    """Values (B, N, c) of tokens as pictures (B, c, S, S), each over the pixels of its token."""
    margin, side = tokenizer.config.get("padding", 0), tokenizer.config["sample_size"]
    cells = values.float().transpose(1, 2).unflatten(2, tokenizer.grid)
    whole = interpolate(cells, size=(side + 2 * margin,) * 2, mode="nearest-exact")
    return whole[..., margin : margin + side, margin : margin + side]


def veiled(images: Tensor, hidden: Tensor, tokenizer: Any) -> Tensor:
    """Images (B, C, S, S) in [0, 1] with tokens covered where `hidden` (B, N), (B, 3, S, S)."""
    cover = on_pixels(hidden[..., None], tokenizer)
    return images.expand(-1, 3, -1, -1) * (1 - cover) + HIDDEN[:, None, None] * cover


def shown_steps(count: int, most: int = COLUMNS) -> list[int]:
    """At most so many of `count` steps, evenly spaced, the last one among them."""
    return sorted({round((i + 1) * count / min(count, most)) - 1 for i in range(min(count, most))})


def step_pictures(images: Tensor, revealed_at: Tensor, steps: Sequence[int], tokenizer: Any) -> Tensor:
    """What is known after each of `steps`, (K, B, 3, S, S) in [0, 1].

    Args:
        images: (B, C, S, S) in [0, 1], finished.
        revealed_at: (B, N), the step at which each token was decided, -1 = it was known.
        steps: K of them; -1 is the start.
        tokenizer: says where tokens lie.
    """
    return torch.stack([veiled(images, revealed_at > step, tokenizer) for step in steps])


def order_maps(revealed_at: Tensor, count: int, tokenizer: Any) -> Tensor:
    """When each token was decided, (B, 3, S, S) in [0, 1]: from dark to light over `count` steps, grey = it was known.

    Args:
        revealed_at: (B, N), -1 = it was known.
        count: steps of the walk.
        tokenizer: says where tokens lie.
    """
    return on_pixels(torch.cat([step_colours(max(count, 1)), KNOWN[None]])[revealed_at], tokenizer)


def step_colours(count: int) -> Tensor:
    """A colour for each of `count` steps, (count, 3)."""
    return interpolate(COLOURS.T[None], size=count, mode="linear", align_corners=True)[0].T


def step_labels(
    steps: Sequence[int], groups: Sequence[Sequence[int]], revealed: Sequence[int], known: int
) -> list[str]:
    """What a step was, in three lines: its number, whether it was a full or a light one, tokens known after it.

    Args:
        steps: from 0; -1 is the start.
        groups: steps that share a full one, which is the first of each.
        revealed: tokens revealed at each step.
        known: tokens known at the start.
    """
    full = {group[0] for group in groups}
    light = any(len(group) > 1 for group in groups)
    total = known + sum(revealed)
    labels = []
    for step in steps:
        name = f"step {step + 1}" if step >= 0 else "given"
        kind = ["full" if step in full else "light"] if light and step >= 0 else [""] if light else []
        labels.append("\n".join([name, *kind, f"{known + sum(revealed[: step + 1])} of {total}"]))
    return labels


def steps_sheet(pictures: Tensor, maps: Tensor, labels: Sequence[str], names: Sequence[str] | None) -> Image.Image:
    """One row for each image: what is known after each step (K, B, 3, S, S), and its map (B, 3, S, S) at the end."""
    scale = max(1, SHOWN // maps.shape[-1])
    columns = torch.cat([pictures, maps[None]]).transpose(0, 1)
    return grid([[to_pil(one, scale) for one in row] for row in columns], names, [*labels, "order"])


def order_sheet(
    images: Tensor, maps: Tensor, count: int, names: Sequence[str] | None, any_known: bool = False
) -> Image.Image:
    """Each image (B, C, S, S) beside its map (B, 3, S, S), and the scale of their colours below.

    Args:
        images: in [0, 1].
        maps: of `order_maps`.
        count: steps of the walk.
        names: of the images, whose rows they begin; a name begins a new row.
        any_known: some tokens were known from the start.
    """
    scale = max(1, SHOWN // maps.shape[-1])
    pairs = [_pair(image, colours, scale) for image, colours in zip(images, maps, strict=True)]
    rows: list[list[Image.Image]] = []
    labels: list[str] = []
    for i, pair in enumerate(pairs):
        new = i == 0 or (names is not None and names[i] != names[i - 1])
        if new or len(rows[-1]) == PAIRS:
            rows.append([])
            labels.append(names[i] if names is not None and new else "")
        rows[-1].append(pair)
    sheet = grid(rows, None if names is None else labels)
    scale_bar = _scale_bar(count, any_known)
    whole = Image.new("RGB", (max(sheet.width, scale_bar.width), sheet.height + scale_bar.height), PAPER)
    whole.paste(sheet, (0, 0))
    whole.paste(scale_bar, (0, sheet.height))
    return whole


def _pair(image: Tensor, colours: Tensor, scale: int) -> Image.Image:
    left, right = to_pil(image, scale), to_pil(colours, scale)
    sheet = Image.new("RGB", (left.width + BETWEEN + right.width, left.height), PAPER)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + BETWEEN, 0))
    return sheet


def _scale_bar(count: int, any_known: bool) -> Image.Image:
    """The colours of the first to the last step, and of what was known."""
    font = ImageFont.load_default(12)
    width = 240
    bar = to_pil(step_colours(max(count, 1)).T[:, None]).resize((width, BAR), Image.Resampling.NEAREST)
    words = ["decided at step 1", str(count)] if count > 1 else ["decided at step 1"]
    lengths = [round(font.getlength(word)) for word in words]
    extra = BAR + 2 * GAP + round(font.getlength("known before")) if any_known else 0
    sheet = Image.new("RGB", (sum(lengths) + width + (4 + len(words)) * GAP + extra, BAR + 2 * GAP), PAPER)
    draw, x, middle = ImageDraw.Draw(sheet), GAP, sheet.height / 2
    draw.text((x, middle), words[0], INK, font, anchor="lm")
    x += lengths[0] + GAP
    sheet.paste(bar, (x, GAP))
    x += width + GAP
    if count > 1:
        draw.text((x, middle), words[1], INK, font, anchor="lm")
        x += lengths[1] + GAP
    if any_known:
        x += GAP
        draw.rectangle((x, GAP, x + BAR, GAP + BAR), fill=tuple(round(255 * part) for part in KNOWN.tolist()))
        draw.text((x + BAR + GAP, middle), "known before", INK, font, anchor="lm")
    return sheet
