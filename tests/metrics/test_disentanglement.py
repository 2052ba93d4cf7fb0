"""DCI on tables with known entropies and on codes that are, or are not, the variables themselves."""

import math

import numpy as np
import pytest
import torch

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.metrics.disentanglement import completeness, dci, disentanglement

GRAPH = CausalGraph([Variable("a"), Variable("b"), Variable("c")])


def samples(count=300):
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_one_code_for_each_variable_is_perfect():
    assert disentanglement(np.eye(4)) == pytest.approx(1)
    assert completeness(np.eye(4)) == pytest.approx(1)


def test_equal_shares_score_zero():
    assert disentanglement(np.ones((4, 3))) == pytest.approx(0, abs=1e-12)
    assert completeness(np.ones((4, 3))) == pytest.approx(0, abs=1e-12)


def test_two_codes_for_one_variable_are_disentangled_but_incomplete():
    table = np.array([[0.5, 0], [0.5, 0], [0, 0.5], [0, 0.5]])
    assert disentanglement(table) == pytest.approx(1)
    assert completeness(table) == pytest.approx(1 - math.log(2) / math.log(4))


def test_idle_codes_have_no_weight():
    table = np.array([[1.0, 0], [0, 1], [0, 0]])
    assert disentanglement(table) == pytest.approx(1)
    assert completeness(table) == pytest.approx(1)


def test_the_variables_themselves_score_one_and_a_rotation_of_them_little():
    labels = samples()
    same = dci(GRAPH, labels, labels)
    assert same.disentanglement > 0.99
    assert same.completeness > 0.99
    assert min(same.informativeness.values()) > 0.99
    # Mixes all three equally: every entry is 1/3 or 2/3 in size.
    rotation = torch.eye(3) - 2 / 3
    mixed = dci(GRAPH, labels @ rotation, labels)
    assert mixed.disentanglement < 0.5
    assert mixed.completeness < 0.5


def test_codes_that_say_nothing_inform_of_nothing():
    noise = torch.randn(300, 3, generator=torch.Generator().manual_seed(1))
    assert max(dci(GRAPH, noise, samples()).informativeness.values()) < 0.3


def test_classes_are_classified():
    graph = CausalGraph([Variable("a"), Variable("digit", kind="categorical", num_classes=3)])
    generator = torch.Generator().manual_seed(2)
    labels = torch.stack([torch.rand(300, generator=generator), torch.arange(300.0) % 3], dim=1)
    scores = dci(graph, labels, labels)
    assert scores.informativeness["digit"] == 1
    assert scores.disentanglement > 0.99


def test_what_does_not_fit_is_an_error():
    labels = samples(20)
    with pytest.raises(ValueError, match="expected codes"):
        dci(GRAPH, labels[:10], labels)
    labels[3, 1] = torch.nan
    with pytest.raises(ValueError, match="labels hold NaN"):
        dci(GRAPH, samples(20), labels)
