"""AdamW and its learning rate as a recipe describes them: who is decayed, and where the rate ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .recipe import TrainSettings


def make_optimizer(
    trained: Mapping[str, nn.Module], settings: TrainSettings, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over what is trained.

    Args:
        trained: modules by name. One may have `no_weight_decay`, names of parameters or of whole modules in it, at any
            depth, that must not shrink.
        settings: `learning_rate`, `betas`, `weight_decay`, and `decay`: "all" shrinks every parameter, "matrices" none
            with fewer than two axes, no bias, and none that its module excepts.
        device: where it runs.

    Source: "matrices" is the grouping of VAR (Tian et al. 2024).
    """
    named = [
        (name, parameter, getattr(module, "no_weight_decay", ()))
        for module in trained.values()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    groups: list[Any] = [parameter for _, parameter, _ in named]
    if settings.decay == "matrices":
        spared = [parameter.ndim < 2 or _excepted(name, names) for name, parameter, names in named]
        groups = [
            {"params": [p for p, kept in zip(groups, spared, strict=True) if not kept]},
            {"params": [p for p, kept in zip(groups, spared, strict=True) if kept], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings) -> Any:
    """The learning rate over the steps, as diffusers knows it by name, and of its fall no more than to `lr_final`."""
    schedule = get_scheduler(
        settings.lr_schedule,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.steps,
    )
    if not settings.lr_final:
        return schedule
    factor, final, warmup = schedule.lr_lambdas[0], settings.lr_final, settings.lr_warmup_steps
    return LambdaLR(optimizer, lambda step: factor(step) * (1 - final) + final if step >= warmup else factor(step))


def _excepted(name: str, names: tuple[str, ...]) -> bool:
    parts = name.split(".")
    return parts[-1] == "bias" or any(part in names for part in parts)
