"""Labels: raw units to latent blocks and back."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.causal.labels import embed, embed_all, unembed, unembed_all

VARIABLES = [
    Variable("thickness", loc=2.5, scale=2.0, low=0.5, high=7.0, dim=3),
    Variable("intensity", loc=159.5, scale=95.5, low=64.0, high=255.0, dim=1),
    Variable("tilt", loc=-3.0, scale=0.25, dim=4),
    Variable("mirrored", kind="binary", dim=2),
    Variable("digit", kind="categorical", num_classes=10),
]


def values_of(variable: Variable, dtype: torch.dtype) -> torch.Tensor:
    if variable.kind == "binary":
        return torch.tensor([-1.0, 1.0], dtype=dtype)
    if variable.kind == "categorical":
        return torch.arange(variable.dim, dtype=dtype)
    low = -10.0 if variable.low is None else variable.low
    high = 10.0 if variable.high is None else variable.high
    return torch.linspace(low, high, 17, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_values_come_back_in_raw_units(variable: Variable, dtype: torch.dtype):
    values = values_of(variable, dtype)
    block = embed(variable, values)
    assert block.shape == (len(values), variable.dim) and block.dtype == dtype
    back = unembed(variable, block)
    assert back.shape == values.shape and back.dtype == dtype
    # float32 carries 7 digits, so the bound grows with the unit (grey levels up to 255)
    assert (back - values).abs().max() <= 1e-5 * max(1.0, values.abs().max().item())


def test_embeddings_are_what_they_say():
    thickness, _, _, mirrored, digit = VARIABLES
    assert embed(thickness, torch.tensor([4.5, 0.5])).tolist() == [[1.0] * 3, [-1.0] * 3]
    assert embed(mirrored, torch.tensor([1.0, -1.0])).tolist() == [[1.0, 1.0], [-1.0, -1.0]]
    block = embed(digit, torch.tensor([7.0, 0.0]))
    assert block[0, 7] == 1 and block[1, 0] == 1
    assert block.sum(dim=1).tolist() == [-8.0, -8.0]


def test_blocks_off_the_labels_are_read_by_mean_sign_and_largest():
    thickness, _, _, mirrored, digit = VARIABLES
    torch.testing.assert_close(unembed(thickness, torch.tensor([[1.0, 0.0, -0.4]])), torch.tensor([2.9]))
    assert unembed(mirrored, torch.tensor([[-0.3, 0.1], [0.3, -0.1], [0.0, 0.0]])).tolist() == [-1.0, 1.0, 1.0]
    block = torch.full((1, 10), -5.0)
    block[0, 4] = -4.9
    assert unembed(digit, block).tolist() == [4.0]


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_a_missing_label_stays_missing_and_alone(variable: Variable):
    values = values_of(variable, torch.float32)[:2].repeat(2)
    values[1] = math.nan
    block = embed(variable, values)
    assert block[1].isnan().all()
    assert torch.equal(block[[0, 2, 3]], embed(variable, values[[0, 2, 3]]))


def test_all_blocks_lie_where_the_graph_says(tiny_graph: Callable[[], CausalGraph]):
    graph = tiny_graph()
    labels = torch.tensor([[2.0, -12.0, 100.0, 0.25, 2.0], [6.5, 30.0, math.nan, 1.0, 0.0]])
    z = embed_all(graph, labels)
    assert z.shape == (2, graph.dim)
    for i, variable in enumerate(graph.variables):
        expected = embed(variable, labels[:, i])
        torch.testing.assert_close(z[:, graph.slices[variable.name]], expected, equal_nan=True, rtol=0, atol=0)
    values = unembed_all(graph, z)
    assert tuple(values) == graph.names
    torch.testing.assert_close(torch.stack(list(values.values()), dim=1), labels, equal_nan=True)
