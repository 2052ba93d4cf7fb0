"""The inception score at its corners and against other libraries."""

import math
import warnings

import numpy as np
import pytest
import torch

from gendiff.errors import InvalidInputError
from gendiff.metrics.inception_score import inception_score


def logits(count=100, classes=7, seed=0):
    return np.random.default_rng(seed).standard_normal((count, classes)) * 2


@pytest.mark.parametrize("splits", [1, 10])
def test_a_classifier_that_knows_nothing_gives_one(splits):
    score = inception_score(np.zeros((30, 5)), splits)
    assert score.mean == pytest.approx(1, rel=1e-12)
    assert score.std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sure", [50.0, 1e4])
def test_every_class_once_gives_the_number_of_classes(sure):
    assert inception_score(np.tile(np.eye(8), (3, 1)) * sure, splits=1).mean == pytest.approx(8, rel=1e-12)


def test_a_class_that_no_image_has_counts_for_nothing():
    """Its probability is 0 in float64, and so is what it adds."""
    assert inception_score(np.eye(8)[:4] * 1e4, splits=1).mean == pytest.approx(4, rel=1e-12)


def test_one_class_alone_gives_one():
    assert inception_score(np.tile(np.eye(8)[:1] * 1e4, (20, 1)), splits=2).mean == pytest.approx(1, rel=1e-12)


def test_by_hand():
    p = np.array([[0.5, 0.5], [0.9, 0.1]])
    q = p.mean(0)
    expected = math.exp((p * np.log(p / q)).sum(1).mean())
    assert inception_score(np.log(p), splits=1).mean == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("splits", "seed"), [(10, 2020), (7, 5), (3, None)])
def test_parity_with_torch_fidelity(splits, seed):
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    expected = isc_features_to_metric(torch.from_numpy(logits()), splits, shuffle=seed is not None, rng_seed=seed)
    found = inception_score(logits(), splits, seed)
    assert found.mean == pytest.approx(expected[KEY_METRIC_ISC_MEAN], rel=1e-10)
    assert found.std == pytest.approx(expected[KEY_METRIC_ISC_STD], rel=1e-10)
    assert found.splits == splits


def test_parity_with_torchmetrics():
    """It shuffles with torch's own generator, so only one split is the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `InceptionScore` will save all", category=UserWarning)
        from torchmetrics.image.inception import InceptionScore

        metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(logits()))
    with warnings.catch_warnings():
        # The standard deviation of one split, which it takes all the same.
        warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom", category=UserWarning)
        mean, _ = metric.compute()
    assert inception_score(logits(), splits=1).mean == pytest.approx(mean.item(), rel=1e-10)


def test_the_seed_decides():
    assert inception_score(logits(), 5, 1) == inception_score(logits(), 5, 1)
    assert inception_score(logits(), 5, 1) != inception_score(logits(), 5, 2)


@pytest.mark.parametrize(
    ("values", "arguments", "message"),
    [
        (logits(5), {}, "splits=10 is more than the 5 images"),
        (logits(5), {"splits": 0}, "splits must be a whole number of at least 1, got 0"),
        (logits(5), {"splits": 2, "shuffle_seed": -1}, "shuffle_seed must be a whole number from 0 to 4294967295"),
        (logits(0), {}, "logits must hold at least 1 images, got 0"),
        (np.full((4, 2), -np.inf), {"splits": 1}, "logits must be finite: row 0, column 0 is -inf"),
    ],
)
def test_bad_input(values, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        inception_score(values, **arguments)
