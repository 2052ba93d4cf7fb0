"""IDX files, the format of MNIST: a big-endian header (type, sizes of the axes) and the plain array after it."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from gendiff.files import write_whole

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Type byte of the header -> NumPy type on disk."""


def parse_idx(data: bytes, name: str = "data") -> np.ndarray:
    """The array in the bytes of an IDX file, in native byte order.

    Args:
        data: a whole uncompressed file.
        name: what to call it in an error.

    Raises:
        ValueError: not an IDX file, or longer or shorter than its header says.
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in DTYPES or data[3] == 0:
        raise ValueError(f"{name} is not an IDX file: it starts with {data[:4].hex(' ') or 'nothing'}.")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"{name} is truncated: its header needs {start} bytes, the file has {len(data)}.")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    dtype = np.dtype(DTYPES[data[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        fault = "truncated" if len(data) < expected else "longer than its header says"
        raise ValueError(f"{name} is {fault}: shape {shape} needs {expected} bytes, the file has {len(data)}.")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def read_idx(path: str | Path) -> np.ndarray:
    """The array of an IDX file, gzipped if its name ends in `.gz`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a foreign or truncated file; the message names it.
    """
    return parse_idx(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """Content of a file, uncompressed if its name ends in `.gz`.

    Raises:
        ValueError: the gzip stream is broken.
    """
    path = Path(path)
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}.") from error


def write_idx(path: str | Path, array: np.ndarray) -> None:
    """Write `array` as an IDX file, gzipped if the name ends in `.gz`; the file appears whole or not at all.

    Raises:
        ValueError: a type IDX does not know, or no axis.
    """
    codes = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
    code = codes.get(array.dtype.newbyteorder(">"))
    if code is None or not 1 <= array.ndim <= 255:
        allowed = ", ".join(np.dtype(dtype).name for dtype in DTYPES.values())
        raise ValueError(f"IDX holds arrays of 1 to 255 axes of {allowed}; got {array.dtype} with {array.ndim} axes.")
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    data = header + array.astype(DTYPES[code]).tobytes()
    # No time stamp in the gzip header: equal arrays give equal files.
    write_whole(path, gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data)


def find_idx(folder: str | Path, name: str) -> Path:
    """The file `name` or `name.gz` in `folder`.

    Raises:
        FileNotFoundError: neither is there.
    """
    for candidate in (Path(folder, name), Path(folder, name + ".gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"neither {name} nor {name}.gz is in {folder}.")
