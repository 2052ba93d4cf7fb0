"""The gallery's chapter on causal video: a rollout, one past with three futures, and what the cache saves."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import torch
from torch import Tensor

from gendiff.data.bouncing_balls import BouncingBalls
from gendiff.pipelines.base import pipeline
from gendiff.pipelines.registry import Checkpoint

from .causal_video_physics import physics_block
from .causal_video_pictures import fork, fork_animation, fork_picture, side_by_side
from .causal_video_timing import timing_block
from .checkpoint_data import checkpoint_dataset
from .markup import Row, animation, code, facts, picture, plate
from .pictures import png_bytes
from .section import Chapter, Section, Settings
from .video_files import enlargement, gif_bytes

FRAMES = 65
"""Of a rollout: one, and sixteen chunks of four."""
MOST_STEPS = 10
"""More change little in a flow-matching model, and a page is made in a minute."""
FPS = 12
FUTURE = 24
COLUMNS = 9
"""Frames in a row of a film strip."""


def build(checkpoint: Checkpoint, settings: Settings, say: Callable[[str], None]) -> Section:
    """The section of one causal video checkpoint.

    Raises:
        ValueError: the checkpoint is damaged.
        OSError: a file is missing.
    """
    pipe = pipeline("causal-video", checkpoint.path, device=settings.device)
    pipe.set_progress_bar_config(disable=True)
    steps = min(settings.steps, MOST_STEPS)
    names = pipe.class_names
    count = len(names) or settings.num_images
    say(f"{count} videos of {FRAMES} frames")
    output = pipe(
        list(range(count)) if names else None,
        num_videos_per_prompt=1 if names else count,
        num_frames=FRAMES,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(settings.seed + i) for i in range(count)],
        output_type="pt",
    )
    videos = output.frames.cpu()
    say("one past, three futures")
    condition = {"class_labels": names[len(names) // 2]} if names else {}
    balls = _balls(checkpoint)
    first = None if balls is None else balls[settings.seed % len(balls)]["video"][0] / 2 + 0.5
    past, futures = fork(pipe, FUTURE, settings.seed, image=first, num_inference_steps=steps, **condition)
    physics, timing = "", timing_block(pipe, condition, say)
    if balls is not None:
        physics = physics_block(pipe, balls, videos, steps, settings.seed, say)
    rollout = _rollout_block(videos, names, output.stats.plan["context_frames"])
    html = (
        f"<h3>{escape(checkpoint.name)}</h3>{_facts(checkpoint, pipe, output.stats, videos, steps)}"
        f"{rollout}{_fork_block(past, futures, given=first is not None)}{physics}{timing}{_repeat(checkpoint, names)}"
    )
    cover = "".join(picture(frame, "") for frame in videos[0, :: FRAMES // 6][:7])
    return Section(
        html,
        f'<span class="strip">{cover}</span><small>One video from nothing, every {FRAMES // 6}th frame.</small>',
        {f"{checkpoint.name}/{name}": content for name, content in _files(videos, past, futures).items()},
    )


CHAPTER = Chapter("Causal video", "causal_video.html", build)


def _balls(checkpoint: Checkpoint) -> BouncingBalls | None:
    """The checkpoint's own simulator, of balls it has not seen; None if its data is of another kind."""
    try:
        dataset = checkpoint_dataset(checkpoint.path)
    except (ValueError, OSError):
        return None  # data that a user must bring
    return dataset if isinstance(dataset, BouncingBalls) else None


def _facts(checkpoint: Checkpoint, pipe: Any, stats: Any, videos: Tensor, steps: int) -> str:
    parameters = sum(weight.numel() for weight in pipe.transformer.parameters())
    size = sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file())
    channels, height, width = pipe.sample_shape
    made = videos.shape[0] * videos.shape[1]
    plan = stats.plan
    return facts(
        [
            ("Frames", f"{width} &times; {height} px, {'colour' if channels == 3 else 'grey'}"),
            ("Weights", f"{parameters / 1e6:.2f} million parameters, {size / 1e6:.1f} MB"),
            (
                "Rollout",
                f"{plan['chunk_size']} frames at once, in {steps} steps; they see the last {plan['context_frames']}",
            ),
            ("Cache", f"{stats.cache_bytes / len(videos) / 1e6:.1f} MB a video, however long it is"),
            (
                "Cost",
                f"{stats.flops / made / 1e9:.2f} GFLOP and {stats.seconds / made:.3f} s a frame, {len(videos)} videos "
                f"at once on {pipe.device.type}",
            ),
        ]
    )


def _rollout_block(videos: Tensor, names: list[str], window: int) -> str:
    columns = min(len(videos), 5 if len(videos) > 7 else 7)
    played = animation(
        gif_bytes(side_by_side(videos, columns), FPS),
        _width(videos, columns),
        f"{len(videos)} generated videos side by side",
    )
    numbers = [round(k * (FRAMES - 1) / (COLUMNS - 1)) for k in range(COLUMNS)]
    shown = range(len(videos)) if names else range(min(4, len(videos)))
    rows = [
        Row(
            escape(names[i]) if names else f"Video {i + 1}",
            "",
            [str(number) for number in numbers] if i == shown[-1] else [""] * COLUMNS,
            videos[i, numbers],
            f"{names[i] if names else f'video {i + 1}'}, frame",
            "" if i == shown[-1] else "plain",
        )
        for i in shown
    ]
    light = videos.mean(dim=(0, 2, 3, 4))
    kept = (
        f"Numbers of frames below. Together, frames {FRAMES - 1} have <b>{100 * light[-1] / light[0]:.0f} %</b> of the "
        "brightness of frames 0; in the data nothing fades."
    )
    told = "one of each class" if names else "each from noise of its own"
    return (
        f'<section class="block"><h4>From nothing</h4><p>{len(videos)} videos, {told}. No frame was given: the first '
        f"is drawn alone, the others chunk by chunk, each from the {window} frames before it at most.</p>{played}"
        f"{plate(rows, kept)}</section>"
    )


def _fork_block(past: Tensor, futures: Tensor, given: bool) -> str:
    every = FUTURE // (COLUMNS - 1)
    numbers = list(range(every - 1, FUTURE, every))
    middle = len(futures) // 2
    cells = []
    for row, future in enumerate(futures):
        last = row == len(futures) - 1
        shared = picture(past[-1], "the frame that all futures share") if row == middle else ""
        cells.append(f'<div class="label{"" if last else " plain"}"><b>Future {row + 1}</b></div>')
        cells.append(f'<div class="cell">{shared}</div>')
        cells += [
            f'<div class="cell">{picture(future[number], f"future {row + 1}, frame {number + 1}")}'
            f"<span>{number + 1 if last else ''}</span></div>"
            for number in numbers
        ]
    columns, side = 1 + len(numbers), past.shape[-1]
    strip = (
        f'<figure class="plate" style="--columns:{columns};--side:{2 * side}px"><div class="rows">{"".join(cells)}'
        f"</div><figcaption>Frame 0, {'of a test video' if given else 'drawn from nothing'}, which all share, on the "
        "left; numbers of frames below.</figcaption></figure>"
    )
    played = animation(
        gif_bytes(fork_animation(past, futures), FPS),
        _width(futures, len(futures)) // 2,
        "three futures of one frame side by side",
    )
    return (
        '<section class="block"><h4>One past, three futures</h4><p>A single frame says where things are, not where '
        "they go. The session is forked there, which copies no frame and computes nothing anew, and each copy goes on "
        f"with noise of its own.</p>{played}{strip}</section>"
    )


def _width(videos: Tensor, columns: int) -> int:
    """Screen pixels of videos side by side, a whole multiple of their own."""
    side = columns * (videos.shape[-1] + 2) - 2
    return side * max(1, 714 // side)


def _files(videos: Tensor, past: Tensor, futures: Tensor) -> dict[str, bytes]:
    scale = enlargement(videos.shape[-1]) // 2 or 1
    return {
        "rollout.gif": gif_bytes(side_by_side(videos, min(len(videos), 5)), FPS, scale),
        "fork.gif": gif_bytes(fork_animation(past, futures), FPS, scale),
        "fork.png": png_bytes(fork_picture(past, futures)),
    }


def _repeat(checkpoint: Checkpoint, names: list[str]) -> str:
    start = f"gendiff sample causal-video --model {checkpoint.name}"
    one = f" --class {names[len(names) // 2]}" if names else ""
    shell = (
        f"{start}{one} --num-frames 64 --out out/video\n"
        f"{start}{one} \\\n    --image out/video/frames/0000.png --seed 1 --out out/another-future\n"
        f"{start}{one} --stream --out out/endless  # until Ctrl-C"
    )
    condition = f'class_labels="{names[len(names) // 2]}", ' if names else ""
    python = (
        "import gendiff, torch\n\n"
        f'pipe = gendiff.pipeline("causal-video", "{checkpoint.name}")\n'
        f"session = pipe.start({condition}generator=torch.Generator().manual_seed(0))\n"
        "past = session.generate(9).frames  # (1, 9, C, H, W) in [0, 1]\n"
        "futures = [session.fork(torch.Generator().manual_seed(k)).generate(16).frames for k in range(3)]"
    )
    return f'<section class="block"><h4>Ask it yourself</h4>{code(shell)}{code(python)}</section>'
