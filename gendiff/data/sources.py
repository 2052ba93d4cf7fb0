"""One door for everything images can come from: files, arrays, data sets, pipelines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from gendiff.data.image_source import ImageSource
from gendiff.data.pixels import check_size
from gendiff.data.source_arrays import ArraySource, open_array_file
from gendiff.data.source_datasets import PictureSource, open_dataset, open_named
from gendiff.data.source_files import SUFFIXES, FolderSource, ZipSource
from gendiff.errors import InvalidInputError, UnsafeFileError

__all__ = ["ImageSource", "open_source"]

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
"""Endings of files that can run code when they are loaded."""

NAMED = "dataset:"


def open_source(samples: Any, *, resize: int | tuple[int, int] | None = None) -> ImageSource:
    """Images from nearly anything, as one finite, ordered set.

    Args:
        samples: a folder (all images below it, by sorted name), a `.zip` (likewise), a `.npz` with `arr_0` uint8
            (N, H, W, C), a `.npy`, a tensor (N, C, H, W) or array (N, H, W, C) of uint8 or of floats in [0, 1], a
            list of pictures, a torch or Hugging Face data set, "dataset:NAME[:split]", or a source, which is
            returned as it is.
        resize: side, or (height, width), that images are brought to by Pillow's bicubic filter; without it all must
            be of one size.

    Raises:
        InvalidInputError: nothing there, or something that cannot be read as 8-bit images; named in the message.
        UnsafeFileError: a file that could run code when it is loaded; it was not opened.
    """
    size = check_size("resize", resize)
    if isinstance(samples, ImageSource):
        if size is not None and samples.resize != size:
            raise InvalidInputError(f"resize={size} must be given where the source {samples.name} is made.")
        return samples
    if isinstance(samples, str | os.PathLike):
        return _open_path(os.fspath(samples), size)
    if isinstance(samples, Tensor | np.ndarray):
        shape = "x".join(map(str, samples.shape))
        return ArraySource(samples, f"{'tensor' if isinstance(samples, Tensor) else 'array'} {shape}", size)
    if isinstance(samples, list | tuple) and samples and all(isinstance(item, Image.Image) for item in samples):
        return PictureSource(samples, f"list of {len(samples)} pictures", size)
    if hasattr(samples, "__getitem__") and not isinstance(samples, list | tuple | dict):
        return open_dataset(samples, type(samples).__name__, size)
    raise InvalidInputError(
        f"cannot read images from {_short(samples)}; allowed: a folder, a .zip, .npz or .npy file, a tensor or array, "
        "a list of pictures, a data set, dataset:NAME[:split], or a source such as PipelineSource."
    )


def _open_path(name: str, resize: tuple[int, int] | None) -> ImageSource:
    if name.startswith(NAMED):
        return open_named(name, resize)
    path, suffix = Path(name), Path(name).suffix.lower()
    if path.is_dir():
        return FolderSource(path, resize)
    if suffix in PICKLES:
        raise UnsafeFileError(
            f"{name} is a {suffix} file, which can run code when it is loaded; it was not read. "
            "Save images as .npy or .npz (uint8), .zip or a folder."
        )
    if not path.exists():
        from gendiff.data import DATASETS

        hint = f" Did you mean {NAMED}{name}?" if name.partition(":")[0] in DATASETS else ""
        raise InvalidInputError(f"{name} does not exist.{hint}")
    if suffix == ".zip":
        return ZipSource(path, resize)
    if suffix in (".npy", ".npz"):
        return open_array_file(path, resize)
    hint = " Name the folder it lies in." if suffix in SUFFIXES else ""
    raise InvalidInputError(f"{name} is not a folder, .zip, .npz or .npy file.{hint}")


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
