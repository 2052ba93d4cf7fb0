"""Images as people hand them over, checked and turned into the tensor a network takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MODES = {1: "L", 3: "RGB"}


def to_tensor(image: Any, channels: int, size: int, name: str = "image", slack: float = 0.0) -> Tensor:
    """Batch (B, C, S, S) in [-1, 1] from one image or many; nothing is resized or clipped silently.

    Args:
        image: a PIL image, a list of them, or a tensor or array (B, C, S, S) or (C, S, S) in [0, 1].
        channels: C, 1 or 3.
        size: S, in pixels.
        name: of the argument, for messages.
        slack: how far outside [0, 1] values may be, by rounding; they are then clipped.

    Raises:
        ValueError: wrong shape, values outside [0, 1] or not finite, an empty list, or an unsupported type.
    """
    if isinstance(image, Image.Image):
        image = [image]
    if isinstance(image, list | tuple):
        if not image or not all(isinstance(item, Image.Image) for item in image):
            raise ValueError(f"{name} must be a PIL image, a non-empty list of PIL images, or a tensor or array.")
        arrays = [pil_to_array(item, channels) for item in image]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(f"{name}s differ in shape: {sorted({array.shape for array in arrays})}.")
        image = np.stack(arrays)
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(f"{name} must be a PIL image, a list of them, a tensor or array, got {type(image).__name__}.")
    if not (image.is_floating_point() if isinstance(image, Tensor) else image.dtype.kind == "f"):
        raise ValueError(f"{name} must hold floats in [0, 1], got {image.dtype}; divide uint8 by 255.")
    # Copied, because torch refuses the negative strides of a flipped array and warns of read-only memory.
    batch = image if isinstance(image, Tensor) else torch.from_numpy(image.copy())
    batch = batch[None] if batch.ndim == 3 else batch
    if tuple(batch.shape[1:]) != (channels, size, size) or len(batch) == 0:
        raise ValueError(f"{name}: expected (B,{channels},{size},{size}), got ({','.join(map(str, batch.shape))}).")
    low, high = batch.min().item(), batch.max().item()
    if not (low >= -slack and high <= 1 + slack):
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:g} to {high:g}.")
    return (2 * batch - 1).clamp(-1, 1)


def pil_to_array(image: Image.Image, channels: int) -> np.ndarray:
    """(C, H, W) in [0, 1]. A colour picture is only read as grey if it is grey, and only opaque alpha is dropped."""
    if image.mode in ("RGBA", "LA", "P", "PA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        if (rgba[..., 3] < 255).any():
            raise ValueError("image has transparent pixels; flatten it onto a background first.")
        image = Image.fromarray(rgba[..., :3].copy())
    if channels == 1 and image.mode == "RGB":
        rgb = np.asarray(image)
        if (rgb[..., :1] == rgb).all():
            image = Image.fromarray(rgb[..., 0].copy())
    if channels == 3 and image.mode in ("1", "L"):
        image = image.convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    array = np.asarray(image, dtype=np.float32) / 255
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
