"""Download of one published file: into a temporary file, checked by sha256, then renamed, under a lock."""

from __future__ import annotations

import hashlib
import importlib
import os
import urllib.error
import urllib.request
from functools import reduce
from pathlib import Path

from gendiff.errors import WeightsCorruptError, WeightsNotFoundError
from gendiff.files import LEFTOVER
from gendiff.metrics.weights_table import WeightFile

CHUNK = 1 << 20
TIMEOUT = 60
"""Seconds without a byte after which a download fails."""


def url_of(file: WeightFile) -> str:
    """Where a file is published, as the package says that uses it.

    Raises:
        WeightsNotFoundError: that package is not installed.
    """
    module, _, attributes = (file.url or "").partition(":")
    try:
        return reduce(getattr, attributes.split("."), importlib.import_module(module))  # pyright: ignore
    except ImportError as error:
        raise WeightsNotFoundError(
            f"where to download {file} is known to {module}, which is not installed: pip install gendiff[metrics]."
        ) from error


def download_file(url: str, target: Path, file: WeightFile) -> Path:
    """Download `url` to `target`, which appears whole and checked, or not at all.

    Processes that want the same file wait for the first one, then use what it wrote.

    Args:
        url: of any scheme that urllib opens.
        target: path of the file; its folder is made.
        file: whose sha256 the bytes must have.

    Raises:
        WeightsNotFoundError: it cannot be fetched.
        WeightsCorruptError: the bytes are not those of `file`.
    """
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if target.is_file():
            return target
        partial = target.with_name(f"{LEFTOVER}{os.getpid()}-{target.name}")
        try:
            found = _fetch(url, partial)
            if found != file.sha256:
                raise WeightsCorruptError(
                    f"{url} did not give {file.names[0]}: sha256 {found}, expected {file.sha256}; size"
                    f" {partial.stat().st_size} bytes."
                )
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def _fetch(url: str, path: Path) -> str:
    """Write what `url` gives to `path`; its sha256."""
    content = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, path.open("wb") as file:
            while chunk := response.read(CHUNK):
                content.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise WeightsNotFoundError(f"{url} cannot be downloaded: {error}") from error
    return content.hexdigest()
