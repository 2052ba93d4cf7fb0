"""The counterfactual benchmark from end to end, at tiny size, with an untrained model."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from gendiff.data import load_dataset
from gendiff.data.pendulum import pendulum_graph
from gendiff.training.recipe import load_recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("counterfactual", "counterfactual_questions", "counterfactual_rows", "counterfactual_tables", "report")


def small_dataset(name, split, **arguments):
    return load_dataset(name, split, num_images=40, **arguments)


@pytest.fixture
def benchmark(monkeypatch):
    """The script's modules, imported as they are when it runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    loaded = {name: importlib.import_module(name) for name in MODULES}
    monkeypatch.setattr(loaded["counterfactual_questions"], "load_dataset", small_dataset)
    monkeypatch.setattr(sys, "argv", ["benchmarks/counterfactual.py"])
    yield loaded
    for name in list(sys.modules):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture
def model(tiny_counterfactual_pipeline, tmp_path):
    pipe = tiny_counterfactual_pipeline(pendulum_graph(), channels=3)
    pipe.save_pretrained(tmp_path / "model")
    return pipe, tmp_path / "model"


@pytest.fixture
def arguments(model, tmp_path):
    sizes = ["--num-images", "3", "--chain-images", "2", "--steps", "2", "--seeds", "0", "1"]
    return ["--model", str(model[1]), *sizes, "--output", str(tmp_path / "out" / "result.json")]


def cells(result, row, metric, **place):
    return [
        cell["value"]
        for case in result["cases"]
        for cell in case["cells"]
        if case["row"] == row and cell["metric"] == metric and all(cell.get(k) == v for k, v in place.items())
    ]


def test_every_row_and_metric_is_measured_and_written(benchmark, arguments, model, tmp_path, capsys):
    ablation = ["--ablation", f"no_mechanism_loss={model[1]}"]
    path = benchmark["counterfactual"].main([*arguments, *ablation, "--seeds", "0", "--chain-images", "1"])
    result = json.loads(path.read_text())
    rows = {case["row"] for case in result["cases"]}
    assert len(rows) == len(result["cases"]) == 10
    every = {cell["metric"] for case in result["cases"] if case["row"] == "model" for cell in case["cells"]}
    tables = {name for name, _, _ in benchmark["counterfactual_tables"].TABLES}
    assert every == tables - {"accuracy"}
    assert all(math.isfinite(cell["value"]) for case in result["cases"] for cell in case["cells"])
    assert result["settings"]["num_images"] == 3 and result["env"]["device"] == "cpu"

    text = path.with_suffix(".md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "| cf_l1 under do(angle), below no_propagation | ≤ 2.34 |" in text
    assert "result.png" in text and path.with_suffix(".png").stat().st_size > 10_000
    # References are what they are by definition, whatever the model.
    assert set(cells(result, "readout_floor", "cf_l1")) == {0.0}
    assert set(cells(result, "readout_floor", "cf_gain")) == {1.0}
    assert set(cells(result, "input", "cf_gain")) == {0.0}
    assert set(cells(result, "input", "leakage")) == {0.0}
    assert set(cells(result, "no_propagation", "cf_l1", do="shadow_len")) == {0.0}
    assert min(cells(result, "no_propagation", "cf_l1", do="angle")) > 0
    # EDICT answers the null intervention exactly with any weights; DDIM does not.
    assert max(cells(result, "model", "null_max_error")) < 1e-4
    assert max(cells(result, "model", "composition_10")) < 1e-2 < min(cells(result, "ddim", "composition_10"))
    # The same weights under another name give the same answers.
    assert cells(result, "no_mechanism_loss", "cf_l1") == cells(result, "model", "cf_l1")


def test_it_goes_on_where_it_stopped(benchmark, arguments, capsys):
    main = benchmark["counterfactual"].main
    path = main([*arguments, "--rows", "input", "ddim", "--seeds", "0"])
    first = json.loads(path.read_text())["cases"]
    main([*arguments, "--rows", "input", "ddim"])
    assert "2 cases to measure, 2 known" in capsys.readouterr().err
    second = json.loads(path.read_text())["cases"]
    assert second[:2] == first and [case["seed"] for case in second] == [0, 0, 1, 1]
    main([*arguments, "--rows", "input", "--seeds", "0", "--force"])
    forced = json.loads(path.read_text())["cases"]
    assert len(forced) == 4
    assert forced[-1]["cells"] == first[0]["cells"]


def test_answers_of_other_weights_do_not_stay(benchmark, arguments, model):
    main = benchmark["counterfactual"].main
    main([*arguments, "--rows", "input", "ddim", "--seeds", "0"])
    pipe, folder = model
    with torch.no_grad():
        pipe.encoder.head.bias += 1
    pipe.save_pretrained(folder)
    path = main([*arguments, "--rows", "input", "--seeds", "0"])
    assert [case["row"] for case in json.loads(path.read_text())["cases"]] == ["input"]


def test_questions_have_their_true_answers(benchmark):
    examiner = benchmark["counterfactual_questions"].Examiner("pendulum", 16)
    exam = examiner.exam(seed=3, count=4)
    assert [question.variable for question in exam.questions] == list(examiner.graph.names)
    light = exam.questions[1]
    assert torch.equal(light.true_values["light"], light.values)
    assert torch.equal(light.true_values["angle"], exam.labels["angle"])
    assert not torch.equal(light.true_values["shadow_pos"], exam.labels["shadow_pos"])
    assert light.values.unique().numel() == 4
    again, other = examiner.exam(3, 4), examiner.exam(4, 4)
    assert torch.equal(again.images, exam.images) and torch.equal(again.questions[1].values, light.values)
    assert not torch.equal(other.images, exam.images)
    held_out, _ = examiner.held_out(3, 4)
    assert not (held_out[:, None] == exam.images[None]).flatten(2).all(2).any()


def test_cost_is_the_number_of_network_passes(benchmark, model, monkeypatch):
    monkeypatch.setattr(benchmark["counterfactual_rows"], "CHAIN", (1, 2))
    rows, examiner = benchmark["counterfactual_rows"], benchmark["counterfactual_questions"].Examiner("pendulum", 16)
    pipe, passes = model[0], []
    pipe.unet.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    exam = examiner.exam(0, 3)
    for row in rows.MODEL_ROWS:
        passes.clear()
        student = rows.Student(pipe, row, 2, 2, 0)
        rows.sit_model_row(student, examiner, exam, 1, 0, lambda stage: None)
        assert sum(passes) == row.passes(4, 2, 3, 1), row.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--rows", "models"], "--rows: unknown models; known: input,"),
        (["--ablation", "legacy"], "must look like NAME=FOLDER, got 'legacy'"),
        (["--ablation", "ddim=x"], "'x' is neither a folder"),
        (["--model", "nowhere"], "'nowhere' is neither a folder"),
        (["--steps", "0"], "must be at least 1, got 0"),
        (["--seeds", "-1"], "must be a whole number of at least 0"),
        (["--num-images", "40"], "must leave some of the 40 test images"),
        (["--device", "cuda:99"], "cannot be used on this machine"),
        (["--dataset", "handwriting", "--root", "nowhere"], "MNIST is not in"),
    ],
)
def test_bad_arguments_are_named(benchmark, arguments, change, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark["counterfactual"].main([*arguments, *change])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_another_graph_and_other_settings_are_refused(
    benchmark, arguments, tiny_counterfactual_pipeline, tmp_path, capsys
):
    main = benchmark["counterfactual"].main
    main([*arguments, "--rows", "input"])
    with pytest.raises(SystemExit):
        main([*arguments, "--rows", "input", "--steps", "3"])
    assert "was measured with another steps" in capsys.readouterr().err
    tiny_counterfactual_pipeline(channels=3).save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit):
        main([*arguments, "--model", str(tmp_path / "other")])
    assert "model has the graph" in capsys.readouterr().err


def test_bars_are_met_or_missed_by_the_figures(benchmark):
    tables = benchmark["counterfactual_tables"]

    def result(error):
        found = [
            {"metric": "cf_l1", "do": "angle", "value": 2 * error, "n": 2},
            {"metric": "leakage", "do": "angle", "of": "light", "value": error, "n": 2},
        ]
        settings = {"dataset": "pendulum", "graph": pendulum_graph().to_dict()}
        return {"settings": settings, "cases": [{"row": "model", "seed": 0, "cells": found}]}

    def met(error):
        return {bar.text: bar.met for bar in tables.bars(result(error))}

    angle, leakage = "cf_l1 under do(angle), below no_propagation", "leakage, worst (do(angle): light)"
    good, bad = met(0.01), met(2.0)
    assert good[angle] is True and good[leakage] is True
    assert bad[angle] is False and bad[leakage] is False
    assert good["composition_10, grey levels"] is None


def test_summaries_are_means_and_deviations_over_seeds(benchmark):
    report = benchmark["report"]
    cases = [
        {"row": "model", "seed": seed, "cells": [{"metric": "cf_l1", "do": "angle", "value": value, "n": 5}]}
        for seed, value in enumerate([1.0, 2.0, 3.0])
    ]
    (key, summary), *rest = report.summarise(cases, ("metric", "do", "of")).items()
    assert key == ("model", "cf_l1", "angle", None) and not rest
    assert summary == {"mean": 2.0, "spread": 1.0, "seeds": 3, "n": 15}
    assert report.shown(summary, 2) == "2.00 ± 1.00"
    assert report.shown({"mean": 3e-6, "spread": None}, 3) == "3.0e-06"
    assert report.markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("control", set()),
        ("legacy-sum", {"models"}),
        ("no-mechanism-loss", {"losses"}),
    ],
)
def test_an_ablation_changes_one_thing(name, changed):
    main, other = load_recipe("counterfactual-pendulum"), load_recipe(BENCHMARKS / "recipes" / f"pendulum-{name}.yaml")
    same = ("task", "seed", "data", "models", "losses")
    assert {key for key in same if getattr(main, key) != getattr(other, key)} == changed
    assert load_recipe(BENCHMARKS / "recipes" / "pendulum-control.yaml").train == other.train
