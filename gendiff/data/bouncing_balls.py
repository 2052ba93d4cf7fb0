"""Videos of equal balls that bounce off one another and off the walls of a box, with exact positions and velocities.

The task of Sutskever, Hinton, Taylor: The Recurrent Temporal Restricted Boltzmann Machine, NIPS 2008, with the physics
solved exactly: elastic collisions of equal masses, no gravity, no friction. So two frames determine all later ones, and
what a video model gets wrong can be measured in pixels, as energy, and as brightness that appears or vanishes.

Rows and columns are those of pixels, whose centres are at whole numbers, so the walls are at -0.5 and size - 0.5.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.data.discs import disc_coverage
from gendiff.data.elastic_motion import elastic_motion
from gendiff.data.labelled import check_choice
from gendiff.data.moving import LENGTH, SPLITS
from gendiff.data.rendered import check_count
from gendiff.errors import InvalidInputError

SPEEDS = (0.5 / 32, 2 / 32)
"""Slowest and fastest start, in sizes of the box per frame: 0.5 to 2 pixels per frame at 32 pixels."""
FULLEST = 0.35
"""Largest share of the box that balls may cover. Places drawn one after another fit reliably up to there."""
SIZES = (8, 1024)
SMALLEST_RADIUS = 1.0


class BouncingBalls(Dataset):
    """Videos drawn when they are asked for: video `index` follows from the options, the seed, the split and `index`.

    An item is `{"video": (F, 1, S, S) float32 in [-1, 1], "positions": (F, n, 2) float32, "velocities": (F, n, 2)
    float32}`: the background is -1 and a ball 1, each pixel by the area that is covered; row and column of the centres
    in pixels; pixels per frame.

    A ball starts anywhere in the box where it overlaps no other, in any direction, at 0.5 to 2 pixels per frame for 32
    pixels (proportionally more in a larger box). Collisions move energy from ball to ball, so one ball may become
    faster than that, by a factor of at most sqrt(n).

    Args:
        split: train or test, each with random numbers of its own.
        num_videos: 10,000 for train and 1,000 for test by default; more can be had.
        num_frames: frames of a video.
        size: height and width of the frames in pixels, 8 to 1024.
        num_balls: n.
        radius: of a ball in pixels, at least 1; size / 8 by default, of which two balls collide about once in 20
            frames and which is 4 pixels at 32.
        seed: of all videos.

    Attributes:
        frame_shape: (1, size, size).
        classes: empty, for balls have no classes.
        low: smallest row or column of a centre, where the ball touches a wall.
        high: largest row or column of a centre.

    Raises:
        InvalidInputError: an unknown split, a bad number, or balls that do not fit.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        split: str = "train",
        num_videos: int | None = None,
        num_frames: int = 20,
        size: int = 32,
        num_balls: int = 2,
        radius: float | None = None,
        seed: int = 0,
    ):
        check_choice("split", split, SPLITS)
        check_count("num_videos", num_videos if num_videos is not None else LENGTH[split])
        check_count("num_frames", num_frames)
        check_count("num_balls", num_balls)
        check_count("seed", seed, minimum=0)
        if isinstance(size, bool) or not isinstance(size, int) or not SIZES[0] <= size <= SIZES[1]:
            raise InvalidInputError(f"size must be an integer from {SIZES[0]} to {SIZES[1]}, got {size!r}.")
        self.radius = _checked_radius(size / 8 if radius is None else radius, size, num_balls)
        self.num_frames, self.num_balls, self.size = num_frames, num_balls, size
        self.frame_shape = (1, size, size)
        self.low, self.high = self.radius - 0.5, size - 0.5 - self.radius
        self._length = LENGTH[split] if num_videos is None else num_videos
        self._stream = (seed, SPLITS[split])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        places, speeds = self.simulate(*self._start(index), self.num_frames)
        return {"video": self.render(places), "positions": places.float(), "velocities": speeds.float()}

    def simulate(self, positions: Any, velocities: Any, num_frames: int) -> tuple[Tensor, Tensor]:
        """The exact motion from any state on, for as many balls as it has.

        Energy is conserved and time can be reversed, both up to rounding in float64. Balls that overlap or are outside
        the box, as estimated states may be, bounce at once if they move further in (or out) and are otherwise let go.

        Args:
            positions: (n, 2), row and column of the centres; a tensor, an array or lists.
            velocities: (n, 2), pixels per frame.
            num_frames: F, of which the first is the given state.

        Returns:
            Positions (F, n, 2) and velocities (F, n, 2), float64. A collision that falls on a frame counts as later.

        Raises:
            InvalidInputError: another shape, a value that is not finite, or balls wedged so that nothing can move.
        """
        check_count("num_frames", num_frames)
        start, speed = (_state(name, x) for name, x in (("positions", positions), ("velocities", velocities)))
        if start.shape != speed.shape:
            raise InvalidInputError(
                f"velocities must be {tuple(start.shape)} like positions, got {tuple(speed.shape)}."
            )
        moved = elastic_motion(
            start.flatten().tolist(), speed.flatten().tolist(), self.radius, self.low, self.high, num_frames
        )
        places, speeds = (torch.tensor(states, dtype=torch.float64).view(num_frames, -1, 2) for states in moved)
        return places, speeds

    def render(self, positions: Any) -> Tensor:
        """Draw balls: (F, n, 2) row and column of the centres to frames (F, 1, S, S) float32 in [-1, 1].

        `(frame + 1) / 2` sums to pi radius^2 for every ball inside the box, wherever it is.

        Raises:
            InvalidInputError: another shape, or a value that is not finite.
        """
        places = torch.as_tensor(positions, dtype=torch.float64).detach().cpu().numpy()
        if places.ndim != 3 or places.shape[2] != 2 or not np.isfinite(places).all():
            raise InvalidInputError(f"positions must be (F, n, 2) and finite, got shape {places.shape}.")
        covered = disc_coverage(places, self.radius, self.size)
        # Above 1 only by rounding, or where balls overlap, which those of a simulation do not.
        video = np.clip(2 * covered - 1, -1, 1).astype(np.float32)
        return torch.from_numpy(video)[:, None]

    def _start(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (n, 2) and velocities (n, 2) of frame 0 of a video."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a dataset of {len(self)} videos")
        # Only plain uniform numbers: their stream does not change between versions of NumPy.
        rng = np.random.default_rng([*self._stream, index % len(self)])
        pace, turn = rng.random((2, self.num_balls))
        pace, turn = self.size * (SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * pace), 2 * math.pi * turn
        return self._places(rng), np.stack([pace * np.sin(turn), pace * np.cos(turn)], axis=1)

    def _places(self, rng: np.random.Generator) -> np.ndarray:
        """Places (n, 2) that overlap nowhere, drawn ball after ball; all anew where a ball finds none."""
        while True:
            places: list[list[float]] = []
            for _ in range(100 * self.num_balls):
                row, column = (self.low + (self.high - self.low) * rng.random(2)).tolist()
                if all(math.hypot(row - r, column - c) >= 2 * self.radius for r, c in places):
                    places.append([row, column])
                    if len(places) == self.num_balls:
                        return np.array(places)


def _checked_radius(radius: Any, size: int, num_balls: int) -> float:
    largest = math.sqrt(FULLEST / (num_balls * math.pi)) * size
    if largest < SMALLEST_RADIUS:
        most = int(FULLEST * size**2 / (math.pi * SMALLEST_RADIUS**2))
        raise InvalidInputError(f"num_balls must be at most {most} for size {size}, got {num_balls}.")
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not SMALLEST_RADIUS <= radius <= largest:
        raise InvalidInputError(
            f"radius must be from {SMALLEST_RADIUS:g} to {largest:.4g} pixels for num_balls={num_balls} and size={size}"
            f" (balls may cover {FULLEST:.0%} of the box), got {radius!r}."
        )
    return float(radius)


def _state(name: str, values: Any) -> Tensor:
    state = torch.as_tensor(values, dtype=torch.float64)
    if state.ndim != 2 or state.shape[1] != 2 or len(state) == 0:
        raise InvalidInputError(f"{name} must be (n, 2), got {tuple(state.shape)}.")
    if not torch.isfinite(state).all():
        raise InvalidInputError(f"{name} must be finite, got {state.tolist()}.")
    return state
