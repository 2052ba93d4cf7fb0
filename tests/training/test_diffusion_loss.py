"""Noise and targets, against the formulas of each kind of schedule."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from gendiff.training.diffusion import diffusion_loss, noised
from gendiff.training.image_generation import objective

KINDS = ("epsilon", "v_prediction", "sample")


def clean_and_noise(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return clean, noise


def test_flow_matching_walks_straight_from_data_to_noise_at_a_level_for_each_frame():
    clean, noise = clean_and_noise(2, 3, 1, 4, 4)
    levels = torch.tensor([[0.0, 0.25, 0.5], [0.125, 0.75, 1.0]])
    noisy, timesteps, target = noised(FlowMatchEulerDiscreteScheduler(), clean, noise, levels)
    for video in range(2):
        for frame in range(3):
            share = float(levels[video, frame])
            expected = (1 - share) * clean[video, frame] + share * noise[video, frame]
            torch.testing.assert_close(noisy[video, frame], expected, atol=1e-15, rtol=0)
    assert torch.equal(timesteps, levels * 1000)
    assert torch.equal(target, noise - clean)
    # The network's answer leads back: x_0 = x_t - t (e - x_0).
    torch.testing.assert_close(noisy - levels.double()[..., None, None, None] * target, clean, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("kind", KINDS)
def test_variance_preserving_noise_and_its_targets_at_a_level_for_each_frame(kind, scheduler):
    clean, noise = clean_and_noise(2, 3, 1, 4, 4)
    levels = torch.tensor([[0.0, 0.25, 0.5], [0.1255, 0.75, 0.9999]])
    noisy, timesteps, target = noised(scheduler(prediction_type=kind), clean, noise, levels)
    assert timesteps.tolist() == [[0, 250, 500], [125, 750, 999]]
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)  # alpha bar of the linear schedule
    a = kept[timesteps].sqrt().double()[..., None, None, None]
    s = (1 - kept[timesteps]).sqrt().double()[..., None, None, None]
    expected = {"epsilon": noise, "v_prediction": a * noise - s * clean, "sample": clean}[kind]
    torch.testing.assert_close(noisy, a * clean + s * noise, atol=1e-6, rtol=0)  # the schedule is float32
    torch.testing.assert_close(target, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [7, 1000, 4096])
def test_every_timestep_is_drawn_as_a_whole_number_and_the_loss_has_the_bits_of_the_formula(kind, count):
    """`diffusion_loss` draws whole timesteps and hands `noised` levels; nothing may be lost on the way."""
    scheduler = DDPMScheduler(prediction_type=kind, num_train_timesteps=count)
    image = torch.rand(512, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.zeros(512, dtype=torch.long)

    def network(noisy, timesteps, class_labels, return_dict):
        return (0.3 * noisy + torch.sin(timesteps.float()).view(-1, 1, 1, 1),)

    generator = torch.Generator().manual_seed(2)
    loss = diffusion_loss(network, scheduler, image, labels, generator)

    again = torch.Generator().manual_seed(2)
    noise = torch.randn(image.shape, generator=again)
    timesteps = torch.randint(count, (512,), generator=again)
    noisy = scheduler.add_noise(image, noise, timesteps)
    velocity = scheduler.get_velocity(image, noise, timesteps)
    target = {"epsilon": noise, "v_prediction": velocity, "sample": image}[kind]
    prediction = network(noisy, timesteps, None, False)[0]
    assert torch.equal(loss, torch.nn.functional.mse_loss(prediction, target))
    assert torch.equal(generator.get_state(), again.get_state())


def test_every_whole_timestep_survives_being_a_level():
    for count in (7, 1000, 4096):
        scheduler = DDPMScheduler(num_train_timesteps=count)
        levels = (torch.arange(count) + 0.5) / count
        blank = torch.zeros(count, 1, 1, 1)
        assert torch.equal(noised(scheduler, blank, blank, levels)[1], torch.arange(count))


def test_the_image_objective_has_the_bits_of_the_formula():
    class Network(SimpleNamespace):
        def __call__(self, noisy, timesteps, class_labels, return_dict):
            return (0.5 * noisy + 0.1 * class_labels.view(-1, 1, 1, 1) + 1e-3 * timesteps.view(-1, 1, 1, 1),)

    network, scheduler = Network(config={"num_class_embeds": 4}), DDIMScheduler(prediction_type="v_prediction")
    image = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    batch = {"image": image, "label": torch.arange(32) % 3}
    models = {"unet": network, "scheduler": scheduler}
    loss = objective(models, batch, torch.Generator().manual_seed(2), label_dropout=0.3)["diffusion"]

    generator = torch.Generator().manual_seed(2)
    labels = batch["label"].masked_fill(torch.rand(32, generator=generator) < 0.3, 3)
    noise = torch.randn(image.shape, generator=generator)
    timesteps = torch.randint(1000, (32,), generator=generator)
    prediction = network(scheduler.add_noise(image, noise, timesteps), timesteps, labels, False)[0]
    target = scheduler.get_velocity(image, noise, timesteps)
    assert torch.equal(loss, torch.nn.functional.mse_loss(prediction, target))
