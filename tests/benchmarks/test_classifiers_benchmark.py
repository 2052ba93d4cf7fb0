"""The benchmark of classifiers, and how its tables get into pages."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from gendiff.data import load_dataset
from gendiff.models.image_classifier import ImageClassifier

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """The scripts' modules, imported as they are when they run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["benchmarks/classifiers.py"])
    yield {name: importlib.import_module(name) for name in ("classifiers", "classifiers_table", "readme", "report")}
    for name in list(sys.modules):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture
def checkpoints(tmp_path):
    """A classifier that always answers "bag", one that always answers "coat", and a folder of something else."""
    classes = load_dataset("fashion-mnist", "test").classes
    for name, answer in (("bags", "bag"), ("coats", "coat")):
        model = ImageClassifier(1, 28, 10, widths=(8,), feature_dim=8, classes=classes)
        torch.nn.init.zeros_(model.classify.weight)
        model.classify.bias.data = torch.eye(10)[classes.index(answer)]
        model.save_pretrained(tmp_path / "models" / name)
        recipe = {"seed": 7, "data": {"name": "fashion-mnist", "num_images": 25}}
        (tmp_path / "models" / name / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "models" / "other").mkdir()
    (tmp_path / "models" / "other" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    return tmp_path / "models"


def test_accuracies_and_their_tables(modules, checkpoints, tmp_path, capsys):
    output = tmp_path / "results" / "classifiers.json"
    modules["classifiers"].main(["--checkpoints", str(checkpoints), "--output", str(output)])
    result = modules["report"].read_result(output)
    assert [case["row"] for case in result["cases"]] == ["bags", "coats"]
    for case, right in zip(result["cases"], ("bag", "coat"), strict=True):
        # 25 images in the order of classes 0 1 .. 9 0 1 ..: three each of the first five, two of the others
        whole = {cell["metric"]: (cell["value"], cell["n"]) for cell in case["cells"]}
        count = 2 if right == "bag" else 3
        assert whole["accuracy"] == (count / 25, 25) and whole["largest_class"] == (3 / 25, 25)
        assert whole["class_mean"] == (pytest.approx(0.1), 10)
        by_class = {
            cell["of"]: (cell["value"], cell["n"]) for cell in case["cells"] if cell["metric"] == "class_accuracy"
        }
        assert by_class.pop(right) == (1.0, count) and {value for value, _ in by_class.values()} == {0.0}
        assert case["seed"] == 7 and len(case["checkpoint_sha256"]) == 64
    assert "| bags | 25 of fashion-mnist | 8.0 % ± 10.6 | 10.0 % | 12.0 % | t-shirt, 0.0 % |" in capsys.readouterr().out

    page = (
        "a\n<!-- measured: classifiers -->\nold\n<!-- end -->\nb\n"
        "<!-- measured: classifiers:coats -->\n<!-- end -->\nc\n"
    )
    new = modules["readme"].filled(page, output.parent)
    both, one = new.split("\nb\n")
    assert "old" not in new and both.count("\n| bags |") == 1 and both.count("\n| coats |") == 1
    assert "bags" not in one and "| coat | 3 | 100.0 % |" in one and "| coat |" not in both
    assert new.endswith("<!-- end -->\nc\n") and modules["readme"].filled(new, output.parent) == new


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("classifiers-old", r"classifiers-old.json, which does not exist"),
        ("weather", "no table for the result 'weather'; known: .*classifiers"),
        ("classifiers:hats", "names the row 'hats' of .*classifiers.json, which has only bags, coats"),
    ],
)
def test_marks_that_lead_nowhere(modules, tmp_path, mark, message):
    cases = [{"row": "bags", "cells": []}, {"row": "coats", "cells": []}]
    result = {"schema": modules["report"].SCHEMA, "env": {}, "cases": cases}
    for name in ("classifiers", "weather"):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=message):
        modules["readme"].filled(f"<!-- measured: {mark} -->\n<!-- end -->", tmp_path)


def test_a_mark_may_name_a_family_of_rows(modules, tmp_path, monkeypatch):
    report, readme = modules["report"], modules["readme"]
    env = {"device": "cpu", "cpu_model": "X", "threads": 1, "dtype": "float32"}
    env |= dict.fromkeys(("python", "torch", "diffusers"), "1")
    cases = [{"row": "a/10"}, {"row": "ab/10"}, {"id": "a/20"}, {"row": "a"}, {"row": "b"}]
    (tmp_path / "speed.json").write_text(json.dumps({"schema": report.SCHEMA, "env": env, "cases": cases}))
    named = {"speed": lambda result: " ".join(case.get("row") or case["id"] for case in result["cases"])}
    monkeypatch.setattr(readme, "TABLES", named)
    page = readme.filled("<!-- measured: speed:a -->\n<!-- end -->", tmp_path)
    assert page.splitlines()[1] == "a/10 a/20 a"


def test_the_longest_beginning_decides(modules, monkeypatch):
    readme = modules["readme"]
    monkeypatch.setattr(readme, "TABLES", {"fast": "one", "fast-video": "two"})
    assert [readme.table_function(name) for name in ("fast", "fast-image", "fast-video", "fast-video-2")] == [
        "one",
        "one",
        "two",
        "two",
    ]
    with pytest.raises(ValueError, match="no table for the result 'faster'"):
        readme.table_function("faster")


def test_what_cannot_be_measured_is_one_line(modules, checkpoints, tmp_path, capsys):
    run = modules["classifiers"].main
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        run(["--checkpoints", str(tmp_path / "empty"), "--output", str(tmp_path / "a.json")])
    assert "holds no classifier" in capsys.readouterr().err
    config = checkpoints / "bags" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "classes": list("abcdefghij")}))
    with pytest.raises(SystemExit):
        run(["--checkpoints", str(checkpoints), "--output", str(tmp_path / "a.json")])
    assert "knows other classes than the dataset fashion-mnist" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()
