"""What the commands of `gendiff evaluate` call: images and pipelines scored, statistics written."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gendiff.data.sources import ImageSource, open_source
from gendiff.errors import InvalidInputError
from gendiff.files import write_whole
from gendiff.metrics.evaluate import evaluate
from gendiff.metrics.features import extract_features
from gendiff.metrics.frechet_stats import FrechetStats
from gendiff.metrics.processes import once, process_state
from gendiff.metrics.reference_stats import save_reference
from gendiff.metrics.report import EvalReport, floor_cell, label_cell, value_cell
from gendiff.metrics.scoring import LEAST

from .evaluation_outcome import (
    Outcome,
    check_file,
    count_cell,
    run_facts,
    told_in_the_report,
)
from .picture_plots import nearest_training_images
from .pictures import grid, png_bytes, to_pil
from .plots import fd_against_n

COLUMNS = ("metric", "value", "floor", "N")
SHOWN = 36
"""Images of each side in the picture of both."""
NEAREST = 16
"""Samples beside which their nearest training image is shown."""
SIDE = 84
"""In screen pixels, about, that an image is enlarged to there."""


def score_images(
    samples: str,
    reference: str,
    metrics: Sequence[str],
    resize: int | None = None,
    plotted: bool = False,
    **arguments: Any,
) -> Outcome:
    """Scores of one set of images.

    Args:
        samples, reference: as typed.
        metrics: names as `evaluate` takes them.
        resize: side in pixels that all images are brought to.
        plotted: plots are wanted, so the Fréchet distance is also taken of fewer images where there are enough.
        arguments: the others of `evaluate`.

    Raises:
        GendiffError: as `evaluate`.
    """
    first = open_source(samples, resize=resize)
    second = reference if _holds_statistics(reference) else open_source(reference, resize=resize)
    names = list(metrics)
    if plotted and names == ["fd"] and isinstance(second, ImageSource):
        counts = (arguments.get("num") or len(first), arguments.get("num_reference") or len(second))
        names += ["fd_infinity"] if min(counts) >= LEAST["fd_infinity"] else []
    with told_in_the_report():
        report = evaluate(first, second, names, resize=resize, **arguments)
    rows = [
        [label_cell(score), value_cell(score), floor_cell(score), count_cell(report)]
        for score in report.scores.values()
    ]
    record = {**report.to_json(), **run_facts()}
    sides = [source for source in (first, second) if isinstance(source, ImageSource)]
    train = arguments.get("train")

    def draw(folder: Path) -> None:
        _draw(report, sides, folder)
        if train is not None:
            _draw_nearest(first, open_source(train, resize=resize), folder)

    return Outcome(COLUMNS, rows, report.warnings, record, report.to_markdown(), plots=draw)


def write_statistics(data: str, out: Path, **arguments: Any) -> str:
    """Mean and covariance of the features of `data` in a file that `evaluate` takes as a reference.

    Args:
        data: as typed.
        out: the `.npz` to write.
        arguments: `extractor`, `weights`, `device` of `get_extractor`; `resize` of `open_source`; `num`, `batch_size`,
            `workers` of `extract_features`.

    Returns: a line that says what was written; "" on all but the main process.

    Raises:
        GendiffError, OSError: nothing is written then.
    """
    from gendiff.metrics.extractors import get_extractor

    state = process_state()  # first, so that only the main process tells of errors
    if out.suffix != ".npz":
        raise InvalidInputError(f"--out must end in .npz, got {str(out)!r}.")
    check_file("--out", out)
    source = open_source(data, resize=arguments.pop("resize", None))
    num = arguments.get("num")
    if len(source) < 2:
        raise InvalidInputError(f"--data must hold at least 2 images, {data} holds {len(source)}.")
    if num is not None and num > len(source):
        raise InvalidInputError(f"--num {num} images are asked for, but {data} holds {len(source)}.")
    device = arguments.pop("device", None)
    network = get_extractor(arguments.pop("extractor"), arguments.pop("weights", None), device or state.device)
    stats = FrechetStats.from_features(extract_features(source, network, **arguments))
    once(
        lambda: save_reference(
            out,
            stats,
            extractor_id=network.id,
            resize=network.input_spec,
            weights_sha256=network.weights_sha256,
            source_sha256=source.describe(num)["sha256"],
        )
    )
    return f"{network.label}: statistics of {stats.n} images in {out}" if state.is_main_process else ""


def _holds_statistics(reference: str) -> bool:
    """Whether it is a file of mean and covariance, or one that `evaluate` refuses as a pickle of them."""
    path = Path(reference)
    if path.suffix.lower() in (".pkl", ".pickle"):
        return path.is_file()
    if path.suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "mu.npy" in archive.namelist()


def _draw(report: EvalReport, sides: Sequence[ImageSource], folder: Path) -> None:
    """The first images of both sides, and the Fréchet distance against the number of images if it was taken."""
    counts = [report.conditions[name]["count"] for name in ("samples", "reference")]
    # Statistics have no images to show; they may only be the second side.
    shown = [(source.name, source.read(range(min(SHOWN, count)))) for source, count in zip(sides, counts, strict=False)]
    write_whole(folder / "images.png", grids(shown))
    if "fd_infinity" in report.scores:
        score = report["fd_infinity"]
        sizes, distances, r2 = (score.details[name] for name in ("sizes", "distances", "r2"))
        fd_against_n(folder / "fd-against-n", sizes, distances, score.value, r2, report["fd"].label)


def _draw_nearest(samples: ImageSource, training: ImageSource, folder: Path) -> None:
    """Beside each of the first samples the training image nearest to it."""
    drawn = samples.read(range(min(NEAREST, len(samples))))
    nearest_training_images(folder / "nearest-in-training", drawn, training.read(range(len(training))))


def grids(sets: Sequence[tuple[str, Tensor]]) -> bytes:
    """PNG of sets of images side by side, their names above.

    Args:
        sets: name and uint8 (N, 3, H, W) of each.
    """
    blocks = []
    for _, images in sets:
        scale = max(1, SIDE // images.shape[-1])
        pictures = [to_pil(image.float() / 255, scale) for image in images]
        columns = math.ceil(len(pictures) ** 0.5)
        blocks.append(grid([pictures[start : start + columns] for start in range(0, len(pictures), columns)]))
    return png_bytes(grid([blocks], column_labels=[name for name, _ in sets]))
