"""One table for all methods: every built-in checkpoint of Fashion-MNIST, same reference, N, features and seeds.

python benchmarks/leaderboard.py                      # the table, results/leaderboard.json, .md and the figure
python benchmarks/leaderboard.py --rows ddpm-fashion/ddim-50 --num 1000

Needs Fashion-MNIST: `gendiff data import fashion-mnist --root data`. Every finished row and seed is written at once,
and the same command goes on where it stopped. The first rows are no models: real images that were held out, and the
training set itself, which is what a model that had learnt everything by heart would score.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from calibration import calibrate
from calls import Work, load, make_call
from harness import measure
from leaderboard_tables import figure, markdown
from noise import load as machine_load
from provenance import checkpoint_sha256, environment, model_folder, origin
from report import read_result, write_result

from gendiff.data.image_source import ImageSource
from gendiff.data.pipeline_source import PipelineSource
from gendiff.data.source_arrays import ArraySource
from gendiff.data.sources import open_source
from gendiff.metrics.evaluate import evaluate
from gendiff.pipelines.registry import builtin_checkpoints
from gendiff.samplers.recap import ReCAPConfig
from gendiff.samplers.solvers import solver

REFERENCE, TRAINING = "dataset:fashion-mnist-full:test", "dataset:fashion-mnist-full:train"
EXTRACTORS: dict[str, tuple[str, ...]] = {
    "lite0-112": ("fd", "kid", "prdc"),
    "fmnist-cnn": ("fd", "accuracy"),
}
"""Features -> metrics taken in them."""
VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "ImageGenerationPipeline": [
        ("ddim-50", {"scheduler": "ddim", "num_inference_steps": 50}),
        ("ddim-20", {"scheduler": "ddim", "num_inference_steps": 20}),
        ("dpm-solver++-20", {"scheduler": "dpm-solver++", "num_inference_steps": 20}),
        ("dpm-solver++-10", {"scheduler": "dpm-solver++", "num_inference_steps": 10}),
    ],
    "MaskedGenerationPipeline": [
        ("base-16", {"num_inference_steps": 16}),
        ("recap-16", {"num_inference_steps": 16, "recap": ReCAPConfig(num_light_steps=1, num_warmup_groups=0)}),
    ],
    "NextFrequencyPipeline": [
        ("guidance-1", {"guidance_scale": 1.0}),
        ("guidance-2.5", {"guidance_scale": 2.5}),
    ],
}
"""Class of a pipeline -> name and arguments of each way to run it. A new method adds its line."""
TIMED_BATCH = 16


def main() -> None:
    """Measure what is missing and print the table."""
    options = parse()
    torch.set_num_threads(options.threads)
    path = options.out / "leaderboard.json"
    settings = {"reference": REFERENCE, "num": options.num, "batch_size": options.batch_size, "extractors": EXTRACTORS}
    rows = all_rows(options)
    chosen = list(rows) if options.rows is None else options.rows
    if unknown := [name for name in chosen if name not in rows]:
        sys.exit(f"--rows has {unknown[0]!r}; known: {', '.join(rows)}")
    cases = kept_cases(path, json.loads(json.dumps(settings)), rows)
    before = machine_load()
    calibration = calibrate(options.device)
    for seed in options.seeds:
        for name in chosen:
            make, fingerprint = rows[name]
            if any(case["row"] == name and case["seed"] == seed for case in cases):
                continue
            print(f"{name}, seed {seed}", flush=True)
            cases.append({"row": name, "seed": seed, "fingerprint": fingerprint, **make(seed, calibration)})
            order = {name: i for i, name in enumerate(rows)}
            cases.sort(key=lambda case: (order[case["row"]], case["seed"]))
            result = {
                **origin(),
                "env": environment(options.device, "float32") | {"load_before": before, "load_after": machine_load()},
                "calibration": calibration,
                "settings": settings,
                "cases": cases,
            }
            write_result(path, result)
    result = read_result(path)
    if result is None:
        sys.exit("nothing was measured.")
    path.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    figure(result, path.with_suffix(".png"))
    print(markdown(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=2000, help="images of each row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="image i of seed s is drawn from s * num + i")
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--batch-size", type=int, default=40, help="images a call; part of what makes the images")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in sampling and in timing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of timing of each row")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if min(options.num, options.batch_size, options.threads) < 1 or min(options.seeds) < 0 or options.budget <= 0:
        parser.error("--num, --batch-size, --threads and --budget must be positive, --seeds at least 0.")
    return options


Row = tuple[Callable[[int, Mapping[str, float]], dict[str, Any]], str | None]
"""What measures a row, given seed and calibration, and the hash of its weights."""


def all_rows(options: argparse.Namespace) -> dict[str, Row]:
    """Every row by name: two of real images, then each way to run each checkpoint that was trained on this data."""
    rows: dict[str, Row] = {
        "real: held out": (partial(held_out, options), None),
        "real: training set": (partial(training_set, options), None),
    }
    for name, checkpoint in builtin_checkpoints().items():
        index = json.loads((checkpoint.path / "model_index.json").read_text(encoding="utf-8"))
        recipe = checkpoint.path / "recipe.yaml"
        if not recipe.is_file() or "name: fashion-mnist" not in recipe.read_text(encoding="utf-8"):
            continue
        for variant, arguments in VARIANTS.get(index["_class_name"], []):
            measured = partial(model_row, options, name, arguments)
            rows[f"{name}/{variant}"] = (measured, checkpoint_sha256(model_folder(name)))
    return rows


def kept_cases(path: Path, settings: dict[str, Any], rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Cases of an earlier run that still hold: same settings, same weights."""
    old = read_result(path)
    if old is None or old["settings"] != settings:
        return []
    return [case for case in old["cases"] if case["row"] in rows and rows[case["row"]][1] == case["fingerprint"]]


def held_out(options: argparse.Namespace, seed: int, calibration: Mapping[str, float]) -> dict[str, Any]:
    """Test images against the other test images: about what a perfect model would score."""
    source = open_source(REFERENCE)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed)).tolist()
    labels = source.labels(len(source))
    drawn, rest = order[: options.num], order[options.num :]
    assert labels is not None
    parts = [ArraySource(source.read(part), REFERENCE, labels=labels[part]) for part in (drawn, rest)]
    return {"cells": cells(parts[0], parts[1], options)}


def training_set(options: argparse.Namespace, seed: int, calibration: Mapping[str, float]) -> dict[str, Any]:
    """Training images against the test images."""
    source = open_source(TRAINING)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed)).tolist()[: options.num]
    labels = source.labels(len(source))
    assert labels is not None
    return {"cells": cells(ArraySource(source.read(order), TRAINING, labels=labels[order]), REFERENCE, options)}


def model_row(
    options: argparse.Namespace, name: str, arguments: dict[str, Any], seed: int, calibration: Mapping[str, float]
) -> dict[str, Any]:
    """Images of a checkpoint, as many of each class, scored once by each network; and what they cost."""
    call = {key: value for key, value in arguments.items() if key != "scheduler"}
    work = Work(model=name, device=options.device, options=call)
    pipe = load(work)
    if "scheduler" in arguments:
        pipe.scheduler = solver(arguments["scheduler"], pipe.scheduler)
    source = PipelineSource(
        pipe,
        options.num,
        seed=seed * options.num,
        batch_size=options.batch_size,
        labels="balanced",
        threads=options.threads,
        **call,
    )
    images = torch.cat([source.read(block) for block in blocks(options.num, options.batch_size)])
    kept = ArraySource(images, name, labels=source.labels(options.num))
    timed = make_call(pipe, work, TIMED_BATCH)
    cost = measure(
        timed.run,
        batch=TIMED_BATCH,
        device=options.device,
        calibration=calibration,
        before=timed.before,
        warmup=1,
        min_repeats=3,
        budget_s=options.budget,
    )
    stats = source.stats()
    cost["nfe"] = stats["network_calls"] // stats["calls"]
    return {"cells": cells(kept, REFERENCE, options), "samples": source.describe() | {"checkpoint": name}, "cost": cost}


def blocks(num: int, size: int) -> list[range]:
    return [range(start, min(start + size, num)) for start in range(0, num, size)]


def cells(samples: ImageSource, reference: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every score of `samples`, with the counts it was taken at."""
    found = []
    for extractor, metrics in EXTRACTORS.items():
        report = evaluate(samples, reference, metrics, extractor, device=options.device, floor=False, progress=False)
        for score in report.scores.values():
            extra = {key: score.details[key] for key in ("std", "k") if key in score.details}
            counts = {"n": report.conditions["n_gen"], "n_real": report.conditions["n_real"]}
            found.append({"metric": score.name, "extractor": extractor, "value": score.value, **counts, **extra})
    return found


if __name__ == "__main__":
    main()
