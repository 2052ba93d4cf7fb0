"""Does a video of bouncing balls keep to physics: number, place, speed, energy and brightness, frame by frame.

What counts as a ball, and how it is found, is said in `ball_finding`; how balls are matched with true ones, in
`ball_tracks`. Both are offered here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.metrics.ball_finding import BRIGHTNESS, check_frames, check_radius, find_balls
from gendiff.metrics.ball_tracks import (
    balls_outside,
    count_share,
    motion_energy,
    position_error,
    track,
    velocity_error,
)
from gendiff.metrics.drift import drift, or_none
from gendiff.metrics.rows import whole_number

__all__ = [
    "BallReport",
    "ball_report",
    "balls_outside",
    "count_share",
    "find_balls",
    "mass",
    "mass_error",
    "motion_energy",
    "position_error",
    "summarise_balls",
    "track",
    "velocity_error",
]

SPARE = 4
"""Discs that are looked for beyond twice as many as there should be; more of them only says more slowly it is wrong."""
FIRST = 16
"""Frames of the first of the two means: about one training clip."""


@dataclass(frozen=True)
class BallReport:
    """Ball by ball, one video. Series of F - 1 are of the steps from each frame to the next.

    Attributes:
        num_balls, radius, threshold: what was looked for.
        counts: int64 (F,), balls found.
        positions: float64 (F, n, 2), tracked centres in pixels; NaN where a ball was not found.
        outside: int64 (F,), balls found that reach over a wall by more than half a pixel.
        mass: float64 (F,), total brightness.
        mass_error: float64 (F,), |mass / (n pi radius^2) - 1|, relative to n whole balls.
        energy: float64 (F - 1,), see `motion_energy`.
        position_error: float64 (F,) in pixels, see there; None without true positions.
        velocity_error: float64 (F - 1,) in pixels per frame, see there; None without true velocities.
        on_track: leading frames that have exactly n balls, at a position error below the radius: how long the video
            can be followed. Unlike the mean of `position_error` it cannot gain from balls that vanish. None without
            true positions.
    """

    num_balls: int
    radius: float
    threshold: float
    counts: Tensor
    positions: Tensor
    outside: Tensor
    mass: Tensor
    mass_error: Tensor
    energy: Tensor
    position_error: Tensor | None = None
    velocity_error: Tensor | None = None
    on_track: int | None = None

    def series(self) -> dict[str, Tensor]:
        """Per-frame numbers by name, float64 (F,) or (F - 1,), NaN where there is none.

        `count_right` is 1 in a frame with exactly n balls and else 0, so that its mean is `count_share`.
        """
        named = {
            "count_right": (self.counts == self.num_balls).double(),
            "outside": self.outside.double(),
            "mass_error": self.mass_error,
            "energy": self.energy,
            "position_error": self.position_error,
            "velocity_error": self.velocity_error,
        }
        return {name: values for name, values in named.items() if values is not None}

    def means(self, frames: int | None = None) -> dict[str, float | None]:
        """Mean of each series over the first `frames` frames (and the steps between them), or over all.

        NaN are left out, and `position_frames` and `velocity_frames` say how many values are behind a mean; it is None
        where there are none.
        """
        return _means(self.series(), len(self.counts), whole_number("frames", frames or len(self.counts), 1))

    def to_dict(self) -> dict[str, Any]:
        """Everything, with means over the first 16 frames and over all, and drifts, as JSON can hold it."""
        return {
            "num_frames": len(self.counts),
            "num_balls": self.num_balls,
            "radius": self.radius,
            "threshold": self.threshold,
            "on_track": self.on_track,
            "means": {f"first_{FIRST}": self.means(FIRST), "all": self.means()},
            "counts": self.counts.tolist(),
            "mass": self.mass.tolist(),
            "positions": _jsonable(self.positions.tolist()),
            "drift": {name: drift(values).to_dict() for name, values in self.series().items()},
        }


def ball_report(
    frames: Tensor,
    radius: float,
    num_balls: int,
    true_positions: Tensor | None = None,
    true_velocities: Tensor | None = None,
    threshold: float = BRIGHTNESS,
) -> BallReport:
    """Everything above of one video.

    Args:
        frames: floating (F, 1, H, W) in [0, 1], balls 1 on ground 0; at least 2.
        radius: of the balls in pixels.
        num_balls: n, how many there should be, at least 1.
        true_positions: (F, n, 2), row and column in pixels, where the future is known.
        true_velocities: (F, n, 2), pixels per frame; needs true positions.
        threshold: brightness from which a disc counts as a ball.

    Raises:
        InvalidInputError: bad arguments; nothing was searched then.
        ImportError: scipy is missing.
    """
    check_frames("frames", frames)
    check_radius(radius, frames.shape[-2:])
    whole_number("num_balls", num_balls, 1)
    if len(frames) < 2:
        raise InvalidInputError(f"frames must be at least 2, for something to move, got {len(frames)}.")
    if true_velocities is not None and true_positions is None:
        raise InvalidInputError("true_velocities needs true_positions, which say which ball is which; got None.")
    for name, values in (("true_positions", true_positions), ("true_velocities", true_velocities)):
        if values is not None and tuple(values.shape) != (len(frames), num_balls, 2):
            raise InvalidInputError(f"{name} must be {(len(frames), num_balls, 2)}, got {tuple(values.shape)}.")
    found = find_balls(frames, radius, threshold, most=2 * num_balls + SPARE)
    tracks = track(found, num_balls)
    places = speeds = None
    if true_positions is not None:
        places = position_error(found, true_positions)
        if true_velocities is not None:
            speeds = velocity_error(found, true_positions, true_velocities)
    return BallReport(
        num_balls=num_balls,
        radius=float(radius),
        threshold=float(threshold),
        counts=torch.tensor([len(balls) for balls in found]),
        positions=tracks,
        outside=balls_outside(found, radius, frames.shape[-2:]),
        mass=mass(frames),
        mass_error=mass_error(frames, num_balls * math.pi * radius**2),
        energy=motion_energy(tracks),
        position_error=places,
        velocity_error=speeds,
        on_track=None if places is None else int((places < radius).long().cumprod(0).sum()),
    )


def mass(frames: Tensor) -> Tensor:
    """Total brightness of each frame, float64 (F,); pi radius^2 for each whole ball.

    Raises:
        InvalidInputError: frames are not floating (F, 1, H, W) in [0, 1].
    """
    check_frames("frames", frames)
    return frames.detach().cpu().double().sum((1, 2, 3))


def mass_error(frames: Tensor, reference: Tensor | float) -> Tensor:
    """How far the total brightness is from what it should be, relative to that: |mass / reference - 1|.

    Args:
        frames: floating (F, 1, H, W) in [0, 1].
        reference: frames of the true video, as many, or one to compare all with; or a brightness above 0.

    Returns:
        float64 (F,).

    Raises:
        InvalidInputError: bad arguments, or a black reference frame.
    """
    found = mass(frames)
    if isinstance(reference, Tensor):
        check_frames("reference", reference)
        if len(reference) not in (1, len(frames)):
            raise InvalidInputError(f"reference must hold 1 or {len(frames)} frames, got {len(reference)}.")
        right = mass(reference)
    else:
        right = torch.tensor([float(reference)], dtype=torch.float64)
    if not (right > 0).all() or not right.isfinite().all():
        raise InvalidInputError(f"reference must have a brightness above 0, got {right.min().item():.4g}.")
    return (found / right - 1).abs()


def summarise_balls(reports: Sequence[BallReport]) -> dict[str, Any]:
    """Several videos of one kind as one table: means over videos, and the mean curve of each series.

    Returns:
        What JSON can hold: `videos` and what they are; `means` over the first 16 frames and over all, each value
        counting once; `on_track`, mean over videos; `drift` of each series as of `drift`, whose `counted` says how many
        videos have a value at a frame.

    Raises:
        InvalidInputError: no reports, or videos that differ in length, number or size of balls, or in what is known.
    """
    if not reports:
        raise InvalidInputError("reports is empty.")
    kinds = {(len(r.counts), r.num_balls, r.radius, r.threshold, tuple(r.series())) for r in reports}
    if len(kinds) > 1:
        raise InvalidInputError(f"reports must be of one kind of video, got {len(kinds)} kinds.")
    stacked = {name: torch.stack([report.series()[name] for report in reports]) for name in reports[0].series()}
    frames, known = len(reports[0].counts), [r.on_track for r in reports if r.on_track is not None]
    return {
        "videos": len(reports),
        "num_frames": frames,
        "num_balls": reports[0].num_balls,
        "radius": reports[0].radius,
        "threshold": reports[0].threshold,
        "on_track": sum(known) / len(known) if known else None,
        "means": {f"first_{FIRST}": _means(stacked, frames, FIRST), "all": _means(stacked, frames, frames)},
        "drift": {name: drift(values).to_dict() for name, values in stacked.items()},
    }


def _means(series: dict[str, Tensor], num_frames: int, end: int) -> dict[str, float | None]:
    """Means over the first `end` frames of series (F,) or (B, F), or over the steps (F - 1) between them."""
    heads = {name: x[..., : end if x.shape[-1] == num_frames else end - 1] for name, x in series.items()}
    means: dict[str, float | None] = {
        "count_share" if name == "count_right" else name: or_none(values.nanmean().item())
        for name, values in heads.items()
    }
    for name in ("position", "velocity"):
        if f"{name}_error" in heads:
            means[f"{name}_frames"] = int((~heads[f"{name}_error"].isnan()).sum())
    return means


def _jsonable(values: Any) -> Any:
    return [_jsonable(value) for value in values] if isinstance(values, list) else or_none(values)
