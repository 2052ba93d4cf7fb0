"""Attention between frames of many tokens without a mask between tokens.

A mask between all tokens of 21 frames of 1,560 tokens has 10^9 entries. But which frames a frame sees is the same for
all its tokens, and mostly for the whole chunk: so each group of frames that see the same attends to just those keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class QueryGroup:
    """Consecutive frames that see the same frames.

    Attributes:
        queries: their rows (tokens) among the queries.
        keys: the rows they see: a slice where these lie side by side, else (n,) int64.
        mask: (1, K S) bool over all key rows where `keys` is all of them; None = sees all of `keys`.
    """

    queries: slice
    keys: slice | Tensor
    mask: Tensor | None


def query_groups(
    mask: Tensor | None, tokens: int, device: torch.device | str = "cpu", one_shape: bool = False
) -> list[QueryGroup]:
    """Groups of queries that together are the attention of `mask`.

    Args:
        mask: (T, K) bool between frames, True = may attend, each row with at least one; None = all may.
        tokens: S, rows of a frame.
        device: of the result. A mask on an accelerator costs one wait for it.
        one_shape: hand over all keys with a mask of one row, so that shapes do not depend on what is seen.
    """
    if mask is None:
        return [QueryGroup(slice(None), slice(None), None)]
    mask = mask.cpu()
    changes = (mask[1:] != mask[:-1]).any(dim=1).nonzero().flatten() + 1
    groups = []
    for first, stop in pairwise([0, *changes.tolist(), len(mask)]):
        seen, queries = mask[first], slice(first * tokens, stop * tokens)
        if one_shape:
            groups.append(QueryGroup(queries, slice(None), seen.repeat_interleave(tokens)[None].to(device)))
        else:
            groups.append(QueryGroup(queries, _rows(seen, tokens, device), None))
    return groups


def token_rows(frames: Tensor, tokens: int) -> Tensor:
    """Rows (n S,) of the tokens of `frames` (n,) int64."""
    return (frames[:, None] * tokens + torch.arange(tokens, device=frames.device)).flatten()


def _rows(seen: Tensor, tokens: int, device: torch.device | str) -> slice | Tensor:
    frames = seen.nonzero().flatten()
    first, last = int(frames[0]), int(frames[-1])
    if last - first + 1 == len(frames):
        return slice(first * tokens, (last + 1) * tokens)
    return token_rows(frames, tokens).to(device)
