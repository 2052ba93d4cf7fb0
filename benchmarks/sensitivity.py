"""What does each extractor notice? Fréchet distances of damaged Fashion-MNIST, in units of that of two clean halves.

A is drawn from one half of the training split, B from the other. A ratio of 1 means that a damage goes unnoticed; what
is far above 1 is seen. Writes results/sensitivity.json and the table (.md). Needs the imported data:
`gendiff data import fashion-mnist`, and `gendiff data import mnist` for the last column, which is left out otherwise.
"""

from __future__ import annotations

import argparse
import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import natural, positive, say
from noise import load
from PIL import Image
from provenance import environment, origin
from report import summarise, write_result
from sensitivity_table import to_markdown
from torch import Tensor

from gendiff.data import load_dataset
from gendiff.data.sources import open_source
from gendiff.files import write_whole
from gendiff.metrics.extractors import get_extractor
from gendiff.metrics.features import extract_features
from gendiff.metrics.frechet import frechet_distance

EXTRACTORS = ("lite0-80", "lite0-112", "lite0-320", "lite0-1280", "fmnist-cnn", "pixel")
ORDER = ("mnist", "noise", "half", "jpeg", "few", "blur", "shift", "test")
"""From what lite0-112 sees best to what it does not see, as the choice of this extractor assumes."""
ORDERED = "lite0-112"


def main(argv: list[str] | None = None) -> Path:
    """Run the benchmark; the path of the result file."""
    parser = make_parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    env = environment(args.device, "float32")
    try:
        cases = [case for seed in args.seeds for case in seed_cases(seed, args)]
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    env["load_after"] = load()
    result = {
        **origin(),
        "env": env,
        "settings": {"num_images": args.num, "seeds": args.seeds, "order": list(ORDER)},
        "cases": cases,
    }
    result["settings"]["order_reproduced"] = order_reproduced(cases)
    write_result(args.output, result)
    text = to_markdown(result, ORDERED)
    write_whole(args.output.with_suffix(".md"), text)
    print(text)
    return args.output


def seed_cases(seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One case an extractor, all on the same images."""
    reference, clean, damaged = draw_sets(args.num, seed, args.root)
    cases = []
    for name in args.extractors:
        say(f"seed {seed}: {name}")
        extractor, start = get_extractor(name, device=args.device), time.perf_counter()

        def features(images: Tensor, extractor: Any = extractor) -> np.ndarray:
            return extract_features(open_source(images), extractor, batch_size=100, progress=False)

        a = features(reference)
        unit = frechet_distance(a, features(clean), warn=False).value
        cells = [{"metric": "fd_of_halves", "value": unit, "n": args.num}]
        for damage, images in damaged.items():
            distance = frechet_distance(a, features(images), warn=False).value
            cells.append({"metric": damage, "value": distance / unit, "n": len(images)})
        cases.append(
            {
                "row": name,
                "seed": seed,
                "extractor": extractor.id,
                "weights_sha256": extractor.weights_sha256,
                "input_spec": extractor.input_spec,
                "seconds": round(time.perf_counter() - start, 2),
                "cells": cells,
            }
        )
    return cases


def draw_sets(num: int, seed: int, root: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A, B, and everything A is compared with beside B; each uint8 (num, 1, 28, 28).

    Raises:
        FileNotFoundError: Fashion-MNIST is not imported.
        ValueError: too few images.
    """
    train = load_dataset("fashion-mnist-full", "train", root=root)
    test = load_dataset("fashion-mnist-full", "test", root=root)
    rng = np.random.default_rng(seed)
    first, second = np.array_split(rng.permutation(len(train)), 2)
    few_classes = second[train.labels.numpy()[second] < len(train.classes) // 2]
    if num > min(len(few_classes), len(test)) or num < 100 or num % 100:
        raise ValueError(f"--num must be a multiple of 100 up to {min(len(few_classes), len(test))}, got {num}.")
    clean = train.images[second[:num]]
    damaged = {
        "test": test.images[rng.permutation(len(test))[:num]],
        "noise": _to_bytes(clean.numpy() + rng.normal(0, 10, clean.shape)),
        "blur": _blurred(clean, 0.5),
        "jpeg": _each(clean, _through_jpeg),
        "half": train.images[few_classes[:num]],
        "few": clean[:100].repeat(num // 100, 1, 1, 1),
        "shift": torch.nn.functional.pad(clean, (2, 0))[..., :28],
    }
    try:
        digits = load_dataset("mnist", "test", root=root)
        damaged["mnist"] = digits.images[rng.permutation(len(digits))[:num]]
    except FileNotFoundError:
        say("MNIST is not imported, its column is left out")
    return train.images[first[:num]], clean, damaged


def order_reproduced(cases: list[dict[str, Any]]) -> bool | None:
    """Whether the means of lite0-112 come in the order of ORDER; None if it was not measured."""
    means = {key[1]: value["mean"] for key, value in summarise(cases, ["metric"]).items() if key[0] == ORDERED}
    values = [means[damage] for damage in ORDER if damage in means]
    return all(a > b for a, b in itertools.pairwise(values)) if values else None


def _to_bytes(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.round().clip(0, 255).astype(np.uint8))


def _blurred(images: Tensor, sigma: float) -> Tensor:
    from scipy.ndimage import gaussian_filter

    return _to_bytes(gaussian_filter(images.numpy().astype(np.float64), (0, 0, sigma, sigma)))


def _each(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    changed = [np.asarray(change(Image.fromarray(image))) for image in images[:, 0].numpy()]
    return torch.from_numpy(np.stack(changed))[:, None]


def _through_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractors", nargs="+", default=list(EXTRACTORS), help=f"default: {' '.join(EXTRACTORS)}")
    parser.add_argument("--num", type=positive, default=1000, help="images a set (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--root", default="data", help="folder of imported data (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=positive, default=1, help="of torch (default: %(default)s)")
    path = Path(__file__).parent / "results" / "sensitivity.json"
    parser.add_argument("--output", type=Path, default=path, help="default: benchmarks/results/sensitivity.json")
    return parser


if __name__ == "__main__":
    main()
