"""The two sets an evaluation compares: opened, counted, checked and described, before anything is computed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gendiff.data.image_source import ImageSource
from gendiff.data.sources import open_source
from gendiff.errors import InvalidInputError
from gendiff.metrics.frechet_stats import FrechetStats
from gendiff.metrics.reference_stats import ReferenceStats, load_reference
from gendiff.metrics.rows import feature_rows, whole_number

LOSSY = ("JPEG", "MPO")
"""Formats, by Pillow's names, whose files are never what was put into them."""


@dataclass(frozen=True)
class Side:
    """Samples or reference: a source of images, features, or statistics.

    Attributes:
        role: "samples" or "reference", for messages.
        name: what the user typed, or a short description.
        count: images used, the first so many; None where statistics do not say.
        source, features, statistics: one of them is there.
    """

    role: str
    name: str
    count: int | None
    source: ImageSource | None = None
    features: np.ndarray | None = None
    statistics: ReferenceStats | None = None

    def digests(self) -> list[bytes]:
        """sha256 of each image used; empty where there are none."""
        return [] if self.source is None or self.count is None else self.source.digests(range(self.count))

    def describe(self) -> dict[str, Any]:
        """Where it comes from, as JSON."""
        if self.source is not None:
            found = self.source.describe(self.count)
            total = len(self.source)
            return found if total == self.count else {**found, "of": total, "chosen": "the first in order"}
        if self.features is not None:
            content = hashlib.sha256(np.ascontiguousarray(self.features).tobytes()).hexdigest()
            return {"kind": "features", "name": self.name, "count": self.count, "features_sha256": content}
        assert self.statistics is not None
        found = self.statistics
        content = hashlib.sha256(found.stats.mean.tobytes() + found.stats.cov.tobytes()).hexdigest()
        return {
            "kind": "statistics",
            "name": self.name,
            "count": self.count,
            "statistics_sha256": content,
            "sha256": found.source_sha256,
            "extractor_id": found.extractor_id,
            "gendiff_version": found.gendiff_version,
        }


def open_side(role: str, given: Any, num: int | None, resize: Any = None, statistics: bool = False) -> Side:
    """One side of a comparison.

    Args:
        role: "samples" or "reference".
        given: what `open_source` takes, features (N, d) of floats, or, where `statistics` allows it, a file or an
            object of statistics.
        num: how many images or rows, from the first; None for all.
        resize: of images, as `open_source` takes it.
        statistics: whether they may be given.

    Raises:
        InvalidInputError: nothing usable, fewer than two images, or fewer than `num`.
        UnsafeFileError: a file that could run code when it is loaded.
    """
    if num is not None:
        whole_number(f"num of the {role}", num, 2)
    if statistics and (found := _statistics(given)) is not None:
        if num is not None:
            raise InvalidInputError(f"num_reference={num} cannot be taken from statistics of the {role}.")
        name = os.fspath(given) if isinstance(given, str | os.PathLike) else "statistics"
        return Side(role, name, found.stats.n, statistics=found)
    if isinstance(given, np.ndarray | Tensor) and given.ndim == 2:
        rows = feature_rows(role, given)
        count = _count(role, f"features {rows.shape[0]}x{rows.shape[1]}", len(rows), num)
        return Side(role, f"features {rows.shape[0]}x{rows.shape[1]}", count, features=rows[:count])
    source = open_source(given, resize=None if isinstance(given, ImageSource) else resize)
    return Side(role, source.name, _count(role, source.name, len(source), num), source=source)


def side_warnings(samples: Side, reference: Side) -> list[str]:
    """What differs between the images of the two sides and is known to move scores."""
    first, second = samples.source, reference.source
    if first is None or second is None:
        return []
    notes = []
    if _is_lossy(first) != _is_lossy(second):
        notes.append(
            f"samples are {first.format}, the reference is {second.format}: JPEG compression alone moves scores; "
            "store both without loss"
        )
    if first.size != second.size:
        sizes = " and ".join(f"{height}x{width}" for height, width in (first.size, second.size))
        notes.append(f"samples and reference differ in size, {sizes}: the extractor resizes each by another factor")
    return notes


def leak_warning(samples: Side, hashes: Sequence[bytes], train_hashes: Sequence[bytes]) -> tuple[int, list[str]]:
    """How many samples are training images, pixel for pixel, and a warning if there are any."""
    known = set(train_hashes)
    leaked = [index for index, found in enumerate(hashes) if found in known]
    if not leaked:
        return 0, []
    where = samples.source.where(leaked[0]) if samples.source is not None else f"image {leaked[0]}"
    text = f"memorised or leaked: {len(leaked)} of {len(hashes)} samples are training images, the first is {where}"
    return len(leaked), [text]


def _statistics(given: Any) -> ReferenceStats | None:
    if isinstance(given, ReferenceStats):
        return given
    if isinstance(given, FrechetStats):
        return ReferenceStats(given)
    if not isinstance(given, str | os.PathLike):
        return None
    path = Path(given)
    if path.suffix.lower() in (".pkl", ".pickle") and path.is_file():
        return load_reference(path)  # says how to convert it
    if path.suffix.lower() != ".npz" or not path.is_file() or "mu" not in _entries(path):
        return None
    return load_reference(path)


def _entries(path: Path) -> list[str]:
    """Names in a `.npz` file; none if it cannot be read, which opening it as images explains."""
    try:
        with path.open("rb") as file:
            return list(getattr(np.load(file, allow_pickle=False), "files", []))
    except Exception:
        return []


def _count(role: str, name: str, available: int, num: int | None) -> int:
    if available < 2:
        raise InvalidInputError(f"{role} must hold at least 2 images, {name} holds {available}.")
    if num is not None and num > available:
        raise InvalidInputError(f"num={num} images of the {role} are asked for, but {name} holds {available}.")
    return available if num is None else num


def _is_lossy(source: ImageSource) -> bool:
    return any(name in LOSSY for name in source.format.split("+"))
