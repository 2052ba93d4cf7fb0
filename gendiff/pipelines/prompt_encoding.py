"""Texts to embeddings, masks and pooled vectors, by a function or by what a pipeline has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """What B texts became: embeds float64 (B, L, D), mask bool (B, L), pooled float64 (B, P) or None; on the CPU."""

    embeds: Tensor
    mask: Tensor
    pooled: Tensor | None

    def mean(self) -> Tensor:
        """Mean (B, D) over the valid tokens."""
        return (self.embeds * self.mask.unsqueeze(-1)).sum(1) / self.mask.sum(1, keepdim=True).clamp(min=1)


def encoder_of(encode: Any) -> Callable[[list[str]], Encoded]:
    """A checked encoder from a function or from a pipeline that has `encode_prompt`.

    A pipeline that gives no mask is read by the attention mask of its `tokenizer`, where the two have one length.

    Args:
        encode: texts to (E, mask) or (E, mask, pooled).

    Raises:
        ValueError: neither a function nor a pipeline. The encoder itself raises it for a result that has no mask, or
            of which something is not finite or has a wrong shape.
    """
    is_pipeline, call = hasattr(encode, "encode_prompt"), encode
    if not is_pipeline and not callable(encode):
        raise ValueError(f"encode must be a function or a pipeline with encode_prompt, got {type(encode).__name__}.")

    def read(texts: list[str]) -> Encoded:
        with torch.no_grad():
            found = _of_pipeline(encode, texts) if is_pipeline else call(texts)
        embeds, mask, *rest = found
        pooled = rest[0] if rest else None
        shape = tuple(embeds.shape)
        if embeds.ndim != 3 or len(embeds) != len(texts) or not embeds.isfinite().all():
            raise ValueError(f"encode must give finite embeddings ({len(texts)}, L, D), got {shape}.")
        if not isinstance(mask, Tensor) or tuple(mask.shape) != shape[:2]:
            raise ValueError(f"encode must give a mask {shape[:2]}, got {getattr(mask, 'shape', mask)}.")
        mask = mask.bool().cpu()
        if not mask.any(1).all():
            raise ValueError("encode must give every text at least one valid token.")
        return Encoded(embeds.double().cpu(), mask, None if pooled is None else pooled.double().cpu())

    return read


def _of_pipeline(pipe: Any, texts: list[str]) -> tuple[Tensor, ...]:
    found = pipe.encode_prompt(texts)
    embeds, second = found[0], found[1] if len(found) > 1 else None
    if isinstance(second, Tensor) and second.ndim == 2 and second.shape == embeds.shape[:2]:
        return embeds, second
    tokenizer = getattr(pipe, "tokenizer", None)
    length = embeds.shape[1]
    if tokenizer is None or tokenizer.model_max_length != length:
        raise ValueError(
            f"{type(pipe).__name__}.encode_prompt gives no mask of its {length} tokens; pass a function encode(texts) "
            "-> (embeddings, mask) instead."
        )
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return embeds, tokens.attention_mask
