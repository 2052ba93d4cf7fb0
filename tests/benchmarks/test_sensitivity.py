"""The table of what extractors notice, at tiny size, on the images that ship."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from gendiff.data import load_dataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def shipped(name, split, root):
    """Datasets as they are on a machine with nothing imported but Fashion-MNIST."""
    if name == "mnist":
        raise FileNotFoundError("MNIST is not imported")
    assert name == "fashion-mnist-full"
    return load_dataset("fashion-mnist", split)


@pytest.fixture
def sensitivity(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("sensitivity")
    monkeypatch.setattr(module, "load_dataset", shipped)
    monkeypatch.setattr(sys, "argv", ["benchmarks/sensitivity.py"])
    yield module
    for name in list(sys.modules):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_the_table_is_measured_and_written(sensitivity, tmp_path, capsys):
    output = tmp_path / "result.json"
    command = ["--extractors", "pixel", "fmnist-cnn", "--num", "200", "--seeds", "0", "1", "--output", str(output)]
    assert sensitivity.main(command) == output
    result = json.loads(output.read_text())
    assert [(case["row"], case["seed"]) for case in result["cases"]] == [
        *(("pixel", 0), ("fmnist-cnn", 0)),
        *(("pixel", 1), ("fmnist-cnn", 1)),
    ]
    for case in result["cases"]:
        values = {cell["metric"]: cell["value"] for cell in case["cells"]}
        assert set(values) == {"fd_of_halves", "test", "noise", "blur", "jpeg", "half", "few", "shift"}
        assert values["fd_of_halves"] > 0 and values["shift"] > 2 > values["test"] > 0.3 and values["half"] > 1.5
    assert result["settings"]["order_reproduced"] is None  # lite0-112 was not asked for
    text = output.with_suffix(".md").read_text()
    assert "| pixel |" in text and "MNIST |" not in text and "was not measured" in text
    assert text.strip() in capsys.readouterr().out


def test_damages_are_what_they_are_called(sensitivity):
    reference, clean, damaged = sensitivity.draw_sets(100, 0, "data")
    assert reference.shape == clean.shape == (100, 1, 28, 28)
    assert all(images.shape == clean.shape and images.dtype == torch.uint8 for images in damaged.values())
    assert torch.equal(damaged["shift"][..., 2:], clean[..., :-2]) and not damaged["shift"][..., :2].any()
    inner = (clean > 40) & (clean < 215)
    error = (damaged["noise"].float() - clean.float())[inner]
    assert abs(error.mean()) < 0.5 and abs(error.std() - 10) < 0.5
    rough = [(images.float().diff(dim=-1)).abs().mean() for images in (clean, damaged["blur"], damaged["noise"])]
    assert rough[1] < 0.9 * rough[0] < rough[0] < rough[2]
    assert 0 < (damaged["jpeg"].float() - clean.float()).abs().mean() < 10
    again = sensitivity.draw_sets(100, 0, "data")[2]
    assert all(torch.equal(again[name], images) for name, images in damaged.items())


def test_the_order_of_lite0_112(sensitivity):
    def cases(values):
        cells = [{"metric": name, "value": value, "n": 1} for name, value in values.items()]
        return [{"row": "lite0-112", "seed": 0, "cells": cells}]

    falling = {name: 10.0 - place for place, name in enumerate(sensitivity.ORDER)}
    assert sensitivity.order_reproduced(cases(falling)) is True
    assert sensitivity.order_reproduced(cases({**falling, "shift": 100.0})) is False
    assert sensitivity.order_reproduced([]) is None


def test_too_many_images(sensitivity, capsys, tmp_path):
    with pytest.raises(SystemExit):
        sensitivity.main(["--num", "150", "--output", str(tmp_path / "result.json")])
    assert "--num must be a multiple of 100 up to" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
