"""Scores of images and videos whose targets are known one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendiff.data import load_dataset
from gendiff.data.sources import NAMED, open_source
from gendiff.errors import InvalidInputError
from gendiff.metrics.paired import METRICS, PairedResult, paired
from gendiff.metrics.processes import once
from gendiff.metrics.video_clips import clip, open_clips

from .evaluation_outcome import NOTHING, Outcome, run_facts
from .plots import against_frame

COLUMNS = ("metric", "value", "floor", "N")
UNITS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS"}


@dataclass(frozen=True)
class PairOrder:
    """What to compare with what.

    Attributes:
        samples, reference: as typed; image i of one belongs to image i of the other.
        metrics: out of "psnr", "ssim", "lpips".
        num: the first so many pairs; None for all.
        resize: side in pixels both are brought to first.
        frames: compare videos by so many frames; None compares images.
        stride: between frames.
        lpips: further arguments of `gendiff.metrics.paired.lpips`.
    """

    samples: str
    reference: str
    metrics: Sequence[str] = ("psnr", "ssim")
    num: int | None = None
    resize: int | None = None
    frames: int | None = None
    stride: int = 1
    lpips: Mapping[str, Any] | None = None


def score_pairs(order: PairOrder) -> Outcome:
    """PSNR, SSIM, LPIPS of pairs.

    Raises:
        InvalidInputError: sides that do not fit together, or an unknown metric; before anything is computed.
        WeightsNotFoundError: LPIPS is asked for and its backbone is not on this machine.
    """
    unknown = [name for name in order.metrics if name not in METRICS]
    if unknown or not order.metrics:
        raise InvalidInputError(f"--metrics must be some of {','.join(METRICS)}, got {','.join(order.metrics)!r}.")
    lpips_options = dict(order.lpips or {})
    if "lpips" in order.metrics:
        from gendiff.metrics.weights import find_weights

        net = lpips_options.get("net", "alex")
        find_weights(f"lpips-{net}", lpips_options.get("weights"))  # before any image is read
    return once(lambda: _score_pairs(order, lpips_options))


def videos(side: str) -> Any:
    """Videos as `open_clips` takes them: a path, or the data set that "dataset:NAME[:split]" names.

    Raises:
        InvalidInputError: no such data set.
    """
    if not side.startswith(NAMED):
        return side
    _, name, *rest = side.split(":")
    if not name or len(rest) > 1:
        raise InvalidInputError(f"a data set is named dataset:NAME or dataset:NAME:SPLIT, got {side!r}.")
    try:
        return load_dataset(name, rest[0] if rest else "train")
    except (ValueError, OSError) as error:
        raise InvalidInputError(f"{side}: {error}") from error


def _score_pairs(order: PairOrder, lpips_options: Mapping[str, Any]) -> Outcome:
    sides, described, warnings = _frames(order) if order.frames is not None else _images(order)
    results = paired(sides[0], sides[1], order.metrics, **lpips_options)
    equal = next(iter(results.values())).equal_pairs
    if equal:
        warnings.append(f"{equal} of {next(iter(results.values())).values.numel()} pairs are equal byte for byte")
    record = {
        "schema": "gendiff-evaluation-pairs/1",
        "samples": described[0],
        "reference": described[1],
        "scores": {name: result.to_dict() for name, result in results.items()},
        "warnings": warnings,
        **run_facts(),
    }
    rows = [_row(name, result) for name, result in results.items()]
    return Outcome(COLUMNS, rows, warnings, record, plots=lambda folder: _draw_drift(results, folder))


def _row(name: str, result: PairedResult) -> list[str]:
    spread = "" if result.std is None else f" ± {result.std:.3g}"
    return [UNITS[name], f"{result.mean:.4g}{spread}", NOTHING, str(len(result.values))]


def _images(order: PairOrder) -> tuple[list[Tensor], list[dict[str, Any]], list[str]]:
    """Both sides as uint8 (N, 3, H, W)."""
    sources = [open_source(side, resize=order.resize) for side in (order.samples, order.reference)]
    _check_counts([len(source) for source in sources], order)
    count = len(sources[0]) if order.num is None else order.num
    warnings = []
    names = [getattr(source, "names", ()) for source in sources]
    if differing := [pair for pair in zip(names[0][:count], names[1][:count], strict=False) if pair[0] != pair[1]]:
        first, second = differing[0]
        warnings.append(f"file names differ ({first} against {second}): pairs are made by the order of sorted names")
    images = [source.read(range(count)) for source in sources]
    return images, [source.describe(count) for source in sources], warnings


def _frames(order: PairOrder) -> tuple[list[Tensor], list[dict[str, Any]], list[str]]:
    """Both sides as uint8 (N, F, 3, H, W)."""
    if order.resize is not None:
        raise InvalidInputError("--resize is for images; save frames at the size they shall be compared at.")
    assert order.frames is not None
    sides = ("samples", "reference")
    clips = [open_clips(videos(side), name) for side, name in zip((order.samples, order.reference), sides, strict=True)]
    _check_counts([len(side) for side in clips], order)
    count = len(clips[0]) if order.num is None else order.num
    tensors = [
        torch.stack([clip(side, index, order.frames, order.stride, name) for index in range(count)])
        for side, name in zip(clips, sides, strict=True)
    ]
    described = [
        {"kind": side.kind, "name": name, "count": count, "format": side.format, "stride": order.stride}
        for side, name in zip(clips, (order.samples, order.reference), strict=True)
    ]
    return tensors, described, []


def _check_counts(counts: Sequence[int], order: PairOrder) -> None:
    if order.num is None and counts[0] != counts[1]:
        raise InvalidInputError(
            f"--samples holds {counts[0]}, --reference {counts[1]}: give equally many, or --num to take the first."
        )
    if order.num is not None and order.num > min(counts):
        raise InvalidInputError(f"--num {order.num} is more than the {counts[0]} samples or {counts[1]} targets.")


def _draw_drift(results: Mapping[str, PairedResult], folder: Path) -> None:
    """Each metric of videos against the frame index."""
    for name, result in results.items():
        assert result.per_frame is not None
        against_frame(folder / f"{name}-against-frame", {name: result.per_frame}, UNITS[name])
