"""First frames that a person has in files, as the pictures a pipeline takes. Nothing is resized unless asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from gendiff.data.video_arrays import ARRAYS, array_videos
from gendiff.data.video_containers import CONTAINERS, open_container
from gendiff.data.video_source import FrameFolder
from gendiff.errors import InvalidInputError


def read_picture(path: Path) -> Image.Image:
    """The picture in a file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not a picture.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is not a picture.") from error


def read_video(path: Path) -> list[Image.Image]:
    """All frames of a video: a folder of pictures, `.gif`, `.npy`, `.npz`, or what FFmpeg decodes.

    Raises:
        FileNotFoundError: there is no such file or folder.
        InvalidInputError: it is damaged, of another kind, or an array of several videos.
        ImportError: it needs PyAV, which is not installed.
    """
    if not path.exists():
        raise FileNotFoundError(2, "No such file or folder", str(path))
    suffix = path.suffix.lower()
    if path.is_dir():
        video = FrameFolder(path)
    elif suffix in ARRAYS:
        videos = array_videos(path)
        if len(videos) > 1:
            raise InvalidInputError(f"{path} holds {len(videos)} videos; save the one to go on from alone.")
        video = videos[0]
    elif suffix in CONTAINERS:
        video = open_container(path)
    else:
        known = ", ".join((*ARRAYS, *CONTAINERS))
        raise InvalidInputError(f"{path} must be a folder of pictures or one of {known}.")
    frames = video.read(range(video.num_frames))
    return [Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame) for frame in frames]


def fitted(frames: Sequence[Image.Image], shape: tuple[int, int, int]) -> list[Image.Image]:
    """Pictures as a model of frames (C, H, W) takes them: scaled, with the middle cut out, and grey for C = 1."""
    channels, height, width = shape
    fit = [ImageOps.fit(frame, (width, height), Image.Resampling.BICUBIC) for frame in frames]
    return [frame.convert("L" if channels == 1 else "RGB") for frame in fit]
