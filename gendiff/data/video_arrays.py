"""Videos in `.npy` and `.npz` files. Their headers say what they hold, so nothing is loaded before it is needed."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch

from gendiff.data.pixels import from_unit
from gendiff.data.video_source import Video
from gendiff.errors import InvalidInputError, UnsafeFileError

ARRAYS = (".npy", ".npz")
CHANNELS = (1, 3)
LAYOUT = "NFHWC"
"""Order in which axes are brought: videos, frames, height, width, channels."""


def array_videos(path: Path, axes: str | None = None) -> list[Video]:
    """The videos of an array: uint8, or floats in [0, 1], which become bytes by round(255 x).

    Args:
        path: `.npy`, or `.npz` with the array `arr_0`.
        axes: a letter for each axis, of N (videos), F (frames), H, W, C (channels): "FNHW" is the Moving MNIST test
            file. None takes (F, H, W), (F, H, W, C), (F, C, H, W), (N, F, H, W, C) and (N, F, C, H, W) with C = 1 or 3,
            and refuses what could be two of them, and (N, F, H, W), which could be (F, N, H, W).

    Raises:
        InvalidInputError: the file is damaged, or its array is empty, of another type, or of unclear axes.
        UnsafeFileError: the file holds pickled objects; they were not read.
    """
    stored = _Stored(path, axes)
    return [_ArrayVideo(stored, number) for number in range(stored.shape[0])]


def read_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file, left on disk until it is looked at, or `arr_0` of a `.npz` file.

    Raises:
        InvalidInputError: the file is damaged, or has no `arr_0`.
        UnsafeFileError: the file holds pickled objects; they were not read.
    """
    read_header(path)  # for its errors
    with _errors_named(path):
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def read_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array that `read_array` would read; raises as it does."""
    with _errors_named(path):
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                shape, dtype = _header(file)
                missing = file.tell() + math.prod(shape) * dtype.itemsize - path.stat().st_size
        else:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                if "arr_0" not in names:
                    raise InvalidInputError(f"{path} holds {', '.join(names) or 'nothing'}, but no arr_0.")
                with archive.open("arr_0.npy") as file:
                    (shape, dtype), missing = _header(file), 0
    if dtype.hasobject:
        raise UnsafeFileError(f"{path} holds pickled objects, which could run code; save uint8 arrays.")
    if missing > 0:
        raise InvalidInputError(f"{path} is cut off: {missing} bytes are missing at its end.")
    return shape, dtype


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (InvalidInputError, UnsafeFileError):
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidInputError(f"{path} cannot be read as {path.suffix.lower()}: {error}") from error


class _Stored:
    """A file with its axes, brought to the order of `LAYOUT` when it is read."""

    def __init__(self, path: Path, axes: str | None):
        self.path = path
        shape, dtype = read_header(path)
        if dtype != np.uint8 and dtype.kind != "f":
            raise InvalidInputError(f"{path} holds {dtype}; videos must be uint8, or floats in [0, 1].")
        self.axes = _guessed(path, shape) if axes is None else axes
        if len(self.axes) != len(shape):
            raise InvalidInputError(f"axes={axes!r} names {len(self.axes)} axes, but {path} is {shape}.")
        if 0 in shape:
            raise InvalidInputError(f"{path} is empty: {shape}.")
        lengths = dict(zip(self.axes, shape, strict=True))
        self.shape = tuple(lengths.get(axis, 1) for axis in LAYOUT)
        if self.shape[-1] not in CHANNELS:
            raise InvalidInputError(f"{path} is {shape}, with {self.shape[-1]} channels by {self.axes}; 1 or 3 can be.")
        self._kept: np.ndarray | None = None

    def load(self) -> np.ndarray:
        """All videos (N, F, H, W, C)."""
        if self._kept is not None:
            return self._kept
        array = read_array(self.path).transpose([self.axes.index(axis) for axis in LAYOUT if axis in self.axes])
        array = np.expand_dims(array, [place for place, axis in enumerate(LAYOUT) if axis not in self.axes])
        if self.path.suffix.lower() == ".npz" and self.shape[0] > 1:
            self._kept = array  # or the whole file would be unpacked for each of its videos
        return array


class _ArrayVideo(Video):
    format = "raw"

    def __init__(self, stored: _Stored, number: int):
        self.stored, self.number = stored, number
        self.name = str(stored.path) if stored.shape[0] == 1 else f"{stored.path}, video {number}"
        self.num_frames = stored.shape[1]
        self.size = (stored.shape[2], stored.shape[3])

    def read(self, frames: Sequence[int]) -> np.ndarray:
        chosen = np.array(self.stored.load()[self.number, list(frames)])  # a copy: torch warns of read-only memory
        if chosen.dtype == np.uint8:
            return chosen
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            values = torch.from_numpy(chosen.astype(np.float32))
        scaled = [from_unit(values[k : k + 1], self.name, frame) for k, frame in enumerate(frames)]
        return torch.cat(scaled).numpy()


def check_axes(axes: str | None) -> None:
    """Raise InvalidInputError unless `axes` is None or names F, H and W, and N and C at most once."""
    if axes is None:
        return
    if not isinstance(axes, str) or len(set(axes)) != len(axes) or not set("FHW") <= set(axes) <= set(LAYOUT):
        raise InvalidInputError(
            f"axes must name F, H, W once, and N (videos) and C (channels) if they are there, as 'FNHW'; got {axes!r}."
        )


def _guessed(path: Path, shape: tuple[int, ...]) -> str:
    candidates = {3: ["FHW"], 4: ["FHWC", "FCHW"], 5: ["NFHWC", "NFCHW"]}.get(len(shape), [])
    fitting = [axes for axes in candidates if "C" not in axes or shape[axes.index("C")] in CHANNELS]
    if len(fitting) == 1:
        return fitting[0]
    why = f"could be {' or '.join(fitting)}" if fitting else f"is none of {', '.join(candidates) or 'FHW, FHWC, FCHW'}"
    raise InvalidInputError(
        f"{path} is {shape}, which {why}; say what its axes are by axes, as axes='FNHW' for the Moving MNIST file."
    )
