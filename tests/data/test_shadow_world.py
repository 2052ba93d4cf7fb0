"""ShadowWorld: what is drawn is what is read, and a wrong cause is caught."""

from __future__ import annotations

import pytest
import torch

from gendiff.data import load_dataset
from gendiff.data.rendered import from_bytes
from gendiff.data.shadow_world import (
    GRAMMAR,
    HELD_OUT,
    ShadowWorld,
    caption,
    check_shadow_world,
    effects,
    read_shadow_world,
    render,
)

PROMPTS = ShadowWorld.prompts("train") + ShadowWorld.prompts("ood")
NODES = {"height", "colour", "elevation", "side", "plant", "shadow_dir", "shadow_len", "plant_lit"}


def values_of(prompt):
    from gendiff.causal.scene_grammar import TemplateGrammar

    return TemplateGrammar(GRAMMAR).values(prompt)


@pytest.fixture(scope="module")
def truth():
    return from_bytes(torch.stack([render(values_of(prompt)) for prompt in PROMPTS]))


def test_every_drawn_scene_passes_every_check(truth):
    checks = check_shadow_world(truth, PROMPTS)
    assert set(checks) == NODES and len(PROMPTS) == 128
    assert all(passed.all() for passed in checks.values())
    assert all(passed.all() for passed in ShadowWorld.physics(truth).values())


@pytest.mark.parametrize("pole", [14, 17])
@pytest.mark.parametrize("sun", [(-1, -1), (1, 1)])
@pytest.mark.parametrize("sky", [-6, 6])
def test_where_things_stand_does_not_matter(pole, sun, sky):
    prompts = PROMPTS[::8]
    images = from_bytes(torch.stack([render(values_of(prompt), pole, sun, sky) for prompt in prompts]))
    assert all(passed.all() for passed in check_shadow_world(images, prompts).values())


@pytest.mark.parametrize(
    ("cause", "wrong"),
    [
        ("side", {"side", "shadow_dir"}),
        ("elevation", {"elevation", "shadow_len"}),
        ("height", {"height", "shadow_len"}),
        ("colour", {"colour"}),
    ],
)
def test_a_flipped_cause_fails_itself_and_its_direct_effects_everywhere(truth, cause, wrong):
    words = GRAMMAR["slots"][cause]["values"]
    flipped = [{**values_of(p), cause: words[(words.index(values_of(p)[cause]) + 1) % len(words)]} for p in PROMPTS]
    checks = check_shadow_world(truth, [caption(values) for values in flipped])
    assert {name for name, passed in checks.items() if not passed.any()} == wrong


def test_a_picture_with_consistent_but_unasked_physics_is_physical_and_wrong(truth):
    flipped = [caption({**values_of(p), "side": "left" if "on the right" in p else "right"}) for p in PROMPTS]
    assert not check_shadow_world(truth, flipped)["shadow_dir"].any()
    assert ShadowWorld.physics(truth)["shadow_dir"].all()


def test_a_shadow_towards_the_sun_is_unphysical(truth):
    mirrored = truth.clone()
    mirrored[:, :, 27:] = truth[:, :, 27:].flip(3)
    assert not ShadowWorld.physics(mirrored)["shadow_dir"].any()


def test_noise_passes_nothing_as_a_whole():
    images = torch.rand(256, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    checks = check_shadow_world(images, PROMPTS * 2)
    assert not torch.stack(list(checks.values())).all(0).any()


def test_light_noise_is_forgiven(truth):
    noisy = truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    assert torch.stack(list(check_shadow_world(noisy, PROMPTS).values())).all(0).float().mean() > 0.95


def test_numbers_are_read_in_pixels(truth):
    seen = read_shadow_world(truth)
    lengths = [effects(values_of(prompt))["shadow_len"] for prompt in PROMPTS]
    assert seen["shadow_len"].tolist() == lengths
    assert set(seen["height"].tolist()) == {8, 14}


def test_effects_follow_the_table():
    values = {"height": "tall", "colour": "red", "elevation": "low", "side": "left", "plant": "far right"}
    assert effects(values) == {"shadow_dir": "right", "shadow_len": 13, "plant_lit": False}
    assert effects({**values, "height": "short"}) == {"shadow_dir": "right", "shadow_len": 8, "plant_lit": True}
    assert effects({**values, "plant": "near left"})["plant_lit"]


def test_held_out_combinations_are_in_no_split():
    for split in ("train", "validation", "test"):
        captions = load_dataset("shadow-world", split, num_images=2000).captions
        assert len(set(captions)) == 96
        for colour, side in HELD_OUT.values():
            assert not any(f" {colour} " in text and f"on the {side}" in text for text in captions)
    assert [len(ShadowWorld.prompts(kind)) for kind in ("train", "ood", "ood-red", "ood-blue")] == [96, 32, 16, 16]


@pytest.mark.parametrize("rare", [0.0, 0.05, 1.0])
def test_the_prior_of_the_sides_is_exact(rare):
    captions = ShadowWorld(num_images=800, rare=rare).captions
    rare_ones = (("green", "the right"), ("yellow", "the left"))
    unusual = [text for text in captions if any(colour in text and side in text for colour, side in rare_ones)]
    assert len(unusual) == round(400 * rare)


def test_images_follow_from_the_seed():
    first, again, other = (ShadowWorld(num_images=40, seed=seed).images for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_bad_input_is_named(truth):
    with pytest.raises(ValueError, match="train, ood, ood-red, ood-blue"):
        ShadowWorld.prompts("test")
    with pytest.raises(ValueError, match=r"prompts\[0\]"):
        check_shadow_world(truth[:1], ["a tall pole"])
    with pytest.raises(ValueError, match="one for each"):
        check_shadow_world(truth[:2], PROMPTS[:1])
    with pytest.raises(ValueError, match="rare"):
        ShadowWorld(num_images=8, rare=1.5)
    with pytest.raises(ValueError, match="num_images"):
        ShadowWorld(num_images=0)
