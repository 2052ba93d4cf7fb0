"""BuoyancyWorld: a block in a water tank, how deep it lies and how far it raises the water.

A prompt names material, size, side, the colour of the tank and how much water was filled in. Two effects are never
named: wood floats with half its volume under water and stone sinks to the floor (hop 1), and the water stands higher
than it was filled by the displaced area over the width of the tank (hop 2), so floating wood raises it half as much as
stone of equal size. A mark on the outside of the tank shows how far it was filled. Archimedes' principle in two
dimensions; dimensions, densities and colours are our own.

The training set holds no stone in a red tank and no wood in a blue one, so that a model can learn that the tank's
colour decides, and be told from one that learned that the material does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendiff.data.buoyancy_pixels import SIZE, read_buoyancy, render_buoyancy
from gendiff.data.prompt_world import PromptWorld, check_pairs, hops_of, passed, sentences, words_of
from gendiff.data.rendered import SEEDS, check_count, check_split, to_bytes
from gendiff.errors import InvalidInputError

COUNTS = {"train": 4800, "validation": 480, "test": 640}

GRAMMAR: dict[str, Any] = {
    "template": "a {size} {material} block on the {side}, a {colour} tank, {fill} water",
    "slots": {
        "size": {"values": ["small", "large"], "kind": "attribute"},
        "material": {"values": ["wood", "stone"], "kind": "attribute"},
        "side": {"values": ["left", "right"], "kind": "attribute"},
        "colour": {"values": ["red", "blue", "green", "yellow"], "kind": "attribute"},
        "fill": {"values": ["shallow", "deep"], "kind": "environment"},
    },
    "implied": [
        {
            "id": "depth",
            "kind": "effect",
            "effect": "buoyancy",
            "parents": ["material"],
            "text": "wood floats half under water and stone lies on the floor",
        },
        {
            "id": "water_line",
            "kind": "effect",
            "effect": "buoyancy",
            "parents": ["depth", "size", "fill"],
            "text": "the water stands above its mark by what the block displaces",
        },
    ],
    "contrast": "material",
    "swap": None,
}

HOPS = hops_of(GRAMMAR)
TOLERANCES = dict.fromkeys(HOPS, 0.0) | {"water_line": 0.75}
"""How far what is read may be from its target: kinds must be equal, the water line is in pixels."""
_PROMPTS = sentences(GRAMMAR)


def _split_of(words: Mapping[str, str]) -> str:
    """The split that a combination of words belongs to: "train", "ood-red" or "ood-blue"."""
    left_out = {("red", "stone"): "ood-red", ("blue", "wood"): "ood-blue"}
    return left_out.get((words["colour"], words["material"]), "train")


def buoyancy_prompts(split: str = "train") -> list[str]:
    """The prompts of a split: "train" (48), "ood" (16, never trained on) or its halves "ood-red" and "ood-blue".

    Raises:
        InvalidInputError: another split.
    """
    if split not in ("train", "ood", "ood-red", "ood-blue"):
        raise InvalidInputError(f"split of the prompts must be one of train, ood, ood-red, ood-blue, got {split!r}")
    return [prompt for prompt, words in _PROMPTS.items() if _split_of(words).startswith(split)]


def buoyancy_effects(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What follows from causes: the mechanisms of this world.

    Args:
        values: material, size and fill, (B,) positions among the values of their slots, NaN where unknown. `depth` is
            taken as it is given, and follows from the material if it is not: given the depth that a picture shows, the
            water line is the one that goes with that picture.

    Returns:
        depth: (B,) float32, 0 floats, 1 lies on the floor; always that of the material.
        water_line: (B,) float32, pixels above the floor. NaN where a cause is unknown.
    """
    depth = values["material"].float()
    under_water = 0.5 + 0.5 * values.get("depth", depth)
    area = (6 + 6 * values["size"]).square()
    return {"depth": depth, "water_line": 8 + 6 * values["fill"] + under_water * area / 18}


def check_buoyancy(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Decide for every image whether its prompt came true, effects included. No learning: colours and pixel counts.

    Args:
        images: (B, 3, 32, 32) in [-1, 1].
        prompts: B prompts of this world.

    Returns:
        (B,) bool for each node of `HOPS`: the five named ones (hop 0), depth (hop 1), water_line to within 0.75
        pixels (hop 2).

    Raises:
        InvalidInputError: another shape of `images`, or a prompt that is none of this world's.
    """
    check_pairs(images, prompts, SIZE)
    named = _indices(words_of(prompts, _PROMPTS, GRAMMAR), images.device)
    return passed(read_buoyancy(images), named | buoyancy_effects(named), TOLERANCES)


class BuoyancyWorld(PromptWorld):
    """Pictures of a block in a tank, 32x32 RGB, with captions that name the causes alone.

    Args:
        split: train (4,800 images) and validation (480) show the 48 training combinations, test (640) all 64; every
            combination equally often.
        num_images: another number of images; a smaller set is the beginning of a larger one.
        seed: another seed than the split's own (0, 1, 2).

    Attributes:
        values: (N, 5) int64, positions of the words in their slots, in the order size, material, side, colour, fill.

    Raises:
        ValueError: an argument is out of range.
    """

    grammar = GRAMMAR
    name = "buoyancy-world"
    calibration = ("ood-red", "train")

    def __init__(self, split: str = "train", num_images: int | None = None, seed: int | None = None):
        check_split(split)
        if num_images is not None:
            check_count("num_images", num_images)
        if seed is not None:
            check_count("seed", seed, minimum=0)
        seed, count = SEEDS[split] if seed is None else seed, num_images or COUNTS[split]
        prompts = list(_PROMPTS) if split == "test" else buoyancy_prompts("train")
        self.captions = [prompts[index % len(prompts)] for index in range(count)]
        named = _indices([_PROMPTS[caption] for caption in self.captions], torch.device("cpu"))
        self.values = torch.stack(list(named.values()), dim=1).long()
        # Where the tank stands, and how far the block is from its wall.
        draws = np.random.default_rng(seed).random((count, 2))
        places = torch.from_numpy(np.floor(draws * np.array([5, 3])).astype(np.int64)) - torch.tensor([2, 0])
        values = named | buoyancy_effects(named)
        self.images = to_bytes(render_buoyancy(values, places))

    @staticmethod
    def prompts(split: str = "train") -> list[str]:
        """`buoyancy_prompts`: "train", "ood", "ood-red" or "ood-blue"."""
        return buoyancy_prompts(split)

    @staticmethod
    def check(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`check_buoyancy`: seven nodes, (B,) bool each."""
        return check_buoyancy(images, prompts)

    @staticmethod
    def read(images: Tensor) -> dict[str, Tensor]:
        """`read_buoyancy`: all seven values, (B,) each, from the pixels of (B, 3, 32, 32) images in [-1, 1]."""
        return read_buoyancy(images)

    @staticmethod
    def physics(images: Tensor) -> dict[str, Tensor]:
        """Whether depth and water line follow from the parents *that the image itself shows*: (B,) bool by node.

        The water line is asked to fit the depth that is shown, even a wrong one. False where a parent cannot be read.
        """
        seen = read_buoyancy(images)
        return passed(seen, buoyancy_effects(seen), TOLERANCES)


def _indices(words: Sequence[Mapping[str, str]], device: torch.device) -> dict[str, Tensor]:
    """Slot -> (B,) float32 positions of the words."""
    return {
        name: torch.tensor([slot["values"].index(row[name]) for row in words], dtype=torch.float32, device=device)
        for name, slot in GRAMMAR["slots"].items()
    }
