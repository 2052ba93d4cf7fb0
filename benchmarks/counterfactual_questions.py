"""The questions a counterfactual benchmark asks, with the true answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendiff.causal.graph import CausalGraph
from gendiff.data import load_dataset
from gendiff.data.handwriting import Handwriting
from gendiff.data.rendered import from_bytes, to_bytes
from gendiff.metrics.classifier import DigitClassifier, digit_classifier

HELD_OUT = 1000
"""Test images that DCI and minimality take as real ones, at most."""


@dataclass(frozen=True)
class Question:
    """do(variable = values), and what the images would truly have been.

    Attributes:
        variable: name of the one intervened on.
        values: raw value for each image, (B,).
        true_values: of every variable under the intervention, (B,) by name.
        truth: true counterfactual images (B, C, S, S) in [-1, 1]; None if nothing can draw them.
        no_propagation: the same with descendants left as they were, None likewise.
    """

    variable: str
    values: Tensor
    true_values: dict[str, Tensor]
    truth: Tensor | None
    no_propagation: Tensor | None


@dataclass(frozen=True)
class Exam:
    """One seed's images and questions.

    Attributes:
        images: (B, C, S, S) in [-1, 1], factual.
        labels: raw values (B,) by name.
        read: values (B,) by name as the pictures show them.
        questions: one for each variable.
    """

    images: Tensor
    labels: dict[str, Tensor]
    read: dict[str, Tensor]
    questions: tuple[Question, ...]


class Examiner:
    """Asks about test images of a dataset and reads the answers.

    Args:
        name: "pendulum" or "handwriting".
        size: side of the images.
        root: folder of imported data; only handwriting needs it.

    Attributes:
        dataset: the test split.
        classifier: tells digits apart, None where the renderer reads everything.
    """

    def __init__(self, name: str, size: int, root: str = "data"):
        arguments: dict[str, Any] = {"size": size} if name == "pendulum" else {"root": root}
        self.dataset = load_dataset(name, "test", **arguments)
        self.classifier: DigitClassifier | None = None
        if name == "handwriting":
            self.classifier = digit_classifier(Handwriting("train", root=root), root)

    @property
    def graph(self) -> CausalGraph:
        """The data's causal graph."""
        return self.dataset.graph

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """All variables (B,) as pixels (B, C, S, S) in [-1, 1] show them."""
        read = self.dataset.read(images)
        return read if self.classifier is None else {**read, "digit": self.classifier.read(images)}

    def exam(self, seed: int, count: int) -> Exam:
        """`count` images that `seed` draws from the test split, and one question about each variable.

        Values are uniform on [low, high] of a continuous variable, and over the other classes of a discrete one.
        """
        rows = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(len(self.dataset))[:count])
        labels = self._named(self.dataset.labels[rows])
        questions = tuple(
            self._question(name, rows, labels, np.random.default_rng([seed, 1, k]))
            for k, name in enumerate(self.graph.names)
        )
        images = from_bytes(self.dataset.images[rows])
        return Exam(images, labels, self.read(images), questions)

    def held_out(self, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] and labels (R, n) that `exam(seed, count)` does not ask about."""
        rows = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(len(self.dataset))[count:])[:HELD_OUT]
        return from_bytes(self.dataset.images[rows]), self.dataset.labels[rows]

    def classifier_accuracy(self, batch_size: int = 500) -> dict[str, float]:
        """Share of real test digits the classifier gets right: as they were written, and as they were redrawn."""
        if self.classifier is None:
            return {}
        digits = self.dataset.labels[:, self.graph.index("digit")]
        pictures = {"written": torch.from_numpy(self.dataset.digits)[:, None], "redrawn": self.dataset.images}
        return {
            name: (self.classifier.read(from_bytes(images), batch_size) == digits).double().mean().item()
            for name, images in pictures.items()
        }

    def _question(self, name: str, rows: Tensor, labels: dict[str, Tensor], rng: np.random.Generator) -> Question:
        variable = self.graph[name]
        if variable.kind == "categorical":
            shift = torch.from_numpy(rng.integers(1, variable.dim, len(rows)))
            values = (labels[name] + shift) % variable.dim
            # No one can say what this digit would have looked like as another; the other variables stay, though.
            return Question(name, values, {**labels, name: values}, None, None)
        assert variable.low is not None and variable.high is not None
        values = torch.from_numpy(rng.uniform(variable.low, variable.high, len(rows))).float()
        values = values.clamp(variable.low, variable.high)
        answers = [
            self.dataset.counterfactual(row, {name: value})
            for row, value in zip(rows.tolist(), values.tolist(), strict=True)
        ]
        true_values = {key: torch.tensor([truth[key] for _, truth in answers]) for key in self.graph.names}
        alone = torch.stack([values if key == name else labels[key] for key in self.graph.names], dim=1)
        unpropagated = from_bytes(to_bytes(self.dataset.render(alone, rows)))
        return Question(name, values, true_values, torch.stack([image for image, _ in answers]), unpropagated)

    def _named(self, labels: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.graph.names, labels.unbind(1), strict=True))
