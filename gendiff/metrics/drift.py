"""How a per-frame number changes as a video goes on: the curve, its slope, and its means at both ends.

Works on any series, with a target (PSNR of `paired`, distances of balls) or without one (`sharpness`, brightness).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.metrics.rows import whole_number


@dataclass(frozen=True)
class Drift:
    """A series against the frame index.

    Attributes:
        curve: the value at each frame; NaN where there is none. Of several videos the mean over those that have one.
        counted: how many videos have a value at each frame.
        slope: least squares, in units of the series per frame, each frame with a value counting once; None where fewer
            than 2 frames have one.
        first, last: means over the first and last `window` frames of the curve, NaN left out; None where all are NaN.
        window: in frames.
    """

    curve: tuple[float, ...]
    counted: tuple[int, ...]
    slope: float | None
    first: float | None
    last: float | None
    window: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; NaN becomes None."""
        return {
            "curve": [or_none(value) for value in self.curve],
            "counted": list(self.counted),
            "slope": self.slope,
            "first": self.first,
            "last": self.last,
            "window": self.window,
        }


def drift(series: Any, window: int | None = None) -> Drift:
    """The drift of a per-frame number.

    Args:
        series: real numbers (F,) of one video or (B, F) of several; NaN where a frame has no value.
        window: frames averaged at each end; a quarter of the video by default, at least 1.

    Raises:
        InvalidInputError: another shape, an infinite value, or a window that is longer than the series.
    """
    try:
        values = torch.as_tensor(series, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"series must be real numbers (F,) or (B, F), got {type(series).__name__}.") from error
    if values.ndim not in (1, 2) or values.numel() == 0:
        raise InvalidInputError(f"series must be (F,) or (B, F) and not empty, got {tuple(values.shape)}.")
    if values.isinf().any():
        frame = values.reshape(-1, values.shape[-1]).isinf().any(0).nonzero()[0].item()
        raise InvalidInputError(f"series must be finite or NaN, frame {frame} is infinite; cap it first.")
    frames = values.shape[-1]
    window = max(1, frames // 4) if window is None else whole_number("window", window, 1, frames)
    values = values.reshape(-1, frames)
    curve = values.nanmean(0)
    return Drift(
        curve=tuple(curve.tolist()),
        counted=tuple((~values.isnan()).sum(0).tolist()),
        slope=_slope(curve),
        first=or_none(curve[:window].nanmean().item()),
        last=or_none(curve[-window:].nanmean().item()),
        window=window,
    )


def sharpness(frames: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels in each frame, which falls as a video blurs and rises with noise.

    Args:
        frames: floating (F, C, H, W) with sides of at least 2 px, in any fixed range.

    Returns:
        float64 (F,): mean over pixels of (difference to the pixel below)^2 plus mean of (difference to the right)^2.

    Raises:
        InvalidInputError: frames are not those above, or hold NaN or infinity.
    """
    if not isinstance(frames, Tensor) or not frames.is_floating_point() or frames.ndim != 4 or frames.numel() == 0:
        got = f"{frames.dtype} {tuple(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
        raise InvalidInputError(f"frames must be floating (F, C, H, W) and not empty, got {got}.")
    if min(frames.shape[-2:]) < 2:
        raise InvalidInputError(f"frames must have sides of at least 2 px, got {tuple(frames.shape[-2:])}.")
    finite = frames.isfinite().flatten(1).all(1)
    if not finite.all():
        raise InvalidInputError(f"frames must be finite, frame {(~finite).nonzero()[0].item()} is not.")
    pixels = frames.detach().cpu().double()
    return sum((pixels.diff(dim=axis).square().mean((1, 2, 3)) for axis in (2, 3)), start=torch.zeros(len(pixels)))


def or_none(value: float) -> float | None:
    """The value, or None where it is NaN, which JSON cannot hold."""
    return None if value != value else value


def _slope(curve: Tensor) -> float | None:
    index = (~curve.isnan()).nonzero()[:, 0]
    if len(index) < 2:
        return None
    time = index.double() - index.double().mean()
    return ((time @ curve[index]) / (time @ time)).item()
