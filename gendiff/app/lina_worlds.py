"""Prompts of the worlds with a verifier that the gallery shows, and what their pictures should look like."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendiff.data import DATASETS, shadow_world, swap_world


@dataclass(frozen=True)
class Kind:
    """Prompts that a model stands to in the same way.

    Attributes:
        name: as the world's `prompts` takes it.
        title: heading.
        text: what training saw of them; HTML.
    """

    name: str
    title: str
    text: str


KINDS: dict[str, tuple[Kind, ...]] = {
    "shadow-world": (
        Kind(
            "ood-blue",
            "Blue pole, sun on the left: never seen",
            "In training the sun stood on the right of every blue pole.",
        ),
        Kind(
            "ood-red",
            "Red pole, sun on the right: never seen",
            "In training the sun stood on the left of every red pole.",
        ),
        Kind("train", "Seen in training", "All of these combinations were among the training pictures."),
    ),
    "swap-world": (
        Kind("rare", "The rare order", "In training only 3 of 100 pictures of a pair had it this way round."),
        Kind("common", "The common order", "97 of 100 training pictures of a pair had it this way round."),
    ),
}
"""In the order of the page."""


def world_class(name: str) -> Any:
    """The class of the data set called `name`, one of `KINDS`."""
    module, _, attribute = DATASETS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def pick(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """So many of the prompts, or all, as `seed` chooses."""
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))
    return [prompts[int(index)] for index in order[:count]]


def true_picture(world: str, values: Mapping[str, str]) -> Tensor | None:
    """A right picture (3, S, S) in [0, 1], drawn by the rules of the world; None where they are not known.

    Args:
        world: name of the data set.
        values: words of the prompt by slot.
    """
    draw = _TRUTHS.get(world)
    return None if draw is None else draw(values)


def _shadows(values: Mapping[str, str]) -> Tensor:
    return shadow_world.render(values).float() / 255


def _swap(values: Mapping[str, str]) -> Tensor:
    shapes = [swap_world.SHAPES.index(values[place]) for place in ("top", "bottom")]
    middle = swap_world.SIZE // 2
    places = torch.tensor([[[middle, swap_world.TOP], [middle, swap_world.BOTTOM]]])
    return (swap_world.render_swap(torch.tensor([shapes]), places)[0] + 1) / 2


_TRUTHS: dict[str, Callable[[Mapping[str, str]], Tensor]] = {"shadow-world": _shadows, "swap-world": _swap}
