"""How well a causal video model predicts and generates: balls against their simulator, moving digits against theirs.

python benchmarks/causal_video_quality.py --model causal-video-balls
python benchmarks/causal_video_quality.py --model causal-video-digits --root data

- `predict`: the frames after 5 given ones of test videos. Balls are found in the picture and compared with the true
  ones in pixels; PSNR and SSIM of the pictures.
- `long` (balls): hundreds of frames, whose number of balls, brightness, walls and energy must hold.
- `clips`: clips from nothing by the Fréchet distance FD[lite0-video], which is no FVD, beside that of real clips from
  as many other real ones.

What classes the digits made from nothing have is not asked: at 14 px they are smaller than anything `digit-cnn` has
seen. Writes results/causal-video-quality-NAME.json, a report (.md), a plot (.png, .svg) and its numbers (.csv).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from arguments import device, natural, positive, run_or_explain, say, set_threads
from causal_video_cost import Sizes, rollout_flops
from causal_video_quality_rows import (
    Plan,
    ball_rows,
    cases_of,
    clip_rows,
    from_nothing,
    long_rows,
    predict,
    still_rows,
)
from causal_video_quality_tables import markdown, plot
from diffusers.utils import logging
from noise import load
from provenance import checkpoint_sha256, environment, model_folder, origin
from report import write_result
from torch import Tensor

import gendiff
from gendiff.data.bouncing_balls import BouncingBalls
from gendiff.data.moving import MovingObjects, moving_digits
from gendiff.files import write_whole
from gendiff.pipelines.causal_video import CausalVideoPipeline

SIZES = ("seed", "given", "frames", "videos", "long_frames", "long_videos", "clips", "steps", "batch")
"""Options that say how much was measured."""
GFLOPS_A_THREAD = 30.0
"""For the forecast alone: about half of what a core with AVX-512 does in a matrix product."""


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = make_parser()
    args = parser.parse_args(argv)
    return run_or_explain(run, args, parser)


def run(args: argparse.Namespace) -> Path:
    """Measure and write the report.

    Raises:
        ValueError, OSError, ImportError: an argument or model cannot be used.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("the plot needs matplotlib: pip install 'gendiff[plots]'")
    set_threads(args.threads)
    logging.disable_progress_bar()
    env = environment(args.device, "float32")
    pipe = gendiff.pipeline("causal-video", args.model, args.device)
    assert isinstance(pipe, CausalVideoPipeline)
    pipe.set_progress_bar_config(disable=True)
    data = test_data(pipe, args, max(args.videos, 2 * args.clips), args.frames)
    say(f"about {predicted_minutes(pipe, args, isinstance(data, BouncingBalls)):.1f} minutes in the network")
    cases, conditions, seconds = measure(pipe, data, args)
    env["load_after"] = load()
    result = {
        **origin(),
        "env": env,
        "settings": {
            "model": args.model,
            "checkpoint_sha256": checkpoint_sha256(model_folder(args.model)),
            "data": type(data).__name__,
            "root": None if args.root is None else str(args.root),
            **{
                name: getattr(args, name)
                for name in (
                    "seed",
                    "given",
                    "frames",
                    "videos",
                    "long_frames",
                    "long_videos",
                    "clips",
                    "steps",
                    "batch",
                )
            },
            "radius": getattr(data, "radius", None),
            "num_balls": getattr(data, "num_balls", None),
            "seconds": seconds,
            "distance": conditions,
        },
        "cases": cases,
    }
    name = Path(args.model).name.removeprefix("causal-video-")
    output = args.output or Path(__file__).parent / "results" / f"causal-video-quality-{name}.json"
    write_result(output, result)
    plot(result, output.with_suffix(""))
    text = markdown(result, output.with_suffix(".png").name)
    write_whole(output.with_suffix(".md"), text)
    print(text)
    return output


def test_data(
    pipe: CausalVideoPipeline, args: argparse.Namespace, count: int, frames: int
) -> BouncingBalls | MovingObjects:
    """Test videos of the kind the model was made for: balls for one without classes, digits for one of ten.

    Args:
        count: videos; the first ones are the same however many there are.
        frames: after the given ones.

    Raises:
        ValueError: it was made for something else.
    """
    channels, height, width = pipe.sample_shape
    frames += args.given
    if channels == 1 and height == width and not pipe.class_names:
        return BouncingBalls("test", count, frames, height, args.num_balls, seed=args.seed)
    if channels == 1 and height == width == 32 and len(pipe.class_names) == 10:
        return moving_digits(
            "test", args.root, num_videos=count, num_frames=frames, size=32, num_objects=1, seed=args.seed
        )
    raise ValueError(
        f"model must make grey square frames without classes (balls), or of 32 px with ten (digits); got frames "
        f"{pipe.sample_shape} and {len(pipe.class_names)} classes."
    )


def measure(
    pipe: CausalVideoPipeline, data: BouncingBalls | MovingObjects, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, float]]:
    """Cases, conditions of the distance, and seconds spent in generation by group."""
    plan = Plan(args.given, args.steps, args.batch, args.seed)
    clock = _Clock()
    say(f"{args.frames} frames of {args.videos} videos")
    videos, labels = _stacked(data, args.videos, args.given + args.frames, bool(pipe.class_names))
    predicted = clock("predict", lambda: predict(pipe, videos, labels, args.frames, plan))
    if isinstance(data, BouncingBalls):
        cases = cases_of("predict", ball_rows(data, predicted, args.frames, plan), args.seed)
    else:
        cases = cases_of("predict", still_rows(videos, predicted, plan), args.seed)
    if isinstance(data, BouncingBalls) and args.long_videos:
        say(f"{args.long_frames} frames of {args.long_videos} videos")
        longer = test_data(pipe, args, args.long_videos, args.long_frames)
        assert isinstance(longer, BouncingBalls)
        starts, _ = _stacked(longer, args.long_videos, args.given, False)
        predicted = clock("long", lambda: predict(pipe, starts, None, args.long_frames, plan))
        cases += cases_of("long", long_rows(longer, predicted, plan), args.seed)
    conditions: dict[str, Any] = {}
    if args.clips:
        say(f"{args.clips} clips from nothing")
        generated = clock("clips", lambda: from_nothing(pipe, args.clips, args.frames, plan))
        real = [data[index]["video"][: args.frames] for index in range(2 * args.clips)]
        bytes_ = ((torch.stack(real) + 1) * 127.5).round().clamp(0, 255).byte()
        rows, conditions = clip_rows(generated, bytes_[: args.clips], bytes_[args.clips :])
        cases += cases_of("clips", rows, args.seed)
    return cases, conditions, clock.seconds


def predicted_minutes(pipe: CausalVideoPipeline, args: argparse.Namespace, balls: bool) -> float:
    """Minutes of generation at GFLOPS_A_THREAD."""
    config = pipe.transformer.config
    total = 0
    work = [(args.videos, args.frames), (args.clips, args.frames), (args.long_videos if balls else 0, args.long_frames)]
    for videos, frames in work:
        sizes = Sizes.of(config, config["context_frames"], args.steps, videos)
        total += sum(rollout_flops(sizes, "cached", -(-frames // sizes.chunk), args.given)) if videos else 0
    return total / (GFLOPS_A_THREAD * 1e9 * torch.get_num_threads()) / 60


class _Clock:
    """Seconds of what it calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, run: Any) -> Tensor:
        start = time.perf_counter()
        result = run()
        self.seconds[name] = time.perf_counter() - start
        return result


def _stacked(
    data: BouncingBalls | MovingObjects, count: int, frames: int, labelled: bool
) -> tuple[Tensor, Tensor | None]:
    """The first videos, (count, frames, C, H, W) in [0, 1], and their classes (count,)."""
    items = [data[index] for index in range(count)]
    labels = torch.cat([item["label"] for item in items]) if labelled else None
    return torch.stack([item["video"][:frames] for item in items]) / 2 + 0.5, labels


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options: tuple[tuple[str, Any, Any, str], ...] = (
        ("--model", str, "causal-video-balls", "built-in name or folder (default: %(default)s)"),
        ("--root", Path, None, "folder that MNIST was imported into, for digits (default: the 200 digits that ship)"),
        ("--num-balls", positive, 2, "in a video (default: %(default)s)"),
        ("--videos", positive, 64, "test videos whose next frames are predicted (default: %(default)s)"),
        ("--given", positive, 5, "frames the model is given (default: %(default)s)"),
        ("--frames", positive, 16, "predicted frames, and the length of a clip (default: %(default)s)"),
        ("--long-videos", natural, 16, "videos that are continued for long; 0 leaves it out (default: %(default)s)"),
        ("--long-frames", positive, 256, "frames of those (default: %(default)s)"),
        ("--clips", natural, 256, "clips from nothing; 0 leaves the distance out (default: %(default)s)"),
        ("--steps", positive, 20, "denoising steps of a chunk (default: %(default)s)"),
        ("--batch", positive, 16, "videos generated side by side (default: %(default)s)"),
        ("--seed", natural, 0, "of the test videos and the noise (default: %(default)s)"),
        ("--device", device, "cpu", "default: %(default)s"),
        ("--threads", natural, 0, "of torch; 0 = as torch chooses (default)"),
        ("--output", Path, None, "default: benchmarks/results/causal-video-quality-NAME.json"),
    )
    for name, kind, default, words in options:
        parser.add_argument(name, type=kind, default=default, help=words)
    return parser


if __name__ == "__main__":
    main()
