"""The loss every diffusion model here is trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def diffusion_loss(
    network: Any, scheduler: Any, image: Tensor, class_labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of what the scheduler's `prediction_type` names, at one uniform timestep for each image.

    Args:
        network: called as `network(noisy, timesteps, class_labels=..., return_dict=False)`.
        scheduler: of diffusers; says how noise is added and what is predicted.
        image: (B, C, H, W) in [-1, 1].
        class_labels: the condition, handed to the network.
        generator: CPU generator of noise and timesteps.
    """
    noise = torch.randn(image.shape, generator=generator).to(image)
    timesteps = torch.randint(scheduler.config["num_train_timesteps"], (len(image),), generator=generator)
    timesteps = timesteps.to(image.device)
    noisy = scheduler.add_noise(image, noise, timesteps)
    targets = {
        "v_prediction": lambda: scheduler.get_velocity(image, noise, timesteps),
        "epsilon": lambda: noise,
        "sample": lambda: image,
    }
    target = targets[scheduler.config["prediction_type"]]()
    prediction = network(noisy, timesteps, class_labels=class_labels, return_dict=False)[0]
    return torch.nn.functional.mse_loss(prediction.float(), target)
