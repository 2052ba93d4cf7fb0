"""Metric by metric: from features of samples and of real images to scores, and what real images score themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gendiff.errors import InvalidInputError
from gendiff.metrics.frechet import frechet_distance
from gendiff.metrics.frechet_stats import FrechetStats
from gendiff.metrics.report import Score

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
IS_SPLITS = 10
REFERENCE = "the reference"
PARTS = "two disjoint parts of the reference"


@dataclass(frozen=True)
class Sides:
    """What is compared.

    Attributes:
        label: of the features, as a Fréchet distance in them is printed: "FD[lite0-112]" or "FID(clean)".
        gen: (N, d) of the samples.
        real: (N, d) of the reference, or statistics.
        gen_logits, real_logits: (N, classes), where the network classifies and a metric needs it.
        gen_labels, real_labels: (N,) classes that were asked for, where they are known.
        k: neighbour of precision and recall.
        seed: of everything drawn.
    """

    label: str
    gen: np.ndarray
    real: np.ndarray | FrechetStats
    gen_logits: np.ndarray | None = None
    real_logits: np.ndarray | None = None
    gen_labels: np.ndarray | None = None
    real_labels: np.ndarray | None = None
    k: int = 3
    seed: int = 0

    @property
    def features(self) -> str:
        """The part of `label` that names the features: "[lite0-112]" or "(clean)"."""
        return self.label.removeprefix("FID").removeprefix("FD")

    @property
    def distance(self) -> str:
        """What the Fréchet distance is called."""
        return self.label.removesuffix(self.features)

    @property
    def rows(self) -> np.ndarray:
        """(N, d) of the reference.

        Raises:
            InvalidInputError: the reference is statistics.
        """
        if isinstance(self.real, FrechetStats):
            raise InvalidInputError("the reference holds statistics, which only fd can be taken against.")
        return self.real


def score(metric: str, sides: Sides, floor: bool = True) -> tuple[list[Score], list[str]]:
    """Scores of one metric and warnings about them.

    Args:
        metric: one of `METRICS`.
        sides: what is compared.
        floor: also score real images against real ones, see `_parts`.

    Raises:
        InvalidInputError: the metric cannot be taken of these features.
    """
    scores, notes = METRICS[metric](sides)
    if not floor:
        return scores, notes
    if metric in OF_THE_REFERENCE:
        real = replace(sides, gen=sides.rows, gen_logits=sides.real_logits, gen_labels=sides.real_labels)
        known = real.gen_logits is not None and (metric != "accuracy" or real.gen_labels is not None)
        return _with_floors(
            scores, METRICS[metric](real)[0] if known else [], {"n": len(real.gen), "of": REFERENCE}
        ), notes
    parts = _parts(sides)
    if parts is None or len(parts.gen) < LEAST.get(metric, 2) or (metric == "prdc" and sides.k >= len(parts.gen)):
        return scores, notes
    counts = {"n": len(parts.gen), "n_real": len(parts.rows), "of": PARTS}
    return _with_floors(scores, METRICS[metric](parts)[0], counts), notes


def _fd(sides: Sides) -> tuple[list[Score], list[str]]:
    found = frechet_distance(sides.gen, sides.real, warn=False)
    details = {"mean_term": found.mean_term, "cov_term": found.cov_term, "route": found.route}
    return [Score("fd", sides.label, found.value, "lower", details)], list(found.warnings)


def _fd_infinity(sides: Sides) -> tuple[list[Score], list[str]]:
    from gendiff.metrics.fd_infinity import fd_infinity

    found = fd_infinity(sides.gen, sides.rows, seed=sides.seed, warn=False)
    details = {"r2": found.r2, "sizes": list(found.sizes), "distances": list(found.distances)}
    label = f"{sides.distance}∞{sides.features}"
    return [Score("fd_infinity", label, found.value, "lower", details)], list(found.warnings)


def _kid(sides: Sides) -> tuple[list[Score], list[str]]:
    from gendiff.metrics.kernel_distances import kid

    # At most half of the images: subsets that are all alike would have no spread.
    size = max(2, min(KID_SUBSET_SIZE, len(sides.gen) // 2, len(sides.rows) // 2))
    found = kid(sides.gen, sides.rows, KID_SUBSETS, size, sides.seed)
    details = {"std": found.std, "subsets": found.subsets, "subset_size": found.subset_size}
    return [Score("kid", f"KID{sides.features}", found.mean, "lower", details)], []


def _prdc(sides: Sides) -> tuple[list[Score], list[str]]:
    from gendiff.metrics.neighbours import prdc

    found = prdc(sides.rows, sides.gen, sides.k)
    details = {"k": found.k, "n_real": found.n_real, "n_gen": found.n_fake}
    names = ("precision", "recall", "density", "coverage")
    return [
        Score(name, f"{name}{sides.features}, k={found.k}", getattr(found, name), "higher", dict(details))
        for name in names
    ], []


def _cmmd(sides: Sides) -> tuple[list[Score], list[str]]:
    from gendiff.metrics.kernel_distances import cmmd

    return [Score("cmmd", f"CMMD{sides.features}", cmmd(sides.gen, sides.rows), "lower")], []


def _is(sides: Sides) -> tuple[list[Score], list[str]]:
    from gendiff.metrics.inception_score import inception_score

    assert sides.gen_logits is not None
    # Shuffled, because samples that come class by class would give splits of one class each.
    splits = min(IS_SPLITS, len(sides.gen_logits))
    found = inception_score(sides.gen_logits, splits, shuffle_seed=sides.seed)
    notes = []
    if not sides.features.startswith("("):
        notes = [f"IS{sides.features} is not the Inception score of papers: another classifier, other classes"]
    details = {"std": found.std, "splits": found.splits, "shuffle_seed": sides.seed}
    return [Score("is", f"IS{sides.features}", found.mean, "higher", details)], notes


def _accuracy(sides: Sides) -> tuple[list[Score], list[str]]:
    assert sides.gen_logits is not None and sides.gen_labels is not None
    classes = sides.gen_logits.shape[1]
    if sides.gen_labels.min() < 0 or sides.gen_labels.max() >= classes:
        raise InvalidInputError(
            f"labels run from {sides.gen_labels.min()} to {sides.gen_labels.max()}, but the extractor tells "
            f"{classes} classes apart, 0 to {classes - 1}."
        )
    right = sides.gen_logits.argmax(axis=1) == sides.gen_labels
    return [Score("accuracy", f"accuracy{sides.features}", float(right.mean()), "higher", {"classes": classes})], []


METRICS: dict[str, Callable[[Sides], tuple[list[Score], list[str]]]] = {
    "fd": _fd,
    "fd_infinity": _fd_infinity,
    "kid": _kid,
    "prdc": _prdc,
    "cmmd": _cmmd,
    "is": _is,
    "accuracy": _accuracy,
}
"""What `evaluate` can be asked for. "is" means nothing off ImageNet and comes only when asked for."""

OF_THE_REFERENCE = ("is", "accuracy")
"""Metrics that compare no two sets: their floor is what the reference itself scores."""
CLASSIFYING = OF_THE_REFERENCE
"""Metrics that need a network that classifies."""
OF_FEW = ("fd", "fd_infinity")
"""Metrics that are mostly bias below one image a dimension."""
LEAST = {"fd_infinity": 150}
"""Images a side below which no floor is taken: its fifteen sizes would begin below fifteen images."""


def _parts(sides: Sides) -> Sides | None:
    """The reference in two: as many rows as there are samples in their place, the rest as reference.

    The first part is at most half. Counts near those of the score make a bias of few images nearly the same.
    """
    if isinstance(sides.real, FrechetStats) or len(sides.real) < 4:
        return None
    count = min(len(sides.gen), len(sides.real) // 2)
    order = np.random.default_rng(sides.seed).permutation(len(sides.real))
    return replace(sides, gen=sides.real[order[:count]], real=sides.real[order[count:]])


def _with_floors(scores: list[Score], floors: list[Score], facts: dict[str, Any]) -> list[Score]:
    by_name = {floor.name: floor for floor in floors}

    def one(found: Score) -> Score:
        if found.name not in by_name:
            return found
        other = by_name[found.name]
        spread = {"std": other.details["std"]} if "std" in other.details else {}
        return replace(found, floor={"value": other.value, **spread, **facts})

    return [one(found) for found in scores]
