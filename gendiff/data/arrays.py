"""Named arrays in one `.npz` file, written whole and read whole."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gendiff.errors import InvalidInputError
from gendiff.files import write_whole


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of a file by name; a zip archive checks every array it unpacks, and pickled objects are refused.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: the file is damaged or not an archive of arrays.
    """
    try:
        # From memory: np.load leaves the file open when it is not an archive.
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{path} is damaged: {error}.") from error


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write compressed arrays; equal arrays give equal files, for NumPy stores no time stamp."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    write_whole(path, buffer.getvalue())
