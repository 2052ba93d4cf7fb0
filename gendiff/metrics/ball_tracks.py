"""Found balls through time, and their distance from the true motion.

Equal balls have no names, so what is found is matched with what is true anew in each frame, by the least sum of squared
distances. Frames in which the number of balls is wrong have no error but NaN: which ball is missing cannot be said.
Means over what is left must be read beside `count_share`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.metrics.ball_finding import Found, check_radius
from gendiff.metrics.rows import whole_number

FREE = 1e-3
"""Pixels by which a true step may differ from the true velocity (rounding) in a frame without a bounce."""
WALL_TOLERANCE = 0.5
"""Pixels a centre may lie further out than where a ball touches a wall before it has left the box."""


def count_share(found: Found, num_balls: int) -> float:
    """Share of frames in which exactly `num_balls` balls were found.

    Raises:
        InvalidInputError: `found` is not the centres of `find_balls`, or `num_balls` no whole number.
    """
    whole_number("num_balls", num_balls, 0)
    counts = [len(balls) for balls in _checked(found)]
    return counts.count(num_balls) / len(counts)


def track(found: Found, num_balls: int) -> Tensor:
    """Which ball is which, through time.

    Balls are numbered in the first frame that has exactly `num_balls`, in the order they were found. From there on each
    is looked for where its last two places lead at constant velocity, and balls are given out by the least sum of
    squared distances. A ball that is not found keeps its velocity; balls beyond `num_balls` are left out.

    Args:
        found: for each frame the centres (k, 2) of its balls, as of `find_balls`.
        num_balls: n, at least 1.

    Returns:
        float64 (F, n, 2): row and column in pixels, NaN where a ball was not found.

    Raises:
        InvalidInputError: bad arguments.
        ImportError: scipy is missing.
    """
    whole_number("num_balls", num_balls, 1)
    frames = _checked(found)
    tracks = torch.full((len(frames), num_balls, 2), torch.nan, dtype=torch.float64)
    start = next((t for t, balls in enumerate(frames) if len(balls) == num_balls), None)
    if start is None:
        return tracks
    tracks[start] = last = frames[start]
    velocity, age = torch.zeros_like(last), torch.ones(num_balls, 1, dtype=torch.float64)
    for t in range(start + 1, len(frames)):
        ours, theirs = _match(last + age * velocity, frames[t])
        tracks[t, ours] = frames[t][theirs]
        seen = torch.zeros(num_balls, 1, dtype=torch.bool)
        seen[ours] = True
        velocity = torch.where(seen, (tracks[t] - last) / age, velocity)
        last = torch.where(seen, tracks[t], last)
        age = torch.where(seen, 1.0, age + 1)
    return tracks


def position_error(found: Found, true_positions: Tensor) -> Tensor:
    """Distance of found from true balls in each frame.

    Args:
        found: for each of F frames the centres (k, 2) of its balls.
        true_positions: (F, n, 2), row and column in pixels.

    Returns:
        float64 (F,): root mean square over balls of the distance in pixels, after the best match; NaN in a frame with
        another number of balls than n.

    Raises:
        InvalidInputError: shapes do not fit, or a true value is not finite.
        ImportError: scipy is missing.
    """
    frames, truth = _checked(found), _truth("true_positions", true_positions, len(found))
    errors = torch.full((len(frames),), torch.nan, dtype=torch.float64)
    for t, (balls, true) in enumerate(zip(frames, truth, strict=True)):
        if len(balls) == len(true):
            theirs, ours = _match(true, balls)
            errors[t] = (balls[ours] - true[theirs]).square().sum(1).mean().sqrt()
    return errors


def velocity_error(found: Found, true_positions: Tensor, true_velocities: Tensor) -> Tensor:
    """Difference of found from true velocities between each frame and the next.

    The velocity of a found ball is its step to the next frame, along `track`. That is a velocity only if nothing was
    hit on the way, so balls whose true step differs from their true velocity are left out of that step.

    Args:
        found: for each of F frames the centres (k, 2) of its balls.
        true_positions: (F, n, 2), row and column in pixels; they say which found ball is which.
        true_velocities: (F, n, 2), pixels per frame.

    Returns:
        float64 (F - 1,): root mean square over the balls that hit nothing, in pixels per frame. NaN where either frame
        has another number of balls than n, or all balls hit something.

    Raises:
        InvalidInputError: shapes do not fit, fewer than 2 frames, or a true value is not finite.
        ImportError: scipy is missing.
    """
    frames, truth = _checked(found), _truth("true_positions", true_positions, len(found))
    speeds = _truth("true_velocities", true_velocities, len(found))
    if truth.shape != speeds.shape:
        raise InvalidInputError(
            f"true_velocities must be {tuple(truth.shape)} like true_positions, got {tuple(speeds.shape)}."
        )
    if len(frames) < 2:
        raise InvalidInputError(f"found must hold at least 2 frames to have a velocity, got {len(frames)}.")
    number = truth.shape[1]
    tracks = track(frames, number)
    free = (truth.diff(dim=0) - speeds[:-1]).abs().amax(-1) < FREE
    errors = torch.full((len(frames) - 1,), torch.nan, dtype=torch.float64)
    for t in range(len(frames) - 1):
        if len(frames[t]) == len(frames[t + 1]) == number and free[t].any():
            theirs, ours = _match(truth[t], tracks[t])
            squared = (tracks[t + 1] - tracks[t])[ours] - speeds[t][theirs]
            errors[t] = squared.square().sum(1)[free[t][theirs]].mean().sqrt()
    return errors


def motion_energy(tracks: Tensor) -> Tensor:
    """Kinetic energy of each step, which elastic balls of one mass conserve.

    Args:
        tracks: (F, n, 2) of `track`, F at least 2.

    Returns:
        float64 (F - 1,): half the mean over balls of the squared step, in (pixels per frame)^2; NaN where a ball was
        not found. A step in which a ball bounces is shorter than its way, so true motion has dips there, downwards.

    Raises:
        InvalidInputError: another shape.
    """
    if not isinstance(tracks, Tensor) or tracks.ndim != 3 or tracks.shape[-1] != 2 or len(tracks) < 2:
        got = tuple(tracks.shape) if isinstance(tracks, Tensor) else type(tracks).__name__
        raise InvalidInputError(f"tracks must be (F, n, 2) of at least 2 frames, got {got}.")
    return tracks.double().diff(dim=0).square().sum(-1).mean(-1) / 2


def balls_outside(found: Found, radius: float, shape: Sequence[int], tolerance: float = WALL_TOLERANCE) -> Tensor:
    """Number of balls, int64 (F,), that reach over a wall: centre outside [radius - 0.5, side - 0.5 - radius].

    Args:
        found: for each frame the centres (k, 2) of its balls.
        radius: of a ball in pixels.
        shape: H and W of the frames; the walls are at -0.5 and side - 0.5.
        tolerance: pixels a centre may be further out; not below 0.

    Raises:
        InvalidInputError: bad arguments.
    """
    check_radius(radius, shape)
    if not tolerance >= 0:
        raise InvalidInputError(f"tolerance must be at least 0, got {tolerance!r}.")
    frames, walls = _checked(found), torch.tensor(shape, dtype=torch.float64) - 0.5
    reach = radius - tolerance
    out = [((balls < -0.5 + reach) | (balls > walls - reach)).any(-1).sum() for balls in frames]
    return torch.stack(out)


def _match(wanted: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of both (n, 2) and (k, 2) that belong together, min(n, k) of them, by least sum of squared distances."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(f"matching balls needs scipy ({error}): pip install 'gendiff[metrics]'.") from error
    cost = (wanted[:, None] - given[None]).square().sum(-1)
    rows, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _checked(found: Any) -> list[Tensor]:
    """Centres of every frame in float64 on the CPU."""
    if isinstance(found, Tensor) or not isinstance(found, Sequence) or len(found) == 0:
        raise InvalidInputError(f"found must list the centres (k, 2) of each frame, got {type(found).__name__}.")
    for t, balls in enumerate(found):
        if not isinstance(balls, Tensor) or balls.ndim != 2 or balls.shape[1] != 2 or not balls.isfinite().all():
            got = tuple(balls.shape) if isinstance(balls, Tensor) else type(balls).__name__
            raise InvalidInputError(f"found must hold finite centres (k, 2) for each frame, frame {t} is {got}.")
    return [balls.detach().cpu().double() for balls in found]


def _truth(name: str, values: Any, frames: int) -> Tensor:
    """True (F, n, 2) in float64 on the CPU."""
    if not isinstance(values, Tensor) or values.ndim != 3 or values.shape[1] == 0 or values.shape[2] != 2:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InvalidInputError(f"{name} must be a tensor (F, n, 2), got {got}.")
    if len(values) != frames:
        raise InvalidInputError(f"{name} must hold {frames} frames, as many as were searched, got {len(values)}.")
    if not values.isfinite().all():
        raise InvalidInputError(f"{name} must be finite.")
    return values.detach().cpu().double()
