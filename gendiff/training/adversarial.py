"""The two sides of a patch discriminator, in one step and under one optimiser."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import relu

from gendiff.models.patch_discriminator import PatchDiscriminator


def patch_losses(discriminator: PatchDiscriminator, images: Tensor, sample: Tensor) -> dict[str, Tensor]:
    """What the discriminator and what the maker of `sample` is to lower; neither term has gradients for the other.

    Args:
        discriminator: gets gradients from its own term alone.
        images: (B, C, S, S) real ones.
        sample: (B, C, S, S) made ones; get gradients from "gan" alone.

    Returns: "discriminator", hinge loss of telling them apart, 1 at chance and 0 at best; "gan", how little `sample`
    looks real, no range.

    Source: Lim and Ye 2017, arXiv 1705.02894 (hinge loss); Esser et al. 2021 (VQGAN) for its use here.
    """
    real, made = discriminator(images), discriminator(sample.detach())
    return {
        "discriminator": (relu(1 - real).mean() + relu(1 + made).mean()) / 2,
        "gan": -discriminator.frozen(sample).mean(),
    }
