"""Warps of positions: bijections that keep the ends, undo themselves, and spend the steps they say."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gendiff.samplers.intervention import Intervention
from gendiff.samplers.warp_report import steps_before
from gendiff.samplers.warps import WarpSpec

GRID = torch.linspace(0, 1, 2001, dtype=torch.float64)
GRID = torch.cat([GRID, torch.tensor([1e-9, 1e-5, 1 - 1e-9], dtype=torch.float64)]).sort().values
PURE = [
    WarpSpec(),
    WarpSpec("moebius", 1.5),
    WarpSpec("moebius", 7.3),
    WarpSpec("moebius", 1000.0),
    WarpSpec("power", 1.0),
    WarpSpec("power", 2.2),
    WarpSpec("power", 9.0),
    WarpSpec("split", 0.6, u_c=0.3),
    WarpSpec("split", 0.1, u_c=0.4),
    WarpSpec("split", 0.999, u_c=0.001),
]
BLENDS = [dataclasses.replace(spec, omega=omega) for spec in PURE for omega in (0.0, 0.1, 0.55, 0.999)]


@pytest.mark.parametrize("spec", PURE + BLENDS, ids=lambda spec: f"{spec.label}, omega {spec.omega:g}")
def test_a_warp_is_a_bijection_that_keeps_its_ends(spec):
    warped = spec.at(GRID)
    assert warped.dtype == torch.float64 and warped.shape == GRID.shape
    assert warped[0] == 0 and warped[-1] == 1
    assert (warped.diff() > 0).all()
    assert (spec.inverse(warped) - GRID).abs().max() < 1e-12
    assert (spec.at(spec.inverse(GRID)) - GRID).abs().max() < 1e-12
    assert spec.inverse(0.0) == 0 and spec.inverse(1.0) == 1


def test_numbers_are_warped_like_tensors():
    spec = WarpSpec("power", 3.0, omega=0.4)
    assert isinstance(spec.at(0.3), float) and isinstance(spec.inverse(0.3), float)
    assert spec.at(0.3) == float(spec.at(torch.tensor(0.3, dtype=torch.float64)))
    assert spec.at(0.5) == pytest.approx(0.6 * 0.5 + 0.4 * 0.125, abs=1e-15)


def test_the_formulas_are_those_of_the_table():
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(WarpSpec("moebius", 4.0).at(u), u / (4 - 3 * u), atol=1e-15)
    assert torch.allclose(WarpSpec("power", 2.5).at(u), u**2.5, atol=1e-15)
    split = torch.where(u <= 0.6, u * 0.3 / 0.6, 0.3 + (u - 0.6) * 0.7 / 0.4)
    assert torch.allclose(WarpSpec("split", 0.6, u_c=0.3).at(u), split, atol=1e-15)


def test_moebius_on_a_linear_grid_is_the_time_shift_of_flow_models():
    s = 1 - GRID
    assert torch.allclose(1 - WarpSpec("moebius", 3.0).at(GRID), 3 * s / (1 + 2 * s), atol=1e-15)


def test_warps_compose():
    two, three, six = (WarpSpec("moebius", kappa) for kappa in (2.0, 3.0, 6.0))
    assert two.then(three) == six == three.then(two)
    assert (three.at(two.at(GRID)) - six.at(GRID)).abs().max() < 1e-15
    powers = WarpSpec("power", 2.0).then(WarpSpec("power", 1.5))
    assert powers == WarpSpec("power", 3.0)
    assert WarpSpec().then(two) is two and two.then(WarpSpec("power")) is two
    for other in (WarpSpec("power", 2.0), WarpSpec("moebius", 3.0, omega=0.5)):
        with pytest.raises(ValueError, match=r"moebius, kappa = 2\) followed by .* use one of them"):
            two.then(other)


def test_positions_do_not_rise_with_kappa():
    grids = torch.stack([WarpSpec("moebius", kappa).positions(30) for kappa in (1.0, 1.2, 2.0, 3.0, 8.0)])
    assert (grids.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("steps", [10, 28, 50, 400])
def test_steps_before_a_position_are_the_expected_share(steps):
    for spec, share in [
        (WarpSpec("moebius", 3.0), 3 * 0.3 / (1 + 2 * 0.3)),
        (WarpSpec("power", 2.0), 0.3**0.5),
        (WarpSpec("split", 0.6, u_c=0.3), 0.6),
        (WarpSpec(), 0.3),
    ]:
        assert spec.share_before(0.3) == pytest.approx(share, abs=1e-14)
        assert abs(steps_before(spec, steps, 0.3) - steps * share) <= 1
    for beta in (0.2, 0.35, 0.8):
        assert abs(steps_before(WarpSpec("split", beta, u_c=0.25), steps, 0.25) - round(beta * steps)) <= 1


def test_the_identity_is_told():
    same = [WarpSpec(), WarpSpec("power"), WarpSpec("split", 0.3, u_c=0.3), WarpSpec("moebius", 5.0, omega=0.0)]
    assert all(spec.is_identity and torch.equal(spec.at(GRID), GRID) for spec in same)
    assert not any(spec.is_identity for spec in (WarpSpec("moebius", 1.01), WarpSpec("split", 0.4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "shift"}, "moebius, power, split, got 'shift'"),
        ({"parameter": 0.9}, r"parameter \(kappa\) of a moebius warp must be within \[1, 1000\], got 0.9"),
        ({"parameter": float("nan")}, r"\(kappa\).*got nan"),
        ({"parameter": float("inf")}, r"\(kappa\).*got inf"),
        ({"parameter": "2"}, r"\(kappa\).*got '2'"),
        ({"parameter": True}, r"\(kappa\).*got True"),
        ({"name": "power", "parameter": 0.0}, r"\(gamma\) of a power warp must be within \[1, 100\], got 0.0"),
        ({"name": "split", "parameter": 1.0}, r"\(beta\) of a split warp must be within \[0.001, 0.999\], got 1.0"),
        ({"name": "split", "parameter": 0.5, "u_c": 0.0}, r"u_c of a warp must be within \[0.001, 0.999\], got 0.0"),
        ({"omega": 1.1}, r"omega of a warp must be within \[0, 1\], got 1.1"),
        ({"omega": float("nan")}, "omega.*got nan"),
    ],
)
def test_a_warp_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WarpSpec(**arguments)


def test_positions_out_of_range_are_refused():
    spec = WarpSpec("moebius", 2.0)
    for call, name in [(spec.at, "u"), (spec.inverse, "w"), (spec.share_before, "w")]:
        for bad in (-0.1, 1.1, float("nan")):
            with pytest.raises(ValueError, match=rf"^{name} must be positions within \[0, 1\], got"):
                call(bad)
    for bad in (0, 2.0, True):
        with pytest.raises(ValueError, match="num_steps must be a whole number of at least 1"):
            spec.positions(bad)
    with pytest.raises(ValueError, match=r"position must be within \[0, 1\], got 2"):
        steps_before(spec, 10, 2)


def test_a_warp_survives_the_json_of_an_intervention():
    made = Intervention(lam=1.0, warp=WarpSpec("split", 0.6, u_c=0.25, omega=0.5))
    assert Intervention.from_json(made.to_json()) == made
    with pytest.raises(ValueError, match="kappa"):
        Intervention.from_dict({"warp": {"parameter": 0.5}})
