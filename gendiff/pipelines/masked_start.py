"""What is known before a walk over hidden tokens begins: nothing, given tokens, or a picture outside of a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, max_pool2d, pad

from .images import to_tensor

SLACK = 5e-4
"""How far outside [0, 1] rounding may put a pixel."""


def nothing_known(tokenizer: Any, batch: int, device: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens (B, N) or (B, N, c), all of them hidden."""
    count = tokenizer.grid[0] * tokenizer.grid[1]
    hidden = torch.ones(batch, count, dtype=torch.bool, device=device)
    if tokenizer.codebook_size is not None:
        return torch.zeros(batch, count, dtype=torch.long, device=device), hidden
    return torch.zeros(batch, count, tokenizer.token_channels, device=device, dtype=dtype), hidden


def known_tokens(latents: Any, tokenizer: Any, batch: int, device: Any) -> tuple[Tensor, Tensor]:
    """Given tokens (B, N) int64, of which V stands for a hidden one.

    Raises:
        ValueError: another shape, numbers outside 0 .. V, or a tokenizer of continuous tokens.
    """
    codes = tokenizer.codebook_size
    if codes is None:
        raise ValueError("latents must be None: tokens of this model are vectors, and no number says hidden.")
    shape = (batch, tokenizer.grid[0] * tokenizer.grid[1])
    if not isinstance(latents, Tensor) or latents.dtype != torch.long or tuple(latents.shape) != shape:
        got = (
            f"{tuple(latents.shape)} {latents.dtype}" if isinstance(latents, Tensor) else f"a {type(latents).__name__}"
        )
        raise ValueError(f"latents must be {shape} int64, got {got}.")
    if latents.numel() and not 0 <= int(latents.min()) <= int(latents.max()) <= codes:
        raise ValueError(
            f"latents must be from 0 to {codes}, which stands for hidden, got {int(latents.min())} to "
            f"{int(latents.max())}."
        )
    latents = latents.to(device)
    hidden = latents == codes
    return latents.masked_fill(hidden, 0), hidden


def check_dilation(mask_dilation: Any) -> None:
    """Raise ValueError unless it is a whole number of at least 0."""
    if isinstance(mask_dilation, bool) or not isinstance(mask_dilation, int) or mask_dilation < 0:
        raise ValueError(f"mask_dilation must be a whole number of at least 0, got {mask_dilation!r}.")


def picture_and_mask(
    image: Any, mask_image: Any, tokenizer: Any, batch: int, device: Any
) -> tuple[Tensor, Tensor] | None:
    """Image (B, C, S, S) in [-1, 1] and mask (B, 1, S, S) of 0 and 1, where 1 = generate anew; None for neither.

    Raises:
        ValueError: one without the other, or a wrong shape, batch or range.
    """
    if image is None and mask_image is None:
        return None
    if image is None or mask_image is None:
        missing, given = ("image", "mask_image") if image is None else ("mask_image", "image")
        raise ValueError(f"image and mask_image go together, got {given} without {missing}.")
    config = tokenizer.config
    pixels = _batch("image", image, batch, config["in_channels"], config["sample_size"])
    mask = _batch("mask_image", mask_image, batch, 1, config["sample_size"])
    return pixels.to(device), (mask >= 0).to(pixels.dtype).to(device)


def _batch(name: str, image: Any, batch: int, channels: int, size: int) -> Tensor:
    pixels = to_tensor(image, channels, size, name, SLACK)
    if len(pixels) not in (1, batch):
        raise ValueError(f"{name} must be one, or one for each of {batch} images, got {len(pixels)}.")
    return pixels.expand(batch, -1, -1, -1)


def outside_of(
    pixels: Tensor, mask: Tensor, tokenizer: Any, mask_dilation: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Tokens of an image, hidden where the mask touches their patch.

    Args:
        pixels: (B, C, S, S) in [-1, 1].
        mask: (B, 1, S, S), 1 = generate anew.
        tokenizer: encodes the image with the masked pixels blackened, so that known tokens do not tell of them.
        mask_dilation: so many rings of tokens around the mask are hidden as well: they say what its edge was like.
        dtype: of the tokenizer's weights.

    Returns: tokens (B, N) or (B, N, c), and hidden (B, N) bool.
    """
    margin = tokenizer.config.get("padding", 0)
    touched = adaptive_max_pool2d(pad(mask, (margin,) * 4), tokenizer.grid)
    for _ in range(mask_dilation):
        touched = max_pool2d(touched, 3, stride=1, padding=1)
    tokens = tokenizer.encode(pixels.masked_fill(mask.bool(), -1.0).to(dtype))
    return tokens, touched.flatten(1) > 0
