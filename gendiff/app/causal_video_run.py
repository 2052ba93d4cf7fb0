"""A causal video from loaded model to finished files, whole or as a stream of frames, for the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from PIL import Image
from tqdm.auto import tqdm

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.stats import RunStats

from .causal_video_folder import VideoFiles
from .interruption import ended_by_signals
from .pictures import to_pil
from .run_record import run_record
from .video_files import check_fps
from .video_inputs import fitted, read_picture, read_video


@dataclass(frozen=True)
class Order:
    """What video to make.

    Attributes:
        model: built-in checkpoint, folder or hub repository.
        image: file of the first frame.
        video: file or folder of the first frames instead.
        resize: scale and crop them to the model's size; else another size is an error.
        num_frames: of the whole video, given ones included; None never ends, which only a stream can.
        class_name: name or number of the class; None for none.
        options: of `CausalVideoPipeline.start`.
        seed: of all noise.
        device: e.g. "cuda"; None for the CPU.
        fps: frames a second that the files play at.
    """

    model: str
    image: Path | None = None
    video: Path | None = None
    resize: bool = False
    num_frames: int | None = 64
    class_name: str | None = None
    options: Mapping[str, Any] | None = None
    seed: int = 0
    device: str | None = None
    fps: float = 8

    def __post_init__(self) -> None:
        if self.image is not None and self.video is not None:
            raise ValueError("give --image or --video, not both.")
        check_fps(self.fps)


def run(order: Order, folder: VideoFiles, arguments: Mapping[str, Any]) -> str:
    """Make a video and write all its files, or none of them.

    Args:
        folder: where to.
        arguments: as typed, recorded in run.json.

    Returns: a summary for the terminal.

    Raises:
        ValueError: anything about the order that does not fit the model; before any sampling.
        OSError: the model or the given frames cannot be read, or a file cannot be written.
    """
    session, given, rest = _start(order)
    frames: list[Image.Image] = []
    rows: list[dict[str, Any]] = []
    with tqdm(total=order.num_frames, unit="frame") as bar:
        for chunk in _chunks(session, rest):
            frames += _pictures(chunk)
            rows.append(chunk.record())
            bar.update(rows[-1]["frames"])
    stats = _stats(session, rows)
    record = run_record("causal-video", arguments, stats, frames=len(frames), given=given)
    folder.write_all(frames, order.fps, record)
    return _summary(len(frames), given, stats)


def stream(order: Order, folder: VideoFiles, arguments: Mapping[str, Any], say: Callable[[str], None]) -> str:
    """Make a video whose frames are written as they come, until it is whole or a signal ends it.

    Ctrl-C or SIGTERM ends it after the chunk in the making, a second one at once; GIF, MP4 and run.json are then
    written for the frames that exist. Memory does not grow with the video.

    Args:
        say: told a line for each chunk; else as of `run`.

    Raises:
        KeyboardInterrupt: there was no frame yet.
        ValueError, OSError: as `run`.
    """
    session, given, rest = _start(order)
    stopped = False
    with ended_by_signals() as ended:
        try:
            for chunk in _chunks(session, rest):
                row = chunk.record()
                folder.add(_pictures(chunk), row)
                last = row["start"] + row["frames"] - 1
                say(f"frames {row['start']}-{last}: {row['seconds']:.2f} s, cache {row['cache_bytes'] / 1e6:.1f} MB")
                if ended():
                    stopped = True
                    break
        except KeyboardInterrupt:
            stopped = True
            if not folder.count:
                raise
    stats = _stats(session, folder.rows())
    record = run_record("causal-video", arguments, stats, frames=folder.count, given=given, stopped=stopped)
    folder.finish(order.fps, record)
    summary = _summary(folder.count, given, stats)
    return f"stopped; what exists is kept: {summary}" if stopped else summary


def _start(order: Order) -> tuple[Any, int, int | None]:
    """The session, how many frames it was given, and how many are to be made."""
    pictures = [read_picture(order.image)] if order.image else read_video(order.video) if order.video else []
    given, total = len(pictures), order.num_frames
    if total is not None and total <= given:
        raise ValueError(f"--num-frames counts the {given} given frames and must be at least {given + 1}, got {total}.")
    logging.disable_progress_bar()  # of loading; sampling has its own
    pipe = pipeline("causal-video", order.model, device=order.device)
    pipe.set_progress_bar_config(disable=True)
    if order.resize:
        pictures = fitted(pictures, pipe.sample_shape)
    first: dict[str, Any] = {}
    if order.image:
        first = {"image": pictures[0]}
    elif order.video:
        first = {"video": pictures}
    session = pipe.start(
        **first,
        **(order.options or {}),
        class_labels=_label(order.class_name, pipe.class_names),
        generator=torch.Generator().manual_seed(order.seed),
    )
    return session, given, None if total is None else total - given


def _label(name: str | None, known: list[str]) -> int | str | None:
    return int(name) if name is not None and name.isdecimal() and name not in known else name


def _chunks(session: Any, rest: int | None) -> Iterator[Any]:
    given = [] if session.given is None else [session.given]
    return chain(given, session.chunks(rest))


def _pictures(chunk: Any) -> list[Image.Image]:
    return [to_pil(frame) for frame in chunk.frames[0]]


def _stats(session: Any, rows: list[dict[str, Any]]) -> RunStats:
    stats = session.stats
    return replace(stats, plan={**stats.plan, "chunks": rows})


def _summary(count: int, given: int, stats: RunStats) -> str:
    chunks = len(stats.plan["chunks"]) - (given > 0)
    return (
        f"{count} frames, {given} of them given, in {chunks} chunks: {stats.network_calls} network calls, "
        f"{stats.seconds:.1f} s, cache {stats.cache_bytes / 1e6:.1f} MB"
    )
