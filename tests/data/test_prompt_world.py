"""What all worlds of prompts share."""

from __future__ import annotations

import pytest
import torch

from gendiff.data.prompt_world import hops_of, nearest_colour, passed, sentences

GRAMMAR = {
    "template": "{a} or {b}",
    "slots": {"a": {"values": ["x", "y"]}, "b": {"values": ["u", "v"]}},
    "implied": [{"id": "far", "parents": ["a", "near"]}, {"id": "near", "parents": ["b"]}],
}


def test_sentences_are_all_fillings_in_order():
    assert list(sentences(GRAMMAR)) == ["x or u", "x or v", "y or u", "y or v"]
    assert sentences(GRAMMAR)["y or u"] == {"a": "y", "b": "u"}


def test_hops_wait_for_all_parents_in_any_order():
    assert hops_of(GRAMMAR) == {"a": 0, "b": 0, "near": 1, "far": 2}


@pytest.mark.parametrize("parents", [["far"], [], ["unknown"]])
def test_an_implied_node_needs_a_cause(parents):
    with pytest.raises(ValueError, match="implied nodes must follow from slots in the end; far do not"):
        hops_of(GRAMMAR | {"implied": [{"id": "far", "parents": parents}]})


def test_nearest_colour_and_none():
    pixels = torch.tensor([[255, 0, 0], [200, 30, 0], [0, 0, 255], [0, 255, 0]]).T.reshape(1, 3, 2, 2) / 127.5 - 1
    assert nearest_colour(pixels, [(255, 0, 0), (0, 0, 250)], radius=100).flatten().tolist() == [0, 0, 1, -1]


def test_nan_meets_no_target():
    values = {"a": torch.tensor([1.0, 1.6, torch.nan]), "other": torch.zeros(3)}
    assert passed(values, {"a": torch.ones(3)}, {"a": 0.5})["a"].tolist() == [True, False, False]
