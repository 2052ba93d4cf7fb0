"""BuoyancyWorld: its mechanisms, its pictures, and reading the ones from the others."""

from __future__ import annotations

import itertools

import pytest
import torch

from gendiff.data import load_dataset
from gendiff.data.buoyancy_pixels import read_buoyancy, region, render_buoyancy
from gendiff.data.buoyancy_world import GRAMMAR, HOPS, BuoyancyWorld, buoyancy_effects, check_buoyancy
from gendiff.data.rendered import from_bytes
from gendiff.metrics.pap import pap_score

NAMED = tuple(GRAMMAR["slots"])


@pytest.fixture(scope="module")
def world():
    return BuoyancyWorld("test", num_images=128)


@pytest.fixture(scope="module")
def images(world):
    return from_bytes(world.images)


def other_material(captions):
    return [caption.replace("wood", "?").replace("stone", "wood").replace("?", "stone") for caption in captions]


def test_water_rises_by_what_is_displaced():
    """The level at which the water's area is what was filled in: found by bisection, not by the world's formula."""
    for size, material, fill in itertools.product((0, 1), repeat=3):
        side, level = (6, 12)[size], (8, 14)[fill]

        def water_area(line, side=side, material=material):
            under = side / 2 if material == 0 else min(side, line)
            return 18 * line - side * under

        low, high = 0.0, 40.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if water_area(middle) < 18 * level else (low, middle)
        values = {
            name: torch.tensor([float(v)]) for name, v in (("size", size), ("material", material), ("fill", fill))
        }
        assert buoyancy_effects(values)["water_line"].item() == pytest.approx(low, abs=1e-6)
        assert buoyancy_effects(values)["depth"].item() == material


def test_every_rendered_truth_passes(world, images):
    checks = check_buoyancy(images, world.captions)
    assert set(checks) == set(HOPS) and all(passed.all() for passed in checks.values())
    seen = read_buoyancy(images)
    assert torch.equal(torch.stack([seen[name] for name in NAMED], 1), world.values.float())


def test_a_flipped_cause_fails_and_takes_its_effects_along(world, images):
    checks = check_buoyancy(images, other_material(world.captions))
    assert not any(checks[name].any() for name in ("material", "depth", "water_line"))
    assert all(checks[name].all() for name in ("size", "side", "colour", "fill"))
    assert not pap_score(checks, HOPS)["pap_all"].any()


@pytest.mark.parametrize(("slot", "effect"), [("size", "water_line"), ("fill", "water_line")])
def test_flipping_another_cause_moves_the_water_alone(world, images, slot, effect):
    first, second = GRAMMAR["slots"][slot]["values"]
    flipped = [c.replace(first, "?").replace(second, first).replace("?", second) for c in world.captions]
    checks = check_buoyancy(images, flipped)
    assert {name for name, passed in checks.items() if not passed.any()} == {slot, effect}
    assert all(passed.all() for name, passed in checks.items() if name not in (slot, effect))


def test_no_noise_passes(world):
    noise = torch.rand(128, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert not pap_score(check_buoyancy(noise, world.captions), HOPS)["pap_all"].any()
    for empty in (torch.ones(1, 3, 32, 32), torch.full((1, 3, 32, 32), torch.nan)):
        assert all(value.isnan().all() for value in read_buoyancy(empty).values())
        assert not any(passed.any() for passed in BuoyancyWorld.physics(empty).values())


def test_moderate_noise_does_not_mislead(world, images):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    checks = check_buoyancy(images + 0.15 * noise, world.captions)
    assert pap_score(checks, HOPS)["pap_all"].mean() > 0.99


def drawn(**changes):
    """A large stone on the left of a green, shallow tank, with some of its values changed."""
    values = {"size": 1.0, "material": 1.0, "side": 0.0, "colour": 2.0, "fill": 0.0, "depth": 1.0, "water_line": 16.0}
    assert set(changes) <= set(values)
    table = {name: torch.tensor([value]) for name, value in (values | changes).items()}
    return render_buoyancy(table, torch.tensor([[0, 1]]))


def test_physics_is_judged_by_what_the_picture_shows():
    truth = BuoyancyWorld.physics(drawn())
    assert truth["depth"].all() and truth["water_line"].all()
    # A floating stone is wrong; the water is right if it fits a floating block.
    floating = BuoyancyWorld.physics(drawn(depth=0.0, water_line=12.0))
    assert not floating["depth"].any() and floating["water_line"].all()
    level = BuoyancyWorld.physics(drawn(water_line=12.0))
    assert level["depth"].all() and not level["water_line"].any()
    # Wood instead of the stone that was asked for: wrong for the prompt, right as physics.
    wood = drawn(material=0.0, depth=0.0, water_line=12.0)
    assert all(passed.all() for passed in BuoyancyWorld.physics(wood).values())
    assert not check_buoyancy(wood, ["a large stone block on the left, a green tank, shallow water"])["depth"].any()


def test_prompts_left_out_are_never_trained_on(world):
    splits = {name: set(world.prompts(name)) for name in ("train", "ood", "ood-red", "ood-blue")}
    assert {name: len(prompts) for name, prompts in splits.items()} == {
        "train": 48,
        "ood": 16,
        "ood-red": 8,
        "ood-blue": 8,
    }
    assert splits["ood-red"] | splits["ood-blue"] == splits["ood"] and not splits["ood"] & splits["train"]
    assert all("stone" in prompt and "red" in prompt for prompt in splits["ood-red"])
    assert all("wood" in prompt and "blue" in prompt for prompt in splits["ood-blue"])
    assert set(BuoyancyWorld("train", num_images=96).captions) == splits["train"]
    assert set(world.captions) == splits["train"] | splits["ood"]
    # Every word is trained on; what is new is a combination.
    for slot in GRAMMAR["slots"].values():
        assert all(any(word in prompt for prompt in splits["train"]) for word in slot["values"])


def test_hops(world):
    assert world.hops == HOPS == dict.fromkeys(NAMED, 0) | {"depth": 1, "water_line": 2}


def test_regions_show_their_node(images):
    """Painting over the region of a node destroys what is read of it; the water line survives without the block."""
    magenta = torch.tensor([1.0, -1, 1])[:, None, None]
    for node in HOPS:
        hidden = torch.where(region(images, node), magenta, images)
        assert read_buoyancy(hidden)[node].isnan().all(), node
    without_block = read_buoyancy(torch.where(region(images, "depth"), magenta, images))
    assert torch.equal(without_block["water_line"], read_buoyancy(images)["water_line"])
    assert not (region(images, "depth") & region(images, "water_line")).any()
    with pytest.raises(ValueError, match="node must be one of"):
        region(images, "shadow")


def test_items_are_the_same_for_the_same_arguments(world):
    assert torch.equal(BuoyancyWorld("test", num_images=40).images, world.images[:40])
    assert not torch.equal(BuoyancyWorld("test", num_images=40, seed=7).images, world.images[:40])
    item = load_dataset("buoyancy-world", "test", num_images=2)[1]
    assert item["image"].shape == (3, 32, 32) and item["caption"] == world.captions[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "ood"}, "split must be one of train, validation, test"),
        ({"num_images": 1.5}, "num_images must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BuoyancyWorld(**arguments)


def test_wrong_questions_are_named(world, images):
    with pytest.raises(ValueError, match="split of the prompts must be one of train, ood, ood-red, ood-blue, got 'oo'"):
        world.prompts("oo")
    with pytest.raises(ValueError, match=r"prompts\[0\] must be"):
        world.check(images[:1], ["a small iron block on the left, a red tank, deep water"])
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 32, 32\)"):
        world.read(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="values must hold size, material"):
        render_buoyancy({"size": torch.zeros(1)}, torch.zeros(1, 2))
