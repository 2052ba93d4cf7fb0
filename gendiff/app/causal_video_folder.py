"""The folder of one causal video: frames/0000.png and so on, video.gif, video.mp4 and run.json."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from gendiff.files import write_whole

from .output_folder import write_files
from .pictures import png_bytes
from .video_files import can_write_mp4, enlargement, write_gif, write_mp4

COLUMNS = ("start", "frames", "seconds", "cache_bytes")


class VideoFiles:
    """Writes the files of a video, all at once or frame by frame.

    A video of the same command that is there already is replaced, all of it.

    Args:
        path: the folder; it may not exist yet.
        source: where the first frames of the video are read from.

    Attributes:
        count: frames written so far.

    Raises:
        ValueError: `path` holds frames of something else, or those of `source`.
    """

    def __init__(self, path: Path, source: Path | None = None):
        self.path, self.count = path, 0
        self._mp4 = can_write_mp4()
        frames = path / "frames"
        if source is not None and frames.resolve() in (source.resolve(), *source.resolve().parents):
            raise ValueError(f"--out {path} would write over {source}, which is read; name another folder.")
        if frames.is_dir() and any(frames.iterdir()) and not self._is_ours():
            raise ValueError(f"{frames} holds files of something else; name another folder by --out.")
        if not self._mp4:
            warnings.warn(
                'video.mp4 is left out, it needs the package "av": pip install "gendiff[video]".', stacklevel=2
            )

    def write_all(self, frames: Sequence[Image.Image], fps: float, record: bytes) -> None:
        """Write all files, or none of them."""
        files = {self._name(number): png_bytes(frame) for number, frame in enumerate(frames)}
        with TemporaryDirectory() as scratch:
            videos = self._encode(Path(scratch), lambda: iter(frames), fps)
            files |= {path.name: path.read_bytes() for path in videos}
        write_files(self.path, {**files, "run.json": record})
        self.count = len(frames)
        self._remove_older()

    def add(self, frames: Sequence[Image.Image], row: Mapping[str, Any]) -> None:
        """Write the next frames, and what they cost as a line of chunks.csv."""
        table = self.path / "chunks.csv"
        if self.count == 0:
            write_whole(table, ",".join(COLUMNS) + "\n")
        for frame in frames:
            write_whole(self.path / self._name(self.count), png_bytes(frame))
            self.count += 1
        with table.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow([row[name] for name in COLUMNS])

    def rows(self) -> list[dict[str, Any]]:
        """The lines of chunks.csv so far."""
        with (self.path / "chunks.csv").open(newline="", encoding="utf-8") as file:
            return [
                {name: float(text) if name == "seconds" else int(text) for name, text in line.items()}
                for line in csv.DictReader(file)
            ]

    def finish(self, fps: float, record: bytes) -> None:
        """Write GIF, MP4 and run.json of the frames that were added, which are read back one by one."""
        self._encode(self.path, self._stored, fps)
        write_whole(self.path / "run.json", record)
        self._remove_older()

    def names(self) -> list[str]:
        """Files of a finished video, for people."""
        return ["video.gif", *(["video.mp4"] if self._mp4 else []), "frames", "run.json"]

    def _encode(self, folder: Path, frames: Any, fps: float) -> list[Path]:
        """Write the videos into `folder`, enlarged so that they can be seen."""
        first = next(frames())
        scale = enlargement(max(first.size))
        writers = {"video.gif": write_gif, **({"video.mp4": write_mp4} if self._mp4 else {})}
        for name, write in writers.items():
            enlarged = (
                frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST)
                for frame in frames()
            )
            write(folder / name, enlarged, fps)
        return [folder / name for name in writers]

    def _stored(self) -> Iterator[Image.Image]:
        for number in range(self.count):
            with Image.open(self.path / self._name(number)) as picture:
                picture.load()
                yield picture

    def _remove_older(self) -> None:
        """Remove what is left of a longer video that was here before."""
        for path in (self.path / "frames").glob("*.png"):
            if path.stem.isdecimal() and int(path.stem) >= self.count:
                path.unlink()
        if not self._mp4:
            (self.path / "video.mp4").unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        if (self.path / "chunks.csv").is_file():
            return True
        try:
            return json.loads((self.path / "run.json").read_bytes())["task"] == "causal-video"
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @staticmethod
    def _name(number: int) -> str:
        return f"frames/{number:04d}.png"
