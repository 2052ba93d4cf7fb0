"""How good images in stages are: next-frequency, next-scale and their floors on Fashion-MNIST, several seeds of each.

python benchmarks/next_frequency_quality.py                # the built-in models
python benchmarks/next_frequency_quality.py --model next-frequency-fashion runs/next-frequency-fashion-1 ...
python benchmarks/next_frequency_quality.py --baseline none --num 1000

Models are named by built-in name, folder of a pipeline, or folder of a run; those of one recipe are one group, whose
seeds are shown one by one and together. Of each are measured:

- the tokenizer on test images: PSNR up to each stage (the mean over images of each one's own) and without quantiser,
  and how many codes each stage uses;
- the transformer on test images: nats a token by stage, given the class and the true stages before, and nats an image;
- samples at each `--guidance`: Frechet distance in two kinds of features, class accuracy, and seconds for an image in
  batches of 16, decoder included.

They are read beside real images (held out; of the training split), each tokenizer's own reconstructions, which are what
no transformer over it can beat, and a diffusion model of 50 steps measured in the same run with as many samples.

Needs Fashion-MNIST: `gendiff data import fashion-mnist --root data`. Each finished model is written at once, and
samples are kept under `--samples` in parts, so that the same command goes on where it stopped. Writes
results/next-frequency-NAME.json, a report (.md), a plot (.png, .svg) and its numbers (.csv); models that were measured
before with the same settings stay in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from arguments import device, natural, positive, run_or_explain, say, seconds, set_threads
from calls import option
from next_frequency_models import find_models, open_model
from next_frequency_quality_tables import markdown, plot
from next_frequency_rows import Job, jobs_of
from next_frequency_scores import check_shape
from next_frequency_yardstick import EXTRACTORS, make_yardstick
from noise import load as machine_load
from provenance import environment, origin
from report import read_result, write_result

from gendiff.data import load_dataset
from gendiff.files import write_whole

MODELS = ["next-frequency-fashion", "next-scale-fashion"]


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = make_parser()
    args = parser.parse_args(argv)
    return run_or_explain(run, args, parser)


def run(args: argparse.Namespace) -> Path:
    """Measure what is missing and write the report.

    Raises:
        ValueError, OSError, ImportError: an argument, model or data set cannot be used.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("the plot needs matplotlib: pip install 'gendiff[plots]'")
    set_threads(args.threads)
    models = find_models(args.model)
    root = {"root": args.root} if args.data == "fashion-mnist-full" else {}
    test, train = (load_dataset(args.data, split=split, **root) for split in ("test", "train"))
    for model in models:
        check_shape(open_model(model, args.device), test.images, len(test.classes))
    settings = settings_of(args, len(test))
    jobs = jobs_of(args, models, test, train)
    output = args.output or Path(__file__).parent / "results" / f"next-frequency-{args.name}.json"
    cases = kept_cases(output, settings, jobs)
    env = environment(args.device, "float32")
    missing = [key for key in jobs if key not in {(case["row"], case["seed"]) for case in cases}]
    yardstick = None
    if missing:
        yardstick = make_yardstick(test.images, test.labels, args.num, args.device, args.allow_small_n)
    result = result_of(settings, env, cases)
    for row, seed in missing:
        assert yardstick is not None
        say(f"{row}, seed {seed}")
        fingerprint, measure = jobs[row, seed]
        cases.append({"row": row, "seed": seed, "fingerprint": fingerprint, **measure(yardstick)})
        order = {key: position for position, key in enumerate(jobs)}
        cases.sort(key=lambda case: order.get((case["row"], case["seed"]), len(order)))
        env["load_after"] = machine_load()
        result = result_of(settings, env, cases)
        write_result(output, result)
    write_result(output, result)
    plot(result, output.with_suffix(""))
    text = markdown(result, output.with_suffix(".png").name)
    write_whole(output.with_suffix(".md"), text)
    print(text)
    return output


def kept_cases(path: Path, settings: dict[str, Any], jobs: dict[tuple[str, int], Job]) -> list[dict[str, Any]]:
    """Cases of an earlier run that still hold: same settings, and of what is measured now the same weights.

    Models that are not named now stay, as they were.
    """
    old = read_result(path)
    same = {key: value for key, value in settings.items() if key != "table_guidance"}
    if old is None or {key: value for key, value in old["settings"].items() if key != "table_guidance"} != same:
        return []

    def holds(case: dict[str, Any]) -> bool:
        key = (case["row"], case["seed"])
        return jobs[key][0] == case["fingerprint"] if key in jobs else "facts" in case

    return [case for case in old["cases"] if holds(case)]


def settings_of(args: argparse.Namespace, reference: int) -> dict[str, Any]:
    """What every case depends on, as JSON has it."""
    settings = {
        "data": args.data,
        "reference": reference,
        "images": reference if args.images is None else min(args.images, reference),
        "num": args.num,
        "batch_size": args.batch_size,
        "guidance": args.guidance,
        "table_guidance": args.table_guidance,
        "options": dict(map(option, args.set)),
        "baseline": f"{args.baseline}, DDIM, {args.baseline_steps} steps",
        "extractors": EXTRACTORS,
        "threads": torch.get_num_threads(),
    }
    return json.loads(json.dumps(settings))


def result_of(settings: dict[str, Any], env: dict[str, Any], cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole result file."""
    return {
        **origin(),
        "env": env,
        "settings": settings,
        "cases": cases,
    }


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
    parser.add_argument(
        "--model", nargs="+", default=MODELS, metavar="NAME_OR_FOLDER", help=f"default: {' '.join(MODELS)}"
    )
    parser.add_argument(
        "--guidance", type=strength, nargs="+", default=[1.0, 1.5, 2.5], help="at the last stage (default: 1 1.5 2.5)"
    )
    parser.add_argument(
        "--table-guidance",
        type=strength,
        help="the one of those that tables show (default: for each group that of least FD[lite0-112])",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a further argument of the call, as JSON"
    )
    parser.add_argument(
        "--data", choices=("fashion-mnist-full", "fashion-mnist"), default="fashion-mnist-full", help="the second ships"
    )
    options: tuple[tuple[str, Any, Any, str], ...] = (
        ("--root", Path, Path("data"), "folder that Fashion-MNIST was imported into (default: %(default)s)"),
        ("--num", positive, 5000, "samples of each row and seed (default: %(default)s)"),
        ("--images", positive, None, "test images of PSNR, codes and nats (default: all)"),
        ("--batch-size", positive, 50, "samples at once; part of what makes them (default: %(default)s)"),
        ("--baseline", str, "ddpm-fashion", "a diffusion model, or none (default: %(default)s)"),
        ("--baseline-steps", positive, 50, "of DDIM (default: %(default)s)"),
        ("--samples", Path, Path("runs/next-frequency-samples"), "folder of kept samples (default: %(default)s)"),
        ("--repeats", positive, 10, "timed calls, at least (default: %(default)s)"),
        ("--budget", seconds, 60.0, "seconds of timed calls a row, which end it early (default: %(default)g)"),
        ("--device", device, "cpu", "default: %(default)s"),
        ("--threads", natural, 0, "of torch; 0 = as torch chooses (default)"),
        ("--name", str, "quality", "of the result files (default: %(default)s)"),
        ("--output", Path, None, "default: benchmarks/results/next-frequency-NAME.json"),
    )
    for name, kind, default, words in options:
        parser.add_argument(name, type=kind, default=default, help=words)
    parser.add_argument("--allow-small-n", action="store_true", help="score fewer samples than features")
    return parser


if __name__ == "__main__":
    main()
