"""Checks that the networks over hidden tokens share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_counts(**counts: int) -> None:
    """Raise ValueError unless each is a whole number of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}.")


def check_call(
    tokens: Tensor, hidden: Tensor, class_labels: Tensor | None, num_tokens: int, cache: Any, rows: Tensor | None
) -> None:
    """Raise ValueError unless the arguments of a forward fit together."""
    if tokens.ndim < 2 or tokens.shape[1] != num_tokens:
        raise ValueError(f"tokens must be (B, {num_tokens}, ...), got {tuple(tokens.shape)}.")
    if hidden.shape != tokens.shape[:2] or hidden.dtype != torch.bool:
        raise ValueError(f"hidden must be {tuple(tokens.shape[:2])} bool, got {tuple(hidden.shape)} {hidden.dtype}.")
    if class_labels is not None and class_labels.shape != (len(tokens),):
        raise ValueError(f"class_labels must be ({len(tokens)},), got {tuple(class_labels.shape)}.")
    if rows is not None:
        if cache is None:
            raise ValueError("rows need a cache that a full pass has filled.")
        if rows.ndim != 2 or len(rows) != len(tokens):
            raise ValueError(f"rows must be ({len(tokens)}, m), got {tuple(rows.shape)}.")


def check_images(images: Tensor, channels: int, side: int) -> None:
    """Raise ValueError unless images are (B, channels, side, side)."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (channels, side, side):
        raise ValueError(f"images must be (B, {channels}, {side}, {side}), got {tuple(images.shape)}.")


def check_codes(tokens: Tensor, codebook_size: int) -> None:
    """Raise ValueError unless all tokens are 0 .. V - 1."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < codebook_size:
        raise ValueError(
            f"tokens must be from 0 to {codebook_size - 1}, got {int(tokens.min())} to {int(tokens.max())}."
        )
