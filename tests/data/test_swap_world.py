"""SwapWorld: what is drawn is read back exactly, and the rare order is as rare as it is said to be."""

from __future__ import annotations

import pytest
import torch

from gendiff.data import load_dataset
from gendiff.data.rendered import from_bytes
from gendiff.data.swap_world import GRAMMAR, HOPS, SHAPES, SwapWorld, check_swap, read_swap, region, render_swap
from gendiff.metrics.pap import mean_scores, pap_score


@pytest.fixture(scope="module")
def world():
    return SwapWorld("test")


def swapped(captions):
    return [" above ".join(reversed(caption.split(" above "))) for caption in captions]


def test_every_rendered_truth_passes(world):
    images = from_bytes(world.images)
    assert all(passed.all() for passed in check_swap(images, world.captions).values())
    seen = read_swap(images)
    assert torch.equal(torch.stack([seen["top"], seen["bottom"]], 1), world.values.float())


def test_a_swapped_prompt_fails_in_its_order_alone(world):
    checks = check_swap(from_bytes(world.images), swapped(world.captions))
    assert checks["top"].all() and checks["bottom"].all() and not checks["order"].any()
    scores = mean_scores(pap_score(checks, HOPS))
    assert scores == {"pap@0": 1.0, "pap@1": 0.0, "pap_all": 0.0}


def test_no_noise_passes(world):
    noise = torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert not pap_score(check_swap(noise, world.captions[:200]), HOPS)["pap_all"].any()
    assert read_swap(torch.full((1, 3, 32, 32), torch.nan))["top"].isnan().all()


def test_moderate_noise_does_not_mislead(world):
    noise = torch.randn(world.images.shape, generator=torch.Generator().manual_seed(0))
    assert check_swap(from_bytes(world.images) + 0.1 * noise, world.captions)["order"].float().mean() > 0.99


def test_a_shape_of_another_kind_twice_or_half_is_not_shown():
    circle, square, ring = SHAPES.index("circle"), SHAPES.index("square"), SHAPES.index("ring")
    places = torch.tensor([[[16, 8], [16, 23]]])
    twice = render_swap(torch.tensor([[circle, circle]]), places)
    assert not read_swap(twice)["shown"].any() and read_swap(twice)["top"].isnan()
    pair = render_swap(torch.tensor([[circle, square]]), places)
    half = torch.where(torch.arange(32) < 16, pair, 1.0)
    assert not read_swap(half)["shown"].any()
    # A red bar as large as the circle is no circle.
    bar = torch.ones(1, 3, 32, 32)
    bar[:, :, 3:6] = torch.tensor([220, 40, 40])[None, :, None, None] / 127.5 - 1
    assert not read_swap(bar)["shown"].any()
    # A third shape: the order of two is no longer what the picture shows.
    third = torch.minimum(pair, render_swap(torch.tensor([[ring, ring]]), torch.tensor([[[5, 16], [5, 16]]])))
    checks = check_swap(third, ["a circle above a square"])
    assert checks["top"].all() and checks["bottom"].all() and not checks["order"].any()


def test_the_prior_is_97_to_3():
    world = SwapWorld("train", num_images=3000)
    counts = {prompt: world.captions.count(prompt) for prompt in world.prompts("train")}
    assert all(counts[prompt] == 194 for prompt in world.prompts("common"))
    assert all(counts[prompt] == 6 for prompt in world.prompts("rare"))
    assert sorted(swapped(world.prompts("common"))) == sorted(world.prompts("rare"))
    assert world.rare.sum() == 90
    firsts = [prompt.split()[1] for prompt in world.prompts("common")]
    assert {shape: firsts.count(shape) for shape in SHAPES} == dict(zip(SHAPES, (3, 2, 3, 2, 3, 2), strict=True))


def test_both_orders_are_equally_frequent_in_test(world):
    assert {world.captions.count(prompt) for prompt in world.prompts("train")} == {20}


def test_grammar_names_words_and_hops(world):
    assert world.grammar is GRAMMAR and world.hops == HOPS == {"top": 0, "bottom": 0, "order": 1}
    assert world.captions[0] == GRAMMAR["template"].format(top="circle", bottom="square")


def test_regions_halve_the_picture():
    assert torch.equal(region("top"), ~region("bottom")) and region("order").all()
    assert region("top").sum() == 512
    with pytest.raises(ValueError, match="node must be one of top, bottom, order, got 'side'"):
        region("side")


def test_items_are_the_same_for_the_same_arguments(world):
    assert torch.equal(SwapWorld("test", num_images=40).images, world.images[:40])
    assert not torch.equal(SwapWorld("test", num_images=40, seed=7).images, world.images[:40])
    assert not torch.equal(SwapWorld("train", num_images=15).images, SwapWorld("validation", num_images=15).images)
    item = load_dataset("swap-world", "test", num_images=2)[1]
    assert item["image"].shape == (3, 32, 32) and item["image"].max() == 1 and item["caption"] == world.captions[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "rare"}, "split must be one of train, validation, test"),
        ({"num_images": 0}, "num_images must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SwapWorld(**arguments)


@pytest.mark.parametrize("prompt", ["a circle above a circle", "a square", "a circle under a square"])
def test_a_prompt_of_another_world_is_named(world, prompt):
    with pytest.raises(ValueError, match=r"prompts\[1\] must be 'a \{top\} above a \{bottom\}'"):
        check_swap(from_bytes(world.images[:2]), [world.captions[0], prompt])


def test_wrong_questions_are_named(world):
    with pytest.raises(ValueError, match="split of the prompts must be one of train, common, rare, got 'ood'"):
        world.prompts("ood")
    with pytest.raises(ValueError, match="prompts must be one for each of the 2 images, got 1"):
        world.check(torch.zeros(2, 3, 32, 32), ["a circle above a square"])
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 32, 32\) floats"):
        world.read(world.images)
    with pytest.raises(ValueError, match="prompts must be a list of prompts"):
        world.check(torch.zeros(1, 3, 32, 32), "a circle above a square")
    with pytest.raises(ValueError, match=r"shapes must be \(B, 2\)"):
        render_swap(torch.zeros(2), torch.zeros(2, 2))
