"""What light steps cost, by formula and by the clock, and what they do to quality: the script end to end, tiny."""

from __future__ import annotations

import csv
import json
import math
from types import SimpleNamespace

import pytest
import torch

from gendiff.data.fashion_mnist import CLASSES
from gendiff.samplers.recap import plan_groups

COST = ["--quick", "--threads", "1", "--repeats", "2", "--budget", "0.01", "--calibration-seconds", "0.001"]
FEW = ["--parts", "quality", "--data", "fashion-mnist", "--num", "20", "--batch-size", "10", "--baseline-steps", "1"]
FEW += ["--threads", "1", "--repeats", "2", "--budget", "0.01", "--allow-small-n", "--name", "tiny"]


@pytest.mark.parametrize("group", [None, 5])
def test_counters_agree_with_the_formula(bench, group):
    formula = bench("masked_formula")
    sizes = formula.Sizes(side=4, width=32, heads=2, depth=3, codes=16)
    expected = formula.pass_flops(sizes, 16 if group is None else group)
    found = formula.counted_flops(formula.make_network(sizes, 0), sizes, group)
    assert found == {"torch's counter": expected, "the pipeline's stats": expected}
    # By hand: one block of width 2, three codes, MLP of width 2; two rows of four and the class see all five.
    one = formula.Sizes(side=2, width=2, heads=1, depth=1, codes=3, mlp_ratio=1)
    assert formula.pass_flops(one, 2) == 12 * 4 * 3 + 4 * 2 * 3 * 5 + 2 * (2 * 4 + 2 * 2 * 3)


def test_plans_are_those_of_the_paper_and_compare_with_as_many_steps(bench):
    module = bench("masked_plans")
    plans = module.plans_of([0.1, 0.5], continuous=False)
    assert list(plans)[:5] == ["base/4", "base/8", "base/16", "base/32", "recap/32-12-1"]
    assert {plan.base for plan in plans.values()} == {"base/4", "base/8", "base/16", "base/32"}
    published = plans["recap/32-12-1"]
    groups = plan_groups(published.steps, published.recap)
    assert (len(groups), published.steps - len(groups)) == (22, 10)
    assert plans["recap/32-0-7-bound-0.5"].recap.max_staleness == 0.5
    assert "change at most 0.5 nats" in plans["recap/32-0-7-bound-0.5"].words
    assert not any("bound" in row for row in module.plans_of([0.1], continuous=True))
    assert published.call({"guidance_scale": 3.0}) == {
        **{"num_inference_steps": 32, "guidance_scale": 3.0},
        "recap": published.recap,
    }
    assert "recap" not in plans["base/4"].call({})


def point(module, row, cost, *distances):
    base = row if row.startswith("base") else "base/8"
    return module.Point(row, row, base, cost, cost / 10, list(distances))


def test_recap_wins_only_beyond_the_spread_of_seeds(bench):
    module = bench("masked_verdicts")
    base = [point(module, f"base/{cost}", cost, mean - 1, mean + 1) for cost, mean in ((1, 40), (4, 20), (16, 10))]
    there, spread = module.base_at(base, 2.0, "flops")
    assert there == pytest.approx(30) and spread == pytest.approx(math.sqrt(2))
    assert module.base_at(base, 0.4, "seconds") == pytest.approx((20, math.sqrt(2)))
    assert module.base_at(base, 17, "flops") is None

    def said(cost, *distances):
        return module.verdict(point(module, "recap/x", cost, *distances), base, "flops")

    assert said(2, 28, 28) == "win" and said(2, 29, 29) == "tie" and said(2, 32, 32) == "loss"
    assert said(2, 20, 36) == "tie"  # its own seeds differ by more
    assert said(2, 28) == "one seed" and said(17, 1, 1) == "out of range"
    untimed = module.Point("recap/x", "", "base/8", 2, None, [1, 1])
    assert module.verdict(untimed, base, "seconds") == "out of range"
    assert module.base_cost_of(base, 30, "flops") == (pytest.approx(2), "")
    assert module.base_cost_of(base, 15, "seconds") == (pytest.approx(0.8), "")
    assert module.base_cost_of(base, 50, "flops") == (1, "at most")
    assert module.base_cost_of(base, 9, "flops") == (16, "at least")


def result_of(**distances):
    """A result with two seeds of each way: cost, distance in first features, seconds of an image."""
    cases = []

    def cell(metric, value, **fields):
        return {"metric": metric, "value": value, "n": 9, **fields}

    for row, (cost, distance, _) in distances.items():
        kind, name = row.split("_")
        plan = {"steps": int(name.partition("x")[0]), "words": row, "base": f"base/{name.partition('x')[0]}"}
        for seed in (0, 1):
            cells = [cell("fd", distance + seed, extractor="cnn"), cell("accuracy", 0.9)]
            cells += [cell("flops", cost * 1e9, of="network"), cell("flops", 0, of="head")]
            cells += [cell("full_calls", 4), cell("light_calls", 0), cell("kl", 0.1), cell("top1_agreement", 0.5)]
            cases.append({"row": f"{kind}/{name}", "seed": seed, "cells": cells, "plan": plan})
    times = [cell("seconds", s, of=row.replace("_", "/"), noisy=False) for row, (*_, s) in distances.items()]
    times.append(cell("speedup", 1.4, of="recap/16x1"))
    cases.append({"row": "times", "seed": 0, "cells": times})
    cases.append({"row": "real: held out", "seed": 0, "cells": [cell("accuracy", 0.93)]})
    cases.append({"row": "baseline", "seed": 0, "cells": [cell("fd", 21.0, extractor="cnn"), cell("seconds", 1.0)]})
    floor = [cell("fd", 6.0, extractor="cnn")]
    cases.append({"row": "tokenizer: reconstructions of test images", "seed": 0, "cells": floor})
    return {"settings": {"extractors": {"cnn": ["fd"]}, "baseline": "ddpm"}, "cases": cases}


def test_bars_are_judged_on_the_best_plan(bench, tmp_path):
    module, tables = bench("masked_verdicts"), bench("masked_tables")
    result = result_of(base_4=(1, 40, 0.1), base_16=(4, 20, 0.4), recap_16x1=(2, 20, 0.2))
    found = {bar.words: bar for bar in module.bars(module.Scores(result))}
    quality = found["times fewer seconds than the base of equal FD[cnn], best plan: recap_16x1"]
    assert quality.values == [pytest.approx(2.0)] and quality.met == 1
    assert found["times fewer seconds than the base of as many steps, best plan: recap_16x1"].values == [1.4]
    assert found["ReCAP at its best (recap_16x1): FD[cnn], that of the baseline"].met == 2
    far = found["base at its best (base_16): FD[cnn], 3 times that of the tokenizer's reconstructions"]
    assert far.limits == [18.0, 18.0] and far.met == 0
    accuracy = found["base at its best (base_16): class accuracy, that of real test images less 5 points"]
    assert accuracy.limits == pytest.approx([0.88] * 2) and accuracy.met == 2
    text = tables.result_table(result)
    assert "| recap_16x1 | 20.50 ± 0.71 | 30.50 | win | 2.00 | 30.50 | win | 2.00 |" in text
    assert "| recap_16x1 | 4 + 0 | 2.00 | 0.00 | 0.00 | 2.00 | 1.40 | 0.100 | 50.0 |" in text
    assert "**missed** by 2 of 2 |" in text and "| at least 1.250 | met |" in text
    # A plan that the fewest steps of the base beat has no speed-up, however quick.
    poor = module.Scores(result_of(base_4=(1, 40, 0.1), base_16=(4, 20, 0.4), recap_16x1=(0.5, 50, 0.01)))
    assert not any("equal FD" in bar.words for bar in module.bars(poor))
    assert tables.speed_words(poor.recap_points()[0], poor.base_points(), "seconds") == "< 10.00"
    tables.plot(result, tmp_path / "plot")
    rows = list(csv.DictReader((tmp_path / "plot.csv").read_text().splitlines()))
    assert [row["way"] for row in rows] == ["base/4", "base/16", "recap/16x1"] and rows[0]["ms"] == "100.0"


def test_a_token_that_does_not_stay_is_found(bench, monkeypatch):
    module = bench("masked_known")
    args = SimpleNamespace(quick=True, seed=0)
    make = module.make_pipe

    def forgetful(dtype, order):
        pipe = make(dtype, order)

        def call(*arguments, latents, **options):
            output = pipe(*arguments, latents=latents, **options)
            known = (latents[0] < module.CODES).nonzero()[0]
            output.tokens[0, known] = (output.tokens[0, known] + 1) % module.CODES
            return output

        return call

    monkeypatch.setattr(module, "DTYPES", {"float32": torch.float32})
    cells = module.known_case(args)["cells"]
    assert [cell["order"] for cell in cells] == ["confidence", "halton", "random"]
    assert all(cell["value"] == 1 and cell["met"] and cell["n"] == 8 for cell in cells)
    monkeypatch.setattr(module, "make_pipe", forgetful)
    assert [(cell["value"], cell["met"]) for cell in module.known_case(args)["cells"]] == [(0.75, False)] * 3


def test_cost_is_timed_counted_and_reported_part_by_part(bench, tmp_path, capsys):
    script = bench("masked_generation")
    script.main([*COST, "--out", str(tmp_path), "--parts", "light", "known"])
    (path,) = script.main([*COST, "--out", str(tmp_path), "--parts", "uvit", "peer"])
    result = json.loads(path.read_text())
    bench("result_schema").validate(result)
    cells = {case["row"]: case["cells"] for case in result["cases"] if "cells" in case}
    assert list(cells) == ["light", "counts", "uvit", "peer", "known"]
    assert [cell["metric"] for cell in cells["light"]] == ["light/2", "light/8"]
    assert all(cell["value"] > 0 and 0 < cell["predicted"] < 1 and cell["bar"] is None for cell in cells["light"])
    assert all(cell["value"] == 1 and cell["met"] for cell in cells["counts"]) and len(cells["counts"]) == 6
    assert 0 < cells["uvit"][0]["predicted"] < 1 and cells["peer"][0]["value"] > 0
    assert {cell["dtype"] for cell in cells["known"]} == {"float32", "bfloat16", "float16"}
    assert all(cell["met"] for cell in cells["known"])
    assert {case["id"] for case in result["cases"] if "timings_s" in case} == {
        f"light/{group}/{side}" for group in (2, 8) for side in ("light", "full")
    }
    text = path.with_suffix(".md").read_text()
    assert text.strip() in capsys.readouterr().out and "float16, order halton | 100 % of 8 | 100 % | met |" in text
    table = bench("readme").table_function("masked-generation-cost-quick")
    assert table(result) in text and table({**result, "cases": []}) == ""


def test_passes_that_say_something_else_are_not_timed(bench):
    cost, formula = bench("masked_cost"), bench("masked_formula")
    sizes = formula.Sizes(side=4, width=32, heads=2, depth=1, codes=16)
    network, calls = formula.make_network(sizes, 0), []

    class Wrong:
        make_cache = network.make_cache

        def __call__(self, *inputs, rows=None, **options):
            calls.append(rows)
            found = network(*inputs, rows=rows, **options)
            return found if rows is None else (found[0] + 1,)

    args = SimpleNamespace(device="cpu", warmup=1, repeats=2, budget=0.01)
    inputs, rows = formula.make_inputs(sizes, 2, 0), formula.make_rows(sizes, 2, 3, 0)
    with pytest.raises(ValueError, match="do not do the same work"):
        cost.compare_passes(Wrong(), inputs, rows, args, cached=False)
    assert len(calls) == 3


@pytest.fixture
def model(tiny_masked_pipeline, tmp_path):
    """Folder of a run that has ended."""
    tiny_masked_pipeline(CLASSES, grid=7, patch=4).save_pretrained(tmp_path / "tiny-run" / "final")
    return tmp_path / "tiny-run"


def test_quality_is_read_beside_its_floors_and_goes_on_where_it_stopped(bench, model, tmp_path, monkeypatch, capsys):
    script, yardstick = bench("masked_generation"), bench("next_frequency_yardstick")
    monkeypatch.delitem(yardstick.EXTRACTORS, "lite0-112")  # seconds for a thousand images
    more = [*FEW, "--model", str(model), "--out", str(tmp_path / "out"), "--samples", str(tmp_path / "samples")]
    more += ["--rows", "base/4", "base/16", "recap/16-0-3", "--seeds"]
    script.main([*more, "0"])
    first = json.loads((tmp_path / "out" / "masked-generation-tiny.json").read_text())
    capsys.readouterr()
    (path,) = script.main([*more, "0", "1"])
    text, said = capsys.readouterr()
    assert "base/4, seed 1" in said and "base/4, seed 0" not in said and "rounds of" not in said
    result = json.loads(path.read_text())
    bench("result_schema").validate(result)
    assert all(case in result["cases"] for case in first["cases"])
    ways = [(row, seed) for seed in (0, 1) for row in ("base/4", "base/16", "recap/16-0-3")]
    floors = ["real: held out", "real: training images", "tokenizer: reconstructions of test images", "baseline"]
    assert [(case["row"], case["seed"]) for case in result["cases"]] == [
        *((row, 0) for row in floors),
        *ways,
        ("times", 0),
    ]
    pairs = [(case["row"], cell) for case in result["cases"] for cell in case["cells"]]
    cells = {(row, cell["metric"], cell.get("of")): cell["value"] for row, cell in pairs}
    assert (cells["recap/16-0-3", "full_calls", None], cells["recap/16-0-3", "light_calls", None]) == (4, 12)
    assert 0 < cells["recap/16-0-3", "flops", "network"] < cells["base/16", "flops", "network"]
    assert cells["recap/16-0-3", "kl", None] > 0 and ("base/16", "kl", None) not in cells
    assert cells["times", "speedup", "recap/16-0-3"] > 0 and cells["times", "seconds", "base/4"] > 0
    assert len({path.parent.name for path in (tmp_path / "samples").rglob("*.npy")}) == 7  # with the baseline
    assert text.strip() == path.with_suffix(".md").read_text().strip()
    assert "| ReCAP, T = 16, F = 0, U = 3 | 4 + 12 |" in text and "base at equal seconds" in text
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert bench("readme").table_function("masked-generation-tiny")(result) in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--rows", "base/5"], "--rows has 'base/5'; known: base/4, base/8"),
        (["--guidance", "nan"], "must be a number of at least 0"),
        (["--model", "nowhere"], "'nowhere' is neither a folder"),
        (["--model", "ddpm-fashion"], "a MaskedGenerationPipeline is needed"),
        (["--parts", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_bad_arguments_are_said_in_a_line(bench, model, tmp_path, change, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench("masked_generation").main([*FEW, "--model", str(model), "--out", str(tmp_path / "out"), *change])
    assert stop.value.code == 2 and message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_masked_generation_can_be_timed_like_any_pipeline(bench, tiny_masked_pipeline, tmp_path):
    calls = bench("calls")
    for names, labels in ((("one", "two", "three"), [0, 1, 2, 0]), ((), [0, 0, 0, 0])):
        pipe = tiny_masked_pipeline(names)
        call = calls.make_call(pipe, calls.Work("masked-generation", steps=3, options={"guidance_scale": 1.0}), 4)
        outputs = []
        for _ in range(2):
            call.before()
            outputs.append(call.run())
        assert outputs[0].class_labels.tolist() == labels and outputs[0].stats.network_calls == 3
        assert outputs[0].images.equal(outputs[1].images)
