"""What the rendered datasets share: a known graph, images cached as bytes, and the true answer to every `do`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.causal.graph import CausalGraph
from gendiff.causal.intervention import check_interventions

SEEDS = {"train": 0, "validation": 1, "test": 2}
"""Default seed of each split, so that no two splits share an item."""


class RenderedDataset(Dataset, ABC):
    """Images drawn from a structural causal model whose equations and drawing are both known.

    An item is `{"image": (C, S, S) float in [-1, 1], "labels": (n,) float, raw units, in graph order, "intervened":
    (n,) bool}`. Subclasses set the attributes and define `structural` and `render`.

    Attributes:
        graph: the variables with their raw ranges, and who causes whom.
        images: (N, C, S, S) uint8.
        labels: (N, n) float32, raw units, in the order of `graph.names`.
        intervened: (N, n) bool, which values an experiment set instead of their causes. Where effects follow from
            their causes without noise, only experiments show what an effect alone looks like.
    """

    graph: CausalGraph
    images: Tensor
    labels: Tensor
    intervened: Tensor

    @abstractmethod
    def structural(self, index: int, interventions: Mapping[str, float]) -> Tensor:
        """All values (n,) of item `index` under `interventions`, its own noise kept."""

    @abstractmethod
    def render(self, labels: Tensor, indices: Tensor) -> Tensor:
        """Draw (B, n) labels with the style of items `indices` (B,): (B, C, S, S) in [-1, 1]."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "image": from_bytes(self.images[index]),
            "labels": self.labels[index],
            "intervened": self.intervened[index],
        }

    def counterfactual(self, index: int, interventions: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The image item `index` would have been under `interventions`, and the values of all variables then.

        Abduction is exact (the item's noise is stored), so this is the truth a model's answer is compared with.
        `{}` returns the item itself, bit for bit.

        Args:
            index: position of the item, negative from the end.
            interventions: variable name -> value in raw units, within the variable's `low` .. `high`.

        Returns:
            Image (C, S, S) in [-1, 1] and a value per variable, descendants included.

        Raises:
            IndexError: no such item.
            ValueError: an unknown variable, or a value that is not one number in range (an `InterventionError`).
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a dataset of {len(self)} items")
        checked = check_interventions(self.graph, interventions, 1)
        if not checked:
            return from_bytes(self.images[index]), self._named(self.labels[index])
        labels = self.structural(index, {name: value.item() for name, value in checked.items()})
        image = self.render(labels[None], torch.tensor([index]))
        return from_bytes(to_bytes(image))[0], self._named(labels)

    def _named(self, labels: Tensor) -> dict[str, float]:
        return dict(zip(self.graph.names, labels.tolist(), strict=True))

    def _render_all(self, batch_size: int = 16) -> Tensor:
        # Small batches keep the supersampled masks in the processor's cache.
        batches = torch.arange(len(self.labels)).split(batch_size)
        return torch.cat([to_bytes(self.render(self.labels[rows], rows)) for rows in batches])


def to_bytes(images: Tensor) -> Tensor:
    """Float images in [-1, 1] as uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(images: Tensor) -> Tensor:
    """Uint8 images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is train, validation or test."""
    if split not in SEEDS:
        raise ValueError(f"split must be one of {', '.join(SEEDS)}, got {split!r}")


def check_count(name: str, value: Any, minimum: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def check_nonnegative(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number of at least 0."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_images(images: Tensor, channels: int, size: int | None = None) -> None:
    """Raise ValueError unless `images` is a square batch (B, channels, size, size); any side if `size` is None."""
    side = size or (images.shape[-1] if images.ndim else 0)
    if images.ndim != 4 or tuple(images.shape[1:]) != (channels, side, side):
        wanted = "S" if size is None else size
        raise ValueError(f"images must be (B, {channels}, {wanted}, {wanted}), got {tuple(images.shape)}")


def check_share(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
