"""Pictures of videos: a film strip of one past with several futures, and many videos side by side in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .pictures import FRAME, INK, PAPER, to_pil

BETWEEN = 0.35
"""Brightness of the lines between videos that play side by side: neither that of a ball nor that of the ground."""
BRANCH = (150, 150, 150)
GAP, FORK, FONT = 6, 44, 13
"""Pixels between pictures, for the branches, and of text."""


def fork(
    pipe: Any,
    num_frames: int,
    seed: int = 0,
    num_futures: int = 3,
    image: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """One frame, and videos that go on from it: its motion is not determined, so that each may be another.

    Args:
        pipe: `CausalVideoPipeline`.
        num_frames: of each future.
        seed: of the first frame; future k is drawn from seed + 1 + k.
        num_futures: how many.
        image: the frame (C, H, W) in [0, 1]; None draws one from nothing.
        options: of `CausalVideoPipeline.start`.

    Returns: the frame (1, C, H, W) and the futures (num_futures, num_frames, C, H, W), in [0, 1], on the CPU.
    """
    first = {} if image is None else {"image": image}
    session = pipe.start(**first, **options, generator=torch.Generator().manual_seed(seed))
    past = session.generate(1).frames if session.given is None else session.given.frames
    futures = [
        session.fork(torch.Generator().manual_seed(seed + 1 + number)).generate(num_frames).frames
        for number in range(num_futures)
    ]
    return past[0].cpu(), torch.cat(futures).cpu()


def fork_picture(past: Tensor, futures: Tensor, every: int = 2, scale: int = 2) -> Image.Image:
    """The past on the left, and from it a row for each future, with the numbers of frames above.

    Args:
        past: (P, C, H, W) in [0, 1], frames 0 to P - 1.
        futures: (K, T, C, H, W), frames P to P + T - 1.
        every: show each so many frames of the futures.
        scale: whole factor of enlargement.
    """
    shown = list(range(every - 1, futures.shape[1], every))
    width, height = futures.shape[-1] * scale, futures.shape[-2] * scale
    font = ImageFont.load_default(FONT)
    top = FONT + 2 * GAP
    left = GAP + len(past) * (width + GAP)
    start = left - GAP + FORK
    sheet = Image.new("RGB", (start + len(shown) * (width + GAP), top + len(futures) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    middle = top + (len(futures) * (height + GAP) - GAP) // 2
    for index, frame in enumerate(past):
        _place(sheet, draw, frame, GAP + index * (width + GAP), middle - height // 2, scale)
        draw.text((GAP + index * (width + GAP) + width / 2, middle - height // 2 - 4), str(index), INK, font, "mb")
    turn = left - GAP + FORK // 2
    for row, future in enumerate(futures):
        y = top + row * (height + GAP)
        level = y + height // 2
        draw.line([(left - GAP + 3, middle), (turn, middle), (turn, level), (start - 5, level)], BRANCH, 2)
        for column, number in enumerate(shown):
            _place(sheet, draw, future[number], start + column * (width + GAP), y, scale)
    for column, number in enumerate(shown):
        draw.text((start + column * (width + GAP) + width / 2, top - GAP), str(len(past) + number), INK, font, "mb")
    return sheet


def forked_rollout_picture(
    pipe: Any, num_frames: int = 24, every: int = 2, seed: int = 0, scale: int = 2, **options: Any
) -> Image.Image:
    """`fork` as `fork_picture`."""
    return fork_picture(*fork(pipe, num_frames, seed, **options), every=every, scale=scale)


def side_by_side(videos: Tensor, columns: int) -> Tensor:
    """Videos (N, T, C, H, W) in [0, 1] as one (T, C, H', W'), in rows with thin lines between them."""
    count, length = videos.shape[:2]
    rows = -(-count // columns)
    empty = videos.new_full((rows * columns - count, *videos.shape[1:]), BETWEEN)
    tiles = F.pad(torch.cat([videos, empty]).flatten(0, 1), (0, 2, 0, 2), value=BETWEEN)
    tiles = tiles.unflatten(0, (rows, columns, length))
    lines = [torch.cat(list(row), dim=-1) for row in tiles]
    return torch.cat(lines, dim=-2)[..., :-2, :-2]


def fork_animation(past: Tensor, futures: Tensor) -> Tensor:
    """The futures (K, T, C, H, W) side by side after their past (P, C, H, W): (P + T, C, H', W')."""
    whole = torch.cat([past.expand(len(futures), *past.shape), futures], dim=1)
    return side_by_side(whole, len(futures))


def stacked(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures below one another, each with a title above it, on white."""
    font = ImageFont.load_default(FONT + 2)
    room = FONT + 4 * GAP
    width = max(picture.width for picture in pictures) + GAP
    sheet = Image.new("RGB", (width, sum(picture.height + room for picture in pictures) + GAP), PAPER)
    draw, y = ImageDraw.Draw(sheet), 0
    for picture, title in zip(pictures, titles, strict=True):
        draw.text((GAP, y + 2 * GAP), title, INK, font)
        sheet.paste(picture, (0, y + room))
        y += room + picture.height
    return sheet


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, frame: Tensor, x: int, y: int, scale: int) -> None:
    picture = to_pil(frame, scale)
    draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=FRAME)
    sheet.paste(picture, (x, y))
