"""What the cache of a causal video model saves: seconds a frame with it and without, as the video grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .line_chart import Curve, line_chart
from .markup import table

FRAMES, STEPS = 41, 4
"""Of a timed video. The ratio of modes hardly depends on the number of steps, and four are quick."""
MODES: dict[str, Any] = {"whole past": False, "window": "window", "cached": True}


def timing_block(pipe: Any, condition: Mapping[str, Any], say: Callable[[str], None]) -> str:
    """Measure all modes on this machine, and draw them; HTML."""
    curves = {}
    for name, mode in MODES.items():
        say(f"timing, {name}")
        curves[name] = seconds_by_frame(pipe, mode, FRAMES, STEPS, **condition)
    last = {name: ys[-1] for name, (_, ys) in curves.items()}
    rows = [
        [name, f"{1000 * ys[0]:.0f}", f"{1000 * ys[-1]:.0f}", f"{ys[-1] / last['cached']:.1f}&times;"]
        for name, (_, ys) in curves.items()
    ]
    head = ["", "ms a frame<br>in the first chunk", f"ms a frame<br>at frame {FRAMES - 1}", "of the<br>cached time"]
    chart = line_chart({name: (xs, [1000 * y for y in ys]) for name, (xs, ys) in curves.items()}, "frame", "ms a frame")
    return (
        '<section class="block"><h4>What the cache saves</h4><p><b>Cached</b>: keys and values of finished frames are '
        "computed once. <b>Window</b>: the last frames, as many as a chunk sees, are computed anew at every step. "
        "<b>Whole past</b>: all frames so far are; it gives the frames of the cached way up to rounding. One video, "
        f"{STEPS} steps a chunk, measured once, on {pipe.device.type}.</p>"
        f"<figure>{chart}</figure>{table(head, rows)}</section>"
    )


def seconds_by_frame(pipe: Any, use_cache: bool | str, num_frames: int, steps: int, **condition: Any) -> Curve:
    """Last frame of each chunk after the first, and seconds of the chunk by its frames."""
    # The first call of each shape is counted operation by operation, which takes time; one step has them all.
    for walk in (1, steps):
        session = pipe.start(
            **condition, num_inference_steps=walk, use_cache=use_cache, generator=torch.Generator().manual_seed(0)
        )
        chunks = list(session.chunks(num_frames))
    ends = [chunk.start + chunk.frames.shape[1] - 1 for chunk in chunks[1:]]
    return ends, [chunk.seconds / chunk.frames.shape[1] for chunk in chunks[1:]]
