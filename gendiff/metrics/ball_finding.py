"""Balls in frames: bright discs of a known radius on a dark ground, found to a fraction of a pixel.

A frame is explained one disc after another, the one that explains most light first (matching pursuit with the known
disc), and after each the places and brightnesses of all discs so far are fitted to the frame together. Connected
components would take two balls that touch for one.

What counts as a ball is decided after the fit, and is the ground of every number built on it. A fitted disc is one if
1. what is unexplained over its pixels and those of the `MARGIN` around it is at most `MISFIT` of its own light, both as
   sums of squares: no ball of another size, no blob, no part of a larger shape. A radius a quarter off fails, and so
   does a hole half as wide as the ball; a blur of 1 px passes;
2. no other disc is nearer than a diameter less `OVERLAP` radii: balls may touch, they do not merge.
Discs that fail are taken away, so that they explain nothing, and the others are asked again, until all pass: a ball
that touches what is no ball cannot be told from a part of it. A disc is a ball if
3. its brightness (the least-squares factor on a disc of brightness 1) is at least `threshold`;
4. its centre lies inside the frame.

Source: Mallat & Zhang 1993, "Matching pursuits with time-frequency dictionaries" (IEEE TSP).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.metrics.rows import whole_number

Found: TypeAlias = Sequence[Tensor]
"""For each frame the centres of its balls, float64 (k, 2), row and column in pixels; k may be 0."""

BRIGHTNESS = 0.6
"""Default brightness from which a disc is a ball rather than a faded one; a true ball has 1."""
MISFIT = 0.12
"""Most that may be unexplained in and around a ball, as a share of its own light (sums of squares)."""
MARGIN = 2.0
"""Width in pixels of the ring around a disc that must be explained too; its first half pixel is the soft edge."""
OVERLAP = 0.25
"""How much nearer than a diameter two centres may be, in radii."""
REACH = 1.0
"""The same in pixels while discs are still looked for, and the first ones not yet where they belong."""
SMALLEST_RADIUS = 2.0
MOST = 16
"""Default number of discs after which a frame is left: one of noise has dozens."""
RANGE_SLACK = 1e-3
"""How far outside [0, 1] a value may lie before it is another range rather than rounding."""
BLOCK = 2**16
"""Pixels that are searched at once, for memory."""
SWEEPS = 12
"""Rounds of the fit after a disc was added. The error falls by more than half in each."""
SHIFTS = (0.0, 0.5)
"""Places within a pixel where a disc is tried. On whole pixels only, the gap between three balls of radius 2 that
touch explains more light than a ball between four pixels."""


def find_balls(frames: Tensor, radius: float, threshold: float = BRIGHTNESS, most: int = MOST) -> list[Tensor]:
    """Centres of the balls in each frame.

    Args:
        frames: floating (F, 1, H, W) in [0, 1], balls 1 on ground 0.
        radius: of the balls in pixels, at least 2; their edge falls from 1 to 0 over one pixel around it.
        threshold: in (0, 1], brightness from which a disc counts as a ball.
        most: discs looked for in a frame, balls or not; choose it above the number of balls.

    Returns:
        For each frame float64 (k, 2): row and column of each ball's centre, pixel centres at whole numbers, sorted by
        row and then column. Which ball is which is left to `track`.

    Raises:
        InvalidInputError: frames are not those above, or hold NaN or infinity; a number is out of range.
    """
    check_frames("frames", frames)
    check_radius(radius, frames.shape[-2:])
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise InvalidInputError(f"threshold must be a number in (0, 1], got {threshold!r}.")
    whole_number("most", most, 1)
    with torch.no_grad():
        height, width = frames.shape[-2:]
        blocks = frames.detach().cpu().double()[:, 0].split(max(1, BLOCK // (height * width)))
        return [balls for block in blocks for balls in _find(block, float(radius), float(threshold), most)]


def disc(centres: Tensor, radius: float, shape: Sequence[int]) -> Tensor:
    """Discs of brightness 1 whose edge falls linearly over one pixel around the radius.

    Args:
        centres: (..., 2), row and column in pixels.
        radius: in pixels.
        shape: H and W of the frame.

    Returns:
        (..., H, W) in [0, 1], one picture for each centre.
    """
    distance = (_pixels(shape, centres) - centres[..., None, None, :]).square().sum(-1).sqrt()
    return (radius + 0.5 - distance).clamp(0, 1)


def check_frames(name: str, frames: Tensor) -> None:
    """Raise InvalidInputError unless frames are floating (F, 1, H, W) in [0, 1]."""
    if not isinstance(frames, Tensor) or not frames.is_floating_point():
        got = f"{frames.dtype}" if isinstance(frames, Tensor) else type(frames).__name__
        raise InvalidInputError(f"{name} must be a floating tensor (F, 1, H, W) in [0, 1], got {got}.")
    if frames.ndim != 4 or frames.shape[1] != 1 or frames.numel() == 0:
        raise InvalidInputError(f"{name} must be (F, 1, H, W) and not empty, got {tuple(frames.shape)}.")
    low, high = (value.item() for value in frames.detach().aminmax())
    if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):  # also where a value is not a number
        raise InvalidInputError(f"{name} must lie in [0, 1], got [{low:.4g}, {high:.4g}].")


def check_radius(radius: float, shape: Sequence[int]) -> None:
    """Raise InvalidInputError unless a ball of this radius can be told and fits into a frame (H, W)."""
    largest = min(shape) / 2
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not SMALLEST_RADIUS <= radius <= largest:
        raise InvalidInputError(
            f"radius must be from {SMALLEST_RADIUS:g} to {largest:g} pixels (half of the frame), got {radius!r}."
        )


def _find(frames: Tensor, radius: float, threshold: float, most: int) -> list[Tensor]:
    """`find_balls` of checked float64 frames (F, H, W)."""
    count, shape = len(frames), frames.shape[-2:]
    centres = frames.new_zeros((count, 0, 2))
    light = frames.new_zeros((count, 0))
    active = torch.arange(count)  # frames in which there may be more
    for number in range(most):
        place, more = _brightest(frames[active], centres[active], light[active], radius, threshold / 2)
        active = active[more]
        if not len(active):
            break
        # The other frames get a disc without light, so that all keep one shape.
        centres, light = F.pad(centres, (0, 0, 0, 1)), F.pad(light, (0, 1))
        centres[active, number], light[active, number] = place[more], 1.0
        state = centres[active], light[active]
        for _ in range(SWEEPS):
            state = _sweep(frames[active], *state, radius)
        centres[active], light[active] = state
    if not centres.shape[1]:
        return [frames.new_zeros((0, 2)) for _ in range(count)]
    light = _of_discs(frames, centres, light, radius)
    accepted = light >= threshold
    limits = torch.tensor(shape, dtype=centres.dtype) - 0.5
    accepted &= ((centres >= -0.5) & (centres <= limits)).all(-1)
    return [_sorted(places[kept]) for places, kept in zip(centres, accepted, strict=True)]


def _brightest(frames: Tensor, centres: Tensor, light: Tensor, radius: float, least: float) -> tuple[Tensor, Tensor]:
    """The place (F, 2) at which one more disc explains most of what is left of each frame, and whether (F,) any does.

    A disc of factor a = <rest, D> / <D, D> takes a^2 <D, D> off the squared error. Only pixels of the frame count, so a
    disc that reaches over the edge is neither punished nor rewarded for what cannot be seen.
    """
    shape = frames.shape[-2:]
    reach = math.ceil(radius + 1)
    middle = torch.tensor([[reach + row, reach + column] for row in SHIFTS for column in SHIFTS], dtype=frames.dtype)
    templates = disc(middle, radius, (2 * reach + 1, 2 * reach + 1))[:, None]
    rest = frames - (light[..., None, None] * disc(centres, radius, shape)).sum(1)
    overlap, weight = (
        # In float32, in which convolutions are ten times faster; places are fitted in float64 later.
        F.conv2d(images[:, None].float(), kernels.float(), padding=reach).double()
        for images, kernels in ((rest, templates), (torch.ones_like(rest[:1]), templates**2))
    )
    factor = overlap / weight

    tried = _pixels(shape, frames)[None] + (middle - reach)[:, None, None]  # (4, H, W, 2)
    rows, columns = ((tried[..., axis] - centres[:, :, None, None, None, axis]).square() for axis in (0, 1))
    taken = (rows + columns < (2 * radius - REACH) ** 2) & (light > 0)[:, :, None, None, None]
    gain = torch.where(taken.any(1) | (factor < least), -1.0, factor**2 * weight).flatten(1)
    best = gain.max(1)
    return tried.reshape(-1, 2)[best.indices], best.values > 0


def _sweep(frames: Tensor, centres: Tensor, light: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """One Gauss-Newton step for the place and the factor of each disc, the others held."""
    seen = _look(frames, centres, light, radius)
    # Only the soft edge says where a disc is: there its brightness falls by 1 per pixel away from the centre.
    slope = ((seen.disc > 0) & (seen.disc < 1)) * light[..., None] / seen.distance.clamp(min=1e-9)
    jacobian = torch.cat([seen.disc[..., None], slope[..., None] * seen.offset], dim=-1)
    weighted = (jacobian * seen.counts[..., None]).transpose(-1, -2)
    normal = weighted @ jacobian + 1e-6 * torch.eye(3, dtype=frames.dtype)
    step = torch.linalg.solve(normal, weighted @ seen.rest[..., None])[..., 0]
    alive = light > 0
    # The edge is seen over one pixel, so a longer step has no ground.
    moved = centres + step[..., 1:].clamp(-0.5, 0.5) * alive[..., None]
    return moved, torch.where(alive, (light + step[..., 0]).clamp(1e-3, 2.0), 0.0)


def _of_discs(frames: Tensor, centres: Tensor, light: Tensor, radius: float) -> Tensor:
    """The factors (F, K), 0 for those that do not fit and so are no discs but parts of something else.

    What the first of them explained becomes unexplained with them, so that others may fail in turn: a larger shape
    filled with discs falls apart from its worst place on.
    """
    for _ in range(light.shape[1]):
        fits = _misfit(frames, centres, light, radius) <= MISFIT
        fits &= _nearest_other(centres, light) >= (2 - OVERLAP) * radius
        kept = torch.where(fits, light, 0.0)
        if torch.equal(kept, light):
            break
        light = kept
    return light


def _misfit(frames: Tensor, centres: Tensor, light: Tensor, radius: float) -> Tensor:
    """What is unexplained in and around each disc, as a share (F, K) of its own light, both as sums of squares."""
    seen = _look(frames, centres, light, radius)
    unexplained, own = ((values.square() * seen.counts).sum(-1) for values in (seen.rest, light[..., None] * seen.disc))
    return unexplained / own.clamp(min=1e-9)


class _Seen(NamedTuple):
    """The Q pixels of a square around each of K discs in each of F frames.

    Attributes:
        offset: (F, K, Q, 2) from the centre of the disc, in pixels.
        distance: (F, K, Q), its length.
        disc: (F, K, Q), brightness of the disc with factor 1.
        rest: (F, K, Q), the frame less all discs.
        counts: (F, K, Q) bool, whether the pixel says something of this disc: it is of the frame, near enough, and
            reached by no second disc. Renderers differ where two discs meet (sum or maximum), so none is asked there.
    """

    offset: Tensor
    distance: Tensor
    disc: Tensor
    rest: Tensor
    counts: Tensor


def _look(frames: Tensor, centres: Tensor, light: Tensor, radius: float) -> _Seen:
    """What is around each disc of places `centres` (F, K, 2) and factors `light` (F, K); 0 is no disc."""
    height, width = frames.shape[-2:]
    reach = math.ceil(radius + MARGIN)
    square = _pixels((2 * reach + 1, 2 * reach + 1), frames).reshape(-1, 2) - reach
    pixels = centres.round()[:, :, None] + square
    rows, columns = pixels.long().unbind(-1)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    number = torch.arange(len(frames))[:, None, None]
    values = frames[number, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]

    gaps = (pixels[:, :, :, None] - centres[:, None, None]).square().sum(-1).sqrt()  # (F, K, Q, K): to every disc
    discs = (radius + 0.5 - gaps).clamp(0, 1)
    lit = light[:, None, None]
    distance, own = (of_all.diagonal(dim1=1, dim2=3).transpose(1, 2) for of_all in (gaps, discs))
    return _Seen(
        offset=pixels - centres[:, :, None],
        distance=distance,
        disc=own,
        rest=values - (lit * discs).sum(-1),
        counts=inside & (distance < radius + MARGIN) & (((discs > 0) & (lit > 0)).sum(-1) <= 1),
    )


def _nearest_other(centres: Tensor, light: Tensor) -> Tensor:
    """Distance (F, K) from each disc to the nearest other; infinite where there is none."""
    gaps = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    alone = torch.eye(gaps.shape[-1], dtype=torch.bool) | (light <= 0)[:, None]
    return gaps.masked_fill(alone, torch.inf).amin(-1)


def _pixels(shape: Sequence[int], like: Tensor) -> Tensor:
    """Row and column (H, W, 2) of each pixel."""
    rows, columns = (torch.arange(side, dtype=like.dtype) for side in shape)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)


def _sorted(places: Tensor) -> Tensor:
    """Places (k, 2) by row, then column."""
    by_column = places[places[:, 1].argsort(stable=True)]
    return by_column[by_column[:, 0].argsort(stable=True)]
