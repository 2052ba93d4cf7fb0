"""SwapWorld: two shapes, one above the other, and a training set in which nearly always the same one is on top.

"a circle above a square" and "a square above a circle" hold the same words, so only a model that binds words to places
tells them apart. Of every unordered pair one order is common and the other rare, 97 images to 3; captions are always
true. The share is the one the LINA specification of this package gives; shapes and colours are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendiff.data.prompt_world import PromptWorld, check_pairs, hops_of, nearest_colour, passed, sentences, words_of
from gendiff.data.rendered import SEEDS, check_count, check_split, to_bytes
from gendiff.errors import InvalidInputError

SIZE = 32
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = ((220, 40, 40), (30, 150, 60), (40, 60, 200), (240, 190, 20), (160, 40, 180), (20, 190, 210))
WHITE = (255, 255, 255)
COUNTS = {"train": 6000, "validation": 600, "test": 600}
TOP, BOTTOM = 8, 23
RARE_IN_100 = (16, 50, 83)

GRAMMAR: dict[str, Any] = {
    "template": "a {top} above a {bottom}",
    "slots": {
        "top": {"values": list(SHAPES), "kind": "object"},
        "bottom": {"values": list(SHAPES), "kind": "object"},
    },
    "implied": [
        {
            "id": "order",
            "kind": "effect",
            "effect": "other",
            "parents": ["top", "bottom"],
            "text": "the first shape stands higher than the second",
        }
    ],
    "contrast": "top",
    "swap": ["top", "bottom"],
}

HOPS = hops_of(GRAMMAR)
_PROMPTS = {prompt: words for prompt, words in sentences(GRAMMAR).items() if words["top"] != words["bottom"]}
_PAIRS = [(a, b) if (a + b) % 2 else (b, a) for a in range(len(SHAPES)) for b in range(a + 1, len(SHAPES))]
"""The common order (top, bottom) of each unordered pair, so chosen that no shape is always on top."""


def swap_prompts(split: str = "train") -> list[str]:
    """The prompts of a split: "common" (15), "rare" (their 15 swaps) or "train" (all 30; the rare ones are trained on).

    Raises:
        InvalidInputError: another split.
    """
    common = [GRAMMAR["template"].format(top=SHAPES[a], bottom=SHAPES[b]) for a, b in _PAIRS]
    rare = [GRAMMAR["template"].format(top=SHAPES[b], bottom=SHAPES[a]) for a, b in _PAIRS]
    splits = {"train": common + rare, "common": common, "rare": rare}
    if split not in splits:
        raise InvalidInputError(f"split of the prompts must be one of {', '.join(splits)}, got {split!r}")
    return splits[split]


def render_swap(shapes: Tensor, places: Tensor) -> Tensor:
    """Draw two shapes on white: (B, 3, 32, 32) in [-1, 1].

    Args:
        shapes: (B, 2) integers, positions in `SHAPES`, the upper shape first.
        places: (B, 2, 2) integers, x and y of the centres in pixels, of the upper shape first.

    Raises:
        ValueError: another shape of the tensors.
    """
    if shapes.ndim != 2 or shapes.shape[1] != 2 or places.shape != (*shapes.shape, 2):
        raise ValueError(
            f"shapes must be (B, 2) and places (B, 2, 2), got {tuple(shapes.shape)}, {tuple(places.shape)}"
        )
    colours = torch.tensor(COLOURS) / 127.5 - 1
    image = torch.ones(len(shapes), 3, SIZE, SIZE)
    for which in range(2):
        mask = _stencils(places[:, which, 0].float(), places[:, which, 1].float())
        mask = mask[torch.arange(len(shapes)), shapes[:, which]]
        image = torch.where(mask[:, None], colours[shapes[:, which]][:, :, None, None], image)
    return image


def read_swap(images: Tensor) -> dict[str, Tensor]:
    """Which shapes (B, 3, 32, 32) images in [-1, 1] show, and where; no network is involved.

    Colours name the shapes. A shape counts as shown if its colour covers its own area to within 35 % and overlaps the
    shape, laid at the colour's centroid, with an intersection over union of 0.6 or more: one whole thing of about the
    right form. A shape that is there twice is not; nor is a bar, a frame or a scatter of pixels in its colour.

    Returns:
        top, bottom: (B,) float32 positions in `SHAPES`, NaN unless exactly two shapes are shown.
        shown: (B, 6) bool, in the order of `SHAPES`. height: (B, 6) float32, rows above the lower edge, NaN if not.
    """
    check_pairs(images, [""] * len(images), SIZE)
    kinds = nearest_colour(images, (*COLOURS, WHITE), radius=90.0)
    masks = kinds[:, None] == torch.arange(len(SHAPES), device=images.device)[None, :, None, None]
    rows = torch.arange(SIZE, device=images.device, dtype=torch.float32)
    area = masks.sum((2, 3))
    y = (masks.sum(3) * rows).sum(2) / area.clamp(min=1)
    x = (masks.sum(2) * rows).sum(2) / area.clamp(min=1)
    wanted = _stencils(x, y - _own_offset(images.device))
    own = _areas(images.device)
    overlap = (wanted & masks).sum((2, 3)) / (wanted | masks).sum((2, 3)).clamp(min=1)
    shown = ((area - own).abs() <= 0.35 * own) & (overlap >= 0.6)
    height = torch.where(shown, SIZE - 1 - y, torch.nan)
    two = shown.sum(1) == 2
    read = {
        "top": torch.where(shown, height, -torch.inf).argmax(1),
        "bottom": torch.where(shown, height, torch.inf).argmin(1),
    }
    return {name: torch.where(two, value.float(), torch.nan) for name, value in read.items()} | {
        "shown": shown,
        "height": height,
    }


def check_swap(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Decide for every image whether its prompt came true. No learning: colours, areas and centroids alone.

    Args:
        images: (B, 3, 32, 32) in [-1, 1].
        prompts: B prompts of this world.

    Returns:
        (B,) bool each. top, bottom: the shape named first, second, is shown, wherever (hop 0). order: exactly these
        two are shown, in the order asked for (hop 1). A swapped image passes `top` and `bottom` and fails `order`.

    Raises:
        InvalidInputError: another shape of `images`, or a prompt that is none of this world's.
    """
    check_pairs(images, prompts, SIZE)
    named = [[SHAPES.index(words[place]) for place in ("top", "bottom")] for words in _words(prompts)]
    target = torch.tensor(named, device=images.device).reshape(-1, 2)
    seen = read_swap(images)
    shown = seen["shown"].gather(1, target)
    order = passed(seen, {"top": target[:, 0], "bottom": target[:, 1]}, {"top": 0.0, "bottom": 0.0})
    return {"top": shown[:, 0], "bottom": shown[:, 1], "order": order["top"] & order["bottom"]}


def region(node: str) -> Tensor:
    """The part of the picture that shows a node: (1, 32, 32) bool; the upper half, the lower half, or all of it.

    Raises:
        InvalidInputError: no such node.
    """
    if node not in HOPS:
        raise InvalidInputError(f"node must be one of {', '.join(HOPS)}, got {node!r}")
    upper = (torch.arange(SIZE) < SIZE // 2)[None, :, None].expand(1, SIZE, SIZE)
    return {"top": upper, "bottom": ~upper, "order": torch.ones(1, SIZE, SIZE, dtype=torch.bool)}[node].clone()


class SwapWorld(PromptWorld):
    """Pictures of two shapes, 32x32 RGB, with captions that are always true.

    Args:
        split: train (6,000 images), validation (600) or test (600). Of each unordered pair, 97 of 100 images of train
            and validation show the common order; in test both are equally frequent.
        num_images: another number of images; a smaller set is the beginning of a larger one.
        seed: another seed than the split's own (0, 1, 2).

    Attributes:
        values: (N, 2) int64, the shapes (upper, lower) as positions in `SHAPES`.
        rare: (N,) bool, whether the image shows the rare order.

    Raises:
        ValueError: an argument is out of range.
    """

    grammar = GRAMMAR
    name = "swap-world"
    calibration = ("rare", "common")

    def __init__(self, split: str = "train", num_images: int | None = None, seed: int | None = None):
        check_split(split)
        if num_images is not None:
            check_count("num_images", num_images)
        if seed is not None:
            check_count("seed", seed, minimum=0)
        seed, count = SEEDS[split] if seed is None else seed, num_images or COUNTS[split]
        # The share is exact and not drawn: with a few rare images of a pair, chance would decide how rare they are.
        pair, turn = torch.arange(count) % len(_PAIRS), torch.arange(count) // len(_PAIRS)
        self.rare = turn % 2 == 1 if split == "test" else torch.isin(turn % 100, torch.tensor(RARE_IN_100))
        common = torch.tensor(_PAIRS)[pair]
        self.values = torch.where(self.rare[:, None], common.flip(1), common)
        self.images = to_bytes(render_swap(self.values, _draw_places(count, seed)))
        self.captions = [GRAMMAR["template"].format(top=SHAPES[a], bottom=SHAPES[b]) for a, b in self.values.tolist()]

    @staticmethod
    def prompts(split: str = "train") -> list[str]:
        """`swap_prompts`: "train", "common" or "rare"."""
        return swap_prompts(split)

    @staticmethod
    def check(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`check_swap`: top, bottom and order, (B,) bool each."""
        return check_swap(images, prompts)

    @staticmethod
    def read(images: Tensor) -> dict[str, Tensor]:
        """`read_swap`: which shapes (B, 3, 32, 32) images in [-1, 1] show, and where."""
        return read_swap(images)


def _words(prompts: Sequence[str]) -> list[dict[str, str]]:
    return words_of(prompts, _PROMPTS, GRAMMAR)


def _draw_places(count: int, seed: int) -> Tensor:
    """(count, 2, 2) centres: x = 16 -+ 5, y = 8 or 23, -+ 1, all equally likely."""
    draws = np.random.default_rng(seed).random((count, 2, 2))
    jitter = torch.from_numpy(np.floor(draws * np.array([11, 3])).astype(np.int64)) - torch.tensor([5, 1])
    return torch.tensor([[16, TOP], [16, BOTTOM]]) + jitter


def _stencils(x: Tensor, y: Tensor) -> Tensor:
    """All shapes at centres x, y, each (B,) or one for each shape (B, 6): (B, 6, 32, 32) bool; at most 11 px wide."""
    x, y = (value[:, None].expand(-1, len(SHAPES)) if value.ndim == 1 else value for value in (x, y))
    grid = torch.arange(SIZE, device=x.device)
    # Whole pixels, so that a stencil keeps its form wherever a centroid falls.
    across = grid[None, None, None, :] - x.round()[:, :, None, None]
    below = grid[None, None, :, None] - y.round()[:, :, None, None]
    forms = (
        lambda dx, dy: dx**2 + dy**2 <= 27,
        lambda dx, dy: torch.maximum(dx.abs(), dy.abs()) <= 4,
        lambda dx, dy: 2 * dx.abs() <= dy + 5,
        lambda dx, dy: dx.abs() + dy.abs() <= 5,
        lambda dx, dy: torch.minimum(dx.abs(), dy.abs()) <= 1,
        lambda dx, dy: (dx**2 + dy**2 <= 27) & (dx**2 + dy**2 > 9),
    )
    inside = (across.abs() <= 5) & (below.abs() <= 5)
    shapes = [form(across[:, kind], below[:, kind]) for kind, form in enumerate(forms)]
    return torch.stack(shapes, dim=1) & inside


def _areas(device: torch.device) -> Tensor:
    """Pixels of each shape, (6,)."""
    middle = torch.full((1,), SIZE / 2, device=device)
    return _stencils(middle, middle).sum((2, 3))[0]


def _own_offset(device: torch.device) -> Tensor:
    """How far below its centre each shape's centroid lies, (6,) rows: only the triangle's does."""
    middle = torch.full((1,), SIZE / 2, device=device)
    rows = torch.arange(SIZE, device=device, dtype=torch.float32)
    stencil = _stencils(middle, middle)[0]
    return (stencil.sum(2) * rows).sum(1) / stencil.sum((1, 2)) - SIZE / 2
