"""How fast is a pipeline? Latency at batch 1, throughput at the best batch, memory, operations; with their errors.

python benchmarks/throughput.py --task image-generation --steps 50
python benchmarks/throughput.py --model path/to/a/diffusers/folder --batches 1,4,16 --device cuda --dtype bfloat16

Writes results/throughput-NAME.json, a report (.md), a plot (.png, .svg) and its numbers (.csv).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from arguments import add_machine_options, growing, positive, run_or_explain, say, set_threads
from calibration import DTYPES, calibrate, resolve_dtype
from calls import Work, load, option
from noise import load as machine_load
from provenance import checkpoint_sha256, environment, model_folder, origin
from report import write_result
from sweep import sweep
from timed_plots import plot_throughput
from timed_tables import timed_markdown

from gendiff.files import write_whole
from gendiff.pipelines.registry import get_task

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = make_parser()
    args = parser.parse_args(argv)
    return run_or_explain(run, args, parser)


def run(args: argparse.Namespace) -> Path:
    """Measure batch by batch and write the report.

    Raises:
        ValueError, OSError, ImportError: an argument or model cannot be used.
    """
    check_packages(args)
    set_threads(args.threads)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dtype = resolve_dtype(args.dtype, args.device)
    work = Work(
        task=args.task,
        model=args.model,
        steps=args.steps,
        device=args.device,
        dtype=dtype,
        compile_mode=args.compile,
        channels_last=args.channels_last,
        seed=args.seed,
        prompt=args.prompt,
        options=dict(map(option, args.set)),
    )
    output = args.output or Path(__file__).parent / "results" / f"throughput-{args.name or work.name}.json"
    env = environment(args.device, dtype, args.compile)
    start = time.perf_counter()
    pipe = load(work)
    load_s = time.perf_counter() - start
    say(f"loaded {type(pipe).__name__} in {load_s:.1f} s; calibrating")
    calibration = calibrate(args.device, dtype, args.calibration_seconds)
    cases, stopped = sweep(pipe, work, args, calibration, {**identity(pipe, work), "load_s": load_s})
    env["load_after"] = machine_load()
    result = {
        **origin(),
        "env": env,
        "calibration": calibration,
        "settings": {
            "task": args.task,
            "model": args.model,
            "channels_last": args.channels_last,
            "options": dict(work.options),
            "budget_s": args.budget,
            "stopped": stopped,
            "warnings": [str(warning.message) for warning in caught],
        },
        "cases": cases,
    }
    write_result(output, result)
    plot_throughput(result, output.with_suffix(".png"))
    text = timed_markdown(result, output.with_suffix(".png").name)
    write_whole(output.with_suffix(".md"), text)
    print(text)
    return output


def identity(pipe: Any, work: Work) -> dict[str, Any]:
    """What was timed."""
    model = work.model or (get_task(work.task).checkpoint if work.task else None)
    guidance = work.options.get("guidance_scale")
    return {
        "pipeline": f"{type(pipe).__name__} ({Path(model).name})" if model else type(pipe).__name__,
        "checkpoint_sha256": checkpoint_sha256(model_folder(model)) if model else None,
        "params": sum(
            parameter.numel()
            for component in pipe.components.values()
            if isinstance(component, torch.nn.Module)
            for parameter in component.parameters()
        ),
        "frames": None,
        "steps": work.steps,
        "guidance": guidance if isinstance(guidance, int | float) else None,
        "scheduler": type(pipe.scheduler).__name__ if hasattr(pipe, "scheduler") else None,
        "seed": work.seed,
    }


def check_packages(args: argparse.Namespace) -> None:
    """Miss a package before the measurement, not after it.

    Raises:
        ImportError: the plot or the memory cannot be made.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("the plot needs matplotlib: pip install 'gendiff[plots]'")
    if args.memory and torch.device(args.device).type == "cpu" and find_spec("psutil") is None:
        raise ImportError("--memory needs psutil: pip install 'gendiff[metrics]', or give --no-memory")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", help="of gendiff, e.g. image-generation or counterfactual")
    parser.add_argument("--model", help="built-in name or folder, of gendiff or diffusers (default: the task's own)")
    parser.add_argument("--steps", type=positive, help="num_inference_steps (default: the pipeline's)")
    parser.add_argument(
        "--batches",
        type=growing,
        default=[1, 2, 4, 8, 16, 32, 64],
        help="in growing order; the sweep ends early when a batch gains less than 5 %% or memory ends "
        "(default: 1,2,4,...,64)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="float32",
        help="auto: bfloat16 where the hardware multiplies in it, else float32 (default: %(default)s)",
    )
    parser.add_argument("--compile", choices=COMPILE_MODES, help="torch.compile the network in this mode")
    parser.add_argument("--channels-last", action="store_true", help="memory layout of the network")
    add_machine_options(parser)
    parser.add_argument("--prompt", default="a photograph", help="for pipelines that read text")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a further argument of the call, as JSON"
    )
    parser.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on a CPU, load the model anew in a process of its own for each batch to see its memory",
    )
    parser.add_argument("--name", help="of the result files (default: the model's or the task's)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/throughput-NAME.json")
    return parser


if __name__ == "__main__":
    main()
