"""How right are the counterfactuals? Every metric, with reference rows, against the true answers.

Every finished row and seed is written at once; run the same command again and it goes on where it stopped. Beside the
JSON it writes a report in Markdown and a figure.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from arguments import run_or_explain
from counterfactual_figure import draw_examples, store_examples
from counterfactual_questions import Exam, Examiner
from counterfactual_rows import MODEL_ROWS, REFERENCE_ROWS, Row, Student, sit_model_row, sit_reference_row
from counterfactual_tables import to_markdown
from provenance import checkpoint_sha256, environment, model_folder, now, origin
from report import read_result, write_result

import gendiff
from gendiff.files import write_whole
from gendiff.pipelines.counterfactual import CounterfactualPipeline

SECONDS_PER_PASS = 1.1e-3
"""Of one image through the U-Net of the built-in pendulum model, on one core of a server CPU."""
VARIABLES = {"pendulum": 4, "handwriting": 3}
"""Datasets and how many questions each asks."""
FIXED = ("dataset", "size", "num_images", "chain_images", "steps", "graph")
"""Settings that all cases of one result share."""


def main(argv: list[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.model = args.model or f"counterfactual-{args.dataset}"
    args.output = args.output or Path(__file__).parent / "results" / f"counterfactual-{args.dataset}.json"
    return run_or_explain(run, args, parser)


def run(args: argparse.Namespace) -> Path:
    """Measure what is missing, then write the report.

    Raises:
        ValueError, OSError, ImportError: an argument, model or dataset cannot be used.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    pipes = load_models(args)
    pipe = pipes["model"][0]
    examiner = Examiner(args.dataset, pipe.sample_shape[1], args.root)
    check_fit(args, pipes, examiner)
    result = prepare_result(args, pipes, examiner)
    chosen = [(row, seed) for row in chosen_rows(args) for seed in args.seeds]
    missing = [(row, seed) for row, seed in chosen if not known(result, args, pipes, row, seed)]
    say(f"{len(missing)} cases to measure, {len(chosen) - len(missing)} known")
    exams: dict[int, Exam] = {}
    for row, seed in missing:
        if seed not in exams:
            exams[seed] = examiner.exam(seed, args.num_images)
        case = measure(row, seed, args, pipes, examiner, exams[seed])
        result["cases"] = [old for old in result["cases"] if (old["row"], old["seed"]) != (row, seed)] + [case]
        write_result(args.output, result)
    write_result(args.output, result)
    text = to_markdown(result, draw(args.output))
    write_whole(args.output.with_suffix(".md"), text)
    print(text)
    return args.output


def measure(
    row: str, seed: int, args: argparse.Namespace, pipes: dict[str, tuple], examiner: Examiner, exam: Exam
) -> dict[str, Any]:
    """One case: a row under one seed."""
    start = time.perf_counter()
    pipe, sha = source_of(row, pipes)
    if row in REFERENCE_ROWS:
        cells = sit_reference_row(row, examiner, exam)
    else:
        asked = next((known for known in MODEL_ROWS if known.name == row), Row(row, "ablation"))
        student = Student(pipe, asked, args.steps, args.batch_size, seed)
        cells, answers = sit_model_row(
            student, examiner, exam, args.chain_images, seed, lambda stage: say(f"{row}, seed {seed}: {stage}")
        )
        if row == "model" and seed == args.seeds[0]:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            store_examples(args.output.with_suffix(".npz"), exam, answers)
    seconds = time.perf_counter() - start
    say(f"{row}, seed {seed}: {seconds:.0f} s")
    return {
        "row": row,
        "seed": seed,
        "checkpoint_sha256": sha,
        "created": now(),
        "seconds": round(seconds, 2),
        "cells": cells,
    }


def known(result: dict[str, Any], args: argparse.Namespace, pipes: dict[str, tuple], row: str, seed: int) -> bool:
    """Whether the result holds this case already, measured with the same weights."""
    wanted = {"row": row, "seed": seed, "checkpoint_sha256": source_of(row, pipes)[1]}
    return not args.force and any(wanted.items() <= case.items() for case in result["cases"])


def prepare_result(args: argparse.Namespace, pipes: dict[str, tuple], examiner: Examiner) -> dict[str, Any]:
    """The result file as it stands, with the settings of this run and without answers of other weights.

    Raises:
        ValueError: the file holds a result of other settings, and `--force` is not given.
    """
    pipe, sha = pipes["model"]
    settings = {
        "dataset": args.dataset,
        "model": args.model,
        "size": pipe.sample_shape[1],
        "num_images": args.num_images,
        "chain_images": min(args.chain_images, args.num_images),
        "steps": args.steps,
        "graph": examiner.graph.to_dict(),
        "classifier_accuracy": examiner.classifier_accuracy(),
    }
    old = read_result(args.output)
    cases = [] if old is None else old["cases"]
    changed = [key for key in FIXED if cases and old is not None and old["settings"][key] != settings[key]]
    if changed and not args.force:
        raise ValueError(
            f"{args.output} was measured with another {', '.join(changed)}: name another --output, or give --force "
            "to begin anew."
        )
    models = [row.name for row in MODEL_ROWS]
    return {
        **origin(),
        "env": environment(str(pipe.device), str(pipe.dtype).removeprefix("torch.")),
        "settings": settings,
        "cases": [
            case for case in cases if not changed and (case["row"] not in models or case["checkpoint_sha256"] == sha)
        ],
    }


def load_models(args: argparse.Namespace) -> dict[str, tuple[CounterfactualPipeline, str]]:
    """Row name -> (pipeline, hash of its weights): "model" and every ablation."""
    pipes = {}
    for name, source in {"model": args.model, **dict(args.ablation)}.items():
        folder = model_folder(source)
        pipe = gendiff.pipeline("counterfactual", model=folder, device=args.device)
        pipe.set_progress_bar_config(disable=True)
        pipes[name] = (pipe, checkpoint_sha256(folder))
    return pipes


def check_fit(args: argparse.Namespace, pipes: dict[str, tuple], examiner: Examiner) -> None:
    """Raise ValueError unless the models speak of the dataset's variables and there are enough images."""
    for name, (pipe, _) in pipes.items():
        if pipe.graph != examiner.graph:
            raise ValueError(f"{name} has the graph {pipe.graph}, the dataset {args.dataset} has {examiner.graph}.")
    if args.num_images > len(examiner.dataset) - 2:
        raise ValueError(f"--num-images must leave some of the {len(examiner.dataset)} test images to compare with.")


def source_of(row: str, pipes: dict[str, tuple]) -> tuple[Any, str | None]:
    """Pipeline and hash behind a row; none behind a reference row."""
    if row in REFERENCE_ROWS:
        return None, None
    return pipes.get(row, pipes["model"])


def chosen_rows(args: argparse.Namespace) -> list[str]:
    """Names of the rows to measure, the cheap reference rows first.

    Raises:
        ValueError: an unknown row, or an ablation with the name of another row.
    """
    own, ablations = [*REFERENCE_ROWS, *(row.name for row in MODEL_ROWS)], [name for name, _ in args.ablation]
    every = [*own, *ablations]
    for name in ablations:
        if every.count(name) > 1:
            raise ValueError(f"--ablation {name} has the name of another row; rows are {', '.join(every)}.")
    unknown = [row for row in args.rows or () if row not in every]
    if unknown:
        raise ValueError(f"--rows: unknown {', '.join(unknown)}; known: {', '.join(every)}.")
    return [row for row in every if not args.rows or row in args.rows]


def draw(output: Path) -> str | None:
    """Draw the figure beside the result; its file name, or None if no examples are stored."""
    stored = output.with_suffix(".npz")
    if not stored.is_file():
        return None
    draw_examples(stored, output.with_suffix(".png"))
    return output.with_suffix(".png").name


def say(words: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=expected_time(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*REFERENCE_ROWS, *(row.name for row in MODEL_ROWS)]
    parser.add_argument("--dataset", choices=tuple(VARIABLES), default="pendulum", help="default: %(default)s")
    parser.add_argument("--model", help="built-in name or folder (default: counterfactual-DATASET)")
    parser.add_argument(
        "--ablation",
        metavar="NAME=FOLDER",
        type=ablation,
        action="append",
        default=[],
        help="another model as a row of its own, e.g. legacy_sum=runs/legacy-sum/final; may be repeated",
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"only these: {', '.join(names)}, or an ablation")
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--num-images", type=positive, default=256, help="test images a seed (default: %(default)s)")
    parser.add_argument(
        "--chain-images",
        type=positive,
        default=32,
        help="of these, how many go through the chains of ten (default: %(default)s)",
    )
    parser.add_argument("--steps", type=positive, default=50, help="sampling steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images at once (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/counterfactual-DATASET.json")
    parser.add_argument("--root", default="data", help="folder of imported data (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=natural, default=0, help="of torch; 0 = as torch chooses (default)")
    parser.add_argument("--force", action="store_true", help="measure again what is known")
    return parser


def expected_time() -> str:
    """How long the default settings take, from the number of network passes."""
    lines = [f"Expected time a seed at the default settings, at {1000 * SECONDS_PER_PASS:.1f} ms a pass and image:"]
    for row in MODEL_ROWS:
        minutes = [row.passes(count, 50, 256, 32) * SECONDS_PER_PASS / 60 for count in VARIABLES.values()]
        times = ", ".join(f"{name} {time:4.1f} min" for name, time in zip(VARIABLES, minutes, strict=True))
        lines.append(f"  {row.name:14} {times}")
    ablation_minutes = Row("", "").passes(VARIABLES["pendulum"], 50, 256, 32) * SECONDS_PER_PASS / 60
    lines.append(f"  {'an ablation':14} pendulum {ablation_minutes:4.1f} min; reference rows: seconds")
    return "\n".join(lines)


def ablation(text: str) -> tuple[str, str]:
    """NAME=FOLDER, split."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"must look like NAME=FOLDER, got {text!r}")
    return name, folder


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if natural(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1, got 0")
    return int(text)


if __name__ == "__main__":
    main()
