"""Equal discs in a square room that bounce off one another and off the walls without loss, solved event by event.

Between two events every disc moves in a straight line, so the time of the next event is the root of a linear (wall) or
quadratic (pair) equation, and the motion is exact up to rounding: there is no time step whose size could matter.
A pair of equal masses exchanges the parts of its velocities that lie along the line through both centres.
"""

from __future__ import annotations

import math

from gendiff.errors import InvalidInputError

State = list[float]
"""Row and column of every disc one after another, (2 n,)."""

EVENTS_PER_FRAME = 1_000
"""More than any room with space to move has; discs wedged between walls could otherwise bounce for ever at one time."""


def elastic_motion(
    start: State, velocity: State, radius: float, low: float, high: float, num_frames: int
) -> tuple[list[State], list[State]]:
    """Positions and velocities at the times 0, 1, ..., num_frames - 1.

    An event that falls on a frame counts as later than it, so that frame 0 is what was given. Whatever overlaps or is
    outside the room bounces at once if it is moving further in (or out), and is otherwise let go: estimated states,
    which are a little wrong, can be continued too.

    Plain Python, for two or three discs are fewer than what an array operation costs to start.

    Args:
        start: positions of the centres, (2 n,), in pixels.
        velocity: pixels per frame, (2 n,).
        radius: of every disc.
        low: smallest coordinate of a centre.
        high: largest coordinate of a centre.
        num_frames: at least 1.

    Returns:
        `num_frames` positions and as many velocities, each (2 n,).

    Raises:
        InvalidInputError: the discs are wedged, so that they bounce without end.
    """
    place, speed = list(start), list(velocity)
    places: list[State] = []
    speeds: list[State] = []
    now, left = 0.0, EVENTS_PER_FRAME * num_frames
    while True:
        wait, first, second = _next_event(place, speed, radius, low, high)
        while len(places) <= now + wait:  # the next frame comes before the next event
            since = len(places) - now
            places.append([x + v * since for x, v in zip(place, speed, strict=True)])
            speeds.append(list(speed))
            if len(places) == num_frames:
                return places, speeds
        now += wait
        place = [x + v * wait for x, v in zip(place, speed, strict=True)]
        if second < 0:
            speed[first] = -speed[first]
        else:
            _exchange(place, speed, first, second)
        left -= 1
        if left < 0:
            raise InvalidInputError(f"the discs bounce more than {EVENTS_PER_FRAME} times per frame: they are wedged.")


def _next_event(place: State, speed: State, radius: float, low: float, high: float) -> tuple[float, int, int]:
    """Time to wait, and what happens then: coordinate `first` meets a wall (`second` is -1), or two discs meet.

    Discs are named by the index of their row in the state.
    """
    wait, first, second = math.inf, 0, -1
    for axis, (x, v) in enumerate(zip(place, speed, strict=True)):
        if v:
            time = ((high if v > 0 else low) - x) / v
            if time < wait:
                wait, first = time, axis
    touching = 4 * radius * radius
    for one in range(0, len(place), 2):
        for other in range(one + 2, len(place), 2):
            dy, dx = place[other] - place[one], place[other + 1] - place[one + 1]
            vy, vx = speed[other] - speed[one], speed[other + 1] - speed[one + 1]
            closing = -(dy * vy + dx * vx)
            if closing <= 0:
                continue
            # |d + v t|^2 = 4 r^2. The smaller root, written so that nothing cancels where the discs nearly touch.
            gap = dy * dy + dx * dx - touching
            inside = closing * closing - (vy * vy + vx * vx) * gap
            if inside > 0:
                time = gap / (closing + math.sqrt(inside))
                if time < wait:
                    wait, first, second = time, one, other
    return max(wait, 0.0), first, second


def _exchange(place: State, speed: State, one: int, other: int) -> None:
    """Exchange the velocities along the line through two centres; changes `speed`."""
    dy, dx = place[other] - place[one], place[other + 1] - place[one + 1]
    vy, vx = speed[other] - speed[one], speed[other + 1] - speed[one + 1]
    along = (dy * vy + dx * vx) / (dy * dy + dx * dx)
    speed[one] += along * dy
    speed[one + 1] += along * dx
    speed[other] -= along * dy
    speed[other + 1] -= along * dx
