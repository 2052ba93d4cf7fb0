"""The call that all causal video transformers share: what may be passed together, and the timestep of each frame."""

from __future__ import annotations

import torch
from torch import Tensor

from gendiff.nn.frame_plan import FramePlan
from gendiff.nn.video_cache import VideoKVCache

CACHE_MODES = ("none", "read", "write")


def frame_times(timestep: Tensor, batch: int, frames: int, num_prefix_frames: int) -> Tensor:
    """Timesteps (B, T) from a scalar, (B,) or (B, T); 0 for the first `num_prefix_frames`, which are clean."""
    times = timestep[:, None] if timestep.ndim == 1 else timestep
    times = times.expand(batch, frames)
    if num_prefix_frames:
        times = torch.cat([torch.zeros_like(times[:, :num_prefix_frames]), times[:, num_prefix_frames:]], dim=1)
    return times


def check_causal_call(
    frames: int,
    num_prefix_frames: int,
    frame_index: Tensor | None,
    plan: FramePlan | None,
    kv_cache: VideoKVCache | None,
    cache_mode: str,
) -> None:
    """Raise ValueError where the arguments of a forward of T = `frames` frames do not fit together."""
    if cache_mode not in CACHE_MODES:
        raise ValueError(f"cache_mode must be one of {', '.join(CACHE_MODES)}, got {cache_mode!r}.")
    if (kv_cache is None) != (cache_mode == "none"):
        raise ValueError(f"kv_cache and cache_mode must be given together, got cache_mode={cache_mode!r}.")
    if not 0 <= num_prefix_frames <= (frames if kv_cache is None else 0):
        allowed = f"0 .. {frames}" if kv_cache is None else "0 with a kv_cache, which holds the clean frames"
        raise ValueError(f"num_prefix_frames must be {allowed}, got {num_prefix_frames}.")
    if plan is not None and (kv_cache is not None or len(plan.query_positions) != frames):
        raise ValueError(f"plan must be of {frames} frames, and without a kv_cache.")
    if frame_index is not None and len(frame_index) != frames:
        raise ValueError(f"frame_index must be ({frames},), got {tuple(frame_index.shape)}.")
