"""What an image in stages costs: cache or none, frequencies or scales, fewer stages, a larger network.

python benchmarks/next_frequency.py --threads 1                # about a quarter of an hour of one core
python benchmarks/next_frequency.py --rows cache --batches 1   # the cache alone, two minutes

Weights are random, because they do not change the cost. All runs are whole calls of the pipeline up to the sum of
stages; the decoder, which all share, is timed by itself. Two ways are timed turn by turn, A B B A, in one process; a
ratio is the median over pairs. Beside each stands what the multiply-adds of the two networks predict, and the formula
itself is held against torch's counter. How good images of fewer stages are, `next_frequency_quality.py` measures.

- `cache`: what it saves, at each of `--batches`, guided and not.
- `schedules`: next-frequency against next-scale with the same stages, width and depth; only their encoders differ, so
  they draw the very same images here and must take the same time.
- `short`: shorter lists of stages, their cost alone.
- `sizes`: d20 against d16. NFIG's 1.25x over VAR compares a network of 310 M parameters with one of 600 M at the same
  ten steps and 680 tokens: it is this ratio of sizes, and no property of a schedule.

Writes results/next-frequency-NAME.json, a report (.md), a plot (.png, .svg) and its numbers (.csv).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from arguments import add_machine_options, growing, run_or_explain, say, set_threads
from calibration import DTYPES, calibrate, resolve_dtype
from next_frequency_cases import (
    GROUPS,
    count_cell,
    measure_pair,
    pairs_of,
    same_pictures,
    stage_seconds,
    time_decoder,
)
from next_frequency_runs import PRESETS, Work, make_pipe
from next_frequency_tables import markdown, plot
from noise import load
from provenance import environment, origin
from report import write_result

from gendiff.files import write_whole

QUICK = {"preset": "tiny", "batches": [1], "repeats": 2, "warmup": 1, "budget": 0.01}
"""What `--quick` stands for: everything runs, and no figure means anything."""
STAGE_RUNS = 3
"""Runs whose median is the time of each stage."""


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
        ValueError, OSError, ImportError: an argument cannot be used.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("the plot needs matplotlib: pip install 'gendiff[plots]'")
    set_threads(args.threads)
    work = Work(args.preset, args.device, resolve_dtype(args.dtype, args.device), args.seed)
    env = environment(args.device, work.dtype)
    calibration = calibrate(args.device, work.dtype, args.calibration_seconds)
    cases, stages = measure(args, work, calibration)
    env["load_after"] = load()
    make_pipe.cache_clear()
    result = {
        **origin(),
        "env": env,
        "calibration": calibration,
        "settings": {
            "preset": args.preset,
            "sizes": asdict(work.sizes),
            "rows": list(args.rows),
            "batches": args.batches,
            "repeats": args.repeats,
            "warmup": args.warmup,
            "budget_s": args.budget,
            "quick": args.quick,
            "weights": "random",
            "stages": stages,
        },
        "cases": cases,
    }
    output = args.output or Path(__file__).parent / "results" / f"next-frequency-{args.name}.json"
    write_result(output, result)
    plot(result, output.with_suffix(""))
    text = markdown(result, output.with_suffix(".png").name)
    write_whole(output.with_suffix(".md"), text)
    print(text)
    return output


def measure(
    args: argparse.Namespace, work: Work, calibration: dict[str, float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All cases, and seconds and multiply-adds of each stage with and without a cache."""
    pairs = pairs_of(work, args.batches, args.rows)
    way = replace(pairs_of(work, [1], ["cache"])[0].quick, batch=1)
    seconds = {
        "cached": stage_seconds(work, way, STAGE_RUNS),
        "recomputed": stage_seconds(work, replace(way, use_cache=False), STAGE_RUNS),
    }
    say("decoder")
    repeats = {"min_repeats": args.repeats, "max_repeats": max(args.repeats, 1000)}
    cases = [time_decoder(work, way, calibration, warmup=1, budget_s=args.budget, **repeats)]
    ratios, counted = [same_pictures(work, way)], {}
    for pair in pairs:
        found, cell = measure_pair(
            pair, work, calibration, warmup=args.warmup, min_pairs=args.repeats, budget_s=args.budget
        )
        say(f"{pair.words}: {cell['value']:.3f} in {cell['n']} pairs, multiply-adds {cell['predicted']:.3f}")
        cases += found
        ratios.append(cell)
        # Now, while the networks are there.
        for kind in {(one.sizes, one.use_cache): None for one in (pair.slow, pair.quick)}:
            if kind not in counted:
                counted[kind] = count_cell(work, *kind)
    cases.append({"row": "ratios", "seed": args.seed, "cells": ratios})
    cases.append({"row": "counts", "seed": args.seed, "cells": list(counted.values())})
    return cases, {"sides": list(way.sizes.stages), "seconds": seconds}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all")
    parser.add_argument(
        "--preset", choices=PRESETS, default="paper", help="sizes of stages and networks (default: %(default)s)"
    )
    parser.add_argument(
        "--batches", type=growing, default=[1, 8], metavar="B,..", help="of the cache's rows (default: 1,8)"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="float32",
        help="of the transformer; auto: bfloat16 where the hardware multiplies in it (default: %(default)s)",
    )
    add_machine_options(parser)
    parser.set_defaults(warmup=2, budget=90.0)
    parser.add_argument("--quick", action="store_true", help="see that everything runs, in seconds: tiny sizes")
    parser.add_argument("--name", default="cost", help="of the result files (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/next-frequency-NAME.json")
    return parser


if __name__ == "__main__":
    main()
