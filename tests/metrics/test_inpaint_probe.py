"""The in-painting probe, on painters whose knowledge is known."""

from __future__ import annotations

import pytest
import torch

from gendiff.data.buoyancy_pixels import region
from gendiff.data.buoyancy_world import BuoyancyWorld
from gendiff.data.rendered import from_bytes
from gendiff.metrics.inpaint_probe import masked_inpaint_probe


@pytest.fixture(scope="module")
def scene():
    world = BuoyancyWorld("test", num_images=32)
    return world, from_bytes(world.images)


def probe(scene, regenerate, check=None, cause="depth", effect="water_line", **masks):
    world, images = scene
    masks = {"cause_masks": region(images, "depth"), "effect_masks": region(images, "water_line")} | masks
    return masked_inpaint_probe(regenerate, check or world.check, images, world.captions, cause, effect, **masks)


def test_a_painter_that_knows_the_world_restores_both(scene):
    _, truth = scene
    result = probe(scene, lambda images, masks, prompts: truth)
    assert result == {"acc(effect|cause)": 1.0, "acc(cause|effect)": 1.0, "gap": 0.0}


def test_a_painter_that_leaves_the_hole_restores_nothing(scene):
    result = probe(scene, lambda images, masks, prompts: images)
    assert result == {"acc(effect|cause)": 0.0, "acc(cause|effect)": 0.0, "gap": 0.0}


def test_a_painter_that_knows_one_direction_has_a_gap(scene):
    _, truth = scene
    water = region(truth, "water_line")

    def forward_only(images, masks, prompts):
        return torch.where(water, truth, images)

    assert probe(scene, forward_only) == {"acc(effect|cause)": 1.0, "acc(cause|effect)": 0.0, "gap": 1.0}


def test_a_painter_sees_nothing_hidden_and_changes_nothing_else(scene):
    world, truth = scene
    seen = []

    def repaints_all(images, masks, prompts):
        seen.append((images, masks, prompts))
        # Pictures of the next prompt: right in themselves, wrong here unless what was not hidden is put back.
        return truth.roll(1, 0)

    def check(images, prompts):
        seen.append(images)
        return world.check(images, prompts)

    result = probe(scene, repaints_all, check)
    given, masks, prompts = seen[1]
    assert prompts == world.captions and (given[masks.expand_as(given)] == 0).all()
    assert torch.equal(given[~masks.expand_as(given)], truth[~masks.expand_as(given)])
    assert torch.equal(seen[2][~masks.expand_as(given)], truth[~masks.expand_as(given)])
    assert result["acc(effect|cause)"] < 1


def test_one_mask_may_serve_all_images(scene):
    _, truth = scene
    mask = torch.ones(1, 32, 32, dtype=torch.bool)
    result = probe(scene, lambda images, masks, prompts: truth, cause_masks=mask, effect_masks=mask)
    assert result["acc(effect|cause)"] == 1


def test_wrong_input_is_named_before_any_painting(scene):
    def never(images, masks, prompts):
        raise AssertionError("painted")

    empty = torch.zeros(32, 1, 32, 32, dtype=torch.bool)
    with pytest.raises(ValueError, match="effect_masks must hide something in every image, image 0"):
        probe(scene, never, effect_masks=empty)
    with pytest.raises(ValueError, match=r"cause_masks must be \(32, 1, 32, 32\) or \(1, 32, 32\) bool"):
        probe(scene, never, cause_masks=empty.float())
    with pytest.raises(ValueError, match=r"cause must be one of size, material.*, got 'sun'"):
        probe(scene, never, cause="sun")
    with pytest.raises(ValueError, match="B > 0, with B prompts"):
        masked_inpaint_probe(never, scene[0].check, scene[1], [], "depth", "water_line", empty, empty)


def test_wrong_answers_are_named(scene):
    _, truth = scene
    with pytest.raises(ValueError, match=r"regenerate must answer \(32, 3, 32, 32\), got \(31, 3, 32, 32\)"):
        probe(scene, lambda images, masks, prompts: truth[1:])

    def broken(images, prompts):
        return {"depth": torch.ones(32), "water_line": torch.tensor([1.0] * 5 + [torch.nan] + [1.0] * 26)}

    with pytest.raises(ValueError, match=r"check 'water_line' must be in \[0, 1\], got nan for prompt 5"):
        probe(scene, lambda images, masks, prompts: truth, broken)
