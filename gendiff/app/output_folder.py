"""A folder of results that holds all of a run's files or none of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gendiff.files import write_whole


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Make `path` and try it before any work starts; leave no empty folder behind if the work fails.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    probe = path / ".writable"
    try:
        probe.touch()
        probe.unlink()
        yield path
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: somebody else wrote there
                folder.rmdir()
        raise


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all `files` by name, each whole; if one cannot be written, those new in this call are removed again."""
    new = [folder / name for name in files if not (folder / name).exists()]
    try:
        for name, content in files.items():
            write_whole(folder / name, content)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise
