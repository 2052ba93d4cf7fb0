"""Score samples against a reference: which features, how many images, every metric with its floor and conditions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gendiff.data.image_source import ImageSource
from gendiff.data.sources import open_source
from gendiff.errors import InvalidInputError, MetricWarning, WeightsNotFoundError
from gendiff.metrics.conditions import conditions
from gendiff.metrics.features import Extracted, device_of, extract, read_digests
from gendiff.metrics.frechet_stats import FrechetStats
from gendiff.metrics.processes import once, process_state
from gendiff.metrics.reference_stats import ReferenceStats, check_comparable
from gendiff.metrics.report import EvalReport, Score
from gendiff.metrics.rows import whole_number
from gendiff.metrics.scoring import CLASSIFYING, METRICS, OF_FEW, Sides, score
from gendiff.metrics.sides import Side, leak_warning, open_side, side_warnings

if TYPE_CHECKING:
    from gendiff.metrics.extractors.base import FeatureExtractor

ENOUGH_FOR_INCEPTION = 10_000
"""Samples from which on "auto" takes the 2048 features of Inception, if its weights are there."""
FEW = "lite0-112"


@dataclass(frozen=True)
class _Run:
    """Both sides and the network that looks at them; it is None where features were given on both."""

    samples: Side
    reference: Side
    network: FeatureExtractor | None
    id: str
    label: str
    dim: int


def evaluate(
    samples: Any,
    reference: Any,
    metrics: Sequence[str] = ("fd", "kid", "prdc"),
    extractor: Any = "auto",
    num: int | None = None,
    num_reference: int | None = None,
    seed: int = 0,
    k: int = 3,
    batch_size: int = 64,
    workers: int = 2,
    device: str | torch.device | None = None,
    weights: Any = None,
    allow_small_n: bool = False,
    train: Any = None,
    floor: bool = True,
    progress: bool = True,
    resize: int | tuple[int, int] | None = None,
) -> EvalReport:
    """Score samples against a reference. Under several processes all share the work and return the same report.

    Args:
        samples: what `open_source` takes, a `PipelineSource`, or features (N, d) of floats.
        reference: likewise, or statistics: a `.npz` with `mu` and `sigma`, which only "fd" can be taken against.
        metrics: some of `METRICS`: "fd", "kid", "prdc", "fd_infinity", "cmmd" (clip features), "is" and "accuracy" of
            the labels that were asked for (an extractor that classifies).
        extractor: a name, a `FeatureExtractor`, or "auto": the one of the statistics, else "lite0-112" below 10,000
            samples, else Inception if its weights are found. With features on both sides, what they are called.
        num: samples used, the first so many; None for all.
        num_reference: the same of the reference.
        seed: of everything drawn: subsets of "kid", sizes of "fd_infinity", halves of the floor.
        k: neighbour of precision and recall.
        batch_size: images at a time.
        workers: threads that read files ahead.
        device: of the extractor; None is that of accelerate, a GPU if there is one.
        weights: of the extractor, as `get_extractor` takes them.
        allow_small_n: score by "fd" although there are fewer images than dimensions.
        train: the training set, as `open_source` takes it; samples that are in it are counted and warned of.
        floor: also take each metric of real images against real ones.
        progress: show a bar, on the main process.
        resize: side or (height, width) that images are brought to before anything else; they must be of one size
            otherwise. A source that was opened by the caller keeps its own.

    Raises:
        InvalidInputError: before any work where possible; the argument is named.
        WeightsNotFoundError, WeightsCorruptError: of the extractor.
        UnsafeFileError: a file that could run code when it is loaded.

    Warns:
        MetricWarning: once for each line of the report's `warnings`, on the main process.
    """
    names = _check_metrics(metrics)
    whole_number("seed", seed, 0)
    whole_number("k", k, 1)
    whole_number("workers", workers, 0)
    whole_number("batch_size", batch_size, 1)
    first = open_side("samples", samples, num, resize)
    second = open_side("reference", reference, num_reference, resize, statistics=True)
    trained = None if train is None else _open_train(train, first, resize)
    _check_sides(names, first, second, k)
    run, notes = _prepare(first, second, extractor, weights, device)
    _check_run(names, run, allow_small_n)

    looking = (run.network, batch_size, workers, progress)
    classify = any(name in CLASSIFYING for name in names)
    gen, real = _rows(first, classify, *looking), _rows(second, classify and floor, *looking)
    # Only now: to learn a size before reading, each process would have to make images that another needs.
    notes += side_warnings(first, second)
    gen_labels, real_labels = _labels(first), _labels(second)
    given = {"id": run.id, "label": run.label, "dim": run.dim}
    found = conditions(first, second, run.network, given, {"seed": seed, "k": k, "batch_size": batch_size})
    if trained is not None:
        leaked, lines = leak_warning(first, first.digests(), read_digests(trained))
        found |= {"train": trained.describe(), "samples_in_train": leaked}
        notes += lines

    def compute() -> tuple[list[Score], list[str]]:
        target = real.features if second.statistics is None else second.statistics.stats
        sides = Sides(run.label, gen.features, target, gen.logits, real.logits, gen_labels, real_labels, k=k, seed=seed)
        results = [score(name, sides, floor) for name in names]
        return [one for scores, _ in results for one in scores], [line for _, lines in results for line in lines]

    scores, lines = once(compute)
    report = EvalReport({one.name: one for one in scores}, found, list(dict.fromkeys(notes + lines)))
    if process_state().is_main_process:
        for line in report.warnings:
            warnings.warn(line, MetricWarning, stacklevel=2)
    return report


def _check_metrics(metrics: Sequence[str]) -> list[str]:
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in METRICS:
            raise InvalidInputError(f"metrics has {name!r}; known: {', '.join(METRICS)}.")
    if not names or len(set(names)) < len(names):
        raise InvalidInputError(f"metrics must name each metric once and at least one, got {names}.")
    return names


def _check_sides(names: list[str], samples: Side, reference: Side, k: int) -> None:
    beyond = [name for name in names if name != "fd"]
    if reference.statistics is not None and beyond:
        raise InvalidInputError(
            f"{reference.name} holds statistics, which only fd can be taken against, not {', '.join(beyond)}; "
            "give the reference's images instead."
        )
    for side in (samples, reference):
        if "prdc" in names and side.count is not None and k >= side.count:
            raise InvalidInputError(f"k={k} must be below the {side.count} images of the {side.role}.")
    for name in names:
        if name in CLASSIFYING and samples.source is None:
            raise InvalidInputError(f"{name} needs the samples as images, features do not tell classes.")
    if "accuracy" in names and samples.source is not None and samples.source.labels(1) is None:
        raise InvalidInputError(f"accuracy needs the class of each sample, but {samples.name} knows none.")


def _open_train(train: Any, samples: Side, resize: Any) -> ImageSource:
    source = open_source(train, resize=None if isinstance(train, ImageSource) else resize)
    if samples.source is None:
        raise InvalidInputError("train is given, but training images cannot be found among features.")
    if source.size != samples.source.size:
        raise InvalidInputError(
            f"train has images of {source.size}, samples of {samples.source.size} (height, width): none can be equal; "
            "pass resize to bring both to one size."
        )
    return source


def _prepare(samples: Side, reference: Side, extractor: Any, weights: Any, device: Any) -> tuple[_Run, list[str]]:
    """The network, checked to fit what was given, and warnings about what is not known."""
    if samples.source is None and reference.source is None:
        return _features_only(samples, reference, extractor), []
    name = _choose(samples, reference) if isinstance(extractor, str) and extractor == "auto" else extractor
    network = _network(name, weights, device)
    if network.video:
        raise InvalidInputError(f"{network.id} looks at clips; use gendiff.metrics.video_distance for them.")
    for side in (samples, reference):
        if side.features is not None and side.features.shape[1] != network.dim:
            raise InvalidInputError(
                f"features of the {side.role} have {side.features.shape[1]} dimensions, {network.id} has {network.dim}."
            )
    notes = []
    if reference.statistics is not None:
        ours = ReferenceStats(FrechetStats(network.dim), network.id, network.input_spec, network.weights_sha256)
        notes = list(check_comparable(reference.statistics, ours))
    return _Run(samples, reference, network, network.id, network.label, network.dim), notes


def _features_only(samples: Side, reference: Side, extractor: Any) -> _Run:
    assert samples.features is not None
    dim = samples.features.shape[1]
    if reference.features is not None:
        other = reference.features.shape[1]
    else:
        assert reference.statistics is not None
        other = reference.statistics.stats.dim
    if dim != other:
        raise InvalidInputError(f"samples have features of {dim} dimensions, the reference of {other}.")
    name = extractor if isinstance(extractor, str) and extractor != "auto" else "features"
    return _Run(samples, reference, None, name, f"FD[{name}]", dim)


def _choose(samples: Side, reference: Side) -> str:
    """What "auto" means."""
    from gendiff.metrics.extractors import EXTRACTORS
    from gendiff.metrics.weights import find_weights

    if reference.statistics is not None:
        known = reference.statistics.extractor_id
        # Only registered names: a file must not be able to name code to run.
        if known not in EXTRACTORS:
            raise InvalidInputError(
                f"{reference.name} does not say which known extractor it was made with (it says {known}); name it."
            )
        return known
    if samples.features is not None or reference.features is not None:
        raise InvalidInputError("extractor='auto' cannot tell which extractor given features come from; name it.")
    if (samples.count or 0) < ENOUGH_FOR_INCEPTION:
        return FEW
    try:
        find_weights("inception")
    except WeightsNotFoundError:
        return FEW
    return "inception"


def _network(extractor: Any, weights: Any, device: Any) -> FeatureExtractor:
    from gendiff.metrics.extractors import get_extractor

    return get_extractor(extractor, weights=weights, device=process_state().device if device is None else device)


def _check_run(names: list[str], run: _Run, allow_small_n: bool) -> None:
    if "cmmd" in names and not run.id.startswith("clip"):
        raise InvalidInputError(f"cmmd is defined on CLIP features; use extractor='clip-l14-336', not {run.label}.")
    counts = [side.count for side in (run.samples, run.reference) if side.count is not None]
    few = [name for name in names if name in OF_FEW]
    if few and min(counts) < run.dim and not allow_small_n:
        raise InvalidInputError(
            f"{few[0]} of N={min(counts)} images in d={run.dim} dimensions is mostly bias: give more images, use "
            f"{FEW} or kid, or pass allow_small_n=True."
        )
    if any(name in CLASSIFYING for name in names) and run.samples.source is not None and run.network is not None:
        with torch.inference_mode():
            # Fails for networks that do not classify; images of a pipeline stay in its cache.
            run.network.logits(run.samples.source.read([0]).to(device_of(run.network)))


def _rows(side: Side, classify: bool, network: Any, batch_size: int, workers: int, progress: bool) -> Extracted:
    if side.source is not None:
        return extract(side.source, network, batch_size, side.count, workers, progress, classify)
    return Extracted(np.empty((0, 0)) if side.features is None else side.features)


def _labels(side: Side) -> np.ndarray | None:
    """Classes of the images used, where they are known."""
    found = None if side.source is None or side.count is None else side.source.labels(side.count)
    return None if found is None else found.numpy()
