"""Videos in files: `.gif` by Pillow, and what FFmpeg decodes by PyAV, which comes with `gendiff[video]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gendiff.data.source_files import BROKEN
from gendiff.data.video_source import Video, rgb
from gendiff.errors import InvalidInputError

CONTAINERS = (".gif", ".mp4", ".avi", ".mkv", ".webm", ".mov")


def open_container(path: Path) -> Video:
    """A video file as frames; how long each is shown is not looked at.

    Args:
        path: a file whose name ends as one of `CONTAINERS`.

    Raises:
        InvalidInputError: the file is damaged or holds no video.
        ImportError: the file needs PyAV, which is not installed.
    """
    return _Gif(path) if path.suffix.lower() == ".gif" else _Encoded(path)


class _Gif(Video):
    """Frames as they are seen, each laid over the ones before it; what is transparent then is white."""

    format = "GIF"

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        try:
            with Image.open(path, formats=["GIF"]) as picture:
                self.num_frames = int(getattr(picture, "n_frames", 1))
                self.size = (picture.height, picture.width)
        except BROKEN as error:
            raise InvalidInputError(f"{path} cannot be read as .gif: {error}") from error

    def read(self, frames: Sequence[int]) -> np.ndarray:
        pictures = []
        try:
            with Image.open(self.path, formats=["GIF"]) as picture:
                for frame in frames:
                    picture.seek(frame)
                    pictures.append(rgb(picture))
        except BROKEN as error:
            raise InvalidInputError(f"{self.path}: frame {len(pictures)} cannot be read: {error}") from error
        return np.stack(pictures)


class _Encoded(Video):
    """The first video stream of a file. A frame is found by its time, from the last key frame before it on.

    Times are read from the packets, without decoding. AVI does not store when a frame is shown, and what FFmpeg makes
    up for it is out of order where frames refer to later ones; so there, frames are counted from the start.
    """

    def __init__(self, path: Path):
        self.path, self.name, self.format = path, str(path), path.suffix.lower().lstrip(".").upper()
        av = _pyav(path)
        try:
            with av.open(str(path)) as container:
                stream = _video_stream(container, path)
                self.size = (stream.height, stream.width)
                packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
                times = [packet.pts for packet in packets]
                timed = "avi" not in container.format.name and None not in times and len(set(times)) == len(times)
        except av.FFmpegError as error:
            raise InvalidInputError(f"{path} cannot be read as {path.suffix}: {error.strerror}") from error
        self.times = sorted(times) if timed else None
        self.num_frames = len(times)
        if not self.num_frames:
            raise InvalidInputError(f"{path} holds no frames.")

    def read(self, frames: Sequence[int]) -> np.ndarray:
        found = self._decode(frames, seek=self.times is not None and frames[0] > 0)
        if len(found) < len(frames):  # the index of the file led past the frame, or there is none
            found = self._decode(frames, seek=False)
        if missing := [frame for frame in frames if frame not in found]:
            raise InvalidInputError(
                f"{self.path} is damaged: frame {missing[0]} of {self.num_frames} cannot be decoded."
            )
        return np.stack([found[frame] for frame in frames])

    def _decode(self, frames: Sequence[int], seek: bool) -> dict[int, np.ndarray]:
        """As many of the frames as could be found, by number."""
        av = _pyav(self.path)
        wanted = {self.times[frame] if self.times else frame: frame for frame in frames}
        last, found = max(wanted), {}
        try:
            with av.open(str(self.path)) as container:
                stream = _video_stream(container, self.path)
                if seek:
                    container.seek(min(wanted), stream=stream)
                for count, picture in enumerate(container.decode(stream)):
                    key = picture.pts if self.times else count
                    if key in wanted:
                        found[wanted[key]] = picture.to_ndarray(format="rgb24")
                    if key is not None and key >= last:
                        break
        except av.FFmpegError:
            pass  # what is missing is said by the caller, which knows whether there is another way
        return found


def _pyav(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(f'{path} needs the package "av": pip install "gendiff[video]".') from error
    return av


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise InvalidInputError(f"{path} holds no video stream.")
    return container.streams.video[0]
