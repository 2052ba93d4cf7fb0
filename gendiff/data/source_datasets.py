"""Images of data sets: torch's, Hugging Face's, those of this package by name, and lists of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendiff.data.image_source import ImageSource, mixed_sizes
from gendiff.data.pixels import CHANNELS, from_pil, from_unit, has_alpha
from gendiff.data.source_arrays import ArraySource, whole_labels
from gendiff.errors import InvalidInputError

IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")


class DatasetSource(ImageSource):
    """Items of a map-style data set.

    Args:
        dataset: its items are `{"image": float (C, H, W) in [-1, 1] or a picture, "label": ...}`, or tuples of an
            image (a picture, or a tensor: uint8 or float in [0, 1], as torchvision gives them) and a label.
        name: what the user typed, or a short description.
        resize: (H, W) to bring images to.
        image_key: of the image in items that are dicts.
        labels: (N,) whole numbers, where they are known without reading items.

    Raises:
        InvalidInputError: the data set is empty or has no length.
    """

    kind = "dataset"

    def __init__(
        self,
        dataset: Any,
        name: str,
        resize: tuple[int, int] | None = None,
        image_key: str = "image",
        labels: Any = None,
    ):
        super().__init__(name, resize)
        self._dataset, self._image_key = dataset, image_key
        try:
            self._length = len(dataset)
        except TypeError as error:
            raise InvalidInputError(f"{name} has no length; only data sets with numbered items can be read.") from error
        if self._length == 0:
            raise InvalidInputError(f"{name} holds no image.")
        self._labels = None if labels is None else whole_labels(labels, self._length)
        self._seen_labels: dict[int, int] = {}

    def __len__(self) -> int:
        return self._length

    def load(self, indices: Sequence[int]) -> list[Tensor]:
        return [self._item(index) for index in indices]

    def labels(self, count: int) -> Tensor | None:
        if self._labels is not None:
            return self._labels[:count]
        for index in range(count):
            if index not in self._seen_labels:
                self._item(index)
            if index not in self._seen_labels:
                return None
        return torch.tensor([self._seen_labels[index] for index in range(count)])

    def _item(self, index: int) -> Tensor:
        item = self._dataset[index]
        if isinstance(item, Mapping):
            if self._image_key not in item:
                raise InvalidInputError(f"{self.where(index)} has no {self._image_key!r}, only {', '.join(item)}.")
            image, label = item[self._image_key], item.get("label")
        elif isinstance(item, list | tuple) and item:
            image, label = item[0], item[1] if len(item) > 1 else None
        else:
            image, label = item, None
        self._see(index, label)
        if isinstance(image, Image.Image):
            if has_alpha(image):
                self.note("alpha composited on white")
            try:
                return from_pil(image)
            except (OSError, InvalidInputError) as error:
                raise InvalidInputError(f"{self.where(index)}: {error}") from error
        return self._from_tensor(index, image, signed=isinstance(item, Mapping))

    def _from_tensor(self, index: int, image: Any, signed: bool) -> Tensor:
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.ascontiguousarray(image))
            image = image.permute(2, 0, 1) if image.ndim == 3 else image[None]
        if not isinstance(image, Tensor) or image.ndim != 3 or len(image) not in CHANNELS:
            found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InvalidInputError(
                f"{self.where(index)} must be a picture, an array (H, W, C) or a tensor (C, H, W) with C in "
                f"{CHANNELS}, got {found}."
            )
        if image.dtype == torch.uint8:
            return image
        if not image.is_floating_point():
            raise InvalidInputError(f"{self.where(index)} holds {image.dtype}; images must be uint8 or floats.")
        # Half of x + 1 is exact, so bytes that were stored as floats in [-1, 1] come back as they were.
        self.format = str(image.dtype).removeprefix("torch.")
        self.note(f"floats in [{-1 if signed else 0}, 1] became bytes by rounding")
        unit = (image.detach()[None].float() + 1) / 2 if signed else image[None]
        try:
            return from_unit(unit, self.name, index)[0]
        except InvalidInputError as error:
            if not signed:
                raise
            low, high = image.min().item(), image.max().item()
            raise InvalidInputError(
                f"{self.where(index)} has values from {low:g} to {high:g}; items of this kind must lie in [-1, 1]."
            ) from error

    def _see(self, index: int, label: Any) -> None:
        if isinstance(label, int | np.integer) or (
            isinstance(label, Tensor) and label.ndim == 0 and not label.is_floating_point()
        ):
            self._seen_labels[index] = int(label)


class PictureSource(ImageSource):
    """A list of Pillow images."""

    kind = "pictures"

    def __init__(self, pictures: Sequence[Image.Image], name: str, resize: tuple[int, int] | None = None):
        super().__init__(name, resize)
        self._pictures = list(pictures)
        sizes = [(picture.height, picture.width) for picture in self._pictures]
        if resize is None:
            for index, size in enumerate(sizes):
                if size != sizes[0]:
                    raise InvalidInputError(mixed_sizes(self.where(index), size, self.where(0), sizes[0]))
        if any(map(has_alpha, self._pictures)):
            self.note("alpha composited on white")

    def __len__(self) -> int:
        return len(self._pictures)

    def load(self, indices: Sequence[int]) -> list[Tensor]:
        return [self._convert(index) for index in indices]

    def _convert(self, index: int) -> Tensor:
        try:
            return from_pil(self._pictures[index])
        except (OSError, InvalidInputError) as error:
            raise InvalidInputError(f"{self.where(index)}: {error}") from error


def open_dataset(dataset: Any, name: str, resize: tuple[int, int] | None = None) -> ImageSource:
    """A torch or Hugging Face data set; one that holds its bytes as `images` (N, C, H, W) is read from there."""
    if isinstance(getattr(dataset, "features", None), Mapping):
        return _open_hugging_face(dataset, name, resize)
    images, labels = getattr(dataset, "images", None), getattr(dataset, "labels", getattr(dataset, "targets", None))
    if isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 4 and len(images) == len(dataset):
        source = ArraySource(images, name, resize, labels)
        source.kind = "dataset"
        return source
    return DatasetSource(dataset, name, resize, labels=labels)


def open_named(name: str, resize: tuple[int, int] | None = None) -> ImageSource:
    """`dataset:NAME[:split]` through `load_dataset`; the split is `train` unless named.

    Raises:
        InvalidInputError: an unknown name or split, or a data set whose files are not there.
    """
    from gendiff.data import load_dataset

    _, dataset_name, *rest = name.split(":")
    if not dataset_name or len(rest) > 1:
        raise InvalidInputError(f"a data set is named dataset:NAME or dataset:NAME:SPLIT, got {name!r}.")
    split = rest[0] if rest else "train"
    try:
        dataset = load_dataset(dataset_name, split)
    except (ValueError, OSError) as error:
        raise InvalidInputError(f"{name}: {error}") from error
    return open_dataset(dataset, f"dataset:{dataset_name}:{split}", resize)


def _open_hugging_face(dataset: Any, name: str, resize: tuple[int, int] | None) -> DatasetSource:
    """Columns are chosen by the type that `features` names, else by usual names. The library itself is not needed."""
    features: Mapping[str, Any] = dataset.features
    image = _column(features, "Image", IMAGE_COLUMNS)
    if image is None:
        raise InvalidInputError(f"{name} has no column of images; its columns: {', '.join(features) or 'none'}.")
    label = _column(features, "ClassLabel", LABEL_COLUMNS)
    labels = None if label is None else list(dataset[label])
    return DatasetSource(dataset, name, resize, image_key=image, labels=labels)


def _column(features: Mapping[str, Any], kind: str, usual: Sequence[str]) -> str | None:
    typed = [name for name, feature in features.items() if type(feature).__name__ == kind]
    return next((name for name in (*typed, *usual) if name in features), None)
