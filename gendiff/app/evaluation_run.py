"""What the commands of `gendiff evaluate` call: images and pipelines scored, statistics written."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gendiff.data.sources import ImageSource, open_source
from gendiff.errors import InvalidInputError
from gendiff.metrics.evaluate import evaluate
from gendiff.metrics.features import extract_features
from gendiff.metrics.frechet_stats import FrechetStats
from gendiff.metrics.processes import once, process_state
from gendiff.metrics.reference_stats import save_reference
from gendiff.metrics.report import EvalReport, Score
from gendiff.metrics.scoring import LEAST

from .evaluation_outcome import (
    Outcome,
    check_file,
    count_cell,
    floor_cell,
    label_cell,
    run_facts,
    told_in_the_report,
    value_cell,
)
from .evaluation_plots import grids, line_plot

COLUMNS = ("metric", "value", "floor", "N")
GRID = 36
"""Images of each side in the picture of both."""


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
    return Outcome(
        COLUMNS, rows, report.warnings, record, report.to_markdown(), plots=lambda: _image_plots(report, sides)
    )


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

    if out.suffix != ".npz":
        raise InvalidInputError(f"--out must end in .npz, got {str(out)!r}.")
    check_file("--out", out)
    source = open_source(data, resize=arguments.pop("resize", None))
    num = arguments.get("num")
    if len(source) < 2:
        raise InvalidInputError(f"--data must hold at least 2 images, {data} holds {len(source)}.")
    if num is not None and num > len(source):
        raise InvalidInputError(f"--num {num} images are asked for, but {data} holds {len(source)}.")
    state = process_state()
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


def _image_plots(report: EvalReport, sides: Sequence[ImageSource]) -> dict[str, bytes]:
    """The first images of both sides, and the Fréchet distance against the number of images if it was taken."""
    counts = [report.conditions[name]["count"] for name in ("samples", "reference")]
    # Statistics have no images to show; they may only be the second side.
    shown = [(source.name, source.read(range(min(GRID, count)))) for source, count in zip(sides, counts, strict=False)]
    files = {"images.png": grids(shown)}
    if "fd_infinity" in report.scores:
        files |= _infinity_plot(report["fd_infinity"])
    return files


def _infinity_plot(score: Score) -> dict[str, bytes]:
    """Distances against 1/N with the line whose intercept is the value."""
    sizes, distances = score.details["sizes"], score.details["distances"]
    inverse = [1 / size for size in sizes]
    mean_x, mean_y = sum(inverse) / len(inverse), sum(distances) / len(distances)
    slope = (mean_y - score.value) / mean_x  # a least-squares line runs through the means
    ends = [0.0, max(inverse)]
    return line_plot(
        "fd-against-n",
        {"one_over_n": inverse, "fd": distances, "n": sizes},
        ("1 / N", score.label.replace("∞", "")),
        line=(
            ends,
            [score.value + slope * x for x in ends],
            f"{score.label} = {score.value:.4g}, R² = {score.details['r2']:.3f}",
        ),
    )
