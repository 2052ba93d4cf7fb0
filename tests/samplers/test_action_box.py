"""The box of interventions: y to intervention and back."""

from __future__ import annotations

import json
import math

import pytest
import torch

from gendiff.samplers.action_box import PRESETS, ActionBox
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.warps import WarpSpec

BOX = ActionBox(("side", "light"), alpha_max=0.5, lam_max=4.0, rho_max=0.2, kappa_max=3.0)


def test_nothing_is_the_identity():
    assert BOX.intervention(BOX.identity) == Intervention()
    assert BOX.intervention(torch.zeros(6)).is_identity
    assert BOX.normalise(Intervention()) == (0.0,) * 6


def test_each_coordinate_has_its_formula():
    found = BOX.intervention([-1.0, 0.5, 0.25, 0.5, 0.5, -0.25])
    assert found.alpha == {"side": -0.5, "light": 0.25}
    assert (found.lam, found.rho) == (1.0, 0.1)
    assert found.warp.name == "moebius"
    assert found.warp.parameter == pytest.approx(math.sqrt(3))
    assert found.window == (1.0, pytest.approx(0.2))


def test_what_has_no_negative_side_is_cut_at_use():
    found = BOX.intervention([0.0, 0.0, -0.7, -0.7, -0.7, 0.0])
    assert found == Intervention()


def test_the_window_ends_within_0_and_0_9():
    assert BOX.intervention([0, 0, 0, 0, 0, -1]).window == (1.0, 0.0)
    late = ActionBox(stop_base=0.875)
    assert late.intervention([0, 0, 0, 1]).window == (1.0, 0.9)


def test_the_gate_is_the_callers():
    assert BOX.intervention([1, 0, 1, 0, 0, 0], open=False).is_identity
    assert not BOX.intervention([1, 0, 1, 0, 0, 0]).is_identity


def test_points_come_back_from_their_interventions():
    draws = torch.rand(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws[:, :2] = 2 * draws[:, :2] - 1
    for y in draws:
        torch.testing.assert_close(torch.tensor(BOX.normalise(BOX.intervention(y)), dtype=torch.float64), y)


def test_a_box_survives_json():
    again = ActionBox.from_dict(json.loads(json.dumps(BOX.to_dict())))
    assert again == BOX
    with pytest.raises(ValueError, match="no 'beta'; known: factors, alpha_max"):
        ActionBox.from_dict({"beta": 1})


def test_coordinates_without_room_are_not_active():
    assert BOX.active == (0, 1, 2, 3, 4, 5)
    assert ActionBox(("side",), lam_max=0, kappa_max=1, stop_range=0).active == (0,)
    assert BOX.names == ("side", "light", "lam", "rho", "log_kappa", "s_stop")


def test_strong_warps_need_steps():
    box = ActionBox(kappa_max=8.0)
    strong, weak = Intervention(warp=WarpSpec("moebius", 6.0)), Intervention(warp=WarpSpec("moebius", 3.0))
    with pytest.raises(ValueError, match="at most 3 with fewer than 12 steps, got 6 with 10"):
        box.check_steps(strong, 10)
    box.check_steps(strong, 12)
    box.check_steps(weak, 10)
    assert box.limited(strong, 10) == weak
    assert box.limited(strong, 12) is strong


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_boxes_whose_middle_is_the_identity(name):
    box = PRESETS[name].box(["a", "b"])
    assert box.intervention(box.identity).is_identity
    strongest = box.intervention([1.0] * 6)
    assert box.normalise(strongest)[:5] == pytest.approx((1, 1, 1, 0, 1))
    assert not strongest.is_identity


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"alpha_max": 0.0}, "alpha_max must be above 0, got 0.0"),
        ({"lam_max": -1.0}, "lam_max must be at least 0"),
        ({"lam_max": math.inf}, "lam_max must be at least 0, got inf"),
        ({"kappa_max": math.nan}, "kappa_max must be at least 1, got nan"),
        ({"stop_base": 0.95}, r"stop_base must be in \[0, 0.9\]"),
        ({"factors": ("a", "a")}, "factors must differ"),
        ({"factors": ("lam",)}, "not be one of lam"),
        ({"factors": "side"}, "tuple of names"),
    ],
)
def test_limits_are_checked(bad, message):
    with pytest.raises(ValueError, match=message):
        ActionBox(**bad)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0.0] * 5, r"must have 6 values \(side, light, lam, rho, log_kappa, s_stop\), got 5"),
        ([0, 1.5, 0, 0, 0, 0], r"y of 'light' must lie in \[-1, 1\], got 1.5"),
        ([0, 0, math.nan, 0, 0, 0], r"y of 'lam' must lie in \[-1, 1\], got nan"),
    ],
)
def test_points_are_checked(y, message):
    with pytest.raises(ValueError, match=message):
        BOX.intervention(y)


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (Intervention(alpha={"colour": 0.1}), "unknown factor 'colour'; known factors: side, light"),
        (Intervention(alpha={"side": 0.6}), "side of .* lies outside the box"),
        (Intervention(lam=5.0), "lam of .* lies outside the box"),
        (Intervention(warp=WarpSpec("power", 2.0)), "warp must be 'moebius'"),
        (Intervention(window=(0.8, 0.3)), "window must start at 1"),
        (Intervention(window=(1.0, 0.75)), "s_stop of .* lies outside the box"),
    ],
)
def test_interventions_outside_the_box_are_refused(intervention, message):
    with pytest.raises(ValueError, match=message):
        BOX.normalise(intervention)


def test_what_the_box_has_no_room_for_is_refused():
    with pytest.raises(ValueError, match=r"rho lies outside the box, which has no room for it, got 0.1"):
        ActionBox().normalise(Intervention(rho=0.1))
