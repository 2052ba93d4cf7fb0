"""Minimality at its closed-form corners."""

import math

import pytest
import torch

from gendiff.causal.graph import Variable
from gendiff.metrics.minimality import minimality

TONE = Variable("tone", scale=10.0)
# Real images on a line: value 0 at distances 1..4 of the image, value 50 at distances 5..8.
REFERENCE = torch.arange(1.0, 9.0)[:, None]
REFERENCE_VALUES = torch.tensor([0.0] * 4 + [50.0] * 4)


def score(moved, variable=TONE, factual=0.0, value=50.0):
    moved = torch.tensor(moved)[:, None]
    count = len(moved)
    return minimality(
        variable,
        torch.zeros(count, 1),
        moved,
        REFERENCE,
        torch.full((count,), factual),
        torch.full((count,), value),
        REFERENCE_VALUES,
    )


def test_corners_and_the_way_between_them():
    """P1 and P2 for an answer at the image itself, past all of its old value, halfway, and past everything."""
    expected = [(0, 1), (0, 0), (0.5, 0), (1, 0)]
    wanted = [math.log(0.8 * math.exp(p1) + 0.2 * math.exp(p2)) for p1, p2 in expected]
    torch.testing.assert_close(score([0.0, 4.5, 6.5, 9.0]), torch.tensor(wanted, dtype=torch.float64))


def test_equal_distances_count_on_both_sides():
    p1, p2 = 0.0, 0.25
    assert score([4.0]).item() == pytest.approx(math.log(0.8 * math.exp(p1) + 0.2 * math.exp(p2)))


def test_values_within_a_tenth_of_the_scale_are_the_same():
    assert score([9.0], value=50.9).item() == score([9.0]).item()
    assert score([9.0], value=51.1).isnan().all()


def test_classes_must_be_equal():
    digit = Variable("digit", kind="categorical", num_classes=60)
    assert score([9.0], digit).isfinite().all()
    assert score([9.0], digit, value=49.0).isnan().all()


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"reference_values must have shape \(8,\), got \(3,\)"):
        minimality(
            TONE, torch.zeros(2, 1), torch.zeros(2, 1), REFERENCE, torch.zeros(2), torch.zeros(2), torch.zeros(3)
        )
