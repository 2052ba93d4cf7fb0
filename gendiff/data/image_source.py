"""What every source of images has in common: image i is always the same bytes, and it says where they come from."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gendiff.data.pixels import CHANNELS, digest, resize, to_rgb
from gendiff.errors import InvalidInputError


class ImageSource(ABC):
    """A finite, ordered set of images; image i is always the same bytes.

    Subclasses define `__len__` and `load`, and set what applies of the attributes.

    Args:
        name: what the user typed, or a short description.
        resize: (H, W) that every image is brought to by Pillow's bicubic filter; None leaves them as they are.

    Attributes:
        kind: what sort of source, one word.
        format: how the pixels are stored, e.g. "PNG", "JPEG", "JPEG+PNG", "uint8".
        block: images are made in blocks of so many, so readers do well to read whole ones.
        threaded: whether several threads may read at once, and gain by it.
        notes: what was done to the pixels on the way, e.g. "alpha composited on white".
    """

    kind = "images"
    format = "uint8"
    block = 1
    threaded = False

    def __init__(self, name: str, resize: tuple[int, int] | None = None):
        self.name = name
        self.resize = resize
        self.notes: list[str] = []
        self._size = resize
        self._digests: dict[int, bytes] = {}
        if resize is not None:
            self.note(f"resized to {resize[0]}x{resize[1]} (Pillow bicubic, antialiased)")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, indices: Sequence[int]) -> Sequence[Tensor] | Tensor:
        """Images of these indices as they are stored, each uint8 (1 | 3 | 4, H, W)."""

    def labels(self, count: int) -> Tensor | None:
        """Classes of the first `count` images, (count,) int64; None where they are not known."""
        return None

    def facts(self) -> dict[str, Any]:
        """What a subclass adds to `describe`."""
        return {}

    def where(self, index: int) -> str:
        """How messages call image `index`."""
        return f"image {index} of {self.name}"

    def read(self, indices: Sequence[int]) -> Tensor:
        """Images of these indices, uint8 (B, 3, H, W); grey is repeated, alpha composited on white.

        Raises:
            InvalidInputError: no such index, an image that cannot be read, or one of another size than the first.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise InvalidInputError(f"index {index} is outside {self.name} of {len(self)} images.")
        if not indices:
            return torch.empty((0, 3, *self.size), dtype=torch.uint8)
        images = []
        for index, stored in zip(indices, self.load(indices), strict=True):
            if len(stored) == 4:
                self.note("alpha composited on white")
            image = to_rgb(stored) if self.resize is None else resize(to_rgb(stored), self.resize)
            self._check_size(index, image)
            self._digests[index] = digest(image)
            images.append(image)
        return torch.stack(images)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels of every image; reads the first one if nothing was read yet."""
        if self._size is None:
            self.read([0])
        assert self._size is not None
        return self._size

    def digests(self, indices: Sequence[int] | None = None) -> list[bytes]:
        """sha256 of each image of `indices`, None for all; those not read yet are read."""
        wanted = range(len(self)) if indices is None else indices
        missing = [index for index in wanted if index not in self._digests]
        for start in range(0, len(missing), 256):
            self.read(missing[start : start + 256])
        return [self._digests[index] for index in wanted]

    def known_digests(self) -> dict[int, bytes]:
        """sha256 by index of the images read so far."""
        return dict(self._digests)

    def learn_digests(self, digests: Mapping[int, bytes]) -> None:
        """Take over what another process has read of the same source."""
        self._digests.update(digests)

    def describe(self, count: int | None = None) -> dict[str, Any]:
        """Where the images come from, as JSON.

        Args:
            count: describe the first so many; None for all. Those that were not read yet are read for their hash.

        Returns: kind, name, count, size [H, W], format, notes, and sha256 of the content: the hash of the hashes of
            the decoded pixels in order, so that a folder and an array of the same images have the same.
        """
        count = len(self) if count is None else count
        content = hashlib.sha256(b"".join(self.digests(range(count)))).hexdigest()
        return {
            "kind": self.kind,
            "name": self.name,
            "count": count,
            "size": list(self.size),
            "format": self.format,
            "sha256": content,
            "notes": list(self.notes),
            **self.facts(),
        }

    def note(self, text: str) -> None:
        """Add to `notes`, once."""
        if text not in self.notes:
            self.notes.append(text)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.read([index])[0] for index in range(len(self)))

    def _check_size(self, index: int, image: Tensor) -> None:
        size = (image.shape[1], image.shape[2])
        if self._size is None:
            self._size = size if index == 0 else self.size
        if size != self._size:
            raise InvalidInputError(mixed_sizes(self.where(index), size, self.where(0), self._size))


def mixed_sizes(name: str, size: tuple[int, int], first_name: str, first: tuple[int, int]) -> str:
    """Message about two images, with their sizes (H, W), that do not fit into one batch."""
    return (
        f"mixed sizes: {name} is {size[0]}x{size[1]} (height x width), {first_name} is {first[0]}x{first[1]}; "
        f"pass resize={min(first)} to bring all to one size."
    )


def check_stored(what: str, shape: Sequence[int], channel_axis: int, layout: str) -> None:
    """Raise InvalidInputError unless `shape` is that of a batch of images.

    Args:
        what: what has the shape, for messages.
        shape: of four axes.
        channel_axis: which of them holds the channels.
        layout: how the axes are called, e.g. "(N, H, W, C)".
    """
    if len(shape) != 4 or 0 in shape[1:] or shape[channel_axis] not in CHANNELS:
        allowed = ", ".join(map(str, CHANNELS[:-1]))
        hint = " A torch tensor is read as (N, C, H, W), a NumPy array as (N, H, W, C)."
        raise InvalidInputError(
            f"{what} has shape {tuple(shape)}; images must be {layout} with C = {allowed} or {CHANNELS[-1]}, "
            f"or (N, H, W) for grey.{hint}"
        )
