"""Interventions as users write them: accepted forms, and errors that name the offender."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.causal.intervention import InterventionError, check_interventions

BATCH = 4


@pytest.fixture
def graph() -> CausalGraph:
    return CausalGraph(
        [
            Variable("thickness", loc=2.5, scale=2.0, low=0.5, high=7.0),
            Variable("intensity", loc=159.5, scale=95.5, low=64.0),
            Variable("mirrored", kind="binary"),
            Variable("digit", kind="categorical", num_classes=10),
        ],
        [("thickness", "intensity")],
    )


@pytest.mark.parametrize(
    "given",
    [
        3,
        3.0,
        np.float32(3),
        np.array(3),
        torch.tensor(3),
        [3.0],
        torch.full((BATCH,), 3.0),
        [3, 3, 3, 3],
        (3.0,) * BATCH,
    ],
    ids=repr,
)
def test_a_number_and_a_number_for_each_sample_are_accepted(graph: CausalGraph, given: Any):
    do = check_interventions(graph, {"thickness": given}, BATCH)
    assert list(do) == ["thickness"]
    assert do["thickness"].dtype == torch.float64
    assert do["thickness"].tolist() == [3.0] * BATCH


def test_each_sample_gets_its_own_value(graph: CausalGraph):
    do = check_interventions(graph, {"thickness": [0.5, 1.0, 2.0, 7.0], "digit": np.array([9, 0, 3, 1])}, BATCH)
    assert do["thickness"].tolist() == [0.5, 1.0, 2.0, 7.0]
    assert do["digit"].tolist() == [9.0, 0.0, 3.0, 1.0]


def test_the_order_is_the_graphs(graph: CausalGraph):
    do = check_interventions(graph, {"digit": 1, "mirrored": -1, "thickness": 1}, BATCH)
    assert list(do) == ["thickness", "mirrored", "digit"]
    assert check_interventions(graph, {}, BATCH) == {}


def test_the_result_does_not_share_memory_with_the_argument(graph: CausalGraph):
    given = torch.full((BATCH,), 3.0, dtype=torch.float64, requires_grad=True)
    values = check_interventions(graph, {"thickness": given}, BATCH)["thickness"]
    assert not values.requires_grad
    values[0] = 5.0
    assert given.tolist() == [3.0] * BATCH


@pytest.mark.parametrize(
    ("interventions", "message"),
    [
        (
            {"thicknes": 3.0},
            r"^unknown variable 'thicknes'; known: thickness, intensity, mirrored, digit. Did you mean 'thickness'\?$",
        ),
        ({"colour": 3.0}, r"unknown variable 'colour'; known: thickness, intensity, mirrored, digit\.$"),
        ({7: 3.0}, "unknown variable 7"),
        ({"thickness": 12}, r"^thickness=12 is outside the training range \[0.5, 7\]"),
        ({"thickness": [1.0, 0.4, 1.0, 1.0]}, r"thickness=0.4 is outside the training range \[0.5, 7\]"),
        ({"intensity": 3}, r"intensity=3 is outside the training range \[64, inf\]"),
        ({"thickness": float("nan")}, "thickness must be finite, got nan"),
        ({"thickness": float("inf")}, "thickness must be finite"),
        ({"thickness": [1.0, 2.0, float("nan"), 3.0]}, "thickness must be finite"),
        ({"digit": float("nan")}, "digit must be finite"),
        ({"thickness": "3"}, "thickness must be a number or 4 numbers, got '3'"),
        ({"thickness": None}, "thickness must be a number or 4 numbers, got None"),
        ({"thickness": ["thick"] * BATCH}, "thickness must be a number or 4 numbers"),
        ({"thickness": {"a": 1}}, "thickness must be a number or 4 numbers"),
        ({"thickness": [1.0, 2.0, 3.0]}, "^thickness: expected scalar or 4 values, got 3.$"),
        ({"thickness": []}, "expected scalar or 4 values, got 0"),
        ({"thickness": [[1.0] * BATCH]}, r"expected scalar or 4 values, got shape \(1, 4\)"),
        ({"digit": 10}, "digit must be one of the classes 0 to 9, got 10"),
        ({"digit": -1}, "digit must be one of the classes 0 to 9, got -1"),
        ({"digit": 2.5}, "digit is a class and must be a whole number, got 2.5"),
        ({"mirrored": 0}, "mirrored is binary and must be -1 or 1, got 0"),
        ([("thickness", 3.0)], "interventions must map names to values, got list"),
        ("thickness", "must map names to values, got str"),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_refused(graph: CausalGraph, interventions: Any, message: str):
    with pytest.raises(InterventionError, match=message):
        check_interventions(graph, interventions, BATCH)


def test_limits_belong_to_the_range(graph: CausalGraph):
    assert check_interventions(graph, {"thickness": 0.5}, 1)["thickness"].item() == 0.5
    assert check_interventions(graph, {"thickness": 7.0}, 1)["thickness"].item() == 7.0


def test_extrapolation_is_a_warning_where_it_is_allowed(graph: CausalGraph):
    with pytest.warns(UserWarning, match=r"thickness=12 is outside the training range \[0.5, 7\]"):
        do = check_interventions(graph, {"thickness": 12}, 2, allow_extrapolation=True)
    assert do["thickness"].tolist() == [12.0, 12.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_interventions(graph, {"thickness": 3}, 2, allow_extrapolation=True)
    with pytest.raises(InterventionError, match="digit must be one of"):
        check_interventions(graph, {"digit": 10}, 2, allow_extrapolation=True)


def test_an_unbounded_variable_takes_any_finite_number():
    graph = CausalGraph([Variable("free")])
    assert check_interventions(graph, {"free": -1e9}, 1)["free"].item() == -1e9


def test_intervention_errors_are_value_errors(tiny_graph: Callable[[], CausalGraph]):
    assert issubclass(InterventionError, ValueError)
    with pytest.raises(ValueError, match="contrast=2 is outside"):
        check_interventions(tiny_graph(), {"contrast": 2}, 1)
