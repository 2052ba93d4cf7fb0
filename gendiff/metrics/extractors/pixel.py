"""Pixels as features: the baseline that a network has to beat."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.metrics.extractors.base import FeatureExtractor

SIDE = 28
"""Side in pixels that images are resized to, so that a row has one length: that of Fashion-MNIST and MNIST."""


class PixelExtractor(FeatureExtractor):
    """Flattened luma, 784 numbers in [0, 1]. Blind to texture and colour, and fooled by mean images.

    Grey images are what they are; colours are weighed as in ITU-R BT.601.
    """

    def __init__(self) -> None:
        super().__init__("pixel", SIDE * SIDE, f"luma (BT.601), bilinear antialiased to {SIDE}x{SIDE}, x/255")

    def extract(self, images: Tensor) -> Tensor:
        return resized(luma(images), SIDE).flatten(1) / 255


def make_pixel(name: str, weights: str | Path | None) -> PixelExtractor:
    """Factory of the registry.

    Raises:
        InvalidInputError: `weights` is given.
    """
    if weights is not None:
        raise InvalidInputError(f"weights must be None for {name}, which has none.")
    return PixelExtractor()


def luma(images: Tensor) -> Tensor:
    """Brightness (B, 1, H, W) float32 in 0 .. 255 of images (B, 3, H, W); exact where the channels are equal."""
    red, green, blue = images.float().split(1, dim=1)
    # Around green, so that grey stays the very number it is.
    return green + 0.299 * (red - green) + 0.114 * (blue - green)


def resized(images: Tensor, side: int, mode: str = "bilinear") -> Tensor:
    """Float images (B, C, H, W) at side x side, antialiased where they shrink; as they are if they have that size."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode=mode, antialias=True, align_corners=False)
