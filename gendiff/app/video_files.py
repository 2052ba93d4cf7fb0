"""Videos written to files that play anywhere: GIF by Pillow, MP4 by PyAV (`gendiff[video]`), one frame at a time.

Memory does not grow with the length of a video: frames may come from a generator, and each is let go once written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops
from PIL.GifImagePlugin import getdata, getheader
from torch import Tensor

from gendiff.files import whole_file

from .pictures import to_pil

SHOWN = 256
"""Side in screen pixels, about, that small videos are enlarged to."""
FASTEST = 50
"""Most frames a second: players show a GIF frame for at least 2/100 s."""


def enlargement(side: int) -> int:
    """The whole factor that brings frames whose longer side is `side` pixels to about `SHOWN`."""
    return max(1, SHOWN // side)


def pictures(frames: Iterable[Tensor], scale: int = 1) -> Iterator[Image.Image]:
    """Frames (C, H, W) as pictures, each pixel a square of side `scale`.

    Args:
        frames: uint8, or floats in [0, 1]; C = 1 or 3.
        scale: at least 1.

    Raises:
        ValueError: another shape, or values that are not numbers.
    """
    for frame in frames:
        yield to_pil(frame.float() / 255 if frame.dtype == torch.uint8 else frame, scale)


def gif_bytes(frames: Iterable[Tensor], fps: float = 8, scale: int = 1) -> bytes:
    """Content of a GIF that plays for ever. Grey frames are exact, colour is exact up to 256 colours in a frame.

    Args:
        frames: (T, C, H, W) or an iterable of (C, H, W), uint8 or floats in [0, 1].
        fps: frames a second, up to 50; shown times are whole hundredths of a second and keep the rate on average.
        scale: whole factor of enlargement, with sharp pixels.

    Raises:
        ValueError: no frames, frames of several sizes, or a number out of range.
    """
    return b"".join(_gif(pictures(frames, scale), fps))


def write_gif(path: Path, frames: Iterable[Image.Image], fps: float) -> None:
    """Write pictures of one size as `gif_bytes` does; the file is there whole or not at all."""
    with whole_file(path) as partial, partial.open("wb") as file:
        file.writelines(_gif(frames, fps))


def write_mp4(path: Path, frames: Iterable[Image.Image], fps: float) -> None:
    """Write pictures of one size as an MP4 (H.264, yuv420p) that browsers play; it is there whole or not at all.

    Odd sides get one more row or column, a copy of the last. Arguments and errors as of `gif_bytes`, and:

    Raises:
        ImportError: PyAV is missing.
    """
    with whole_file(path) as partial:
        _encode_mp4(partial, frames, fps)


def can_write_mp4() -> bool:
    """Whether PyAV is installed."""
    return find_spec("av") is not None


def check_fps(fps: float) -> float:
    """`fps`, or a ValueError that names it unless it lies above 0 and up to 50."""
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= FASTEST:
        raise ValueError(f"fps must be a number above 0 and up to {FASTEST}, got {fps!r}.")
    return fps


def _gif(frames: Iterable[Image.Image], fps: float) -> Iterator[bytes]:
    """Pieces of a GIF. Pillow's own writer keeps all frames in memory, and drops those that repeat the one before."""
    check_fps(fps)
    before, count = None, 0
    for picture in _of_one_size(frames):
        if before is None:
            yield from getheader(_indexed(picture), info={"loop": 0})[0]
            box = (0, 0, *picture.size)
        else:
            box = ImageChops.difference(before, picture).getbbox() or (0, 0, 1, 1)
        hundredths = round(100 * (count + 1) / fps) - round(100 * count / fps)
        part = _indexed(picture.crop(box))
        yield from getdata(part, box[:2], duration=10 * hundredths, include_color_table=part.mode == "P")
        before, count = picture, count + 1
    if before is None:
        raise ValueError("frames must not be empty.")
    yield b";"


def _indexed(picture: Image.Image) -> Image.Image:
    """With a palette: grey has its own, colour gets the 256 that fit best."""
    if picture.mode == "L":
        return picture.copy()
    return picture.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _encode_mp4(path: Path, frames: Iterable[Image.Image], fps: float) -> None:
    rate = Fraction(check_fps(fps)).limit_denominator(1000)
    av = _pyav()
    # The index goes to the front, so that a browser can play the file before all of it has come.
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = None
        for picture in _of_one_size(frames):
            even = _even(picture)
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "14", "preset": "medium"})
                stream.width, stream.height, stream.pix_fmt = *even.size, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(even), format="rgb24")))
        if stream is None:
            raise ValueError("frames must not be empty.")
        container.mux(stream.encode())


def _even(picture: Image.Image) -> Image.Image:
    """In colour, with sides that 4:2:0 subsampling can halve."""
    pixels = np.asarray(picture.convert("RGB"))
    return Image.fromarray(np.pad(pixels, [(0, side % 2) for side in pixels.shape[:2]] + [(0, 0)], mode="edge"))


def _of_one_size(frames: Iterable[Image.Image]) -> Iterator[Image.Image]:
    first = None
    for number, picture in enumerate(frames):
        first = first or (picture.size, picture.mode)
        if (picture.size, picture.mode) != first:
            raise ValueError(
                f"frames must have one size and mode: frame {number} is {picture.size}, {picture.mode}, the first "
                f"{first[0]}, {first[1]}."
            )
        yield picture


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError('MP4 needs the package "av": pip install "gendiff[video]".') from error
    return av
