"""Masked generation with ReCAP: what light steps cost, what they do to quality, and whether known tokens stay.

python benchmarks/masked_generation.py --threads 1                              # all of it
python benchmarks/masked_generation.py --threads 1 --parts light uvit peer known   # cost alone: no data, no model
python benchmarks/masked_generation.py --threads 1 --parts quality --num 1000 --seeds 0 1 2

Cost, with random weights, which do not change it:

- `light`: a light pass of 16, 32 and 64 of 256 tokens over a full one, width 256, batch 4, turn by turn; and operations
  by torch's counter and by the pipeline's own, beside the formula;
- `uvit`: the same of diffusers' UVit2DModel at the size of aMUSEd-256;
- `peer`: base decoding by diffusers' AmusedPipeline over ours, the same weights and steps;
- `known`: of random masks, those whose known tokens are all as before, in three precisions and three orders.

`quality`, of a model: the base decoder at 4, 8, 16 and 32 steps, and ReCAP's plans at 16 and 32, fixed and adaptive.
Of each: Frechet distance in two kinds of features, class accuracy, operations, calls, how stale light steps are, and
seconds in rounds over all ways. They are read beside real images, the tokenizer's own reconstructions, and a diffusion
model of 50 steps. Then ReCAP stands against the base at equal operations, at equal seconds, and at equal distance.

`quality` needs Fashion-MNIST: `gendiff data import fashion-mnist --root data`. Every finished row and seed is written
at once, and samples are kept under `--samples` in parts, so that the same command goes on where it stopped. Writes
results/masked-generation-cost.json and masked-generation-NAME.json, reports (.md), and of quality a plot (.png, .svg)
and its numbers (.csv).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from arguments import device, natural, positive, run_or_explain, say, seconds, set_threads
from calibration import calibrate
from masked_cost import light_cases
from masked_cost_tables import markdown as cost_markdown
from masked_known import known_case
from masked_quality import measure_quality
from noise import load
from provenance import environment, origin
from report import read_result, write_result

from gendiff.files import write_whole

COST_PARTS = ("light", "uvit", "peer", "known")
PARTS = (*COST_PARTS, "quality")
ROWS_OF = {"light": ("light", "counts")}
"""Part -> rows of its cases, where they are not called like it; timed cases are PART/..."""


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Run the benchmark; the paths of the result files."""
    parser = make_parser()
    args = parser.parse_args(argv)
    return run_or_explain(run, args, parser)


def run(args: argparse.Namespace) -> list[Path]:
    """Measure and write the reports.

    Raises:
        ValueError, OSError, ImportError: an argument, model or data set cannot be used.
    """
    if "quality" in args.parts and find_spec("matplotlib") is None:
        raise ImportError("the plot needs matplotlib: pip install 'gendiff[plots]'")
    set_threads(args.threads)
    paths = [measure_cost(args)] if set(args.parts) & set(COST_PARTS) else []
    if "quality" in args.parts:
        paths.append(measure_quality(args))
    return paths


def measure_cost(args: argparse.Namespace) -> Path:
    """What needs neither data nor a model."""
    output = args.out / f"masked-generation-cost{'-quick' if args.quick else ''}.json"
    settings = {name: getattr(args, name) for name in ("seed", "warmup", "repeats", "budget", "quick")}
    env = environment(args.device, "float32")
    calibration = calibrate(args.device, seconds=args.calibration_seconds)
    old = read_result(output)
    # Parts that are not measured now stay as they were.
    cases = [] if old is None or old["settings"] != settings else old["cases"]
    for part in COST_PARTS:
        if part not in args.parts:
            continue
        say(part)
        found = part_cases(part, args, calibration)
        cases = [case for case in cases if _part(case) != part] + found
        cases.sort(key=lambda case: COST_PARTS.index(_part(case)))
        env["load_after"] = load()
        result = {**origin(), "env": env, "calibration": calibration, "settings": settings, "cases": cases}
        write_result(output, result)
    result = read_result(output)
    assert result is not None
    text = cost_markdown(result)
    write_whole(output.with_suffix(".md"), text)
    print(text)
    return output


def part_cases(part: str, args: argparse.Namespace, calibration: dict[str, float]) -> list[dict[str, Any]]:
    """Cases of a part of cost."""
    if part == "light":
        return light_cases(args, calibration)
    if part == "known":
        return [known_case(args)]
    from masked_amused import make_uvit, peer_case, uvit_case  # loads transformers

    model = make_uvit(args.quick, args.seed)
    return [uvit_case(args, model) if part == "uvit" else peer_case(args, model)]


def _part(case: dict[str, Any]) -> str:
    name = str(case.get("row", case.get("id"))).partition("/")[0]
    return next((part for part, rows in ROWS_OF.items() if name in rows), name)


def strength(text: str) -> float:
    """A guidance of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0 (1 = off), got {text!r}")
    return value


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    options: tuple[tuple[str, Any, Any, str], ...] = (
        ("--model", str, "maskgit-fashion", "built-in name, or folder of a pipeline or run (default: %(default)s)"),
        ("--num", positive, 1000, "samples of each row and seed (default: %(default)s)"),
        ("--batch-size", positive, 50, "samples at once; part of what makes them (default: %(default)s)"),
        ("--guidance", strength, 2.0, "of all ways to decode; 1 = off (default: %(default)g)"),
        ("--baseline", str, "ddpm-fashion", "a diffusion model, or none (default: %(default)s)"),
        ("--baseline-steps", positive, 50, "of DDIM (default: %(default)s)"),
        ("--root", Path, Path("data"), "folder that Fashion-MNIST was imported into (default: %(default)s)"),
        ("--samples", Path, Path("runs/masked-samples"), "folder of kept samples (default: %(default)s)"),
        ("--device", device, "cpu", "default: %(default)s"),
        ("--threads", natural, 0, "of torch; 0 = as torch chooses (default)"),
        ("--seed", natural, 0, "of weights and inputs of cost (default: %(default)s)"),
        ("--warmup", positive, 2, "runs before the clock, of cost (default: %(default)s)"),
        ("--repeats", positive, 5, "timed pairs of cost or rounds of quality, at least (default: %(default)s)"),
        ("--budget", seconds, 60.0, "seconds of pairs or rounds; more are run while it lasts (default: %(default)g)"),
        ("--calibration-seconds", seconds, 1.0, "for each test of the machine's own speed (default: %(default)g)"),
        ("--name", str, "fashion", "of the result of quality (default: %(default)s)"),
        ("--out", Path, Path(__file__).parent / "results", "folder of results (default: benchmarks/results)"),
    )
    for name, kind, default, words in options:
        parser.add_argument(name, type=kind, default=default, help=words)
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0, 1, 2], help="of samples (default: 0 1 2)")
    parser.add_argument(
        "--bounds", type=strength, nargs="*", default=[0.1], help="of adaptive plans, nats (default: 0.1)"
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="as base/16 or recap/16-8-1 (default: all ways to decode)"
    )
    parser.add_argument(
        "--data", choices=("fashion-mnist-full", "fashion-mnist"), default="fashion-mnist-full", help="the second ships"
    )
    parser.add_argument("--quick", action="store_true", help="see that cost runs, in seconds: tiny sizes")
    parser.add_argument("--allow-small-n", action="store_true", help="score fewer samples than features")
    return parser


if __name__ == "__main__":
    main()
