"""What a key/value cache saves in video that grows chunk by chunk, against the ways to do without; and what it holds.

python benchmarks/causal_video.py                               # random weights: cost alone
python benchmarks/causal_video.py --model causal-video-balls    # the same with a model, and how its videos drift
python benchmarks/causal_video.py --all-steps                   # also the slow ways up to the largest n

All ways run in one process and in turn, on one set of weights: `cached`; `recompute`, the last W frames anew at every
step; `bidirectional`, the same with no mask; `fixed`, always l frames before a chunk, bidirectional; `unbounded`, all
frames anew at every step. Bidirectional networks would be trained apart, so they are timed for their cost alone.

Writes results/causal-video-NAME.json, a report (.md), a plot (.png, .svg) and its numbers (.csv).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from arguments import add_machine_options, positive, run_or_explain, say, set_threads
from calibration import DTYPES, calibrate, gemm_rate, resolve_dtype
from causal_video_bars import figures
from causal_video_cases import timed_cases
from causal_video_cost import Sizes
from causal_video_drift import check_balls, drifts
from causal_video_machine import matrix_share, stream_memory
from causal_video_plan import OTHER_STEPS, SLOW_STEPS, Job, jobs_of, predicted_seconds, run_jobs
from causal_video_runs import PRESETS, Work, make_pipes
from causal_video_tables import markdown, plot
from noise import load
from provenance import checkpoint_sha256, environment, model_folder, origin
from report import write_result

from gendiff.files import write_whole

QUICK = {"preset": "tiny", "steps": 2, "ar_steps": [1, 2, 4, 10], "repeats": 2, "stream_frames": [20, 60]}
"""What `--quick` stands for: everything runs, and no figure means anything."""


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.quick:
        for name, value in QUICK.items():
            if getattr(args, name) == parser.get_default(name):
                setattr(args, name, value)
    return run_or_explain(run, args, parser)


def run(args: argparse.Namespace) -> Path:
    """Measure and write the report.

    Raises:
        ValueError, OSError, ImportError: an argument or model cannot be used.
    """
    check_arguments(args)
    set_threads(args.threads)
    dtype = resolve_dtype(args.dtype, args.device)
    work = Work(args.preset, args.model, args.device, dtype, args.batch, args.seed)
    env = environment(args.device, dtype)
    pipes = make_pipes(work)
    drift = bool(args.model and args.drift)
    if drift:
        check_balls(pipes[False])
    config = pipes[False].transformer.config
    chunk, trained = config["chunk_size"], config["context_frames"]
    windows = args.windows or sorted({1 + chunk, trained, 1 + 5 * chunk})
    sizes = Sizes.of(config, trained, args.steps, args.batch)
    # Before anything large has run, whose memory the process would keep and use again unseen.
    say(f"memory of a stream of {args.stream_frames[1]} frames")
    memory = stream_memory(work, trained, *args.stream_frames)
    calibration = calibrate(args.device, dtype, args.calibration_seconds)
    say("share of the matrix rate")
    share = matrix_share(work, max(args.repeats, 5))
    rate = gemm_rate(calibration, dtype) or math.inf
    jobs = jobs_of(sizes, windows, args.ar_steps[-1], args.repeats, args.budget, rate, args.all_steps)
    minutes = predicted_seconds(jobs, sizes, rate, args.memory) / 60
    say(f"about {minutes:.1f} minutes of rollouts, if half of the matrix rate of {rate:.0f} GFLOP/s is reached")
    runs = run_jobs(jobs, pipes, work, args.steps, args.warmup)
    known = identity(pipes[False], work)
    cases = timed_cases(runs, pipes, work, sizes, known, args.ar_steps, calibration, args.memory)
    main_runs = {job.variant: runs[job] for job in jobs if job.window == trained}
    found = figures(main_runs, sizes, memory, share)
    cases.append({"row": "bars", "seed": args.seed, "cells": found})
    if drift:
        say(f"drift of {args.drift_videos} videos over {args.drift_frames} frames")
        cases += drifts(pipes[False], work, args.drift_videos, args.drift_frames, args.steps)
    env["load_after"] = load()
    result = {
        **origin(),
        "env": env,
        "calibration": calibration,
        "settings": settings_of(args, work, sizes, memory, share, jobs),
        "cases": cases,
    }
    name = args.name or (Path(args.model).name.removeprefix("causal-video-") if args.model else work.preset)
    output = args.output or Path(__file__).parent / "results" / f"causal-video-{name}.json"
    write_result(output, result)
    plot(result, output.with_suffix(""))
    text = markdown(result, output.with_suffix(".png").name)
    write_whole(output.with_suffix(".md"), text)
    print(text)
    return output


def identity(pipe: Any, work: Work) -> dict[str, Any]:
    """What was timed."""
    name = Path(work.model).name if work.model else f"random weights, {work.preset}"
    return {
        "pipeline": f"{type(pipe).__name__} ({name})",
        "checkpoint_sha256": checkpoint_sha256(model_folder(work.model)) if work.model else None,
        "params": sum(parameter.numel() for parameter in pipe.transformer.parameters()),
        "shape": list(pipe.sample_shape),
        "guidance": 1.0,
        "scheduler": type(pipe.scheduler).__name__,
        "seed": work.seed,
    }


def settings_of(
    args: argparse.Namespace, work: Work, sizes: Sizes, memory: Any, share: Any, jobs: Sequence[Job]
) -> dict[str, Any]:
    """What a reader must know to do the same."""
    return {
        "model": args.model,
        "preset": None if args.model else args.preset,
        "sizes": asdict(sizes),
        "batch": work.batch,
        "ar_steps": args.ar_steps,
        "repeats": {f"W{job.window}/{job.variant}": job.repeats for job in jobs},
        "budget_s": args.budget,
        "quick": args.quick,
        "stream": memory,
        "matrix": share,
        "weights": "those of the checkpoint" if args.model else "random, none of them zero",
        "bidirectional": "the same weights without the causal mask: cost only",
    }


def check_arguments(args: argparse.Namespace) -> None:
    """Miss something before the measurement, not after it.

    Raises:
        ValueError: numbers that do not grow.
        ImportError: the plot or the memory cannot be made.
    """
    for name in ("ar_steps", "windows", "stream_frames"):
        values = getattr(args, name)
        if values is not None and sorted(set(values)) != list(values):
            raise ValueError(f"--{name.replace('_', '-')} must grow, like 1 2 4, got {' '.join(map(str, values))}.")
    if find_spec("matplotlib") is None:
        raise ImportError("the plot needs matplotlib: pip install 'gendiff[plots]'")
    if args.memory and torch.device(args.device).type == "cpu" and find_spec("psutil") is None:
        raise ImportError("--memory needs psutil: pip install 'gendiff[metrics]', or give --no-memory")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="built-in name or folder of a causal video model (default: random weights)")
    parser.add_argument(
        "--preset", choices=PRESETS, default="small", help="sizes without --model (default: %(default)s)"
    )
    parser.add_argument("--steps", type=positive, default=20, help="denoising steps of a chunk (default: %(default)s)")
    parser.add_argument(
        "--ar-steps",
        type=positive,
        nargs="+",
        default=[1, 2, 4, 8, 16, 32],
        metavar="N",
        help="numbers of chunks, which must grow; one rollout to the largest gives all (default: 1 2 4 8 16 32)",
    )
    parser.add_argument(
        "--windows",
        type=positive,
        nargs="+",
        metavar="W",
        help="context frames; the model's own is added (default: 1 + l, the model's, 1 + 5 l)",
    )
    parser.add_argument("--batch", type=positive, default=1, help="videos side by side (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="float32",
        help="auto: bfloat16 where the hardware multiplies in it, else float32 (default: %(default)s)",
    )
    add_machine_options(parser)
    parser.set_defaults(warmup=1, repeats=5, budget=25.0)
    parser.add_argument(
        "--all-steps",
        action="store_true",
        help=f"roll all variants out to the largest n; else those without a cache end at {SLOW_STEPS}, and at other "
        f"windows at {OTHER_STEPS} (cached: {SLOW_STEPS})",
    )
    parser.add_argument(
        "--stream-frames",
        type=positive,
        nargs=2,
        default=[100, 1000],
        metavar=("EARLY", "LATE"),
        help="where the memory of a stream is compared (default: 100 1000)",
    )
    parser.add_argument(
        "--drift",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --model: compare predicted frames with the simulator of bouncing balls",
    )
    parser.add_argument("--drift-videos", type=positive, default=8, help="default: %(default)s")
    parser.add_argument("--drift-frames", type=positive, default=32, help="after the given ones (default: %(default)s)")
    parser.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on a CPU, repeat the longest rollout of each variant, with one step a chunk, in a process of its own",
    )
    parser.add_argument("--quick", action="store_true", help="see that everything runs, in seconds: tiny, few steps")
    parser.add_argument("--name", help="of the result files (default: the model's or the preset's)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/causal-video-NAME.json")
    return parser


if __name__ == "__main__":
    main()
