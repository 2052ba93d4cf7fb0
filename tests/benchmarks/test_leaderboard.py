"""The leaderboard: which rows there are, what is measured again, and how cases become a table."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COST = {
    "nfe": 20,
    "flops_per_sample": 2e9,
    "images_per_s": 8.0,
    "s_per_image": 0.125,
    "utilisation": 0.25,
    "noisy": False,
}


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def case(row: str, distance: float, seed: int = 0, **more) -> dict:
    cells = [
        {"metric": "fd", "extractor": "lite0-112", "value": distance, "n": 50},
        {"metric": "accuracy", "extractor": "fmnist-cnn", "value": 0.9, "n": 50},
    ]
    return {"row": row, "seed": seed, "fingerprint": None, "cells": cells, **more}


def result(*cases: dict) -> dict:
    return {
        "settings": {"reference": "dataset:fashion-mnist-full:test", "num": 50},
        "calibration": {"gemm_fp32_gflops": 80.0, "copy_gbs": 9.0},
        "env": {
            **{"python": "3", "torch": "2", "diffusers": "0", "device": "cpu"},
            **{"cpu_model": "x", "threads": 1, "dtype": "float32"},
        },
        "command": "python benchmarks/leaderboard.py",
        "cases": list(cases),
    }


def test_the_table_gives_means_over_seeds_and_a_dash_for_what_was_not_measured(scripts):
    tables = scripts("leaderboard_tables")
    text = tables.result_table(result(case("real", 4.0), case("m/a", 10.0, cost=COST), case("m/a", 12.0, 1, cost=COST)))
    real, model = text.splitlines()[2:4]
    assert real.startswith("| real | 4.00 | - |") and real.endswith("| - | - | - | - |")
    assert model.startswith("| m/a | 11.00 ± 1.41 |") and model.endswith("| 20 | 2.00 | 8.0 | 25 % |")
    assert "2 seed(s)" in text and "80 GFLOP/s" in text


def test_times_of_a_busy_machine_say_so(scripts):
    tables = scripts("leaderboard_tables")
    text = tables.markdown(result(case("m/a", 10.0, cost=COST | {"noisy": True})))
    assert "8.0 (busy machine)" in text and "Times of m/a were taken on a busy machine" in text


def test_the_figure_lies_beside_its_numbers(scripts, tmp_path):
    tables = scripts("leaderboard_tables")
    tables.figure(result(case("real", 4.0), case("m/a", 10.0, cost=COST)), tmp_path / "board.png")
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".svg", ".csv"}
    rows = (tmp_path / "board.csv").read_text().splitlines()
    assert rows == ["name,seconds_per_image,fd,real,on_front", "m/a,0.125,10.0,4.0,True"]


def test_every_built_in_model_of_the_data_has_its_rows(scripts):
    rows = scripts("leaderboard").all_rows(Namespace())
    assert list(rows)[:2] == ["real: held out", "real: training set"]
    models = {name.partition("/")[0] for name in list(rows)[2:]}
    assert "ddpm-fashion" in models and all("fashion" in name for name in models)
    assert all(fingerprint for name, (_, fingerprint) in rows.items() if "/" in name)


def test_only_cases_of_the_same_settings_and_weights_are_kept(scripts, tmp_path):
    board = scripts("leaderboard")
    path = tmp_path / "leaderboard.json"
    found = {**result(case("a", 1.0), case("b", 2.0), case("gone", 3.0)), "schema": "gendiff-bench/1"}
    path.write_text(json.dumps(found))
    rows = {"a": (None, None), "b": (None, "other weights")}
    assert [kept["row"] for kept in board.kept_cases(path, found["settings"], rows)] == ["a"]
    assert board.kept_cases(path, found["settings"] | {"num": 51}, rows) == []
    assert board.kept_cases(tmp_path / "none.json", found["settings"], rows) == []


def test_blocks_cover_every_image_once(scripts):
    board = scripts("leaderboard")
    assert [list(block) for block in board.blocks(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("arguments", [["--num", "0"], ["--seeds", "-1"], ["--budget", "0"]])
def test_numbers_out_of_range_end_it_at_once(scripts, monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks/leaderboard.py", *arguments])
    with pytest.raises(SystemExit):
        scripts("leaderboard").parse()
    assert "must be" in capsys.readouterr().err
