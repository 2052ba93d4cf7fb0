"""Videos of one or two digits or clothes that move at constant speed and bounce off the walls, 64x64 or 32x32.

After Srivastava, Mansimov, Salakhutdinov: Unsupervised Learning of Video Representations using LSTMs, ICML 2015 (Moving
MNIST), with one change: places and speeds are whole pixels. So nothing is lost to rounding, three frames in which both
objects can be told apart determine all others, and an error per frame such as PSNR has a clear meaning.

An object whose free path is at row r + v t is drawn at the reflection of that row into 0 .. 36, which is an elastic
bounce. Where objects overlap, the brighter pixel is seen. At 32x32 everything is half as large: the objects are the
means of 2x2 pixels, rounded, the room ends at 18, and speeds are 1 or 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.data.arrays import load_arrays
from gendiff.data.fashion_mnist import CLASSES, SAMPLES, fashion_mnist_arrays
from gendiff.data.handwriting import SAMPLES as DIGITS
from gendiff.data.labelled import check_choice
from gendiff.data.mnist import mnist_arrays
from gendiff.data.rendered import check_count, from_bytes

SPLITS = {"train": 0, "test": 1}
LENGTH = {"train": 10_000, "test": 1_000}
"""Default number of videos."""
OBJECT = {64: 28, 32: 14}
"""Side of the frames -> side of the objects."""
SPEEDS = {64: 4, 32: 2}
"""Side of the frames -> a speed is 1 to so many pixels per frame along each axis, in either direction."""
OBJECTS = (1, 2)


class MovingObjects(Dataset):
    """Videos drawn when they are asked for: video `index` follows from the objects, the seed, the split and `index`.

    An item is `{"video": (F, 1, S, S) float in [-1, 1], "label": (n,) int64, "positions": (F, n, 2) int64}`: row and
    column, in pixels, of the top left corner of each object in each frame.

    Args:
        objects: (N, 28, 28) uint8.
        labels: (N,) whole numbers, positions in `classes`.
        classes: names of the classes.
        split: train or test, each with random numbers of its own.
        num_videos: 10,000 for train and 1,000 for test by default; more can be had.
        num_frames: F.
        seed: of all videos.
        size: S, 64 or 32.
        num_objects: n, 2 or 1.

    Attributes:
        objects: (N, 28, 28) uint8, or (N, 14, 14) where `size` is 32, what may move; others in `test` than in `train`.
        labels: (N,) int64, class of each object.
        classes: names of the classes.
        frame_shape: (1, S, S).
        room: largest row or column of an object's top left corner; the smallest is 0.

    Raises:
        InvalidInputError: another size or number of objects; a ValueError for other bad numbers.
    """

    def __init__(
        self,
        objects: np.ndarray,
        labels: np.ndarray,
        classes: tuple[str, ...],
        split: str,
        num_videos: int | None = None,
        num_frames: int = 20,
        seed: int = 0,
        size: int = 64,
        num_objects: int = 2,
    ):
        for name, value, allowed in (("size", size, OBJECT), ("num_objects", num_objects, OBJECTS)):
            check_count(name, value)
            check_choice(name, value, allowed)
        check_count("num_videos", num_videos if num_videos is not None else LENGTH[split])
        check_count("num_frames", num_frames)
        check_count("seed", seed, minimum=0)
        self.size, self.num_objects, self.frame_shape = size, num_objects, (1, size, size)
        self.room = size - OBJECT[size]
        self.objects = torch.from_numpy(np.ascontiguousarray(objects if size == 64 else _halved(objects)))
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.classes = classes
        self.num_frames = num_frames
        self._length = LENGTH[split] if num_videos is None else num_videos
        self._stream = (seed, SPLITS[split])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        chosen, positions = self._plan(index)
        return {
            "video": from_bytes(self._draw(chosen, positions)),
            "label": self.labels[chosen],
            "positions": positions,
        }

    def frames(self, index: int) -> Tensor:
        """Video `index` as bytes: (F, 1, S, S) uint8.

        Raises:
            IndexError: no such video.
        """
        return self._draw(*self._plan(index))

    def _plan(self, index: int) -> tuple[Tensor, Tensor]:
        """Objects (n,) of a video and their positions (F, n, 2)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a dataset of {len(self)} videos")
        rng = np.random.default_rng([*self._stream, index % len(self)])
        # Only plain uniform numbers: their stream does not change between versions of NumPy.
        which, where, speed, sign = np.split(rng.random((7, self.num_objects)), [1, 3, 5])
        chosen = (which[0] * len(self.objects)).astype(np.int64)
        start = (where * (self.room + 1)).astype(np.int64).T
        velocity = ((1 + speed * SPEEDS[self.size]).astype(np.int64) * np.where(sign < 0.5, -1, 1)).T
        free = start + velocity * np.arange(self.num_frames)[:, None, None]
        return torch.from_numpy(chosen), torch.from_numpy(self.room - np.abs(free % (2 * self.room) - self.room))

    def _draw(self, chosen: Tensor, positions: Tensor) -> Tensor:
        side = OBJECT[self.size]
        video = np.zeros((self.num_frames, *self.frame_shape), np.uint8)  # NumPy: torch is slow at many small slices
        things = self.objects[chosen].numpy()
        for frame, places in zip(video, positions.tolist(), strict=True):
            for thing, (row, column) in zip(things, places, strict=True):
                under = frame[0, row : row + side, column : column + side]
                np.maximum(under, thing, out=under)
        return torch.from_numpy(video)


def _halved(objects: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels, rounded half up: (N, 28, 28) to (N, 14, 14) uint8."""
    quarters = objects.reshape(len(objects), 14, 2, 14, 2).astype(np.uint16)
    return ((quarters.sum((2, 4)) + 2) // 4).astype(np.uint8)


def moving_digits(split: str = "train", root: str | Path | None = None, **options: Any) -> MovingObjects:
    """Handwritten digits that bounce, two by default.

    Args:
        split: train or test.
        root: folder MNIST was imported into; None for the 200 digits that ship, 10 of each class for each split.
            The videos are others then, and which is asked for is never decided by what happens to be there.
        options: `num_videos` (10,000 for train and 1,000 for test by default; more can be had), `num_frames`, `seed`,
            `size` (64, or 32) and `num_objects` (2, or 1).

    Raises:
        FileNotFoundError: MNIST has not been imported under `root`.
        InvalidInputError: unknown split or a bad number.
    """
    check_choice("split", split, SPLITS)
    if root is not None:
        return MovingObjects(*mnist_arrays(root, split), tuple("0123456789"), split, **options)
    stored, half = load_arrays(DIGITS), slice(SPLITS[split] * 100, (SPLITS[split] + 1) * 100)
    return MovingObjects(stored["digits"][half], stored["labels"][half, 2], tuple("0123456789"), split, **options)


def moving_clothes(split: str = "train", root: str | Path | None = None, **options: Any) -> MovingObjects:
    """Clothes that bounce, two by default.

    Args:
        split: train or test.
        root: folder Fashion-MNIST was imported into; None for the images that ship, 5,000 for train and 1,000 for test.
        options: as of `moving_digits`.

    Raises:
        FileNotFoundError: Fashion-MNIST has not been imported under `root`.
        InvalidInputError: unknown split or a bad number.
    """
    check_choice("split", split, SPLITS)
    if root is not None:
        return MovingObjects(*fashion_mnist_arrays(root, split), CLASSES, split, **options)
    stored = load_arrays(SAMPLES)
    return MovingObjects(stored[f"{split}_images"], stored[f"{split}_labels"], CLASSES, split, **options)
