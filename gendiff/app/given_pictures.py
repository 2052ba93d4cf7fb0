"""Pictures that a person gives to start from, and how what they leave open is shown."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from gendiff.pipelines.images import to_tensor

from .video_inputs import read_picture

UNKNOWN = 0.5
"""Grey of what is not given."""


def read_pixels(path: Path, channels: int, side: int) -> Tensor:
    """The picture in a file, (1, C, S, S) in [0, 1].

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no picture, of another size, or coloured where grey is wanted.
    """
    picture = read_picture(path)
    if picture.size != (side, side):
        width, height = picture.size
        raise ValueError(f"{path} is {width} x {height} px, and pictures of this model are {side} x {side}.")
    try:
        return (to_tensor(picture, channels, side) + 1) / 2
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def without(images: Tensor, masks: Tensor) -> Tensor:
    """What a mask keeps of images (B, C, S, S): grey where it is 1, (B or 1, 1, S, S)."""
    return images * (1 - masks) + UNKNOWN * masks
