"""The loss every diffusion model here is trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def noised(scheduler: Any, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy samples, their timesteps, and what the network should say of them.

    Args:
        scheduler: of diffusers: a flow-matching one (x_t = (1 - t) x + t e, target e - x; Lipman et al. 2023), or one
            with `add_noise` and a `prediction_type`.
        clean: (..., C, H, W).
        noise: like `clean`.
        levels: (...,) in [0, 1), share of the way to pure noise.

    Returns: noisy, like `clean`; timesteps (...,); target, like `clean`.
    """
    count = scheduler.config["num_train_timesteps"]
    if "prediction_type" not in scheduler.config:
        share = levels.to(clean.dtype)[..., None, None, None]
        return (1 - share) * clean + share * noise, levels * count, noise - clean
    timesteps = (levels * count).long()
    flat = [part.flatten(0, levels.ndim - 1) for part in (clean, noise)]
    noisy = scheduler.add_noise(*flat, timesteps.flatten()).view_as(clean)
    targets = {
        "v_prediction": lambda: scheduler.get_velocity(*flat, timesteps.flatten()).view_as(clean),
        "epsilon": lambda: noise,
        "sample": lambda: clean,
    }
    return noisy, timesteps, targets[scheduler.config["prediction_type"]]()


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
    count = scheduler.config["num_train_timesteps"]
    levels = (torch.randint(count, (len(image),), generator=generator) + 0.5) / count
    noisy, timesteps, target = noised(scheduler, image, noise, levels.to(image.device))
    prediction = network(noisy, timesteps, class_labels=class_labels, return_dict=False)[0]
    return torch.nn.functional.mse_loss(prediction.float(), target)
