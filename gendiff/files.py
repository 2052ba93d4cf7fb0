"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEFTOVER = ".partial-"
"""How the name of something half-written begins."""


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that takes the place of `folder` once everything in it is on disk.

    If the block raises, nothing remains of it and an older `folder` stays as it was.
    """
    partial = folder.with_name(f"{LEFTOVER}{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _flush(path)
        if folder.exists():
            # A folder cannot be renamed onto a full one; the old one stays whole until the new one is.
            old = folder.with_name(f"{LEFTOVER}old-{folder.name}")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(folder.parent)
    remove_leftovers(folder.parent)


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part; makes its folder.

    Raises:
        OSError: it cannot be written; an older file stays as it was.
    """
    with whole_file(Path(path)) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` once it is done; makes its folder.

    Raises:
        OSError: it cannot be written; an older file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{LEFTOVER}{os.getpid()}-{path.name}")
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed write left in `folder`."""
    for path in folder.glob(f"{LEFTOVER}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
