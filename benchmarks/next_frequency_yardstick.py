"""What samples are held against: features of real images, computed once, and scores in them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from arguments import say
from torch import Tensor

from gendiff.data.source_arrays import ArraySource
from gendiff.errors import MetricWarning
from gendiff.metrics.evaluate import evaluate
from gendiff.metrics.extractors import get_extractor
from gendiff.metrics.extractors.base import FeatureExtractor
from gendiff.metrics.features import extract_features
from gendiff.metrics.frechet import frechet_distance

EXTRACTORS: dict[str, tuple[str, ...]] = {"lite0-112": ("fd",), "fmnist-cnn": ("fd", "accuracy")}
"""Features -> metrics taken in them; guidance is chosen by the distance in the first."""
METRICS = ("fd", "accuracy")


@dataclass(frozen=True)
class Yardstick:
    """Real images and what each network says of them.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        networks: by name of the features.
        rows: (N, d) of each.
        allow_few: whether a distance of fewer images than dimensions may be taken.
    """

    images: Tensor
    labels: Tensor
    networks: dict[str, FeatureExtractor]
    rows: dict[str, np.ndarray]
    allow_few: bool

    def cells(
        self, images: Tensor, labels: Tensor, metrics: Sequence[str] = METRICS, **fields: Any
    ) -> list[dict[str, Any]]:
        """Scores of images (n, C, H, W) uint8 of classes (n,), each cell with `fields`.

        Args:
            metrics: taken where `EXTRACTORS` has them.
        """
        found = []
        for name, network in self.networks.items():
            taken = [metric for metric in EXTRACTORS[name] if metric in metrics]
            if not taken:
                continue
            source = ArraySource(images, "samples", labels=labels)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MetricWarning)  # of few images: n stands in every cell
                report = evaluate(
                    source,
                    self.rows[name],
                    taken,
                    network,
                    floor=False,
                    progress=False,
                    allow_small_n=self.allow_few,
                )
            for score in report.scores.values():
                cell = {"metric": score.name, "extractor": name, "value": score.value, "n": len(images)}
                found.append({**cell, "n_real": len(self.images), **fields})
        return found

    def held_out(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Distances of `count` of the real images from the rest of them, half at most."""
        count = min(count, len(self.images) // 2)
        order = np.random.default_rng(seed).permutation(len(self.images))
        cells = []
        for name, rows in self.rows.items():
            found = frechet_distance(rows[order[:count]], rows[order[count:]], warn=False)
            cells.append(
                {"metric": "fd", "extractor": name, "value": found.value, "n": count, "n_real": len(rows) - count}
            )
        return cells


def make_yardstick(images: Tensor, labels: Tensor, num: int, device: str, allow_few: bool) -> Yardstick:
    """Extract the features of all real images.

    Args:
        num: samples that will be scored.

    Raises:
        ValueError, OSError, ImportError: a network is missing, or its features are too many for `num`.
    """
    networks, rows = {name: get_extractor(name, device=device) for name in EXTRACTORS}, {}
    most = max(network.dim for network in networks.values())
    if num < most and not allow_few:
        raise ValueError(f"--num must be at least {most}, the features of an image, got {num}; or --allow-small-n.")
    for name in EXTRACTORS:
        say(f"features of {len(images)} real images: {name}")
        rows[name] = extract_features(ArraySource(images, "real images"), networks[name], progress=False)
    return Yardstick(images, labels, networks, rows, allow_few)


def drawn(count: int, total: int, seed: int) -> Tensor:
    """Which of `total` images are taken, (min(count, total),) int64."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]
