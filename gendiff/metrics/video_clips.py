"""Videos to score, cut to clips of equal length: from tensors, datasets, folders of videos, and .npz files.

A clip is uint8 (F, 3, H, W): the frames 0, s, 2s, ... of a video for a stride s, grey repeated to 3 channels. Each
video gives one clip, because overlapping clips are no independent samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendiff.data.video_arrays import read_array
from gendiff.data.video_containers import CONTAINERS, open_container
from gendiff.data.video_source import IMAGES, FrameFolder, Video, by_number
from gendiff.errors import InvalidInputError, UnsafeFileError

RANGE_SLACK = 1e-3
"""How far outside [-1, 1] a value of a dataset may lie before it is another range rather than rounding."""


class Clips(ABC):
    """A finite, ordered set of videos; clip i is always the same bytes.

    Attributes:
        kind: "tensor", "dataset", "folder" or "npz".
        format: how frames were stored: "PNG", "JPEG", "MP4", ..., or "raw" for arrays.
    """

    kind: str
    format: str = "raw"

    @abstractmethod
    def __len__(self) -> int:
        """Number of videos."""

    @abstractmethod
    def video_length(self, index: int) -> int:
        """Frames of video `index`, before any are left out."""

    @abstractmethod
    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        """Frames of video `index`, uint8 (F, C, H, W) with C = 1 or 3."""


def open_clips(videos: Any, name: str) -> Clips:
    """Videos as clips.

    Args:
        videos: uint8 tensor or array (N, F, C, H, W) with C = 1 or 3; a dataset with items {"video": (F, C, H, W) in
            [-1, 1]}; a folder with one folder of frames (PNG, JPEG, BMP, WebP) or one file (.gif; .mp4, .avi, .mkv,
            .webm and .mov with `gendiff[video]`) for each video, in the order of the numbers in their names; or an
            .npz file with `arr_0`, uint8 (N, F, H, W, C).
        name: of the argument, for error messages.

    Raises:
        InvalidInputError: anything else.
        UnsafeFileError: the .npz file holds pickled objects.
    """
    if isinstance(videos, str | Path):
        path = Path(videos)
        if path.is_dir():
            return _Folder(path, name)
        if path.suffix.lower() == ".npz" and path.is_file():
            return _Array(_read_npz(path, name), name, "npz")
        raise InvalidInputError(f"{name} must be a folder of frame folders or an .npz file, got {str(path)!r}.")
    if isinstance(videos, Tensor | np.ndarray):
        tensor = torch.as_tensor(videos)
        return _Array(tensor, name, "tensor")
    if hasattr(videos, "__getitem__") and hasattr(videos, "__len__"):
        return _Dataset(videos, name)
    raise InvalidInputError(
        f"{name} must be a uint8 tensor (N, F, C, H, W), a dataset of videos, a folder or an .npz file, "
        f"got {type(videos).__name__}."
    )


def clip(clips: Clips, index: int, frames: int, stride: int, name: str) -> Tensor:
    """Clip `index`, uint8 (frames, 3, H, W).

    Raises:
        InvalidInputError: the video is too short, or cannot be read.
    """
    needed, length = (frames - 1) * stride + 1, clips.video_length(index)
    if length < needed:
        raise InvalidInputError(
            f"{name}: video {index} has {length} frames, {frames} frames at stride {stride} need {needed}."
        )
    return clips.read(index, range(0, needed, stride)).expand(-1, 3, -1, -1)


class _Array(Clips):
    """A tensor uint8 (N, F, C, H, W)."""

    def __init__(self, videos: Tensor, name: str, kind: str) -> None:
        if videos.dtype != torch.uint8:
            raise InvalidInputError(f"{name} must be uint8, the bytes one would save, got {videos.dtype}.")
        if videos.ndim != 5 or videos.shape[2] not in (1, 3) or videos.numel() == 0:
            raise InvalidInputError(
                f"{name} must be (N, F, C, H, W) with C = 1 or 3 and not empty, got {tuple(videos.shape)}."
            )
        self.videos, self.kind = videos, kind

    def __len__(self) -> int:
        return len(self.videos)

    def video_length(self, index: int) -> int:
        return self.videos.shape[1]

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return self.videos[index, list(frames)].cpu()


class _Dataset(Clips):
    """Items {"video": float (F, C, H, W) in [-1, 1]}."""

    kind = "dataset"

    def __init__(self, videos: Any, name: str) -> None:
        self.videos, self.name = videos, name
        self.last: tuple[int, Tensor] | None = None
        if len(videos) == 0:
            raise InvalidInputError(f"{name} is empty.")
        self._video(0)

    def __len__(self) -> int:
        return len(self.videos)

    def video_length(self, index: int) -> int:
        return len(self._video(index))

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        video = self._video(index)[list(frames)].float().cpu()
        low, high = video.min().item(), video.max().item()
        if not (low >= -1 - RANGE_SLACK and high <= 1 + RANGE_SLACK):  # also where a value is not a number
            raise InvalidInputError(f"{self.name}: video {index} must lie in [-1, 1], got [{low:.4g}, {high:.4g}].")
        return ((video + 1) * 127.5).round().clamp(0, 255).byte()

    def _video(self, index: int) -> Tensor:
        # Asked for the length and then for the frames; a rendered video is worth keeping in between.
        if self.last is not None and self.last[0] == index:
            return self.last[1]
        item = self.videos[index]
        video = item.get("video") if isinstance(item, dict) else None
        if not isinstance(video, Tensor) or not video.is_floating_point():
            raise InvalidInputError(f'{self.name}: item {index} must be {{"video": float (F, C, H, W) in [-1, 1]}}.')
        if video.ndim != 4 or video.shape[1] not in (1, 3) or video.numel() == 0:
            raise InvalidInputError(
                f"{self.name}: video {index} must be (F, C, H, W) with C = 1 or 3, got {tuple(video.shape)}."
            )
        self.last = (index, video)
        return video


class _Folder(Clips):
    """A folder with a folder of frames, or a file, for each video."""

    kind = "folder"

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        paths = [path for path in root.iterdir() if path.is_dir() or path.suffix.lower() in CONTAINERS]
        self.videos = [self._open(path) for path in sorted(paths, key=by_number)]
        if not self.videos:
            raise InvalidInputError(
                f"{name}: {root} holds no folders of frames ({', '.join(IMAGES)}), one folder for each video, and no"
                f" videos ({', '.join(CONTAINERS)})."
            )
        self.format = "+".join(sorted({part for video in self.videos for part in video.format.split("+")}))

    def __len__(self) -> int:
        return len(self.videos)

    def video_length(self, index: int) -> int:
        return self.videos[index].num_frames

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        try:
            return torch.from_numpy(self.videos[index].read(frames)).permute(0, 3, 1, 2)
        except InvalidInputError as error:
            raise InvalidInputError(f"{self.name}: {error}") from error

    def _open(self, path: Path) -> Video:
        try:
            if not path.is_dir():
                return open_container(path)
            inside = [file.name for file in path.rglob("*") if file.suffix.lower() in CONTAINERS]
            if inside:
                raise InvalidInputError(
                    f"{path} holds {min(inside)}; decode videos to one folder of PNG frames each, or move the files up."
                )
            return FrameFolder(path)
        except InvalidInputError as error:
            raise InvalidInputError(f"{self.name}: {error}") from error


def _read_npz(path: Path, name: str) -> Tensor:
    try:
        videos = read_array(path)
    except (InvalidInputError, UnsafeFileError) as error:
        raise type(error)(f"{name}: {error}") from error
    if videos.ndim != 5:
        raise InvalidInputError(f"{name}: arr_0 of {path} must be (N, F, H, W, C), got {videos.shape}.")
    return torch.from_numpy(videos).permute(0, 1, 4, 2, 3)
