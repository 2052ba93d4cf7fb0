"""Images in memory or in one array file: tensors, arrays, `.npy`, `.npz` with `arr_0`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendiff.data.image_source import ImageSource, check_stored
from gendiff.data.pixels import from_unit
from gendiff.errors import InvalidInputError, UnsafeFileError


class ArraySource(ImageSource):
    """Images of one tensor or array.

    Args:
        images: tensor (N, C, H, W) or array (N, H, W, C), C = 1, 3 or 4, or (N, H, W) for grey; uint8, or floats in
            [0, 1], which become bytes by `round(255 x)`.
        name: what the user typed, or a short description.
        resize: (H, W) to bring images to.
        labels: (N,) whole numbers, the class of each image.

    Raises:
        InvalidInputError: another shape or type, or no image.
    """

    kind = "array"

    def __init__(
        self,
        images: Tensor | np.ndarray,
        name: str = "array",
        resize: tuple[int, int] | None = None,
        labels: Any = None,
    ):
        super().__init__(name, resize)
        tensor = isinstance(images, Tensor)
        self._channel_axis, layout = (1, "(N, C, H, W)") if tensor else (3, "(N, H, W, C)")
        if images.ndim == 3:
            images = images[:, None] if isinstance(images, Tensor) else images[..., None]
        check_stored(name, images.shape, self._channel_axis, layout)
        if len(images) == 0:
            raise InvalidInputError(f"{name} holds no image.")
        self._floats = images.is_floating_point() if isinstance(images, Tensor) else images.dtype.kind == "f"
        if not self._floats and str(images.dtype).removeprefix("torch.") != "uint8":
            raise InvalidInputError(f"{name} holds {images.dtype}; images must be uint8, or floats in [0, 1].")
        if self._floats:
            self.format = str(images.dtype).removeprefix("torch.")
            self.note("floats in [0, 1] became bytes by round(255 x)")
        self._images = images.detach() if isinstance(images, Tensor) else images
        self._labels = None if labels is None else whole_labels(labels, len(images))

    def __len__(self) -> int:
        return len(self._images)

    def load(self, indices: Sequence[int]) -> Tensor:
        chosen = self._images[list(indices)]
        batch = chosen.cpu() if isinstance(chosen, Tensor) else torch.from_numpy(np.ascontiguousarray(chosen))
        if self._floats:
            batch = torch.cat([from_unit(batch[i : i + 1], self.name, index) for i, index in enumerate(indices)])
        return batch if self._channel_axis == 1 else batch.permute(0, 3, 1, 2)

    def labels(self, count: int) -> Tensor | None:
        return None if self._labels is None else self._labels[:count]


def open_array_file(path: Path, resize: tuple[int, int] | None = None) -> ArraySource:
    """Images of a `.npy` file, or of `arr_0` in a `.npz` file (labels of `arr_1`, as guided-diffusion writes them).

    Raises:
        UnsafeFileError: the file holds pickled objects; they were not loaded.
        InvalidInputError: the file is damaged or holds no images.
    """
    try:
        if path.suffix.lower() == ".npy":
            source = _from_array(path, resize)
        else:
            with path.open("rb") as file:  # np.load would leave it open where it is no archive
                source = _from_archive(np.load(file, allow_pickle=False), path, resize)
    except (InvalidInputError, UnsafeFileError):
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError) as error:
        # NumPy's messages about a file that is a pickle, and about arrays of objects.
        if any(word in str(error) for word in ("pickle", "Python objects")):
            raise UnsafeFileError(
                f"{path} holds pickled objects, which can run code when they are loaded; it was not read. "
                "Save images as a uint8 array instead."
            ) from error
        raise InvalidInputError(f"{path} is not a whole {path.suffix} file: {error}.") from error
    source.kind = path.suffix.lower().removeprefix(".")
    return source


def whole_labels(labels: Any, count: int) -> Tensor | None:
    """Labels as (N,) int64, or None where they are not one whole number for each of `count` images."""
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    return tensor.long() if whole and tensor.shape == (count,) else None


def _from_array(path: Path, resize: tuple[int, int] | None) -> ArraySource:
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            raise InvalidInputError(f"{path} is a .npz or .zip file by another name; call it so.")
    return ArraySource(np.load(path, allow_pickle=False, mmap_mode="r"), str(path), resize)


def _from_archive(archive: Any, path: Path, resize: tuple[int, int] | None) -> ArraySource:
    if not hasattr(archive, "files"):
        raise InvalidInputError(f"{path} is a .npy file by another name; call it so.")
    with archive:
        if "arr_0" not in archive.files:
            hint = " These are statistics, which only a reference may be." if "mu" in archive.files else ""
            found = ", ".join(archive.files) or "nothing"
            raise InvalidInputError(f"{path} has no array arr_0 of images; it holds {found}.{hint}")
        labels = archive["arr_1"] if "arr_1" in archive.files else None
        return ArraySource(archive["arr_0"], str(path), resize, labels)
