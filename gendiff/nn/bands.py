"""Frequency bands of a square map: radii, masks and low-passes, as pure functions of numbers.

A coefficient (u, v) has the radius r = sqrt(u^2 + v^2), u and v its signed whole frequencies (Nyquist counts as N / 2).
Radii 0 < s_0 <= ... <= s_{K-2} cut the plane into K bands: band k holds s_{k-1} <= r < s_k, and the last one all above.

Source: Huang et al. 2025 (NFIG, arXiv 2503.07076), equation 1 and the rule called "linear" here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

BAND_SPACINGS = ("none", "linear", "area", "nyquist")


def band_radii(spacing: str | Sequence[float], stages: Sequence[int]) -> tuple[float, ...] | None:
    """The K - 1 radii between K bands; None for "none", where each stage sees the whole map.

    Args:
        spacing: "none": next-scale prediction; "linear": the paper's rule, band k as wide as stage k's share of all
            tokens; "area": the disc up to stage k has that stage's share of the area, so that coefficients roughly
            follow tokens; "nyquist": what a grid of side p_k can carry; or the radii themselves.
        stages: side p_k of each token grid, the last one that of the map.

    Raises:
        ValueError: an unknown name, or radii that are not K - 1 increasing positive numbers.
    """
    if not isinstance(spacing, str):
        return _check_radii(spacing, len(stages))
    if spacing not in BAND_SPACINGS:
        raise ValueError(
            f"band_spacing must be one of {', '.join(BAND_SPACINGS)}, or {len(stages) - 1} radii, got {spacing!r}."
        )
    if spacing == "none":
        return None
    if spacing == "nyquist":
        return tuple(side / 2 for side in stages[:-1])
    largest = math.sqrt(2) * stages[-1] / 2
    total = sum(side**2 for side in stages)
    upto = [sum(side**2 for side in stages[: k + 1]) / total for k in range(len(stages) - 1)]
    return tuple(largest * (share if spacing == "linear" else math.sqrt(share)) for share in upto)


def band_masks(radii: Sequence[float], size: int) -> Tensor:
    """(K, N, N // 2 + 1) bool on the half plane of `rfft2`: which coefficients are in band k; exactly one band each."""
    below = lowpass_masks(radii, size)
    return torch.cat([below[:1], below[1:] & ~below[:-1]])


def lowpass_masks(radii: Sequence[float], size: int) -> Tensor:
    """(K, N, N // 2 + 1) bool on the half plane of `rfft2`: which coefficients are in bands 0 .. k."""
    radius = _radius(size)
    return torch.stack([radius < edge for edge in (*radii, math.inf)])


def coefficient_counts(radii: Sequence[float], size: int) -> list[int]:
    """How many of the N^2 coefficients of the whole plane are in each band."""
    masks = band_masks(radii, size)
    # A column of the half plane stands for two of the whole one, but for frequency 0 and, where N is even, N / 2.
    twice = torch.full((masks.shape[-1],), 2, device="cpu")
    twice[0] = 1
    if size % 2 == 0:
        twice[-1] = 1
    return [int(count) for count in (masks * twice).sum(dim=(1, 2))]


def lowpasses(maps: Tensor, radii: Sequence[float] | None, num_stages: int) -> list[Tensor]:
    """What stages 0 .. k are to say of `maps`, for each k: the map without all frequencies above band k.

    Args:
        maps: (B, C, N, N), float32 or float64.
        radii: K - 1 numbers; None hands out the map itself K times.
        num_stages: K.

    Returns: K maps like `maps`; the last one is `maps` itself, so that nothing is lost to rounding.
    """
    if not radii:
        return [maps] * num_stages  # a single stage is given everything as well
    size = maps.shape[-1]
    masks = _device_masks(tuple(radii), size, str(maps.device))[:-1]
    spectrum = torch.fft.rfft2(maps) * masks[:, None, None]
    return [*torch.fft.irfft2(spectrum, s=(size, size)), maps]


def band_maps(maps: Tensor, radii: Sequence[float] | None) -> list[Tensor]:
    """The bands f_k of `maps` (B, C, N, N), float32 or float64, which add up to it; all of it without radii."""
    if not radii:
        return [maps]
    size = maps.shape[-1]
    masks = band_masks(radii, size).to(maps.device)
    return list(torch.fft.irfft2(torch.fft.rfft2(maps) * masks[:, None, None], s=(size, size)))


def _radius(size: int) -> Tensor:
    # On the CPU also where a model is built on the meta device, or the counts would be unknown.
    # Rounded, because 1 / N times N need not be whole, and a coefficient right on an edge must not fall off it.
    rows = (torch.fft.fftfreq(size, dtype=torch.float64, device="cpu") * size).round()
    columns = (torch.fft.rfftfreq(size, dtype=torch.float64, device="cpu") * size).round()
    return (rows[:, None] ** 2 + columns[None] ** 2).sqrt()


@lru_cache(maxsize=32)
def _device_masks(radii: tuple[float, ...], size: int, device: str) -> Tensor:
    with torch.inference_mode(False):  # a tensor born in inference mode could not be used in training later
        return lowpass_masks(radii, size).to(device)


def _check_radii(radii: Sequence[float], num_stages: int) -> tuple[float, ...]:
    values = list(radii)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if (
        len(values) != num_stages - 1
        or not numbers
        or not all(math.isfinite(value) and value > 0 for value in values)
        or any(b <= a for a, b in itertools.pairwise(values))
    ):
        raise ValueError(
            f"band_spacing as radii must be {num_stages - 1} increasing positive numbers, one less than stages, "
            f"got {values}; or one of {', '.join(BAND_SPACINGS)}."
        )
    return tuple(float(value) for value in values)
