"""The loss of discrete tokens, and what is logged beside it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def token_losses(logits: Tensor, tokens: Tensor, hidden: Tensor, label_smoothing: float) -> dict[str, Tensor]:
    """Means over hidden tokens.

    Args:
        logits: (B, N, V).
        tokens: (B, N) int64, the true ones.
        hidden: (B, N) bool, at least one True.
        label_smoothing: share of the target spread over all codes.

    Returns: "cross_entropy", smoothed; "nats", without; "accuracy", the share guessed right.
    """
    asked, targets = logits[hidden], tokens[hidden]
    smoothed = cross_entropy(asked, targets, label_smoothing=label_smoothing)
    with torch.no_grad():
        nats = cross_entropy(asked, targets)
        accuracy = (asked.argmax(dim=1) == targets).float().mean()
    return {"cross_entropy": smoothed, "nats": nats, "accuracy": accuracy}
