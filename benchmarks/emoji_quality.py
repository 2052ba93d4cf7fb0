"""How good are generated emoji? Class accuracy and Frechet distance in the features of `emoji-cnn`, beside real ones.

python benchmarks/emoji_quality.py --threads 1       # results/emoji.json, for the model card; a minute of one core

Needs emoji: `gendiff data import emoji --root data`. The reference is the training set, 3,313 pictures; the few test
pictures against it are the floor, and what the tokenizer makes of them is what no transformer over it can beat.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from arguments import device, natural, positive, run_or_explain, say, set_threads
from calls import Work, load
from provenance import checkpoint_sha256, environment, model_folder, origin
from report import markdown_table, write_result
from torch import Tensor

from gendiff.data import load_dataset
from gendiff.data.pipeline_source import PipelineSource
from gendiff.data.source_arrays import ArraySource
from gendiff.metrics.evaluate import evaluate

EXTRACTOR = "emoji-cnn"


def main(argv: list[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="next-frequency-emoji", help="default: %(default)s")
    parser.add_argument("--num", type=positive, default=1000, help="generated emoji, as many of each group")
    parser.add_argument("--guidance", type=float, default=2.5, help="at the last stage (default: %(default)s)")
    parser.add_argument("--root", default="data", help="folder that emoji were imported into (default: %(default)s)")
    parser.add_argument("--device", type=device, default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=natural, default=0, help="of torch; 0 = as torch chooses (default)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "emoji.json")
    return run_or_explain(run, parser.parse_args(argv), parser)


def run(args: argparse.Namespace) -> Path:
    """Measure every row, then write all at once.

    Raises:
        ValueError, OSError, ImportError: a model or the data cannot be used.
    """
    set_threads(args.threads)
    train, test = (load_dataset("emoji", split=split, root=args.root, size=32) for split in ("train", "test"))
    pipe = load(Work(model=args.model, device=args.device))
    if pipe.class_names != list(train.classes):
        raise ValueError(f"--model {args.model} knows the classes {pipe.class_names}, the data {list(train.classes)}.")
    rows = {
        "real: test": ArraySource(test.images, "emoji test", labels=test.labels),
        f"{args.model}: test through its tokenizer": ArraySource(
            _reconstructed(pipe.vqvae, test.images), "reconstructions", labels=test.labels
        ),
        args.model: _samples(pipe, args),
    }
    reference = ArraySource(train.images, "emoji train")
    cases = []
    for row, source in rows.items():
        say(row)
        report = evaluate(
            source, reference, ("fd", "accuracy"), EXTRACTOR, floor=False, progress=False, device=args.device
        )
        cells = [
            {"metric": score.name, "extractor": EXTRACTOR, "value": score.value, "n": len(source)}
            for score in report.scores.values()
        ]
        cases.append({"row": row, "seed": 0, "cells": cells})
    result = {
        **origin(),
        "env": environment(args.device, "float32"),
        "settings": {
            "reference": "emoji:train",
            "num": args.num,
            "guidance": args.guidance,
            "checkpoint_sha256": checkpoint_sha256(model_folder(args.model)),
        },
        "cases": cases,
    }
    write_result(args.output, result)
    print(result_table(result))
    return args.output


def result_table(result: Mapping[str, Any]) -> str:
    """One row for each set of emoji."""
    rows = []
    for case in result["cases"]:
        value = {cell["metric"]: cell["value"] for cell in case["cells"]}
        rows.append([case["row"], f"{case['cells'][0]['n']:,}", f"{value['accuracy']:.3f}", f"{value['fd']:.2f}"])
    table = markdown_table(["emoji", "number", "class accuracy", f"FD[{EXTRACTOR}]"], rows)
    guidance = result["settings"]["guidance"]
    return f"{table}\n\nAgainst the training set; samples at guidance {guidance:g}, as many of each group."


def _samples(pipe: Any, args: argparse.Namespace) -> ArraySource:
    source = PipelineSource(
        pipe,
        args.num,
        seed=0,
        batch_size=50,
        labels="balanced",
        threads=args.threads or 1,
        guidance_scale=args.guidance,
    )
    images = torch.cat([source.read(range(at, min(at + 50, args.num))) for at in range(0, args.num, 50)])
    return ArraySource(images, args.model, labels=source.labels(args.num))


@torch.no_grad()
def _reconstructed(vqvae: Any, images: Tensor) -> Tensor:
    """(N, C, S, S) uint8 to what is decoded of it, uint8."""
    decoded = [vqvae.decode(vqvae.encode(part.to(vqvae.device) / 127.5 - 1).tokens) for part in images.split(100)]
    return ((torch.cat(decoded) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


if __name__ == "__main__":
    main()
