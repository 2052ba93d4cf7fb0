"""How often are the built-in classifiers right? Accuracy on the whole test split of the data each was trained on.

Writes benchmarks/results/classifiers.json, from which `python benchmarks/readme.py` fills the model cards.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from arguments import run_or_explain
from classifiers_table import result_table
from provenance import checkpoint_sha256, environment, origin
from report import write_result
from torch import Tensor

import gendiff
from gendiff.data import load_dataset
from gendiff.models.image_classifier import ImageClassifier

CHECKPOINTS = Path(gendiff.__file__).parent / "checkpoints"
BATCH = 500


def main(argv: list[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="folder of models (default: built-in)")
    parser.add_argument("--root", help="folder of imported data (default: as the recipe of each model says)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "classifiers.json")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args(argv)
    return run_or_explain(run, args, parser)


def run(args: argparse.Namespace) -> Path:
    """Measure every classifier, then write all at once.

    Raises:
        ValueError, OSError, ImportError: no classifier, or one whose data cannot be read.
    """
    folders = classifier_folders(args.checkpoints)
    if not folders:
        raise ValueError(f"--checkpoints {args.checkpoints} holds no classifier.")
    result = {
        **origin(),
        "env": environment(args.device, "float32"),
        "settings": {"split": "test", "batch_size": BATCH},
        "cases": [measure(folder, args.root, args.device) for folder in folders],
    }
    write_result(args.output, result)
    print(result_table(result))
    return args.output


def classifier_folders(checkpoints: Path) -> list[Path]:
    """Folders of saved classifiers, sorted by name."""
    configs = sorted(checkpoints.glob("*/config.json"))
    return [path.parent for path in configs if json.loads(path.read_text())["_class_name"] == "ImageClassifier"]


def measure(folder: Path, root: str | None, device: str) -> dict[str, Any]:
    """One case: a classifier on the test split of its data."""
    start = time.perf_counter()
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    arguments = dict(recipe["data"]) if root is None else {**recipe["data"], "root": root}
    name = arguments.pop("name")
    dataset = load_dataset(name, split="test", **arguments)
    classifier: Any = ImageClassifier.from_pretrained(folder, torch_dtype=torch.float32)
    if tuple(classifier.config["classes"]) != tuple(dataset.classes):
        raise ValueError(f"{folder} knows other classes than the dataset {name}.")
    right = answers(classifier.eval().to(device), dataset.images) == dataset.labels
    seconds = time.perf_counter() - start
    print(f"{folder.name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return {
        "row": folder.name,
        "seed": recipe["seed"],
        "dataset": name,
        "checkpoint_sha256": checkpoint_sha256(folder),
        "params": sum(parameter.numel() for parameter in classifier.parameters()),
        "seconds": round(seconds, 2),
        "cells": cells_of(right, dataset.labels, tuple(dataset.classes)),
    }


@torch.inference_mode()
def answers(classifier: ImageClassifier, images: Tensor) -> Tensor:
    """Class (N,) of images (N, C, S, S) uint8."""
    device = next(classifier.parameters()).device
    logits = [classifier(chunk.to(device).float() / 127.5 - 1) for chunk in images.split(BATCH)]
    return torch.cat(logits).argmax(dim=1).cpu()


def cells_of(right: Tensor, labels: Tensor, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Accuracy over all and over each class that occurs, the mean of those, and the share of the largest class.

    Args:
        right: (N,) bool.
        labels: (N,) true classes.
        classes: their names.
    """
    count = len(labels)
    largest = int(labels.bincount().max())
    cells: list[dict[str, Any]] = [
        {"metric": "accuracy", "value": int(right.sum()) / count, "n": count},
        {"metric": "largest_class", "value": largest / count, "n": count},
    ]
    by_class: list[dict[str, Any]] = []
    for label, name in enumerate(classes):
        of_class = right[labels == label]
        if len(of_class):
            value = int(of_class.sum()) / len(of_class)
            by_class.append({"metric": "class_accuracy", "of": name, "value": value, "n": len(of_class)})
    mean = fmean(cell["value"] for cell in by_class)
    return [*cells, {"metric": "class_mean", "value": mean, "n": len(by_class)}, *by_class]


if __name__ == "__main__":
    main()
