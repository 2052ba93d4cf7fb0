"""The state of a walk over hidden tokens, and how rows of it are ranked, revealed and compared."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class MaskedState(NamedTuple):
    """What a walk has reached.

    Attributes:
        tokens: (B, N) int64, or (B, N, c) of continuous ones; what lies at hidden places means nothing.
        hidden: (B, N) bool, True = not known yet.
        group: (B, m) int64, positions of the running group in rank order, -1 = padding; m = 0: the next step is full.
        order: (B, N), hidden places are revealed by rising value; (B, 0) where confidence decides.
        reference: (B, m, V) log-probabilities that the full step gave to the group, for `max_staleness`; else empty.
    """

    tokens: Tensor
    hidden: Tensor
    group: Tensor
    order: Tensor
    reference: Tensor


def waiting(state: MaskedState) -> Tensor:
    """(B, m) bool: rows of the group that are still hidden."""
    return (state.group >= 0) & state.hidden.gather(1, state.group.clamp(min=0))


def staleness(log_p: Tensor, log_q: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean KL(p || q) in nats, and how often both have the same best token, (B,) each, over rows that are counted.

    Args:
        log_p: (B, m, V) log-probabilities.
        log_q: (B, m, V).
        counted: (B, m) bool; an image with none gives 0 and 1.
    """
    rows = counted.sum(dim=1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0)
    same = (log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).float()
    mean = (kl * counted).sum(dim=1) / rows.clamp(min=1)
    return mean, torch.where(rows > 0, (same * counted).sum(dim=1) / rows.clamp(min=1), 1.0)


def ranked(confidence: Tensor, hidden: Tensor, sizes: Tensor) -> Tensor:
    """(B, m): the `sizes` (B,) hidden positions of highest confidence, best first, -1 = padding.

    Sizes lie on the CPU, so that no device has to be waited for.
    """
    most = int(sizes.max())
    # By topk among hidden places, not by a threshold, which ties would let too many or too few pass.
    best = confidence.masked_fill(~hidden, -math.inf).topk(most, dim=1).indices
    return best.masked_fill((torch.arange(most) >= sizes[:, None]).to(best.device), -1)


def next_of(group: Tensor, hidden: Tensor, counts: Tensor) -> Tensor:
    """(B, n): the first `counts` (B,), on the CPU, rows of the group that are still hidden, -1 = padding."""
    most = int(counts.max())
    left = (group >= 0) & hidden.gather(1, group.clamp(min=0))
    # A stable sort brings those that are left to the front in their order.
    first = (~left).int().argsort(dim=1, stable=True)[:, :most]
    return group.gather(1, first).masked_fill((torch.arange(most) >= counts[:, None]).to(group.device), -1)


def scattered(tokens: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Tokens with `values` (B, m, ...) at `rows` (B, m); -1 = nowhere."""
    shape = rows.shape if tokens.ndim == 2 else (*rows.shape, tokens.shape[2])
    # Padding goes to one more place, which is cut off.
    index = torch.where(rows >= 0, rows, tokens.shape[1])
    index = index if tokens.ndim == 2 else index[..., None].expand(shape)
    return torch.cat([tokens, tokens[:, :1]], dim=1).scatter(1, index, values)[:, :-1]


def revealed(state: MaskedState, rows: Tensor, drawn: Tensor) -> MaskedState:
    """The state with `drawn` (B, N) or (B, N, c) in force at `rows` (B, n), -1 = padding."""
    new = scattered(torch.zeros_like(state.hidden), rows, torch.ones_like(rows, dtype=torch.bool))
    tokens = torch.where(new if drawn.ndim == 2 else new[..., None], drawn, state.tokens)
    return state._replace(tokens=tokens, hidden=state.hidden & ~new)


def ended(state: MaskedState) -> MaskedState:
    """The state with no group running: what it has left is hidden like everything else."""
    return state._replace(group=state.group[:, :0], reference=state.reference[:, :0])
