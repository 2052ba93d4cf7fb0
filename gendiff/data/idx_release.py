"""Four IDX files of MNIST's layout (train and t10k, images and labels): imported with every byte checked, and read.

MNIST and Fashion-MNIST come as such files. They are laid out as torchvision expects them, uncompressed in
`ROOT/<folder>/raw`, so that `torchvision.datasets.MNIST(ROOT, download=False)` loads them too.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from gendiff.data.idx import find_idx, read_bytes, read_idx
from gendiff.errors import InvalidInputError
from gendiff.files import write_whole

PREFIXES = {"train": "train", "test": "t10k"}
"""Split -> how the names of its files begin."""


def import_release(source: str | Path, raw: Path, title: str, sha256: Mapping[str, str], places: Iterable[str]) -> Path:
    """Check the files and lay them out under `raw`; nothing is written unless all are right.

    Args:
        source: a tarball of the files, or a folder with them, plain or `.gz`.
        raw: folder to write.
        title: name of the data set in an error.
        sha256: name of each file -> its hash, uncompressed (compressed files differ from source to source).
        places: where the files may lie inside a folder.

    Returns:
        `raw`.

    Raises:
        FileNotFoundError: `source` or one of its files is missing.
        InvalidInputError: `source` is not a tarball, or a file is not the original.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{title} source {source} does not exist.")
    files = _from_folder(source, sha256, places) if source.is_dir() else _from_tarball(source, sha256)
    for name, data in files.items():
        found = hashlib.sha256(data).hexdigest()
        if found != sha256[name]:
            raise InvalidInputError(f"{name} in {source} is not the original: sha256 {found}, expected {sha256[name]}.")
    for name, data in files.items():
        write_whole(raw / name, data)
    return raw


def read_release(raw: Path, title: str, how_to_get: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and classes (N,) of a split, both uint8.

    Raises:
        FileNotFoundError: the files are not in `raw`; `how_to_get` ends the message.
        InvalidInputError: unknown split, or files of another shape.
    """
    if split not in PREFIXES:
        raise InvalidInputError(f"split must be one of {', '.join(PREFIXES)}, got {split!r}.")
    try:
        paths = [find_idx(raw, f"{PREFIXES[split]}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{title} is not in {raw}: {error} {how_to_get}") from error
    images, labels = (read_idx(path) for path in paths)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise InvalidInputError(f"{raw} does not hold {title}: images {images.shape}, labels {labels.shape}.")
    return images, labels


def _from_folder(folder: Path, names: Iterable[str], places: Iterable[str]) -> dict[str, bytes]:
    first = next(iter(names))
    for place in (folder / inner for inner in places):
        if (place / first).is_file() or (place / f"{first}.gz").is_file():
            return {name: read_bytes(find_idx(place, name)) for name in names}
    raise FileNotFoundError(f"no {first} or {first}.gz in {folder}.")


def _from_tarball(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: archive.extractfile(member) for member in archive if member.isfile()}
            return {name: _read_member(members.get(name), name, path) for name in names}
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"{path} is not a whole tarball: {error}.") from error


def _read_member(member: IO[bytes] | None, name: str, path: Path) -> bytes:
    if member is None:
        raise FileNotFoundError(f"{name} is not in the tarball {path}.")
    return member.read()
