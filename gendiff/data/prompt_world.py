"""What the worlds that answer prompts share: a grammar, drawn images with true captions, and how a check is decided.

A world is a picture whose causes are named in a prompt and whose effects are not. `grammar` is the world's sentence
and graph as JSON data, in the form that `gendiff.causal` parses. Every verifier here *reads* numbers from the pixels
without any learning and compares them with targets; NaN stands for what cannot be read and fails every comparison.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.data.rendered import from_bytes
from gendiff.errors import InvalidInputError


class PromptWorld(Dataset):
    """Images and their captions, held in memory.

    An item is `{"image": (3, S, S) float in [-1, 1], "caption": str}`.

    Attributes:
        grammar: template, slots and implied nodes of the world, JSON data.
        name: of the data set.
        calibration: two kinds of prompts by which a predictor of interventions is made: those that a model gets wrong,
            less the ones kept for testing, and those it mostly gets right.
        images: (N, 3, S, S) uint8.
        captions: N prompts; each is true of its image.
    """

    grammar: dict[str, Any]
    name: str
    calibration: tuple[str, str]
    images: Tensor
    captions: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": from_bytes(self.images[index]), "caption": self.captions[index]}

    @property
    def hops(self) -> dict[str, int]:
        """How many causes away from the prompt each node of the world is; see `hops_of`."""
        return hops_of(self.grammar)


def hops_of(grammar: Mapping[str, Any]) -> dict[str, int]:
    """Node -> 0 for a slot of the sentence, else one more than its farthest parent.

    Raises:
        InvalidInputError: implied nodes that follow from themselves or from an unknown node.
    """
    hops = dict.fromkeys(grammar["slots"], 0)
    waiting = {node["id"]: node["parents"] for node in grammar["implied"]}
    while waiting:
        ready = [name for name, parents in waiting.items() if parents and all(parent in hops for parent in parents)]
        if not ready:
            raise InvalidInputError(f"implied nodes must follow from slots in the end; {', '.join(waiting)} do not")
        hops |= {name: 1 + max(hops[parent] for parent in waiting.pop(name)) for name in ready}
    return hops


def sentences(grammar: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Every prompt of a finite grammar -> the word in each of its slots, in the order of the slots' values."""
    slots = {name: slot["values"] for name, slot in grammar["slots"].items()}
    filled = (dict(zip(slots, words, strict=True)) for words in itertools.product(*slots.values()))
    return {grammar["template"].format(**words): words for words in filled}


def words_of(
    prompts: Sequence[str], known: Mapping[str, dict[str, str]], grammar: Mapping[str, Any]
) -> list[dict[str, str]]:
    """The words of each prompt, looked up in `known`.

    Raises:
        InvalidInputError: a prompt is not a sentence of the world; its position and the template are named.
    """
    if isinstance(prompts, str):
        raise InvalidInputError(f"prompts must be a list of prompts, got the single string {prompts!r}")
    for index, prompt in enumerate(prompts):
        if prompt not in known:
            allowed = "; ".join(f"{name}: {', '.join(slot['values'])}" for name, slot in grammar["slots"].items())
            raise InvalidInputError(
                f"prompts[{index}] must be {grammar['template']!r} as this world allows, with {allowed}; got {prompt!r}"
            )
    return [known[prompt] for prompt in prompts]


def check_pairs(images: Tensor, prompts: Sequence[str], size: int) -> None:
    """Raise InvalidInputError unless `images` is (B, 3, size, size) floats and there is one prompt for each."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size) or not images.is_floating_point():
        raise InvalidInputError(
            f"images must be (B, 3, {size}, {size}) floats in [-1, 1], got {tuple(images.shape)} of {images.dtype}"
        )
    if not isinstance(prompts, str) and len(prompts) != len(images):
        raise InvalidInputError(f"prompts must be one for each of the {len(images)} images, got {len(prompts)}")


def nearest_colour(images: Tensor, palette: Sequence[tuple[int, int, int]], radius: float) -> Tensor:
    """Position in `palette` of each pixel's nearest colour: (B, S, S) int64, -1 where none lies within `radius`.

    Args:
        images: (B, 3, S, S) in [-1, 1]; values outside are clamped, pixels that are not numbers get -1.
        palette: RGB bytes.
        radius: largest Euclidean distance that still counts, in bytes.
    """
    pixels = (images.float().clamp(-1, 1) + 1) * 127.5
    colours = torch.tensor(palette, dtype=torch.float32, device=images.device)
    distance = (pixels[:, None] - colours[None, :, :, None, None]).square().sum(2)
    nearest, position = torch.where(distance.isnan(), torch.inf, distance).min(1)
    return torch.where(nearest <= radius**2, position, -1)


def passed(
    values: Mapping[str, Tensor], targets: Mapping[str, Tensor], tolerances: Mapping[str, float]
) -> dict[str, Tensor]:
    """Which targets the values meet: |value - target| <= tolerance, (B,) bool for each target. NaN meets nothing."""
    return {name: (values[name] - target).abs() <= tolerances[name] for name, target in targets.items()}
