"""Bands share all frequencies out, each to one stage, and say together what the map says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gendiff.nn.bands import (
    BAND_SPACINGS,
    band_maps,
    band_masks,
    band_radii,
    coefficient_counts,
    lowpass_masks,
    lowpasses,
)

SIZES = range(4, 33)
TEN = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SHIPPED = [(1, 2, 3, 4), (1, 2, 3, 4, 5, 7), (1, 2, 3, 4, 6, 8), TEN]
SPACINGS = [name for name in BAND_SPACINGS if name != "none"]
ERRORS = {torch.float32: 2e-6, torch.float64: 1e-14}


def stages_to(size: int) -> tuple[int, ...]:
    return tuple(sorted({1, 2, 3, size // 2, size - 1, size}))


def radii_of(spacing: str, size: int) -> tuple[float, ...]:
    stages = stages_to(size)
    explicit = [0.5 + 0.7 * k for k in range(len(stages) - 1)]
    radii = band_radii(explicit if spacing == "explicit" else spacing, stages)
    assert radii is not None
    return radii


def band_of(radii: tuple[float, ...], size: int) -> Tensor:
    """(N, N): the band of each coefficient of the whole plane, by counting the radii that are not above it."""
    steps = torch.tensor([n - size if n > (size - 1) // 2 and 2 * n != size else n for n in range(size)])
    edges = torch.tensor([0.0, *radii], dtype=torch.float64)
    radius = torch.sqrt((steps[:, None] ** 2 + steps[None] ** 2).double())
    return (radius[..., None] >= edges).sum(dim=-1) - 1


def noise(size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 2, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("spacing", [*SPACINGS, "explicit"])
def test_masks_share_the_plane_out_and_agree_at_minus_k(spacing: str):
    for size in SIZES:
        radii = radii_of(spacing, size)
        masks = band_masks(radii, size)
        assert masks.dtype == torch.bool and masks.shape == (len(radii) + 1, size, size // 2 + 1)
        assert torch.equal(masks.sum(dim=0), torch.ones(size, size // 2 + 1, dtype=torch.int64)), size
        whole = band_of(radii, size)
        assert torch.equal(masks.int().argmax(dim=0), whole[:, : size // 2 + 1]), size
        minus = (-torch.arange(size)) % size
        assert torch.equal(whole, whole[minus][:, minus])
        # A column that holds both k and -k on the half plane must agree with itself.
        for column in {0, size // 2} if size % 2 == 0 else {0}:
            assert torch.equal(masks[:, :, column], masks[:, minus, column]), size
        counts = coefficient_counts(radii, size)
        assert counts == whole.flatten().bincount(minlength=len(radii) + 1).tolist() and sum(counts) == size**2
        assert torch.equal(lowpass_masks(radii, size), masks.cumsum(dim=0).bool()), size


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("spacing", [*SPACINGS, "explicit"])
def test_bands_add_up_and_share_the_energy(spacing: str, dtype: torch.dtype):
    for size in SIZES:
        f, radii = noise(size, dtype), radii_of(spacing, size)
        bands = band_maps(f, radii)
        assert len(bands) == len(radii) + 1 and all(band.dtype == dtype for band in bands)
        assert (sum(bands) - f).abs().max() <= ERRORS[dtype], size
        energies = [band.double().square().sum() for band in bands]
        assert float(sum(energies)) == pytest.approx(float(f.double().square().sum()), rel=1e-6)
        whole = band_of(radii, size)
        for k, (band, energy) in enumerate(zip(bands, energies, strict=True)):
            power = torch.fft.fft2(band.double()).abs().square() / size**2
            assert power[..., whole != k].sum() <= 1e-12 * energy, (size, k)


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("spacing", [*SPACINGS, "explicit"])
def test_of_two_lowpasses_the_lower_wins(spacing: str, dtype: torch.dtype):
    for size in (4, 7, 8, 13, 16):
        f, radii = noise(size, dtype), radii_of(spacing, size)
        count = len(radii) + 1
        once = lowpasses(f, radii, count)
        bands = band_maps(f, radii)
        for j in range(count):
            assert (once[j] - sum(bands[: j + 1])).abs().max() <= ERRORS[dtype]
            for k, twice in enumerate(lowpasses(once[j], radii, count)):
                assert (twice - once[min(j, k)]).abs().max() <= ERRORS[dtype], (size, j, k)


def test_the_last_stage_is_given_the_map_itself():
    f = noise(7, torch.float32)
    assert lowpasses(f, radii_of("area", 7), 6)[-1] is f
    assert all(map_ is f for map_ in lowpasses(f, None, 3))
    assert lowpasses(f, (), 1) == [f] and band_maps(f, ()) == [f] and band_maps(f, None) == [f]


@pytest.mark.parametrize(
    ("stages", "spacing", "counts"),
    [
        (TEN, "linear", [1, 0, 0, 0, 0, 8, 12, 40, 88, 107]),
        (TEN, "area", [1, 0, 8, 12, 16, 20, 40, 48, 82, 29]),
        (TEN, "nyquist", [1, 0, 8, 0, 12, 4, 20, 24, 68, 119]),
        ((1, 2, 3, 4, 6, 8), "linear", [1, 0, 0, 4, 20, 39]),
        ((1, 2, 3, 4, 6, 8), "area", [1, 4, 4, 12, 26, 17]),
    ],
)
def test_published_tables_of_coefficients(stages: tuple[int, ...], spacing: str, counts: list[int]):
    radii = band_radii(spacing, stages)
    assert radii is not None and coefficient_counts(radii, stages[-1]) == counts


@pytest.mark.parametrize("stages", SHIPPED)
def test_radii_follow_their_rules(stages: tuple[int, ...]):
    largest, total = math.sqrt(2) * stages[-1] / 2, sum(side**2 for side in stages)
    linear, area, nyquist = (band_radii(name, stages) for name in ("linear", "area", "nyquist"))
    assert linear is not None and area is not None
    widths = [b - a for a, b in zip((0.0, *linear), (*linear, largest), strict=True)]
    assert widths == pytest.approx([largest * side**2 / total for side in stages])
    discs = [b**2 - a**2 for a, b in zip((0.0, *area), (*area, largest), strict=True)]
    assert discs == pytest.approx([largest**2 * side**2 / total for side in stages])
    assert nyquist == tuple(side / 2 for side in stages[:-1])
    assert band_radii("none", stages) is None
    assert band_radii(area, stages) == area and band_radii([1, 2.5], (1, 2, 4)) == (1.0, 2.5)


def test_masks_made_in_inference_mode_serve_training():
    radii = (1.25, 2.75)  # nobody else's, so that the masks are made here
    with torch.inference_mode():
        lowpasses(noise(9, torch.float32), radii, 3)
    f = noise(9, torch.float32).requires_grad_()
    lowpasses(f, radii, 3)[0].square().sum().backward()
    assert f.grad is not None and f.grad.any()


def test_a_model_built_without_memory_still_knows_its_bands():
    with torch.device("meta"):
        assert coefficient_counts((1.0, 3.0), 6) == [1, 24, 11]


BAD = [
    ("lineal", "band_spacing must be one of none, linear, area, nyquist, or 3 radii, got 'lineal'"),
    ([1.0, 2.0], r"must be 3 increasing positive numbers, one less than stages, got \[1.0, 2.0\]"),
    ([1.0, 2.0, 3.0, 4.0], "must be 3 increasing positive numbers"),
    ([1.0, 2.0, 2.0], "must be 3 increasing positive numbers"),
    ([3.0, 2.0, 4.0], "must be 3 increasing positive numbers"),
    ([0.0, 1.0, 2.0], "must be 3 increasing positive numbers"),
    ([-1.0, 1.0, 2.0], "must be 3 increasing positive numbers"),
    ([1.0, 2.0, math.nan], "must be 3 increasing positive numbers"),
    ([1.0, 2.0, math.inf], "must be 3 increasing positive numbers"),
    ([True, 2.0, 3.0], "must be 3 increasing positive numbers"),
    (["1", "2", "3"], "must be 3 increasing positive numbers.* or one of none, linear, area, nyquist"),
]


@pytest.mark.parametrize(("spacing", "message"), BAD)
def test_bad_bands_are_named(spacing: str | list[float], message: str):
    with pytest.raises(ValueError, match=message):
        band_radii(spacing, (1, 2, 3, 4))
