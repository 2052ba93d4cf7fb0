"""Scores of alignment: rates by hop, physics of the scene, masks, texture and noise."""

from __future__ import annotations

import math

import pytest
import torch

from gendiff.data.buoyancy_world import BuoyancyWorld
from gendiff.data.rendered import from_bytes
from gendiff.data.shadow_world import ShadowWorld
from gendiff.data.swap_world import SwapWorld
from gendiff.metrics.pap import (
    check_unit_scores,
    mean_scores,
    pap_score,
    physics_given_scene,
    reflection_containment,
    residual_noise,
    texture,
)

HOPS = {"a": 0, "b": 0, "c": 1, "d": 2}
CHECKS = {
    "a": torch.tensor([True, True, False]),
    "b": torch.tensor([True, False, False]),
    "c": torch.tensor([True, True, True]),
    "d": torch.tensor([1.0, 1.0, 0.5]),
}


def generator():
    return torch.Generator().manual_seed(0)


def test_rates_by_hop():
    scores = pap_score(CHECKS, HOPS)
    assert {name: score.tolist() for name, score in scores.items()} == {
        "pap@0": [1.0, 0.5, 0.0],
        "pap@1": [1.0, 1.0, 1.0],
        "pap@2": [1.0, 1.0, 0.5],
        "pap_all": [1.0, 0.0, 0.0],
    }
    assert mean_scores(scores)["pap@0"] == 0.5 and mean_scores(scores)["pap_all"] == pytest.approx(1 / 3)


def test_a_pass_rate_below_1_is_not_passed():
    assert pap_score({"d": torch.tensor([1.0, 0.99])}, HOPS)["pap_all"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("world", [ShadowWorld, SwapWorld, BuoyancyWorld])
def test_truth_passes_and_noise_does_not(world):
    data = world("train", num_images=100)
    scores = pap_score(data.check(from_bytes(data.images), data.captions), data.hops)
    assert all(score.eq(1).all() for score in scores.values())
    noise = torch.rand(100, 3, 32, 32, generator=generator()) * 2 - 1
    assert not pap_score(data.check(noise, data.captions), data.hops)["pap_all"].any()


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({}, "checks must hold at least one check"),
        ({"x": torch.ones(2)}, "hops must name every check, 'x' is missing"),
        ({"a": torch.ones(2), "b": torch.ones(3)}, r"checks must all be \(B,\)"),
        ({"a": torch.ones(2, 2)}, r"checks must all be \(B,\)"),
        ({"a": torch.tensor([1.0, torch.nan])}, r"check 'a' must be in \[0, 1\], got nan for prompt 1"),
        ({"a": torch.tensor([-0.5, 1.0])}, r"check 'a' must be in \[0, 1\], got -0.5 for prompt 0"),
    ],
)
def test_wrong_checks_are_named(checks, message):
    with pytest.raises(ValueError, match=message):
        pap_score(checks, HOPS)


def test_scores_of_candidates_name_candidate_and_prompt():
    scores = torch.ones(3, 4)
    assert check_unit_scores(scores > 0, "score").dtype == torch.float32
    scores[2, 1] = 1.5
    with pytest.raises(ValueError, match=r"score must be in \[0, 1\], got 1.5 for candidate 2, prompt 1"):
        check_unit_scores(scores, "score")
    with pytest.raises(ValueError, match="got nan for the only entry"):
        check_unit_scores(torch.tensor(torch.nan), "score")


def test_a_mean_needs_an_image():
    with pytest.raises(ValueError, match="'pap_all' has none"):
        mean_scores({"pap_all": torch.zeros(0)})


@pytest.mark.parametrize("world", [ShadowWorld, BuoyancyWorld])
def test_physics_follows_the_scene_and_not_the_prompt(world):
    data = world("test", num_images=60)
    images = from_bytes(data.images)
    answer = physics_given_scene(data, images)
    assert set(answer) == {node["id"] for node in data.grammar["implied"]} | {"all"}
    assert answer["all"].all()
    # Pictures of other prompts: wrong for what was asked, still right in themselves.
    assert not pap_score(data.check(images, data.captions[1:] + data.captions[:1]), data.hops)["pap_all"].any()
    noise = torch.rand(60, 3, 32, 32, generator=generator()) * 2 - 1
    assert not physics_given_scene(data, noise)["all"].any()


def test_wrong_worlds_are_named():
    with pytest.raises(ValueError, match=r"world must have physics\(images\), as ShadowWorld has; got SwapWorld"):
        physics_given_scene(SwapWorld("test", num_images=1), torch.zeros(1, 3, 32, 32))

    class Short:
        def physics(self, images):
            return {"node": torch.ones(1, dtype=torch.bool)}

    with pytest.raises(ValueError, match=r"physics must answer \(2,\) bool"):
        physics_given_scene(Short(), torch.zeros(2, 3, 8, 8))


def test_reflection_containment():
    mirror = torch.zeros(3, 4, 4, dtype=torch.bool)
    mirror[:, :2] = True
    reflection = torch.zeros(3, 4, 4, dtype=torch.bool)
    reflection[0, 1:3, 0] = True  # half inside
    reflection[1, 0, :3] = True
    share = reflection_containment(reflection, mirror)
    assert share[:2].tolist() == [0.5, 1.0] and math.isnan(share[2])
    with pytest.raises(ValueError, match="mirror must be"):
        reflection_containment(reflection, mirror[:2])
    with pytest.raises(ValueError, match="reflection must be"):
        reflection_containment(reflection.float(), mirror)


def test_texture_compares_colours_and_not_places():
    image = torch.rand(2, 3, 8, 8, generator=generator()) * 2 - 1
    shuffled = image.flatten(2)[:, :, torch.randperm(64, generator=generator())].reshape(image.shape)
    assert texture(image, image).tolist() == [1, 1] and texture(shuffled, image).tolist() == [1, 1]
    black, white = -torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert texture(black, white).tolist() == [0]
    half = torch.where(torch.arange(8) < 4, black, white)
    assert texture(half, white).item() == pytest.approx(0.5)
    red = torch.tensor([1.0, -1, -1]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert texture(red, white).item() == pytest.approx(1 / 3)


def test_texture_looks_at_each_region_and_skips_empty_ones():
    black, white = -torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    left = (torch.arange(8) < 4).expand(1, 1, 8, 8)
    half = torch.where(left, black, white)
    regions = torch.cat([left, ~left, torch.zeros_like(left)], dim=1)
    assert texture(half, white, regions).item() == pytest.approx(0.5)
    assert texture(half, white, ~left).item() == 1
    assert texture(half, white, torch.zeros_like(left)).item() == 1
    for arguments, message in (
        ((half, white[:, :2]), "images and base must both be"),
        ((half, white, left[:, :, :4]), "regions must be"),
        ((half, white, None, 1), "bins must be an integer of at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            texture(*arguments)


def test_residual_noise_is_the_standard_deviation_of_white_noise():
    x = torch.linspace(-1, 1, 64)
    slope = (0.3 * x + 0.4 * x[:, None]).expand(4, 3, 64, 64)
    assert residual_noise(slope).max() < 1e-6
    for strength in (0.02, 0.1, 0.3):
        noisy = slope + strength * torch.randn(4, 3, 64, 64, generator=generator())
        torch.testing.assert_close(residual_noise(noisy), torch.full((4,), strength), rtol=0.04, atol=0)
    rendered = from_bytes(SwapWorld("test", num_images=8).images)
    assert residual_noise(rendered).max() == 0
    with pytest.raises(ValueError, match="at least 3x3 pixels"):
        residual_noise(torch.zeros(1, 3, 2, 8))
