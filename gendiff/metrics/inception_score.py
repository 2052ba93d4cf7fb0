"""Inception score: how sure a classifier is of each image, and how many classes it sees, in one number.

IS = exp(E_x KL(p(y|x) ‖ p(y))), from 1 to the number of classes. It compares with no real image, and off the data the
classifier was trained on it means nothing. Source: Salimans et al. 2016, "Improved techniques for training GANs"
(NeurIPS).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from gendiff.errors import InvalidInputError
from gendiff.metrics.rows import SEEDS, Features, feature_rows, whole_number


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation (divided by their number) over so many splits."""

    mean: float
    std: float
    splits: int


def inception_score(logits: Features, splits: int = 10, shuffle_seed: int | None = None) -> InceptionScore:
    """Inception score over equal parts of the images.

    Args:
        logits: (N, K) before softmax, of the generated images.
        splits: parts, each with its own p(y); differ in size by one where N is not a multiple. A part of few images
            has a score that is too low.
        shuffle_seed: order of the images before they are split, drawn as torch-fidelity draws it; None keeps the
            order, which mixes nothing where images come class by class.

    Raises:
        InvalidInputError: logits that cannot be used, or more splits than images.
    """
    rows = feature_rows("logits", logits, least=1)
    whole_number("splits", splits, 1)
    if splits > len(rows):
        raise InvalidInputError(f"splits={splits} is more than the {len(rows)} images: give fewer splits.")
    if shuffle_seed is not None:
        whole_number("shuffle_seed", shuffle_seed, 0, SEEDS)
        rows = rows[np.random.RandomState(shuffle_seed).permutation(len(rows))]
    log_p = torch.log_softmax(torch.from_numpy(np.array(rows)), dim=1)
    bounds = [part * len(rows) // splits for part in range(splits + 1)]
    scores = [_score(log_p[start:stop]) for start, stop in pairwise(bounds)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), splits)


def _score(log_p: torch.Tensor) -> float:
    # In logarithms: a class that no image has would otherwise be 0 times infinity.
    log_q = torch.logsumexp(log_p, dim=0) - np.log(len(log_p))
    return float((log_p.exp() * (log_p - log_q)).sum(dim=1).mean().exp())
