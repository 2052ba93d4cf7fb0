"""One video that is read frame by frame when asked for, whatever it is stored as, and folders of frames as such."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from gendiff.data.pixels import EIGHT_BIT_MODES, from_pil, to_rgb
from gendiff.data.source_files import BROKEN
from gendiff.errors import InvalidInputError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Files that are taken for frames, by the end of their name."""


class Video(ABC):
    """A video in a file or folder, of which only paths and sizes are held.

    Attributes:
        name: where it is, for messages.
        num_frames: how many frames it has.
        size: (H, W) in pixels, of the first frame where frames are files of their own.
        format: how frames are stored: "PNG", "GIF", ..., or "raw" for arrays.
    """

    name: str
    num_frames: int
    size: tuple[int, int]
    format: str

    @abstractmethod
    def read(self, frames: Sequence[int]) -> np.ndarray:
        """Frames by number, in rising order and each once: uint8 (F, H, W, C) with C = 1 or 3.

        Raises:
            InvalidInputError: the file is damaged, has values out of range, or frames of several sizes; it is named.
        """


class FrameFolder(Video):
    """A folder with an image file for each frame, in the order of the numbers in their names.

    Raises:
        InvalidInputError: the folder holds no frames, or the first cannot be read.
    """

    def __init__(self, folder: Path):
        self.paths = frames_in(folder)
        if not self.paths:
            raise InvalidInputError(f"{folder} holds no frames ({', '.join(IMAGES)}), one folder for each video.")
        self.name, self.num_frames = str(folder), len(self.paths)
        self.size = _picture_size(self.paths[0])
        suffixes = {path.suffix.lower().lstrip(".").replace("jpg", "jpeg").upper() for path in self.paths}
        self.format = "+".join(sorted(suffixes))

    def read(self, frames: Sequence[int]) -> np.ndarray:
        pictures = [_read_picture(self.paths[frame]) for frame in frames]
        for frame, picture in zip(frames, pictures, strict=True):
            if picture.shape[:2] != self.size:
                raise InvalidInputError(
                    f"{self.paths[frame]} is {_pixels(picture.shape[:2])} px, {self.paths[0]} is {_pixels(self.size)}"
                    " px; frames must have one size."
                )
        return np.stack(pictures)


def frames_in(folder: Path) -> list[Path]:
    """Image files of a folder, in the order of the numbers in their names; hidden ones are left alone."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith(".")]
    return sorted(found, key=by_number)


def by_number(path: Path) -> list[tuple[int, int, str]]:
    """Order in which frame_10 comes after frame_9: a frame out of its place would be taken for motion."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def rgb(picture: Image.Image) -> np.ndarray:
    """A picture as uint8 (H, W, 3); what is transparent is white.

    Raises:
        InvalidInputError: it has more than 8 bits per channel.
    """
    if picture.mode not in EIGHT_BIT_MODES:
        raise InvalidInputError(f"it has values of more than 8 bits ({picture.mode})")
    return to_rgb(from_pil(picture)).permute(1, 2, 0).numpy()


def _read_picture(path: Path) -> np.ndarray:
    with _opened(path) as picture:
        return rgb(picture)


def _picture_size(path: Path) -> tuple[int, int]:
    with _opened(path) as picture:
        return picture.height, picture.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        # A decompression bomb is only a warning of Pillow's up to twice its limit.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                yield picture
    except (*BROKEN, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"{path} cannot be read as an image: {error}") from error


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
