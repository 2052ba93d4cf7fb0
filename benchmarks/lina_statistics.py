"""Means over prompts with their bootstrap intervals, and what an interval allows to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

RESAMPLES = 5000
"""Of a bootstrap; the ends of a 95 % interval then move by about a fiftieth of its width."""


def mean_ci(values: Tensor | Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean, 95 %; the same values give the same interval.

    Args:
        values: (P,), one for each prompt: prompts are what is drawn anew, not images, which share a prompt.

    Raises:
        ValueError: no value.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    if not len(array):
        raise ValueError("values must hold at least one number, got none.")
    draws = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


def verdict(interval: Sequence[float]) -> str:
    """ "above" or "below" if the interval of a difference lies wholly on one side of 0, else "tie"."""
    low, high = interval
    return "above" if low > 0 else "below" if high < 0 else "tie"


def difference_cell(ours: Tensor, other: Tensor, against: str, **fields: Any) -> dict[str, Any]:
    """The cell of a paired difference of two scores (P, S): prompts by seeds, the same noise in both.

    Args:
        against: whose score `other` is.
        fields: further fields of the cell.
    """
    gains = (ours.double() - other.double()).mean(1)
    interval = mean_ci(gains)
    cell = {"metric": "difference", "value": gains.mean().item(), "n": len(gains), "against": against}
    return {**cell, "ci95": list(interval), "verdict": verdict(interval), **fields}


def verdict_words(cell: dict[str, Any], ours: str, other: str) -> str:
    """What a difference says, in a sentence; a tie is called a tie."""
    low, high = (100 * end for end in cell["ci95"])
    figure = f"{100 * cell['value']:+.1f} points, 95 % [{low:+.1f}, {high:+.1f}], {cell['n']} prompts"
    said = {"above": f"{ours} is above {other}", "below": f"{ours} is below {other}"}
    return f"{said.get(cell['verdict'], f'tie of {ours} and {other}')}: {figure}"
