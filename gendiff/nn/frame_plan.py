"""Which frame may look at which, in a forward that is handed all frames at once.

A plan is data. The network follows it, with no knowledge of chunks or windows: a training clip, two copies of one
(clean and noisy) and a whole history with a window that slides are three plans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

ATTENTION_MODES = ("frame_causal", "prefix_causal", "block_causal", "full")
"""How frames of one chunk see each other.

`frame_causal`: each its past, noisy or clean. `prefix_causal`: a noisy chunk all of itself, clean frames their past.
`block_causal`: all of the own chunk, so what is cached depends on the grouping. `full`: everything sees everything.
"""


@dataclass(frozen=True)
class FramePlan:
    """Attention over time of T frames to K key columns, and the frames whose spatial keys each frame reads too.

    Attributes:
        columns: (K,) int64, the frame behind each key column. A frame may stand behind several, at other positions.
        mask: (T, K) bool, True = may attend; None = all may.
        query_positions: (T,) int64, of each frame as a query.
        key_positions: (K,) int64.
        references: (R, P') int64, for the last R frames the frames whose spatial keys they join to their own.
    """

    columns: Tensor
    mask: Tensor | None
    query_positions: Tensor
    key_positions: Tensor
    references: Tensor

    def to(self, device: torch.device | str) -> FramePlan:
        """The same plan with its tensors on `device`."""
        fields: dict[str, Any] = vars(self)
        moved: dict[str, Any] = {n: value if value is None else value.to(device) for n, value in fields.items()}
        return FramePlan(**moved)


def window_mask(
    query_frames: Tensor,
    key_frames: Tensor,
    starts: Sequence[int],
    window: int,
    mode: str,
    sinks: int = 0,
    noisy_from: int | None = None,
) -> Tensor:
    """Bool mask (Tq, Tk), True = may attend, of a history in which old frames left as each chunk began.

    Key k is seen by query q of a chunk that starts at s iff k <= q (or k is in the same chunk, where `mode` lets a
    chunk see all of itself), and k >= s - (window - sinks) or k < sinks.

    Args:
        query_frames: (Tq,) int64, frame indices from 0.
        key_frames: (Tk,) int64.
        starts: first frame of each chunk, ascending from 0.
        window: most clean frames that a chunk sees, sinks among them.
        mode: one of `ATTENTION_MODES`.
        sinks: first frames that never leave.
        noisy_from: first frame that is noisy; None = all are clean.

    Raises:
        ValueError: an unknown mode, chunks that do not ascend from 0, or as many sinks as the window has frames.
    """
    if mode not in ATTENTION_MODES:
        raise ValueError(f"mode must be one of {', '.join(ATTENTION_MODES)}, got {mode!r}.")
    if list(starts[:1]) != [0] or any(a >= b for a, b in pairwise(starts)):
        raise ValueError(f"starts must ascend from 0, got {list(starts)}.")
    if not 0 <= sinks < window:
        raise ValueError(f"sinks must be 0 .. window - 1 = {window - 1}, got {sinks}.")
    if mode == "full":
        return torch.ones(len(query_frames), len(key_frames), dtype=torch.bool)
    edges = torch.tensor(starts)
    query_chunk = torch.bucketize(query_frames, edges, right=True) - 1
    key_chunk = torch.bucketize(key_frames, edges, right=True) - 1
    past = key_frames <= query_frames[:, None]
    together = key_chunk == query_chunk[:, None]
    if mode == "frame_causal":
        together = past
    elif mode == "prefix_causal":
        together &= query_frames[:, None] >= (math.inf if noisy_from is None else noisy_from)
    oldest = edges[query_chunk] - (window - sinks)
    kept = (key_frames >= oldest[:, None]) | (key_frames < sinks)
    return (past | together) & kept


def prefix_plan(num_frames: int, num_prefix: int, mode: str, num_references: int) -> FramePlan:
    """A clip whose first frames are clean and whose rest is one noisy chunk: what a model is trained on.

    Args:
        num_frames: T, all frames.
        num_prefix: P, clean frames at the start, 0 .. T.
        mode: one of `ATTENTION_MODES`.
        num_references: P', most frames whose spatial keys a noisy frame reads too.

    Raises:
        ValueError: a prefix longer than the clip, or an unknown mode.
    """
    if not 0 <= num_prefix <= num_frames:
        raise ValueError(f"num_prefix must be 0 .. {num_frames}, got {num_prefix}.")
    starts = [0] if num_prefix in (0, num_frames) else [0, num_prefix]
    return history_plan(num_frames, starts, num_frames, mode, num_references, noisy_from=num_prefix)


def history_plan(
    num_frames: int,
    starts: Sequence[int],
    window: int,
    mode: str,
    num_references: int,
    sinks: int = 0,
    noisy_from: int | None = None,
) -> FramePlan:
    """A whole history in which old frames left as each chunk began: what a cache must reproduce.

    Positions count frames that were there: a sink seen across a gap stands right before the window. So it has one more
    key column for each chunk that sees it across another gap.

    Args:
        num_frames: T.
        starts: first frame of each chunk, ascending from 0.
        window: W, most clean frames that a chunk sees, sinks among them.
        mode: one of `ATTENTION_MODES`.
        num_references: P'.
        sinks: first frames that never leave.
        noisy_from: first noisy frame; None = all are clean.
    """
    frames = torch.arange(num_frames)
    mask = window_mask(frames, frames, starts, window, mode, sinks, noisy_from)
    columns, positions = [frames], [frames]
    masks = [mask.clone()]
    chunk = torch.bucketize(frames, torch.tensor(starts), right=True) - 1
    for number, start in enumerate(starts):
        gap = start - window if sinks else 0
        if gap <= 0:
            continue
        rows = chunk == number
        across = torch.zeros(num_frames, sinks, dtype=torch.bool)
        across[rows] = masks[0][rows, :sinks]
        masks[0][rows, :sinks] = False
        columns.append(frames[:sinks])
        positions.append(frames[:sinks] + gap)
        masks.append(across)
    noisy_from = num_frames if noisy_from is None else noisy_from
    return FramePlan(
        columns=torch.cat(columns),
        mask=_needed(torch.cat(masks, dim=1)),
        query_positions=frames,
        key_positions=torch.cat(positions),
        references=_references([noisy_from] * (num_frames - noisy_from), num_references),
    )


def teacher_forcing_plan(starts: Sequence[int], num_frames: int, mode: str, num_references: int) -> FramePlan:
    """Two copies of a clip of T frames, clean then noisy (2 T frames), in which every chunk is a target at once.

    Clean frames see clean ones; the noisy frames of a chunk see the clean ones before it, and their own chunk.

    Args:
        starts: first frame of each chunk, ascending from 0.
        num_frames: T.
        mode: one of `ATTENTION_MODES` but "full".
        num_references: P'.
    """
    if mode == "full":
        raise ValueError('mode "full" has no chunks to force; got "full", expected a causal mode.')
    frames, edges = torch.arange(num_frames), torch.tensor(starts)
    chunk = torch.bucketize(frames, edges, right=True) - 1
    clean = window_mask(frames, frames, starts, num_frames, mode)
    own = window_mask(frames, frames, starts, num_frames, mode, noisy_from=0) & (chunk == chunk[:, None])
    before = frames < edges[chunk][:, None]
    mask = torch.cat([torch.cat([clean, torch.zeros_like(clean)], 1), torch.cat([before, own], 1)])
    positions = frames.repeat(2)
    first = len(frames) if len(starts) == 1 else starts[1]  # a chunk with no past has nothing to refer to
    return FramePlan(
        columns=torch.arange(2 * num_frames),
        mask=mask,
        query_positions=positions,
        key_positions=positions,
        references=_references(edges[chunk[first:]].tolist(), num_references),
    )


def _references(prefixes: Sequence[int], count: int) -> Tensor:
    """For frames that follow prefixes of these lengths, the last `count` frames of each; frame 0 again where short."""
    if not prefixes or not count or prefixes[0] == 0:
        return torch.zeros(0, count, dtype=torch.long)
    return (torch.tensor(prefixes)[:, None] + torch.arange(-count, 0)).clamp(min=0)


def _needed(mask: Tensor) -> Tensor | None:
    return None if mask.all() else mask
