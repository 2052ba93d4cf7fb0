"""Random changes of training images; all draws come from the step's generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image (B, C, S, S) moved by -most .. most pixels along both sides; the border is repeated outwards."""
    count, _, height, width = images.shape
    down, right = torch.randint(2 * most + 1, (2, count), generator=generator).to(images.device)
    rows = (torch.arange(height, device=images.device) + down[:, None])[:, :, None]
    columns = (torch.arange(width, device=images.device) + right[:, None])[:, None, :]
    index = torch.arange(count, device=images.device)[:, None, None]
    # Indices split by a slice put the channels last.
    return pad(images, (most,) * 4, mode="replicate")[index, :, rows, columns].permute(0, 3, 1, 2)


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, S, S), each mirrored left to right with probability 1/2."""
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
