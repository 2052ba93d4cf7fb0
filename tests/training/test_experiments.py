"""Values that an experiment set are no evidence about the mechanism that would have caused them."""

from __future__ import annotations

import torch

from gendiff.data.pendulum import Pendulum
from gendiff.training.counterfactual import METHOD


def losses(batch):
    data = Pendulum("train", size=16, num_images=8)
    torch.manual_seed(0)
    pipe = METHOD.build({"unet": {"block_out_channels": [8, 16], "norm_num_groups": 4}}, data)
    return METHOD.objective(pipe.components, batch, torch.Generator().manual_seed(0))


def test_the_mechanism_loss_leaves_out_what_was_set():
    data = Pendulum("train", size=16, num_images=8)
    batch = {"image": torch.stack([data[k]["image"] for k in range(8)]), "labels": data.labels.clone()}
    plain = losses(batch)
    batch["intervened"] = torch.zeros(8, 4, dtype=torch.bool)
    assert torch.equal(losses(batch)["mechanism"], plain["mechanism"])

    batch["intervened"][2:, 2:] = True
    masked = losses(batch)
    batch["labels"][2:, 2:] += 5.0
    moved = losses(batch)
    assert torch.equal(moved["mechanism"], masked["mechanism"]) and masked["mechanism"] != plain["mechanism"]
    assert moved["align"] != masked["align"]  # the encoder still has to see them

    batch["intervened"][:] = True
    assert losses(batch)["mechanism"] == 0


def test_stored_noise_is_that_of_observed_data():
    data = Pendulum("train", size=16, num_images=40, experiments=0.5)
    torch.manual_seed(0)
    pipe = METHOD.build({"unet": {"block_out_channels": [8, 16], "norm_num_groups": 4}}, data)
    METHOD.finish(pipe, data)
    observed = data.images[~data.intervened.any(dim=1)].float() / 127.5 - 1
    with torch.no_grad():
        assert torch.allclose(pipe.mechanisms.noise_mean, pipe.encoder(observed).mean.mean(dim=0), atol=1e-5)
