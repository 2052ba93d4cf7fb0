"""One image at a time: from what a file or a user holds to the bytes that are scored."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendiff.errors import InvalidInputError

CHANNELS = (1, 3, 4)
"""Channels an image may have: grey, RGB, RGB with alpha."""

EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr")
"""Pillow modes that convert to RGB without losing depth; `I;16` and `F`, for two, would be clipped at 255."""

ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


def has_alpha(image: Image.Image) -> bool:
    """Whether a picture may be transparent somewhere, read from its header."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def from_pil(image: Image.Image) -> Tensor:
    """A picture as uint8 (1, H, W) if it is grey, else (3, H, W); alpha is composited on white.

    Raises:
        InvalidInputError: the picture has more than 8 bits per channel.
        OSError: the file behind it ends early or is damaged.
    """
    if image.mode not in EIGHT_BIT_MODES:
        raise InvalidInputError(f"has pixels of mode {image.mode}; save it with 8 bits per channel, grey or RGB.")
    if has_alpha(image):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    array = np.array(image)  # a copy: torch warns of read-only memory
    return torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)


def to_rgb(image: Tensor) -> Tensor:
    """A uint8 image (1 | 3 | 4, H, W) as (3, H, W): grey repeated, alpha composited on white."""
    if len(image) == 4:
        return from_pil(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
    return image.expand(3, -1, -1)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 image (3, H, W) at `size` (H, W) by Pillow's bicubic filter, which smooths before it shrinks.

    The sides are scaled each by its own factor; nothing is cropped. An image of that size is returned as it is.
    """
    if tuple(image.shape[1:]) == size:
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return from_pil(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def from_unit(images: Tensor, what: str, first_index: int = 0, tolerance: float = 0.0) -> Tensor:
    """Float images (B, ...) in [0, 1] as uint8 by `round(255 x)`, halves to even.

    Args:
        images: any float type; rounded in float32.
        what: what the images are, for messages.
        first_index: number of the first image, for messages.
        tolerance: how far outside [0, 1] a value may lie; it is clamped then.

    Raises:
        InvalidInputError: a value is not finite or outside [0, 1]; the first such image is named.
    """
    images = images.detach().to("cpu", torch.float32)
    flat = images.flatten(1)
    finite = flat.isfinite().all(1)
    if not finite.all():
        index = first_index + int((~finite).nonzero()[0])
        raise InvalidInputError(f"{what}: image {index} holds NaN or infinite values; pixels must be in [0, 1].")
    inside = (flat >= -tolerance).all(1) & (flat <= 1 + tolerance).all(1)
    if not inside.all():
        row = int((~inside).nonzero()[0])
        low, high = flat[row].min().item(), flat[row].max().item()
        hint = " Images in [-1, 1] become such by (x + 1) / 2." if low < 0 else " Give bytes as uint8."
        raise InvalidInputError(
            f"{what}: image {first_index + row} has values from {low:g} to {high:g}; float pixels must be in [0, 1]."
            f"{hint}"
        )
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def digest(image: Tensor) -> bytes:
    """sha256 of a uint8 image (3, H, W): its size and its pixels, however they were stored."""
    height, width = image.shape[1:]
    return hashlib.sha256(f"{height}x{width}:".encode() + image.contiguous().numpy().tobytes()).digest()


def check_size(name: str, value: Any) -> tuple[int, int] | None:
    """(H, W) of a size given as a side, a pair or None.

    Raises:
        InvalidInputError: it is none of them, or a side is below 1.
    """
    if value is None:
        return None
    sides = (value, value) if isinstance(value, int) else value
    pair = isinstance(sides, list | tuple) and len(sides) == 2
    if not pair or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise InvalidInputError(f"{name} must be a side or (height, width) in pixels, got {value!r}.")
    return sides[0], sides[1]
