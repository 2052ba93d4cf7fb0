"""What a network says of a noisy chunk under one condition, given the clean frames before it: cached, or anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendiff.nn.frame_plan import history_plan
from gendiff.samplers.loop import Predictor, Step

from .causal_video_condition import Condition
from .causal_video_rollout import Rollout
from .stats import Meter


@dataclass(frozen=True)
class Context:
    """Clean frames as the network sees them.

    Attributes:
        frames: (B, T, C, H, W).
        index: of each frame in the video. A tuple, as reading a tensor would wait for the accelerator.
        starts: position in `frames` of the first frame of each group that was written together.
    """

    frames: Tensor
    index: tuple[int, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.index)


class Branch:
    """A condition, and the cache of clean frames under it. Guidance takes two.

    Args:
        network: the transformer; holds no state.
        condition: of the videos.
        rollout: says whether there is a cache, and how large.
    """

    def __init__(self, network: Any, condition: Condition, rollout: Rollout) -> None:
        self.network, self.condition, self.rollout = network, condition, rollout
        window, chunk, sinks = rollout.context_frames, rollout.chunk_size, rollout.sink_frames
        cached = rollout.use_cache is True
        self.cache = network.make_cache(window, chunk, sinks, layout=rollout.layout) if cached else None

    @property
    def nbytes(self) -> int:
        """Bytes that the cache holds."""
        return self.cache.nbytes if self.cache is not None else 0

    def write(self, frames: Tensor, index: Sequence[int], meter: Meter) -> None:
        """Take clean frames (B, T, C, H, W) into the cache, uncommitted; without a cache there is nothing to do."""
        if self.cache is None:
            return
        self._call(
            meter,
            frames.transpose(1, 2),
            torch.zeros(len(frames), device=frames.device),
            frame_index=torch.tensor(index, device=frames.device),
            kv_cache=self.cache,
            cache_mode="write",
        )

    def predictor(self, context: Context, index: Sequence[int], meter: Meter) -> Predictor:
        """What the network says of the noisy frames `index`, state (B, C, l, H, W), after `context`."""
        if self.cache is None:
            return self._anew(context, index, meter)
        return self._cached(self.cache, torch.tensor(index, device=context.frames.device), meter)

    def _cached(self, cache: Any, index: Tensor, meter: Meter) -> Predictor:

        def predict(noisy: Tensor, step: Step) -> Tensor:
            times = step.timestep.expand(len(noisy))
            try:
                noisy = noisy.to(self.network.dtype)
                return self._call(meter, noisy, times, frame_index=index, kv_cache=cache, cache_mode="read")
            finally:
                cache.rollback()

        return predict

    def _anew(self, context: Context, index: Sequence[int], meter: Meter) -> Predictor:
        """The slow way: a forward over clean frames and noisy ones."""
        past, config = len(context), self.network.config
        total = past + len(index)
        whole = self.rollout.use_cache == "window"  # then nothing in `context` is outside of the window
        plan = history_plan(
            total,
            [*context.starts, past] if past else [0],
            total if whole else self.rollout.context_frames,
            config["attention_mode"],
            config["prefix_references"],
            sinks=0 if whole else self.rollout.sink_frames,
            noisy_from=past,
        ).to(context.frames.device)
        clean = context.frames.transpose(1, 2)
        indices = torch.tensor([*context.index, *index], device=clean.device)

        def predict(noisy: Tensor, step: Step) -> Tensor:
            noisy = noisy.to(self.network.dtype)
            both = torch.cat([clean, noisy], dim=2)
            times = step.timestep.expand(len(noisy))
            said = self._call(meter, both, times, frame_index=indices, num_prefix_frames=past, plan=plan)
            return said[:, :, past:]

        return predict

    def _call(self, meter: Meter, frames: Tensor, times: Tensor, **arguments: Any) -> Any:
        condition = self.condition.arguments()
        # Contiguous, as code that is compiled for one layout in memory is compiled again for another.
        inputs = frames.contiguous(), times.contiguous()
        return meter(self.network, *inputs, **condition, **arguments, return_dict=False)[0]


def write_in_step(branches: Sequence[Branch], frames: Tensor, index: Sequence[int], meter: Meter) -> None:
    """Write in all branches, then commit in all: an interrupt halfway leaves every cache as it was."""
    caches = [branch.cache for branch in branches if branch.cache is not None]
    try:
        for branch in branches:
            branch.write(frames, index, meter)
    except BaseException:
        for cache in caches:
            cache.rollback()
        raise
    for cache in caches:
        cache.commit()
