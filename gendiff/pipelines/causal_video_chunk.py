"""What a rollout hands out: chunks as they come, and all of them as one video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from .causal_video_frames import convert_frames
from .stats import RunStats


@dataclass(frozen=True)
class VideoChunk:
    """Frames that came together.

    Attributes:
        index: number of the chunk, from 0.
        start: index of its first frame in the video.
        frames: (B, l, C, H, W) in [0, 1].
        latents: the same as the network sees them, in about [-1, 1] without a VAE.
        seconds: for the walk and the write, without decoding.
        network_calls: forward passes.
        flops: floating-point operations of them.
        cache_bytes: held after the chunk.
    """

    index: int
    start: int
    frames: Tensor
    latents: Tensor
    seconds: float
    network_calls: int
    flops: int
    cache_bytes: int

    def record(self) -> dict[str, Any]:
        """Where it stands in the video and what it cost, for logs."""
        return {
            "start": self.start,
            "frames": self.latents.shape[1],
            "seconds": self.seconds,
            "cache_bytes": self.cache_bytes,
        }


@dataclass
class CausalVideoPipelineOutput(BaseOutput):
    """Generated videos.

    Attributes:
        frames: tensor (B, T, C, H, W) in [0, 1], array (B, T, H, W, C), lists of PIL images, or for "latent" the frames
            as the network sees them.
        stats: what the run cost; `stats.plan["chunks"]` has start, frames, seconds and cache bytes of each chunk.
    """

    frames: Any
    stats: RunStats


class StopRollout(Exception):
    """A callback asked to stop; the chunk in the making is dropped and all before it is kept."""


def join_chunks(
    chunks: Sequence[VideoChunk], output_type: str, stats: RunStats, nothing: tuple[Tensor, Tensor]
) -> CausalVideoPipelineOutput:
    """Chunks as one video, with what each cost in the plan.

    Args:
        chunks: one after the other.
        output_type: of the frames.
        stats: of the run.
        nothing: frames and latents with T = 0, for a video that was stopped before its first chunk.
    """
    pictures, latents = nothing
    if output_type == "latent":
        frames = torch.cat([latents, *(chunk.latents for chunk in chunks)], dim=1)
    else:
        frames = torch.cat([pictures, *(chunk.frames for chunk in chunks)], dim=1)
    stats = replace(stats, plan={**stats.plan, "chunks": [chunk.record() for chunk in chunks]})
    return CausalVideoPipelineOutput(convert_frames(frames, output_type), stats)
