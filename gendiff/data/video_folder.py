"""Videos of your own: a folder for each split, in it a video for each file or folder of frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.data.image_folder import FILTER
from gendiff.data.labelled import check_choice
from gendiff.data.rendered import check_count, from_bytes
from gendiff.data.video_arrays import ARRAYS, array_videos, check_axes
from gendiff.data.video_containers import CONTAINERS, open_container
from gendiff.data.video_source import IMAGES, FrameFolder, Video, by_number, frames_in
from gendiff.errors import InvalidInputError

KINDS = f"folders of frames ({', '.join(IMAGES)}), {', '.join((*ARRAYS, *CONTAINERS))}"


class VideoFolder(Dataset):
    """Clips of the videos in `root/split/` and all folders below it, or in `root` for the split `all`.

    A video is a folder of image files; a `.npy` or `.npz` file of one or many videos, uint8 or floats in [0, 1]; a
    `.gif`; or an `.mp4`, `.avi`, `.mkv`, `.webm` or `.mov`, which need `gendiff[video]`. Videos are sorted by their
    paths, frames by the numbers in their names. Nothing is decoded before it is asked for.

    A clip is the frames s, s + stride, s + 2 stride, ... of a video. Clips of a video do not overlap: they start at 0,
    B, 2 B, ... with B = num_frames * stride, as long as all frames are there; what is left at the end is not used. An
    item is `{"video": (F, C, H, W) float32 in [-1, 1]}` and follows from the files and its index alone.

    Args:
        split: name of a folder in `root`, or `all` for `root` itself.
        root: the folder.
        num_frames: F.
        size: height and width to bring frames to: the shorter side is scaled, with a bicubic filter over all pixels,
            and the middle cut out, as `crop` does for `image-folder`. None takes frames as they are, if of one size.
        stride: between frames.
        channels: 3 for colour (grey is repeated) or 1 for grey.
        num_videos: keep only so many clips, taken evenly from all.
        axes: of arrays, a letter for each: "FNHW" is the Moving MNIST test file (20, 10000, 64, 64). Needed only where
            a shape does not tell, see `gendiff.data.video_arrays.array_videos`.

    Attributes:
        frame_shape: (C, H, W).
        classes: empty, for nothing is known of what the videos show.
        clips: path, or path and number, of the video, and first frame of each clip.

    Raises:
        FileNotFoundError: the folder is missing, or holds no video.
        InvalidInputError: a bad argument, or a video that is damaged, too short or, where `size` is None, of another
            size than the first; it is named. Frames that cannot be decoded are found when they are read.
        UnsafeFileError: an array file holds pickled objects; they were not read.
        ImportError: a file needs PyAV, which is not installed.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        split: str = "train",
        root: str | Path = "data",
        num_frames: int = 16,
        size: int | None = 32,
        stride: int = 1,
        channels: int = 3,
        num_videos: int | None = None,
        axes: str | None = None,
    ):
        for name, value in (("num_frames", num_frames), ("stride", stride)):
            check_count(name, value)
        for name, value in (("size", size), ("num_videos", num_videos)):
            if value is not None:
                check_count(name, value)
        check_choice("channels", channels, (1, 3))
        check_axes(axes)
        folder = _folder(Path(root), split)
        self._videos = _find(folder, axes)
        if not self._videos:
            raise FileNotFoundError(f"{folder} holds no video: {KINDS}.{_hint(folder)}")
        self.num_frames, self.size, self.stride, self.channels = num_frames, size, stride, channels
        height, width = (size, size) if size is not None else _common_size(self._videos)
        self.frame_shape = (channels, height, width)
        starts = [self._starts(video) for video in self._videos]
        places = [(number, start) for number, found in enumerate(starts) for start in found]
        if num_videos is not None and num_videos > len(places):
            raise InvalidInputError(f"num_videos is {num_videos}, but {folder} holds {len(places)} clips.")
        kept = len(places) if num_videos is None else num_videos
        self._places = [places[k * len(places) // kept] for k in range(kept)]

    @property
    def clips(self) -> tuple[tuple[str, int], ...]:
        return tuple((self._videos[number].name, start) for number, start in self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a dataset of {len(self)} clips")
        number, start = self._places[index]
        frames = self._videos[number].read(range(start, start + self.num_frames * self.stride, self.stride))
        clip = np.stack([self._fitted(frame) for frame in frames])
        return {"video": from_bytes(torch.from_numpy(clip).permute(0, 3, 1, 2)).contiguous()}

    def _starts(self, video: Video) -> range:
        needed = (self.num_frames - 1) * self.stride + 1
        if video.num_frames < needed:
            raise InvalidInputError(
                f"{video.name} has {video.num_frames} frames; num_frames={self.num_frames} at stride={self.stride}"
                f" needs {needed}."
            )
        return range(0, video.num_frames - needed + 1, self.num_frames * self.stride)

    def _fitted(self, frame: np.ndarray) -> np.ndarray:
        """A frame (H, W, 1 | 3) uint8 at the size and with the channels that were asked for."""
        if frame.shape == (*self.frame_shape[1:], self.channels):
            return frame
        picture = Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame)
        if self.size is not None:
            picture = ImageOps.fit(picture, (self.size, self.size), FILTER)
        return np.atleast_3d(np.array(picture.convert("L" if self.channels == 1 else "RGB")))


def _folder(root: Path, split: str) -> Path:
    if not isinstance(split, str) or split in ("", "..") or Path(split).name != split:
        raise InvalidInputError(f"split must be the name of a folder in root, or all; got {split!r}.")
    folder = root if split == "all" else root / split
    if not folder.is_dir():
        hint = f" {root} itself, with the videos in it, is the split 'all'." if root.is_dir() else ""
        raise FileNotFoundError(f"the folder {folder} does not exist.{hint}")
    return folder


def _find(folder: Path, axes: str | None) -> list[Video]:
    """Videos in a folder and those below it; hidden files, and files of other kinds, are left alone."""
    videos: list[Video] = []
    for path in sorted(folder.iterdir(), key=by_number):
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            continue
        if path.is_dir():
            inner = _find(path, axes)
            frames = frames_in(path)
            if frames and inner:
                raise InvalidInputError(f"{path} holds frames and {inner[0].name}; give each video a place of its own.")
            if not frames and not inner:
                raise InvalidInputError(f"{path} holds no frames ({', '.join(IMAGES)}) and no other video.")
            videos += [FrameFolder(path)] if frames else inner
        elif suffix in ARRAYS:
            videos += array_videos(path, axes)
        elif suffix in CONTAINERS:
            videos.append(open_container(path))
    return videos


def _hint(folder: Path) -> str:
    return " The frames of a video go into a folder of their own." if frames_in(folder) else ""


def _common_size(videos: list[Video]) -> tuple[int, int]:
    first = videos[0]
    for video in videos:
        if video.size != first.size:
            raise InvalidInputError(
                f"{video.name} has frames of {video.size[1]}x{video.size[0]} px, {first.name} of"
                f" {first.size[1]}x{first.size[0]} px; give size, to which frames are scaled and cropped."
            )
    return first.size
