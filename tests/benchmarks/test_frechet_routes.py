"""The benchmark of Fréchet routes from end to end, at tiny size."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """The script's module, imported as it is when it runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["benchmarks/frechet_routes.py"])
    yield importlib.import_module("frechet_routes")
    for name in list(sys.modules):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_every_method_finds_the_same_distance_and_the_bars_are_told(script, tmp_path, capsys):
    output = script.main(["--dim", "6", "--num", "30", "--repeats", "2", "--output", str(tmp_path / "result.json")])
    result = importlib.import_module("report").read_result(output)
    rows = script.cells_of(result)
    assert set(rows) == set(script.METHODS)
    for cells in rows.values():
        assert cells["distance"] == pytest.approx(rows["torch-fidelity"]["distance"], rel=1e-10)
        assert cells["seconds"] > 0
    assert rows["ours, statistics"]["ratio"] == 1
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "result.md").read_text(encoding="utf-8") + "\n"
    assert "bar 1e-10: met" in printed


def test_claims_are_judged_by_the_numbers(script):
    def row(name, **cells):
        return {"row": name, "noisy": True, "cells": [{"metric": key, "value": value} for key, value in cells.items()]}

    cases = [
        row("ours, statistics", relative_difference=2e-10),
        row("scipy sqrtm", ratio=2.9, cpu_ratio=3.1),
    ]
    equal, wall, cpu = script.claims({"cases": cases})
    assert equal == "Relative difference to torch-fidelity 2.0e-10, bar 1e-10: missed."
    assert wall == "sqrtm takes 2.90 times our wall time (the machine was busy), bar 3: missed."
    assert cpu == "sqrtm takes 3.10 times our CPU time, bar 3: met."


def test_too_few_features_are_refused(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--dim", "6", "--num", "6"])
    assert "--num must be above --dim 6, got 6" in capsys.readouterr().err
