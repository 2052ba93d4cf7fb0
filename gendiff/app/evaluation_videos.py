"""Distance between two sets of videos, beside that of two halves of the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gendiff.metrics.processes import once
from gendiff.metrics.video_clips import clip, open_clips
from gendiff.metrics.video_distance import VideoDistanceResult, video_distance

from .evaluation_outcome import NOTHING, Outcome, run_facts, told_in_the_report
from .evaluation_pairs import videos

COLUMNS = ("metric", "value", "floor", "N")


def score_videos(samples: str, reference: str, seed: int = 0, **arguments: Any) -> Outcome:
    """Distance between two sets of videos; the main process does the work.

    Args:
        samples, reference: as typed.
        seed: of the halves of the reference.
        arguments: those of `gendiff.metrics.video_distance.video_distance`.

    Raises:
        InvalidInputError, WeightsNotFoundError: as `video_distance`.
    """
    return once(lambda: _score(samples, reference, seed, arguments))


def _score(samples: str, reference: str, seed: int, arguments: dict[str, Any]) -> Outcome:
    real = videos(reference)
    with told_in_the_report():
        result = video_distance(videos(samples), real, **arguments)
        floor = _floor(real, result, seed, arguments)
    record = {
        "schema": "gendiff-evaluation-videos/1",
        "samples": samples,
        "reference": reference,
        **result.to_dict(),
        "floor": floor,
        **run_facts(),
    }
    count = 0 if floor is None else floor["n"]
    floor_text = NOTHING if floor is None else f"{floor['value']:.4g} (N={count} / {count})"
    row = [result.label, f"{result.value:.4g}", floor_text, f"{result.n_samples} / {result.n_reference}"]
    return Outcome(COLUMNS, [row], result.warnings, record)


def _floor(real: Any, result: VideoDistanceResult, seed: int, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Distance of two disjoint parts of the reference, as many videos each as the samples are or half of it is."""
    count = min(result.n_samples, result.n_reference // 2)
    if count < 2:
        return None
    order = np.random.default_rng(seed).permutation(result.n_reference)
    first, second = (_Part(real, rows, result) for rows in (order[:count], order[count : 2 * count]))
    found = video_distance(first, second, **{**arguments, "num": None, "frames": result.frames, "stride": 1})
    return {"value": found.value, "n": count, "n_real": count, "of": "two disjoint halves of the reference"}


class _Part:
    """Some clips of a set of videos, as a data set."""

    def __init__(self, real: Any, rows: np.ndarray, result: VideoDistanceResult):
        self.clips, self.rows = open_clips(real, "reference"), rows
        self.frames, self.stride = result.frames, result.stride

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        frames = clip(self.clips, int(self.rows[index]), self.frames, self.stride, "reference")
        return {"video": frames.float() / 127.5 - 1}  # becomes the same bytes again
