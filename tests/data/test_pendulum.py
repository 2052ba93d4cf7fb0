"""The Pendulum world: its equations, its pictures, and reading the ones from the others."""

from __future__ import annotations

import math

import pytest
import torch

from gendiff.data import load_dataset
from gendiff.data.pendulum import Pendulum, read_pendulum, render_pendulum, shadow

NAMES = ("angle", "light", "shadow_len", "shadow_pos")


@pytest.fixture(scope="module")
def pendulum():
    return Pendulum("test", size=32, num_images=64)


def ground_hit(x, y, light):
    """Where a ray in direction `light` through (x, y) meets the ground y = -0.5."""
    return x - (y + 0.5) / torch.tan(light)


def test_shadow_is_the_projection_of_the_two_ends():
    generator = torch.Generator().manual_seed(0)
    angle = -40 + 83 * torch.rand(1000, generator=generator, dtype=torch.float64)
    light = 60 + 87 * torch.rand(1000, generator=generator, dtype=torch.float64)
    theta, phi = angle * math.pi / 200, light * math.pi / 200
    pivot = ground_hit(10.0, 10.5, phi)
    tip = ground_hit(10 + 9.5 * theta.sin(), 10.5 - 9.5 * theta.cos(), phi)
    length, position = shadow(angle, light)
    torch.testing.assert_close(length, (pivot - tip).abs().clamp(min=3), rtol=0, atol=1e-12)
    torch.testing.assert_close(position, (pivot + tip) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "bounds"),
    [(28, (0.008, 0.004, 0.0135, 0.0041)), (32, (0.008, 0.004, 0.013, 0.004)), (64, (0.003, 0.0033, 0.0075, 0.002))],
)
def test_readout_recovers_the_labels(size, bounds):
    dataset = Pendulum("test", size=size, num_images=1000 if size < 64 else 300)
    values = dataset.read(images_of(dataset))
    for name, bound in zip(NAMES, bounds, strict=True):
        error = (values[name] - dataset.labels[:, dataset.graph.index(name)]).abs().mean() / dataset.graph[name].scale
        assert error <= bound, name


def test_readout_is_defined_for_any_picture():
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    broken = torch.full((1, 3, 32, 32), torch.nan)
    for images in (torch.ones(2, 3, 32, 32), -torch.ones(2, 3, 32, 32), noise, broken):
        assert all(value.isfinite().all() and len(value) == len(images) for value in read_pendulum(images).values())
    white = read_pendulum(torch.ones(1, 3, 32, 32))
    assert {name: value.item() for name, value in white.items()} == {
        "angle": 1.5,
        "light": 103.5,
        "shadow_len": 0.0,
        "shadow_pos": 11.0,
    }


def test_readout_ignores_faint_noise(pendulum):
    images = images_of(pendulum)
    faint = images - 0.06 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    clean, noisy = pendulum.read(images), pendulum.read(faint)
    for name in NAMES:
        assert ((clean[name] - noisy[name]).abs().mean() / pendulum.graph[name].scale) < 0.03, name


def test_labels_follow_the_equations_and_stay_in_range(pendulum):
    length, position = shadow(pendulum.labels[:, 0], pendulum.labels[:, 1])
    torch.testing.assert_close(pendulum.labels[:, 2:], torch.stack([length, position], 1).float())
    corners = torch.tensor([[a, b] for a in (-40.0, 43.0) for b in (60.0, 147.0)])
    for name, values in zip(NAMES[2:], shadow(*corners.T), strict=True):
        assert pendulum.graph[name].low <= values.min() and values.max() <= pendulum.graph[name].high


def test_pictures_show_what_they_should():
    image = (render_pendulum(torch.tensor([[0.0, 100.0, 6.0, 10.0]]), 64)[0] + 1) * 127.5
    orange, firebrick, black, white = (255, 165, 0), (178, 34, 34), (0, 0, 0), (255, 255, 255)
    for (row, column), colour in {(2, 32): orange, (54, 32): firebrick, (36, 32): black, (62, 32): black}.items():
        torch.testing.assert_close(image[:, row, column], torch.tensor(colour).float(), rtol=0, atol=1e-3)
    for row, column in ((20, 4), (62, 4), (36, 56)):
        assert tuple(image[:, row, column].tolist()) == white


def test_counterfactual_of_nothing_is_the_item(pendulum):
    image, values = pendulum.counterfactual(3, {})
    assert torch.equal(image, pendulum[3]["image"])
    assert list(values.values()) == pendulum[3]["labels"].tolist()


def test_counterfactual_with_the_factual_value_is_the_item(pendulum):
    image, values = pendulum.counterfactual(3, {"angle": pendulum.labels[3, 0].item()})
    torch.testing.assert_close(torch.tensor(list(values.values())), pendulum.labels[3])
    assert (image - pendulum[3]["image"]).abs().mean() < 1e-3


def test_root_intervention_moves_the_shadow():
    dataset = Pendulum("test", size=16, num_images=8, noise_std=0.5)
    _, values = dataset.counterfactual(2, {"angle": -30.0})
    angle, light = torch.tensor([-30.0]), dataset.labels[2:3, 1]
    own = dataset.labels[2, 2:] - torch.cat(shadow(dataset.labels[2:3, 0], light))
    expected = torch.cat(shadow(angle, light)) + own
    assert values["angle"] == -30 and values["light"] == light.item()
    assert [values["shadow_len"], values["shadow_pos"]] == pytest.approx(expected.tolist(), abs=1e-5)


def test_shadow_intervention_changes_the_shadow_alone(pendulum):
    image, values = pendulum.counterfactual(5, {"shadow_len": 9.0})
    before = dict(zip(NAMES, pendulum.labels[5].tolist(), strict=True))
    assert values == before | {"shadow_len": 9.0}
    changed = (image != pendulum[5]["image"]).any(0).any(1)
    assert changed[-2:].any() and not changed[:-2].any()


def test_interventions_combine(pendulum):
    _, values = pendulum.counterfactual(0, {"light": 120.0, "shadow_pos": 5.0})
    length, _ = shadow(pendulum.labels[:1, 0], torch.tensor([120.0]))
    assert values["shadow_pos"] == 5.0 and values["shadow_len"] == pytest.approx(length.item(), abs=1e-5)


def test_same_arguments_same_bits(pendulum):
    again = Pendulum("test", size=32, num_images=64)
    assert torch.equal(again.images, pendulum.images) and torch.equal(again.labels, pendulum.labels)
    assert torch.equal(Pendulum("test", size=32, num_images=8).images, pendulum.images[:8])
    assert not torch.equal(Pendulum("train", size=32, num_images=64).labels, pendulum.labels)


def test_noise_leaves_the_roots_alone(pendulum):
    noisy = Pendulum("test", size=8, num_images=64, noise_std=0.3)
    assert torch.equal(noisy.labels[:, :2], pendulum.labels[:, :2])
    assert 0.2 < (noisy.labels[:, 2:] - pendulum.labels[:, 2:]).std() < 0.4


def test_grid_has_the_original_split():
    train, test = Pendulum("train", size=8, grid=True), Pendulum("test", size=8, grid=True)
    assert (len(train), len(test)) == (5482, 1826)
    pairs = torch.cat([train.labels, test.labels])[:, :2]
    assert len(pairs.unique(dim=0)) == 84 * 87 and not (pairs[:, 1] == 100).any()
    assert test.labels[0, :2].tolist() == [-40, 64]


def test_items_load_in_batches(pendulum):
    batch = next(iter(torch.utils.data.DataLoader(pendulum, batch_size=4)))
    assert batch["image"].shape == (4, 3, 32, 32) and batch["labels"].shape == (4, 4)
    assert batch["image"].min() >= -1 and batch["image"].max() == 1 and pendulum.images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split must be one of train, validation, test"),
        ({"size": 0}, "size must be an integer of at least 8"),
        ({"size": 32.0}, "size must be"),
        ({"num_images": 0}, "num_images must be"),
        ({"noise_std": -1}, "noise_std must be"),
        ({"noise_std": math.nan}, "noise_std must be"),
        ({"seed": -1}, "seed must be"),
        ({"grid": True, "num_images": 4}, "grid=True has a fixed"),
        ({"grid": True, "split": "validation"}, "grid=True has a fixed"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Pendulum(**arguments)


def test_wrong_questions_are_named(pendulum):
    with pytest.raises(ValueError, match="Did you mean 'shadow_len'"):
        pendulum.counterfactual(0, {"shadow_le": 5})
    with pytest.raises(ValueError, match="outside the training range"):
        pendulum.counterfactual(0, {"angle": 300})
    with pytest.raises(IndexError, match="64 items"):
        pendulum.counterfactual(64, {})
    with pytest.raises(ValueError, match=r"images must be \(B, 3, S, S\)"):
        pendulum.read(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"labels must be \(B, 4\)"):
        render_pendulum(torch.zeros(4), 32)


def test_datasets_load_by_name():
    assert isinstance(load_dataset("pendulum", "test", size=8, num_images=2), Pendulum)
    with pytest.raises(ValueError, match="Did you mean 'pendulum'"):
        load_dataset("pendulums")


def images_of(dataset):
    return torch.stack([dataset[index]["image"] for index in range(len(dataset))])


def test_experiments_set_shadows_in_the_training_split_only():
    observed, experiments = (Pendulum("train", size=8, num_images=600, experiments=share) for share in (0.0, 0.5))
    assert (
        not observed.intervened.any() and not Pendulum("test", size=8, num_images=50, experiments=0.5).intervened.any()
    )
    length, position = experiments.intervened[:, 2], experiments.intervened[:, 3]
    assert not experiments.intervened[:, :2].any()
    # A third each of: length, position, both. 600 draws of probability 1/3 have a standard error of 0.02.
    assert length.float().mean().item() == pytest.approx(1 / 3, abs=0.08)
    assert (length & position).float().mean().item() == pytest.approx(1 / 6, abs=0.08)
    assert torch.equal(experiments.labels[~length, 2], observed.labels[~length, 2])
    assert torch.equal(experiments.labels[:, :2], observed.labels[:, :2])
    for column, name in ((2, "shadow_len"), (3, "shadow_pos")):
        values, variable = experiments.labels[experiments.intervened[:, column], column], experiments.graph[name]
        assert values.min() >= variable.low and values.max() <= variable.high
        assert values.mean().item() == pytest.approx((variable.low + variable.high) / 2, abs=1.5)


def test_a_set_shadow_stays_set_when_the_angle_changes():
    data = Pendulum("train", size=8, num_images=60, experiments=1.0)
    for index in range(20):
        _, values = data.counterfactual(index, {"angle": 10.0})
        cast = shadow(torch.tensor([10.0]), data.labels[index, 1:2])
        for column, name in ((2, "shadow_len"), (3, "shadow_pos")):
            wanted = data.labels[index, column] if data.intervened[index, column] else cast[column - 2][0]
            assert values[name] == pytest.approx(wanted.item(), abs=1e-4)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), True, "half"])
def test_a_share_of_experiments_is_between_0_and_1(share):
    with pytest.raises(ValueError, match=r"experiments must be a number in \[0, 1\]"):
        Pendulum("train", num_images=2, experiments=share)
