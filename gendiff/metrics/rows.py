"""Features as every distance here takes them: checked rows in float64 on the CPU."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from torch import Tensor

from gendiff.errors import InvalidInputError

Features: TypeAlias = np.ndarray | Tensor
"""Real numbers (N, d), one row an image."""
SEEDS = 2**32 - 1
"""The largest seed of numpy's RandomState."""


def feature_rows(name: str, features: Features, first: int = 0, least: int = 0) -> np.ndarray:
    """Features as a float64 array; no copy of what already is one.

    Args:
        name: of the argument, for messages.
        features: (N, d), d at least 1.
        first: index of the first row, for messages.
        least: how many rows there must be.

    Raises:
        InvalidInputError: another shape or type, too few rows, or NaN or infinity, whose first index is named.
    """
    if not isinstance(features, np.ndarray | Tensor):
        raise InvalidInputError(f"{name} must be an array or tensor (N, d), got {type(features).__name__}.")
    array = _array(features.detach().cpu()) if isinstance(features, Tensor) else features
    if array.dtype.kind not in "fiu":
        raise InvalidInputError(f"{name} must be real numbers, got {features.dtype}.")
    if array.ndim != 2 or array.shape[1] == 0:
        raise InvalidInputError(f"{name} must have shape (N, d), got {array.shape}.")
    rows = array.astype(np.float64, copy=False)
    if len(rows) < least:
        raise InvalidInputError(f"{name} must hold at least {least} images, got {len(rows)}.")
    # One sum is finite where all numbers are, unless it overflows; only then is it worth looking at each number.
    with np.errstate(all="ignore"):
        suspicious = not np.isfinite(rows.sum())
    if suspicious and not (finite := np.isfinite(rows)).all():
        row, column = np.argwhere(~finite)[0]
        raise InvalidInputError(
            f"{name} must be finite: row {first + row}, column {column} is {rows[row, column]} "
            f"({(~finite).any(axis=1).sum()} of {len(rows)} rows are affected)."
        )
    return rows


def two_feature_sets(
    names: tuple[str, str], first: Features, second: Features, least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Both sets as checked float64 rows of one width.

    Raises:
        InvalidInputError: as `feature_rows`, or the widths differ.
    """
    rows = feature_rows(names[0], first, least=least), feature_rows(names[1], second, least=least)
    check_dims(names, rows[0].shape[1], rows[1].shape[1])
    return rows


def check_dims(names: tuple[str, str], first: int, second: int) -> None:
    """Raise InvalidInputError unless both sets have features of one width."""
    if first != second:
        raise InvalidInputError(
            f"{names[0]} has features of {first} dimensions, {names[1]} of {second}: "
            "they come from different extractors."
        )


def whole_number(name: str, value: int, least: int, most: float = float("inf")) -> int:
    """Raise InvalidInputError unless `value` is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        limit = f"of at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise InvalidInputError(f"{name} must be a whole number {limit}, got {value!r}.")
    return int(value)


def _array(tensor: Tensor) -> np.ndarray:
    # numpy has no bfloat16.
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
