"""How an image classifier is built and trained; no pipeline comes out, but the bare model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gendiff.errors import InvalidInputError
from gendiff.models.image_classifier import ImageClassifier

from .image_data import check_labelled
from .image_draws import augmented
from .methods import Method
from .recipe import check_arguments


@dataclass
class BareClassifier:
    """A classifier where the trainer expects a pipeline; saved, it is the model's own folder, without an index."""

    classifier: ImageClassifier

    @property
    def components(self) -> dict[str, ImageClassifier]:
        return {"classifier": self.classifier}

    def to(self, *args: Any, **kwargs: Any) -> BareClassifier:
        """Move the classifier."""
        self.classifier.to(*args, **kwargs)
        return self

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors."""
        self.classifier.save_pretrained(folder, safe_serialization=safe_serialization)

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """There is no bar."""


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    shift: int = 0,
    flip: bool = False,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """Cross-entropy in nats, and the share of right answers, to be logged.

    Args:
        models: with the "classifier".
        batch: "image" (B, C, S, S) in [-1, 1] and "label" (B,) integers.
        generator: CPU generator of every draw of this step.
        shift: images move by up to so many pixels along each side.
        flip: mirror half of the images left to right.
        label_smoothing: probability mass taken from the true class and spread over all, in [0, 1).

    Raises:
        InvalidInputError: an option out of its range.
    """
    if not 0 <= label_smoothing < 1:
        raise InvalidInputError(f"objective.label_smoothing must be in [0, 1), got {label_smoothing!r}.")
    images, labels = augmented(batch["image"], shift, flip, generator), batch["label"]
    logits = models["classifier"](images).float()
    return {
        "cross_entropy": cross_entropy(logits, labels, label_smoothing=label_smoothing),
        "accuracy": (logits.detach().argmax(dim=1) == labels).float().mean(),
    }


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> BareClassifier:
    """Untrained classifier for `dataset`; sizes and classes are the data's.

    Args:
        models: keyword arguments of the "classifier"; may be left out.
        dataset: has `images` (N, C, S, S), `labels` (N,) and `classes`, their names.

    Raises:
        ValueError: an unknown component or argument, or a class that no training image has.
    """
    check_arguments("models", models, ["classifier"])
    check_labelled(dataset)
    classes = tuple(dataset.classes)
    counts = torch.bincount(torch.as_tensor(dataset.labels).long(), minlength=len(classes))
    if len(counts) != len(classes) or not counts.all():
        raise InvalidInputError(
            f"each of the {len(classes)} classes needs a training image, got {counts.tolist()} images by class."
        )
    arguments = {
        "in_channels": dataset.images.shape[1],
        "sample_size": dataset.images.shape[2],
        "num_classes": len(classes),
        "classes": classes,
        **models.get("classifier", {}),
    }
    check_arguments("models.classifier", arguments, ImageClassifier)
    return BareClassifier(ImageClassifier(**arguments))


METHOD = Method(build=build, objective=objective)
