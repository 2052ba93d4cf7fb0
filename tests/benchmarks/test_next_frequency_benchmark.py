"""What stages cost, by formula and by the clock: the script end to end, tiny, and the scripts for any pipeline."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch

from gendiff.pipelines.next_frequency import NextFrequencyPipeline

QUICK = ["--quick", "--threads", "1", "--calibration-seconds", "0.001"]


def test_the_formula_gives_the_figures_known_for_the_published_sizes(bench):
    cost = bench("next_frequency_cost")
    for depth, (figure, _) in cost.PUBLISHED.items():
        sizes = cost.var_sizes(depth)
        assert cost.every_stage_macs(sizes) / 1e9 == pytest.approx(figure, abs=0.05)
        assert sum(cost.recomputed_macs(sizes)) / sum(cost.cached_macs(sizes)) == pytest.approx(2.52, abs=0.01)
    small, large = (sum(cost.cached_macs(cost.var_sizes(depth))) for depth in (16, 20))
    assert large / small == pytest.approx(1.91, abs=0.01)
    # By hand: stages of 1 and 4 tokens, one block of width 2, three codes of width 5.
    one = cost.Sizes((1, 2), width=2, depth=1, codes=3, channels=5)
    first, second = 12 * 4 + 2 * 2 + 2 * 3, 4 * 12 * 4 + 2 * 2 * 4 * 5 + 4 * 2 * 3 + 4 * 5 * 2
    assert cost.cached_macs(one) == [first + 8 * 4, second]
    assert cost.recomputed_macs(one)[1] == 5 * 12 * 4 + 2 * 2 * 25 + 5 * 2 * 3 + 4 * 5 * 2 + 8 * 4


@pytest.mark.parametrize("use_cache", [True, False])
def test_torchs_counter_agrees_with_the_formula(bench, use_cache):
    cost, runs = bench("next_frequency_cost"), bench("next_frequency_runs")
    work = runs.Work("tiny", "cpu", "float32", 0)
    sizes = cost.Sizes((1, 1, 2, 4), width=32, depth=3, codes=32, channels=8)
    counted = runs.counted_macs(runs.make_pipe(work, sizes, "none").transformer, use_cache)
    assert counted == sum((cost.cached_macs if use_cache else cost.recomputed_macs)(sizes))


def test_pairs_differ_in_what_they_say_and_in_nothing_else(bench):
    cases, runs = bench("next_frequency_cases"), bench("next_frequency_runs")
    pairs = {pair.name: pair for pair in cases.pairs_of(runs.Work("paper", "cpu", "float32", 0), [1, 8])}
    assert (
        pairs["cache/batch 1"].predicted == pairs["cache/batch 8, guided"].predicted == pytest.approx(2.529, abs=1e-3)
    )
    assert pairs["cache/batch 8, guided"].quick.rows == 16
    assert pairs["schedules/batch 1"].predicted == 1 and pairs["schedules/batch 1"].equal
    assert pairs["sizes/d20"].predicted == pytest.approx(1.915, abs=1e-3)
    assert pairs["short/1,2,3,5,8,12,16"].quick.sizes.ends[-1] == 503
    only = cases.pairs_of(runs.Work("paper", "cpu", "float32", 0), [1], ["sizes"])
    assert [pair.name for pair in only] == ["sizes/d20"]


def test_a_ratio_is_judged_by_its_bar(bench):
    cases, runs, timing = bench("next_frequency_cases"), bench("next_frequency_runs"), bench("timing")
    pairs = cases.pairs_of(runs.Work("paper", "cpu", "float32", 0), [1])
    cache, schedules = pairs[0], pairs[2]

    def cell(pair, ratio, bars=True):
        slow, quick = (timing.Timing([seconds] * 4, [0.5] * 4, [], True, None) for seconds in (ratio, 1.0))
        found = SimpleNamespace(ours=slow, peer=quick, ratio_p50=ratio, ratio_ci95=(ratio, ratio), noisy=True)
        return cases._ratio_cell(pair, found, bars)

    assert cell(cache, 2.0)["met"] is True and cell(cache, 1.99)["met"] is False
    assert cell(schedules, 0.951)["met"] is True and cell(schedules, 1.06)["met"] is False
    assert cell(cache, 1.5, bars=False)["met"] is None and cell(cache, 1.5)["cpu_ratio"] == 1.5
    table = bench("next_frequency_tables").ratio_table([cell(cache, 1.5), cell(schedules, 1.0)])
    assert "| no cache / cache, batch 1 (noisy) | 1.500 |" in table and "| at least 2 | **missed** |" in table
    assert "| 1 ± 0.05 | met |" in table


def test_cost_is_timed_counted_and_reported(bench, tmp_path, capsys):
    out = tmp_path / "out" / "next-frequency-tiny.json"
    path = bench("next_frequency").main([*QUICK, "--output", str(out)])
    result = json.loads(path.read_text())
    bench("result_schema").validate(result)
    cells = {case["row"]: case["cells"] for case in result["cases"] if "cells" in case}
    ratios = {cell["metric"]: cell for cell in cells["ratios"]}
    names = {"cache/batch 1", "cache/batch 1, guided", "schedules/batch 1", "short/1,2,4", "sizes/d2"}
    assert set(ratios) == {"equal_tokens", *names} and ratios["equal_tokens"]["value"] == 1
    assert all(cell["value"] > 0 and cell["bar"] is None for name, cell in ratios.items() if name in names)
    assert len(cells["counts"]) == 4 and all(cell["value"] == 1 and cell["met"] for cell in cells["counts"])
    timed = {case["id"]: case for case in result["cases"] if "timings_s" in case}
    assert set(timed) == {"decoder", *(f"{name}/{side}" for name in names for side in ("slow", "quick"))}
    slow, quick = timed["cache/batch 1/slow"], timed["cache/batch 1/quick"]
    assert slow["nfe"] == quick["nfe"] == 4 and slow["cache_bytes"] == 0 < quick["cache_bytes"]
    assert slow["flops_per_sample"] == pytest.approx(2 * slow["formula_macs"])
    same = [timed[f"schedules/batch 1/{side}"] for side in ("slow", "quick")]
    assert same[0]["output_sha256"] == same[1]["output_sha256"]
    text = path.with_suffix(".md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "| next-scale, 4 stages, 2 blocks of 32 |" in text.replace(" (noisy)", "")
    assert "size ratio: d2 / d1" in text and "| d16 | 149.3 | 150.2 | 150.2 |" in text and "1.25x" in text
    with path.with_suffix(".csv").open() as file:
        assert [row["side"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    assert path.with_suffix(".png").stat().st_size > 10_000
    table = bench("readme").table_function("next-frequency-tiny")
    assert table(result) in text and table({**result, "cases": []}) == ""


def test_runs_on_a_gpu_lie_between_events(bench, monkeypatch):
    runs = bench("next_frequency_runs")
    clock = iter([1.0, 4.0, 5.0, 11.0])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(clock)

        def elapsed_time(self, end):
            return 1e3 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    run, seconds = runs.between_events(lambda: torch.zeros(1), torch.device("cuda"))
    run()
    run()
    assert seconds() == [3.0, 6.0]
    run, seconds = runs.between_events(lambda: torch.zeros(1), torch.device("cpu"))
    assert run().equal(torch.zeros(1)) and seconds() == []


def test_stages_can_be_timed_like_any_pipeline(bench, tiny_next_frequency_pipeline, tmp_path):
    calls = bench("calls")
    tiny_next_frequency_pipeline().save_pretrained(tmp_path / "tiny")
    pipe = calls.load(calls.Work("next-frequency", str(tmp_path / "tiny")))
    assert isinstance(pipe, NextFrequencyPipeline)
    call = calls.make_call(pipe, calls.Work("next-frequency", options={"guidance_scale": 1.0, "num_stages": 2}), 4)
    outputs = []
    for _ in range(2):
        call.before()
        outputs.append(call.run())
    assert outputs[0].class_labels.tolist() == [0, 1, 2, 0] and outputs[0].stats.network_calls == 2
    assert outputs[0].images.equal(outputs[1].images)


def test_the_leaderboard_runs_stages_with_the_guidance_it_names(bench, monkeypatch):
    board = bench("leaderboard")
    variants = board.VARIANTS["NextFrequencyPipeline"]
    assert variants[0][1]["guidance_scale"] == 1.0
    seen = {}

    def make_call(pipe, work, batch):
        seen["options"] = work.options
        raise KeyboardInterrupt  # nothing else is of interest

    class Source:
        block = 10

        def __init__(self, pipe, num, **call):
            seen["call"] = call

        def read(self, indices):
            return torch.zeros(len(indices), 3, 8, 8, dtype=torch.uint8)

        def labels(self, count):
            return torch.zeros(count, dtype=torch.int64)

    monkeypatch.setattr(board, "load", lambda work: SimpleNamespace())
    monkeypatch.setattr(board, "make_call", make_call)
    monkeypatch.setattr(board, "PipelineSource", Source)
    options = SimpleNamespace(num=10, batch_size=10, threads=1, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        board.model_row(options, "any", dict(variants[0][1]), 0, {})
    assert seen["options"] == {"guidance_scale": 1.0} and seen["call"]["guidance_scale"] == 1.0
