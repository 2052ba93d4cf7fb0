"""The past of a video: its finished frames, and a cache of what they left in the network under each condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendiff.nn.video_cache import VideoSnapshot
from gendiff.samplers.loop import Predictor
from gendiff.samplers.rollout import group_starts

from .causal_video_branch import Branch, Context, write_in_step
from .causal_video_condition import Condition
from .causal_video_rollout import Rollout
from .stats import Meter

Conditions = tuple[Condition, Condition | None]
"""The condition of the videos, and the one that guidance moves away from; None where there is nothing to guide."""


@dataclass(frozen=True)
class PastSnapshot:
    """A state of a `Past`; nothing that happens later changes it."""

    conditions: Conditions
    guidance_scale: float
    context: Context
    caches: tuple[VideoSnapshot | None, ...]


class Past:
    """What chunks to come depend on. Each method leaves it as it was if it is interrupted.

    Args:
        network: the transformer; holds no state.
        rollout: the choices of the session.
        conditions: of the videos.
        guidance_scale: 1 is off, and then there is one branch instead of two.
        nothing: (B, 0, C, H, W), of the device and dtype of frames.
    """

    def __init__(
        self, network: Any, rollout: Rollout, conditions: Conditions, guidance_scale: float, nothing: Tensor
    ) -> None:
        self.network, self.rollout = network, rollout
        self.conditions, self.guidance_scale = conditions, guidance_scale
        self.branches = self._make_branches(conditions, guidance_scale)
        self.context = Context(nothing, (), ())

    def __len__(self) -> int:
        """Finished frames that are remembered."""
        return len(self.context)

    @property
    def nbytes(self) -> int:
        """Bytes that the caches hold."""
        return sum(branch.nbytes for branch in self.branches)

    def predictors(self, index: Sequence[int], meter: Meter) -> tuple[Predictor, Predictor]:
        """What the network says of the noisy frames `index` under each condition; twice the same without guidance.

        Raises:
            RuntimeError: they are not the next frames, or a cache does not hold what it should.
        """
        self._check_next(index)
        for branch in self.branches:
            if branch.cache is not None and branch.cache.num_frames != len(self):
                raise RuntimeError(f"a cache holds {branch.cache.num_frames} frames where {len(self)} are finished.")
        predictors = [branch.predictor(self.context, index, meter) for branch in self.branches]
        return predictors[0], predictors[-1]

    def write(self, frames: Tensor, index: Sequence[int], meter: Meter) -> None:
        """Make clean frames (B, T, C, H, W) with indices `index` part of the past.

        Raises:
            RuntimeError: they are not the next frames.
        """
        self._check_next(index)
        # A first write may be of several groups: into new caches, so that an interrupt between two loses it whole.
        branches = self.branches if len(self) else self._make_branches(self.conditions, self.guidance_scale)
        starts = self._write_groups(branches, frames, index, meter)
        self.branches, past = branches, self.context
        grown = Context(
            torch.cat([past.frames, frames], dim=1),
            (*past.index, *index),
            (*past.starts, *(len(past) + start for start in starts)),
        )
        # The slow exact path is the only one that needs to remember everything.
        self.context = grown if self.rollout.use_cache is False else self._trimmed(grown)

    def recache(self, meter: Meter, conditions: Conditions | None = None, guidance_scale: float | None = None) -> None:
        """Build the caches anew from the last W finished frames, as if they were all there ever was.

        Args:
            meter: counts the cost.
            conditions: from here on; None for no change.
            guidance_scale: from here on; None for no change.
        """
        conditions = self.conditions if conditions is None else conditions
        guidance_scale = self.guidance_scale if guidance_scale is None else guidance_scale
        branches, context = self._make_branches(conditions, guidance_scale), self._trimmed(self.context)
        if len(context):
            self._write_groups(branches, context.frames, context.index, meter)
        self.branches, self.conditions, self.guidance_scale = branches, conditions, guidance_scale

    def change_conditions(self, conditions: Conditions) -> None:
        """Go on under other conditions, while what is cached stays as it is."""
        self.conditions = conditions
        for branch, condition in zip(self.branches, conditions, strict=False):
            assert condition is not None
            branch.condition = condition

    def snapshot(self) -> PastSnapshot:
        """Remember this state; nearly free, as memory is copied only when it is next written to."""
        caches = tuple(branch.cache.snapshot() if branch.cache is not None else None for branch in self.branches)
        return PastSnapshot(self.conditions, self.guidance_scale, self.context, caches)

    def restore(self, snapshot: PastSnapshot) -> None:
        """Return to a state of a past with the same network and rollout."""
        kept = [condition for condition in snapshot.conditions if condition is not None]
        branches = [
            Branch(self.network, condition, self.rollout)
            for condition, _ in zip(kept, snapshot.caches, strict=False)  # one branch less without guidance
        ]
        for branch, cache in zip(branches, snapshot.caches, strict=True):
            if branch.cache is not None and cache is not None:
                branch.cache.restore(cache)
        self.branches, self.context = branches, snapshot.context
        self.conditions, self.guidance_scale = snapshot.conditions, snapshot.guidance_scale

    def _make_branches(self, conditions: Conditions, guidance_scale: float) -> list[Branch]:
        condition, negative = conditions
        guiding = [negative] if negative is not None and guidance_scale != 1 else []
        return [Branch(self.network, one, self.rollout) for one in (condition, *guiding)]

    def _check_next(self, index: Sequence[int]) -> None:
        if len(self) and index[0] != self.context.index[-1] + 1:
            raise RuntimeError(f"frame index must go on with {self.context.index[-1] + 1}, got {index[0]}.")

    def _write_groups(self, branches: list[Branch], frames: Tensor, index: Sequence[int], meter: Meter) -> list[int]:
        """Write frames in the groups that attention asks for; where each begins."""
        starts = self._groups(frames.shape[1])
        for first, stop in zip(starts, [*starts[1:], frames.shape[1]], strict=True):
            write_in_step(branches, frames[:, first:stop], index[first:stop], meter)
        return starts

    def _groups(self, count: int) -> list[int]:
        return group_starts(count, self.rollout.chunk_size, self.network.config["attention_mode"] == "block_causal")

    def _trimmed(self, context: Context) -> Context:
        kept = visible_frames(len(context), self.rollout.context_frames, self.rollout.sink_frames)
        starts = tuple(self._groups(len(kept))) if kept else ()
        return Context(context.frames[:, kept], tuple(context.index[i] for i in kept), starts)


def visible_frames(count: int, window: int, sinks: int) -> list[int]:
    """Which of `count` frames a window that holds `window` of them keeps: the first `sinks` and the last others."""
    if count <= window:
        return list(range(count))
    return [*range(sinks), *range(count - (window - sinks), count)]
