"""Glyphs: equations, strokes, true counterfactuals and the measurement of pictures."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from gendiff.data import load_dataset
from gendiff.data.glyphs import Glyphs, glyph_strokes, intensity
from gendiff.data.strokes import coverage, digit_strokes, distance_map


@pytest.fixture(scope="module")
def glyphs():
    return Glyphs("test", num_images=48)


@pytest.fixture(scope="module")
def slanted():
    return Glyphs("test", num_images=16, slant=True)


def test_population_has_the_published_moments():
    labels = Glyphs("train", num_images=1500).labels
    thickness, grey, digit = labels.T
    assert thickness.mean() == pytest.approx(2.50, abs=0.05) and thickness.std() == pytest.approx(0.63, abs=0.05)
    assert grey.mean() == pytest.approx(158.0, abs=4) and grey.std() == pytest.approx(48.4, abs=2.5)
    assert (digit.long().bincount(minlength=10) > 110).all()


def test_intensity_follows_thickness_and_its_noise():
    thickness, noise = torch.tensor([1.0, 2.5, 4.0]), torch.zeros(3)
    assert intensity(thickness, noise)[1] == 159.5
    assert (intensity(thickness, noise).diff() > 0).all() and (
        intensity(thickness, noise, invert=True).diff() < 0
    ).all()
    assert (intensity(thickness, noise + 1) > intensity(thickness, noise)).all()


def test_distance_map_is_the_distance_to_the_polyline():
    strokes = torch.tensor([[[-5.0, 0.0], [5.0, 0.0], [5.0, 0.0], [5.0, 4.0]]], dtype=torch.float64)
    distance = distance_map(strokes, 28)[0]
    centres = (torch.arange(56, dtype=torch.float64) + 0.5) / 2 - 14
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    level = torch.hypot(x - x.clamp(-5, 5), y)
    upright = torch.hypot(x - 5, y - y.clamp(0, 4))
    torch.testing.assert_close(distance, level.minimum(upright), rtol=0, atol=1e-9)


def test_coverage_measures_the_width_of_a_bar():
    strokes = torch.tensor([[[-100.0, 0.13], [100.0, 0.13]]])
    for thickness in (0.8, 2.0, 5.3):
        column = coverage(distance_map(strokes, 28), torch.tensor([thickness]))[0, :, 14]
        assert column.sum().item() == pytest.approx(thickness, abs=0.01)


def test_pictures_grow_with_thickness_and_intensity(glyphs):
    indices = torch.arange(8)
    for column, values in ((0, (0.5, 1.0, 2.0, 3.5, 7.0)), (1, (64.0, 120.0, 255.0))):
        pictures = []
        for value in values:
            labels = glyphs.labels[:8].clone()
            labels[:, column] = value
            pictures.append(glyphs.render(labels, indices))
        for less, more in pairwise(pictures):
            assert (more >= less).all() and (more.sum((1, 2, 3)) > less.sum((1, 2, 3))).all()


def test_strokes_stay_inside_the_picture(glyphs):
    strokes = glyph_strokes(glyphs.labels[:, 2], torch.zeros(len(glyphs)), glyphs.style)
    assert strokes.abs().max() < 13
    assert digit_strokes().min() >= -0.1 and digit_strokes().max() <= 1.1


def test_readout_is_exact_on_drawn_images(glyphs):
    indices = torch.arange(len(glyphs))
    values = glyphs.read(glyphs.render(glyphs.labels, indices), indices)
    assert (values["thickness"] - glyphs.labels[:, 0]).abs().mean() < 0.001
    assert (values["intensity"] - glyphs.labels[:, 1]).abs().mean() < 0.06
    assert torch.equal(values["digit"], glyphs.labels[:, 2])


def test_readout_of_stored_images_is_bounded_by_their_bytes(glyphs):
    values = glyphs.read(images_of(glyphs), torch.arange(len(glyphs)))
    assert (values["thickness"] - glyphs.labels[:, 0]).abs().max() < 0.02
    assert (values["intensity"] - glyphs.labels[:, 1]).abs().max() < 0.6
    assert torch.equal(values["digit"], glyphs.labels[:, 2])


def test_intensity_needs_no_indices(glyphs):
    values = glyphs.read(images_of(glyphs))
    assert list(values) == ["intensity"]
    assert (values["intensity"] - glyphs.labels[:, 1]).abs().mean() < 0.5


def test_readout_follows_interventions(glyphs):
    for query in ({"thickness": 0.8}, {"thickness": 6.5}, {"intensity": 90.0}, {"digit": 4}):
        image, truth = glyphs.counterfactual(7, query)
        values = glyphs.read(image[None], torch.tensor([7]))
        assert values["digit"].item() == truth["digit"]
        assert values["thickness"].item() == pytest.approx(truth["thickness"], abs=0.05)
        assert values["intensity"].item() == pytest.approx(truth["intensity"], abs=2.0)


def test_readout_finds_the_slant(slanted):
    values = slanted.read(images_of(slanted), torch.arange(len(slanted)))
    assert torch.equal(values["digit"], slanted.labels[:, 2])
    assert (values["slant"] - slanted.labels[:, 3]).abs().max() < 2.0
    assert (values["thickness"] - slanted.labels[:, 0]).abs().max() < 0.03


def test_readout_is_defined_for_any_picture(glyphs, slanted):
    noise = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    flat = [torch.full((1, 1, 28, 28), value) for value in (-1.0, 1.0, torch.nan)]
    images = torch.cat([noise, *flat])
    for dataset in (glyphs, slanted):
        assert all(value.isfinite().all() for value in dataset.read(images, torch.arange(4)).values())
    assert glyphs.read(images)["intensity"][[1, 3]].tolist() == [0, 0]


def test_counterfactual_of_nothing_is_the_item(glyphs):
    image, values = glyphs.counterfactual(5, {})
    assert torch.equal(image, glyphs[5]["image"]) and list(values.values()) == glyphs.labels[5].tolist()


def test_factual_values_give_the_item_back(glyphs, slanted):
    for dataset in (glyphs, slanted):
        own = dict(zip(dataset.graph.names, dataset.labels[5].tolist(), strict=True))
        for query in ({"thickness": own["thickness"]}, {"digit": own["digit"]}, own):
            image, values = dataset.counterfactual(5, query)
            assert values == pytest.approx(own, rel=1e-5)
            torch.testing.assert_close(image, dataset[5]["image"], rtol=0, atol=1.5 / 127.5)


def test_thickness_moves_intensity_with_the_noise_of_the_item(glyphs):
    _, values = glyphs.counterfactual(3, {"thickness": 3.3})
    expected = intensity(torch.tensor(3.3), glyphs.intensity_noise[3]).item()
    assert values["intensity"] == pytest.approx(expected, abs=1e-3)
    assert values["digit"] == glyphs.labels[3, 2]


def test_intensity_and_digit_leave_the_rest_alone(glyphs):
    own = dict(zip(glyphs.graph.names, glyphs.labels[3].tolist(), strict=True))
    image, values = glyphs.counterfactual(3, {"intensity": 100.0})
    assert values == own | {"intensity": 100.0}
    inked = glyphs[3]["image"] > -0.8
    assert torch.equal(image > -1, glyphs.counterfactual(3, {"intensity": 101.0})[0] > -1) and (image[inked] > -1).all()
    assert glyphs.counterfactual(3, {"digit": 8})[1] == own | {"digit": 8.0}


def test_digit_moves_the_slant_with_the_noise_of_the_item(slanted):
    index = int((slanted.labels[:, 3].abs() < 20).nonzero()[0])
    own = slanted.labels[index]
    other = int(own[2]) + (1 if own[2] < 5 else -1)
    _, values = slanted.counterfactual(index, {"digit": other})
    assert values["slant"] == pytest.approx(own[3].item() + 6 * (other - own[2].item()), abs=1e-4)
    assert slanted.counterfactual(index, {"digit": other, "slant": 0.0})[1]["slant"] == 0


def test_same_arguments_same_bits(glyphs):
    again = Glyphs("test", num_images=48)
    assert torch.equal(again.images, glyphs.images) and torch.equal(again.labels, glyphs.labels)
    assert torch.equal(Glyphs("test", num_images=20).images, glyphs.images[:20])
    assert not torch.equal(Glyphs("train", num_images=48).labels, glyphs.labels)


def test_items_have_the_common_form(glyphs):
    item = glyphs[0]
    assert item["image"].shape == (1, 28, 28) and item["labels"].shape == (3,)
    assert item["image"].min() == -1 and item["image"].max() <= 1 and glyphs.images.dtype == torch.uint8
    assert glyphs.graph.edges == (("thickness", "intensity"),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split must be one of train, validation, test"),
        ({"size": 32}, "size must be 28"),
        ({"num_images": -1}, "num_images must be"),
        ({"seed": 0.5}, "seed must be"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Glyphs(**arguments)


def test_wrong_questions_are_named(glyphs):
    with pytest.raises(ValueError, match="slant"):
        glyphs.counterfactual(0, {"slant": 3})
    with pytest.raises(ValueError, match="digit"):
        glyphs.counterfactual(0, {"digit": 10})
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 28, 28\)"):
        glyphs.read(torch.zeros(2, 3, 28, 28))
    with pytest.raises(ValueError, match="one item per image"):
        glyphs.read(torch.zeros(2, 1, 28, 28), torch.tensor([0]))


def test_glyphs_load_by_name():
    assert isinstance(load_dataset("glyphs", "validation", num_images=2), Glyphs)


def images_of(dataset):
    return torch.stack([dataset[index]["image"] for index in range(len(dataset))])
