"""LPIPS as a term of a loss, by a network that is on this machine; nothing is fetched."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gendiff.metrics.lpips_network import SMALLEST_SIDE, load_lpips


def load_perceptual(channels: int, size: int, net: str = "vgg", weights: str | None = None) -> nn.Module:
    """The frozen network, checked against the images that it is to compare.

    Args:
        channels: of the images.
        size: S, their side.
        net: "vgg", as VQGAN has it, or "alex".
        weights: file of the backbone; None searches for it, see `gendiff.metrics.lpips_network.load_lpips`.

    Raises:
        ValueError: images too small for the backbone, or neither grey nor colour; no backbone on this machine.
        ImportError: the package `lpips` is missing.
    """
    if channels not in (1, 3):
        raise ValueError(f"models.lpips compares images of 1 or 3 channels, the data have {channels}.")
    smallest = SMALLEST_SIDE.get(net, 0)
    if size < smallest:
        raise ValueError(f"models.lpips with net {net} needs images of at least {smallest} px, the data have {size}.")
    return load_lpips(net, weights)[0]


def perceptual_loss(network: nn.Module, images: Tensor, sample: Tensor) -> Tensor:
    """Mean LPIPS, 0-dim, at least 0, of images (B, 1 or 3, S, S) in about [-1, 1]; grey is repeated."""
    with torch.autocast(images.device.type, enabled=False):
        return network(images.expand(-1, 3, -1, -1), sample.float().expand(-1, 3, -1, -1)).mean()
