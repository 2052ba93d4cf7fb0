"""LINA's benchmark: what an interval allows to say, how settings are run and judged, and the script end to end."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from PIL import Image

from gendiff.data.shadow_world import ShadowWorld
from gendiff.data.swap_world import SwapWorld
from gendiff.oracles.mode_world import ModeWorld
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.warps import WarpSpec
from gendiff.training.lina import build

# diffusers' schedulers hand tensors to numpy in the way of its first version.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MODEL = {"transformer": {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}}
FEW = ["--threads", "1", "--steps", "2", "--seeds", "2", "--prompts", "1", "--in-distribution", "1", "--name", "tiny"]
FEW += ["--others", "2", "--calibration-seeds", "1", "--fixed-seeds", "1", "--look-seeds", "1", "--epochs", "1"]
COLUMNS = {"pap@0", "pap@1", "pap@2", "pap_all", "texture", "noise", "nfe", "seconds", "steered", "difference"}


@cache
def tiny(world):
    """An untrained pipeline whose images depend on prompt and noise all the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = build(MODEL, world(num_images=2))
        torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def folder(world, path):
    tiny(world).save_pretrained(path)
    return str(path)


def test_an_interval_that_holds_zero_is_a_tie_and_is_printed_as_one(bench):
    module, tables = bench("lina_statistics"), bench("lina_tables")
    base = torch.zeros(8, 4)
    mixed = torch.tensor([1.0, -1, 1, -1, 0, 0, 1, -1])[:, None].expand(8, 4)
    cells = {
        name: module.difference_cell(base + gain, base, "base") | {"split": "out of distribution"}
        for name, gain in (("above", 0.25), ("below", -0.25), ("tie", mixed))
    }
    assert {name: cell["verdict"] for name, cell in cells.items()} == {name: name for name in cells}
    assert cells["above"]["ci95"] == [0.25, 0.25] and cells["above"]["n"] == 8
    assert module.verdict([0.0, 0.3]) == module.verdict([-0.1, 0.0]) == "tie"
    assert module.verdict_words(cells["tie"], "LINA", "base*").startswith("tie of LINA and base*: +0.0 points, 95 %")
    assert module.verdict_words(cells["below"], "LINA", "base*").startswith("LINA is below base*: -25.0 points")
    case = {"row": "shadows-pooled/adaptive", "words": "LINA", "does": "", "cells": [cells["tie"]]}
    case["cells"].append({"metric": "pap_all", "split": "out of distribution", "value": 0.5, "n": 8})
    text = tables.result_table({"cases": [case]})
    assert "| tie |" in text and "- both directions: tie of LINA adaptive and base*: +0.0 points" in text
    assert "above" not in text and "below" not in text


def test_the_interval_is_that_of_the_mean_over_prompts(bench):
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 3
    low, high = bench("lina_statistics").mean_ci(values)
    error = 1.96 * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - error, abs=0.02)
    assert high == pytest.approx(values.mean().item() + error, abs=0.02)
    with pytest.raises(ValueError, match="at least one number"):
        bench("lina_statistics").mean_ci([])


def gated(gain, change, pooled, one, known):
    """Cases with the figures that the bars read."""

    def cell(metric, value, interval=None, **fields):
        said = {} if interval is None else {"ci95": interval, "verdict": fields.pop("verdict", "tie")}
        return {"metric": metric, "value": value, "n": 6, **said, **fields}

    modes = [cell("difference", gain, prior="wrong"), cell("largest_change", change, prior="right")]
    out, known_split = "out of distribution", "in distribution"
    both = [cell("difference", sum(pooled) / 2, pooled, split=out, against="base")]
    both.append(cell("difference", known, [known, known], split=known_split, against="base"))
    direction = [cell("difference", 0.0, [-0.2, 0.2], split=out, against="base", verdict=one)]
    rows = {"modes/adaptive": modes, "shadows-pooled/adaptive": both, "shadows-ood-red/adaptive": direction}
    return [{"row": row, "seed": 0, "cells": cells} for row, cells in rows.items()]


def test_bars_are_met_and_missed_as_their_figures_say(bench):
    module = bench("lina_gate")
    good, bad = (
        module.gate_cases(gated(0.4, 0.01, [0.01, 0.3], "tie", -0.02)),
        module.gate_cases(gated(0.39, 0.02, [0.0, 0.3], "below", -0.03)),
    )
    assert [cell["met"] for cell in good[0]["cells"]] == [True] * 5
    assert [cell["met"] for cell in bad[0]["cells"]] == [False] * 5
    assert bench("lina_tables").gate_table(bad[0]).count("**missed**") == 5
    assert module.gate_cases([]) == []


def test_images_that_were_repaired_and_broken_are_told(bench):
    cells = [
        {"metric": "repaired", "value": 0.5, "n": 130, "split": "out of distribution"},
        {"metric": "broken", "value": 0.1, "n": 126, "split": "out of distribution"},
    ]
    told = bench("lina_gate").verdicts([{"row": "shadows-pooled/adaptive", "cells": cells}])
    assert told == [
        "both directions: of 130 images that base* gets wrong LINA adaptive makes 50% right, "
        "of 126 that it gets right 10% wrong"
    ]
    assert bench("lina_gate").verdicts([{"row": "shadows-ood-red/adaptive", "cells": cells}]) == []


def test_a_setting_is_run_on_the_same_noise_whatever_its_company(bench):
    pipe, world = tiny(ShadowWorld), ShadowWorld(num_images=1)
    runs = bench("lina_runs")
    runner, prompts = runs.Runner(pipe, world, steps=3), ShadowWorld.prompts("ood")[:3]
    steered = Intervention(lam=2.0, warp=WarpSpec("moebius", 2.0))
    both = runner.run(prompts, [0, 1], 2.0, [steered, Intervention(), steered])
    plain = runner.run(prompts[1:2], [0, 1], 2.0)
    assert torch.equal(both.images[1], plain.images[0])
    alone = runner.run(prompts[2:], [1], 2.0, steered)
    assert (both.images[2, 1].int() - alone.images[0, 0].int()).abs().max() <= 1
    assert both.nfe.tolist() == [8.0, 6.0, 8.0] and not torch.equal(both.images[0, 0], both.images[0, 1])
    assert runner.run(prompts[1:2], [0, 1], 2.0) is plain
    checks = world.check(both.images[2].float() / 127.5 - 1, [prompts[2]] * 2)
    assert all(torch.equal(both.checks[name][2], value) for name, value in checks.items())
    assert torch.equal(runs.textures(plain, plain), torch.ones(1, 2))
    score = runner.score(prompts, 2.0)(Intervention(), [1], seeds=[0, 1])
    assert torch.equal(score, plain.scores["pap_all"])


def test_the_best_of_two_passes_at_least_as_many_checks(bench):
    pipe, world = tiny(ShadowWorld), ShadowWorld(num_images=1)
    runs = bench("lina_runs")
    runner, prompts = runs.Runner(pipe, world, steps=2), ShadowWorld.prompts("ood")[:4]
    two = [runner.run(prompts, seeds, 1.0) for seeds in ([0, 1, 2], [3, 4, 5])]
    best = runs.best_of(two)
    passed = [torch.stack(list(one.checks.values())).sum(0) for one in (*two, best)]
    assert torch.equal(passed[2], torch.maximum(passed[0], passed[1])) and (passed[0] != passed[1]).any()
    assert torch.equal(best.nfe, two[0].nfe + two[1].nfe) and best.images.shape == two[0].images.shape


def test_the_script_end_to_end(bench, tmp_path, monkeypatch):
    for name, few in (("LAMS", (1.0, 4.0)), ("STOPS", (0.4,)), ("ALPHAS", (0.5,)), ("KAPPAS", (2.0,))):
        monkeypatch.setattr(bench("lina_fixed"), name, few)
    models = ["--shadows-model", folder(ShadowWorld, tmp_path / "a"), "--swap-model", folder(SwapWorld, tmp_path / "b")]
    command = [*FEW, *models, "--out", str(tmp_path)]
    path = bench("lina").main([*command, "--parts", "shadows"])
    first = json.loads(path.read_text())
    bench("lina").main([*command, "--parts", "swap"])
    result = json.loads(path.read_text())
    bench("result_schema").validate(result)
    assert [case for case in result["cases"] if case["row"].startswith("shadows")] == [
        case for case in first["cases"] if case["row"].startswith("shadows")
    ]
    rows = {case["row"]: case for case in result["cases"]}
    words = bench("lina_shadows").WORDS
    for name, prompts in (("pooled", 2), ("ood-red", 1), ("ood-blue", 1)):
        for row in words:
            cells = [cell for cell in rows[f"shadows-{name}/{row}"]["cells"]]
            held_out = {cell["metric"] for cell in cells if cell["split"] == "out of distribution"}
            assert held_out >= COLUMNS - ({"difference"} if row == "base" else set())
            assert {cell["n"] for cell in cells if cell["metric"] == "difference"} <= {prompts}
    chosen = [cell for cell in rows["shadows-ood-red/guidance"]["cells"] if cell["chosen"]]
    assert len(chosen) == 1
    steered = rows["shadows-ood-red/contrast"]["cells"]
    nfe = {row: [c["value"] for c in rows[f"shadows-ood-red/{row}"]["cells"] if c["metric"] == "nfe"] for row in words}
    assert nfe["base-steps"] >= nfe["contrast"] > nfe["base"] and len(steered) > len(COLUMNS)
    assert {"swap/guidance-8", "swap/base", "swap/contrast"} <= set(rows)
    assert [cell["metric"] for cell in rows["swap/base"]["cells"]][:3] == ["image", "text", "group"]
    assert rows["gate"]["cells"] and len(rows["gate"]["verdicts"]) == 8
    page = path.with_suffix(".md").read_text()
    assert "of 2 prompts steered): tie of LINA adaptive and base*" in page and "![base* and LINA adaptive" in page
    with Image.open(tmp_path / "tiny.png") as picture:
        assert picture.width > 2 * 160
    mark = "<!-- measured: tiny:gate -->\n<!-- end -->"
    bench("readme").TABLES["tiny"] = bench("lina_tables").result_table
    assert "what LINA adaptive must reach" in bench("readme").filled(mark, tmp_path)


def test_the_prompts_of_calibration_are_none_of_the_test(bench):
    split = bench("lina_shadows").split_training
    calibration, test = split(ShadowWorld.prompts("train"), 32, 40)
    assert len(set(calibration)) == 32 and len(set(test)) == 40 and not set(calibration) & set(test)
    with pytest.raises(ValueError, match="at most 96 together, got 60 and 40"):
        split(ShadowWorld.prompts("train"), 60, 40)
    modes, world = bench("lina_modes"), ModeWorld()
    learned, asked = ([*wrong, *right] for wrong, right in (modes.calibrated(world), modes.tested(world)))
    assert not {task.text for task in learned} & {task.text for task in asked}
    assert not {tuple(world.prompts[task.text]) for task in learned} & {tuple(world.prompts[t.text]) for t in asked}


def test_modes_count_rows_and_find_the_target(bench):
    modes = bench("lina_modes")
    world = modes.Modes(ModeWorld(), 64)
    task = modes.tested(world.world)[0][0]
    steered = Intervention(lam=2.0)
    (plain, rows), (pushed, more) = (world.hits(task, [0], 1.5, one) for one in (None, steered))
    assert rows == 20 and more == 34 and plain.item() < 0.5 < 0.9 < pushed.item()
    assert torch.equal(world.hits(task, [0], 1.5, Intervention(lam=2.0, gate=False))[0], plain)


def test_network_rows_follow_the_formula_and_a_shut_gate_adds_no_call(bench):
    cost, args = bench("lina_cost"), bench("lina").make_parser().parse_args(["--repeats", "2", "--budget", "0.01"])
    runner = bench("lina_runs").Runner(tiny(ShadowWorld), ShadowWorld(num_images=1), 4)
    cells = cost.nfe_cells(runner)
    assert len(cells) == 5 and all(cell["met"] for cell in cells)
    assert len({cell["value"] for cell in cells}) > 2
    overhead, calls = cost.gate_cells(args)
    assert calls["value"] == 1.0 and calls["met"] and calls["n"] == 10 and 0 < overhead["value"] < 3
    table = bench("lina_tables").cost_tables([{"row": "cost/x", "cells": [*cells, overhead, {**calls, "met": False}]}])
    assert "**missed**" in table[0] and "1 + f/rows" in table[0]


def test_a_model_that_is_not_there_is_told_in_a_line(bench, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench("lina").main(["--parts", "swap", "--swap-model", "no-such-model"])
    assert stopped.value.code == 2 and "no-such-model" in capsys.readouterr().err
