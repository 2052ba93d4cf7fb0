"""Random changes of training images; all draws come from the step's generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gendiff.errors import InvalidInputError


def augmented(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Images (B, C, S, S) moved by up to `shift` pixels and, with `flip`, mirrored, as a recipe's `objective` asks for.

    Raises:
        InvalidInputError: an option out of its range.
    """
    if isinstance(shift, bool) or not isinstance(shift, int) or not 0 <= shift < images.shape[-1]:
        raise InvalidInputError(f"objective.shift must be an integer from 0 to below the side, got {shift!r}.")
    if not isinstance(flip, bool):
        raise InvalidInputError(f"objective.flip must be true or false, got {flip!r}.")
    if shift:
        images = shifted(images, shift, generator)
    return flipped(images, generator) if flip else images


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
