"""How a video is cut into chunks, and the noise each of its frames starts from. A rollout is a chain of walks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


def chunk_lengths(num_new: int | None, chunk: int, first: int) -> Iterator[int]:
    """Lengths of the chunks that `num_new` frames are generated in: `first`, then `chunk` each.

    Args:
        num_new: frames in all; None = without end. The last chunk is shorter where they do not divide.
        chunk: l.
        first: length of the first chunk, which differs where it has no frame before it.
    """
    done = 0
    while num_new is None or done < num_new:
        length = first if done == 0 else chunk
        length = length if num_new is None else min(length, num_new - done)
        yield length
        done += length


def group_starts(num_frames: int, chunk: int, whole_chunks: bool) -> list[int]:
    """Where each group of clean frames begins that is written at once; the last frame ends a chunk.

    Args:
        num_frames: frames to write, at least 1.
        chunk: l.
        whole_chunks: whether clean frames of a chunk see each other in both directions, so that the grouping matters.
            Where they look back only, all frames can be written together.
    """
    if not whole_chunks:
        return [0]
    first = num_frames % chunk
    return [*([0] if first else []), *range(first, num_frames, chunk)]


def frame_noise(
    num_frames: int,
    frame_shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Noise (B, T, C, H, W), drawn frame by frame, so that a frame's does not depend on how the video is cut.

    Args:
        num_frames: T.
        frame_shape: (B, C, H, W).
        generator: one, or one for each video.
        device: of the result.
        dtype: of the result.
    """
    batch, *shape = frame_shape
    frames = [randn_tensor((batch, 1, *shape), generator, device, dtype) for _ in range(num_frames)]
    return torch.cat(frames, dim=1)
