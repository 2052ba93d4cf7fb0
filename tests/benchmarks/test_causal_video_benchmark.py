"""The benchmarks of causal video: cost by formula, figures beside their bars, and both scripts end to end, tiny."""

from __future__ import annotations

import csv
import json
import math

import pytest

from gendiff.pipelines.causal_video import CausalVideoPipeline

QUICK = ["--quick", "--threads", "1", "--windows", "5", "--ar-steps", "1", "2", "10", "--stream-frames", "8", "16"]
QUICK += ["--no-memory", "--calibration-seconds", "0.001", "--drift-videos", "2", "--drift-frames", "4"]
FEW = ["--videos", "2", "--frames", "4", "--long-videos", "1", "--long-frames", "6", "--steps", "2", "--threads", "1"]
PAPER = {"blocks": 28, "width": 1152, "sites": 256, "chunk": 8, "window": 25, "steps": 100}
SMALL = {"blocks": 6, "width": 192, "sites": 64, "chunk": 4, "window": 13, "steps": 20}


@pytest.fixture
def checkpoint(bench, tmp_path):
    """`checkpoint(**settings)`: folder of a saved tiny model with random weights."""

    def save(**settings):
        runs = bench("causal_video_runs")
        pipe = runs.random_pipe({**runs.PRESETS["tiny"], **settings}, seed=0)
        names = [str(index) for index in range(settings.get("num_classes", 0))]
        folder = tmp_path / "causal-video-tiny"
        CausalVideoPipeline(pipe.transformer, pipe.scheduler, class_names=names).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize(
    ("sizes", "references", "recompute", "fixed"),
    # Ca2-VDM's sizes: 80 frames in 10 chunks, without and with its 3 reference frames; ours: 40 frames in 10 chunks.
    [(PAPER, 0, 3.49, 1.98), (PAPER, 3, 3.31, 1.91), (SMALL, 2, 3.30, 1.83)],
)
def test_the_formula_gives_the_ratios_it_is_known_for(bench, sizes, references, recompute, fixed):
    bars, cost = bench("causal_video_bars"), bench("causal_video_cost")
    known = cost.Sizes(**sizes, references=references)
    assert bars.formula_ratio(known, "recompute") == pytest.approx(recompute, abs=0.005)
    assert bars.formula_ratio(known, "fixed") == pytest.approx(fixed, abs=0.005)


def test_cost_of_a_chunk_is_bounded_by_the_window_alone(bench):
    cost = bench("causal_video_cost")
    sizes = cost.Sizes(**SMALL, references=2)
    assert cost.pasts(sizes, "cached", 5) == [1, 5, 9, 13, 13]
    assert cost.pasts(sizes, "unbounded", 5) == [1, 5, 9, 13, 17]
    assert cost.pasts(sizes, "fixed", 3, given=4) == [4, 4, 4]
    # By hand: D T S (32 d^2 + 4 d (K_s + K_t)) for one frame of one token.
    one = cost.Sizes(blocks=1, width=2, sites=1, references=0, chunk=1, window=1, steps=1)
    assert cost.forward_flops(one, 1, 3, 4) == 32 * 4 + 4 * 2 * 7
    # From nothing there is nothing to refer to.
    assert cost.chunk_flops(sizes, "recompute", 0) == 20 * cost.forward_flops(sizes, 4, 64, 4)


def test_growth_is_the_exponent_of_cumulative_cost(bench):
    slope = bench("causal_video_cost").slope
    assert slope([3.0] * 32) == pytest.approx(1)
    assert slope([2 * n - 1 for n in range(1, 33)]) == pytest.approx(2)  # sums are n^2
    assert slope([1.0] * 9) is None


def test_figures_are_judged_by_their_bars(bench):
    bars, cost, runs = bench("causal_video_bars"), bench("causal_video_cost"), bench("causal_video_runs")
    sizes = cost.Sizes(**SMALL, references=2)

    def rollout(seconds, kind):
        flops = cost.rollout_flops(sizes, kind, len(seconds))
        return runs.Rollout(seconds, seconds, 0.1, flops, [21] * len(seconds), [1] * len(seconds), 1.0, 1.0)

    quick, slow = [rollout([1.0] * 31 + [late], "cached") for late in (1.0, 1.3, 1.2)], rollout([1.5] * 16, "recompute")
    memory = {"frames": [100, 1000], "rss_peak": [100, 101], "live_bytes": [50, 60]}
    cells = bars.figures({"cached": quick, "recompute": [slow]}, sizes, memory, {"share": 0.4, "repeats": 5})
    found = {cell["metric"]: cell for cell in cells}
    assert found["speedup"]["value"] == 1.5 and found["speedup"]["met"] is False and found["speedup"]["n"] == 1
    assert found["late_step"]["value"] == 1.2 and found["late_step"]["met"] is False
    assert found["slope_cached"]["met"] is True and "slope_unbounded" not in found
    assert found["memory_rss"]["met"] is True and found["memory_live"]["met"] is False
    assert found["counted"]["value"] == 1 and found["counted"]["met"] is True
    assert found["matrix_share"]["met"] is False
    # A network so small that calls are what it costs promises nothing on the clock.
    tiny = cost.Sizes(**{**SMALL, "width": 64}, references=2)
    clock = {cell["metric"]: cell for cell in bars.figures({"cached": quick, "recompute": [slow]}, tiny, None, None)}
    assert clock["speedup"]["met"] is None and clock["late_step"]["met"] is False
    table = bench("causal_video_tables").bar_table(cells)
    assert "| recompute / cached, 10 chunks, wall clock | 1.5 | at least 2 | **missed** |" in table


def test_jobs_fit_the_budget_and_the_cache_is_always_held_against_recomputing(bench):
    cost, plan = bench("causal_video_cost"), bench("causal_video_plan")
    sizes = cost.Sizes(**SMALL, references=2)
    jobs = {(job.window, job.variant): job for job in plan.jobs_of(sizes, [5], 32, 5, 1e-3, 100.0, False)}
    assert len(jobs) == 8 and {window for window, _ in jobs} == {5, 13}
    assert jobs[13, "cached"].repeats == jobs[13, "recompute"].repeats == 5
    assert jobs[13, "unbounded"].repeats == jobs[5, "cached"].repeats == 1
    assert jobs[13, "cached"].chunks == 32 and jobs[13, "unbounded"].chunks == 16 and jobs[5, "recompute"].chunks == 8
    every = plan.jobs_of(sizes, [13], 32, 5, 1e9, 100.0, True)
    assert {job.chunks for job in every} == {32} and {job.repeats for job in every} == {5}


def test_all_variants_are_timed_counted_and_reported(bench, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench("causal_video_machine"), "SQUARES", (64,))
    out = tmp_path / "out" / "causal-video-tiny.json"
    path = bench("causal_video").main([*QUICK, "--model", str(checkpoint()), "--output", str(out)])
    result = json.loads(path.read_text())
    bench("result_schema").validate(result)
    cases = {case["id"]: case for case in result["cases"] if "id" in case}
    variants = bench("causal_video_runs").VARIANTS
    assert set(cases) == {f"W5/{name}/n{n}" for name in variants for n in (1, 2, 10)}
    for case in cases.values():
        assert len(case["chunk_s"]) == len(case["chunk_loop_s"]) == case["chunks"] and case["repeats"] == 2
        assert case["cumulative_s"][-1] == pytest.approx(case["p50"], rel=1e-3)
        assert case["frames_per_s"] == pytest.approx(case["frames"] / case["p50"])
        assert 0 < case["loop_s"] <= case["p50"] and case["first_frame_s"] > 0
    longest = {name: cases[f"W5/{name}/n10"] for name in variants}
    # N reads and a write with a cache, N forwards without; a full window costs the same for ever.
    assert longest["cached"]["nfe"] == 30 and longest["recompute"]["nfe"] == 20
    assert len(set(longest["cached"]["chunk_flops"][2:])) == 1 and longest["cached"]["cache_bytes"] > 0
    assert len(set(longest["fixed"]["chunk_flops"])) == 1 and longest["fixed"]["context_frames"] == 2
    growth = longest["unbounded"]["chunk_flops"]
    assert growth == sorted(set(growth)) and longest["unbounded"]["cache_bytes"] == 0
    assert longest["recompute"]["chunk_flops"] == longest["bidirectional"]["chunk_flops"]
    for name in ("recompute", "fixed", "unbounded"):
        for counted, formula in zip(longest[name]["chunk_flops"], longest[name]["formula_flops"], strict=True):
            assert 1 < counted / formula < 1.06

    found = {cell["metric"]: cell for case in result["cases"] if case.get("row") == "bars" for cell in case["cells"]}
    assert found["speedup_flops"]["value"] > 2 and found["slope_unbounded_flops"]["value"] > 1.6
    assert found["slope_cached_flops"]["met"] and found["memory_live"]["value"] == 1
    assert found["matrix_share"]["value"] > 0
    drift = [case for case in result["cases"] if str(case.get("row")).startswith("drift/")]
    assert len(drift) == 4 and all(len(case["cells"]) == 1 + 2 * 5 for case in drift)

    text = path.with_suffix(".md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "| fixed prefix of l frames, bidirectional (cost only)" in text and "| cached, rebuilt before" in text
    with path.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50 and path.with_suffix(".png").stat().st_size > 10_000
    one = bench("readme").table_function("causal-video-tiny")({**result, "cases": [longest["cached"]]})
    assert one.startswith("| W = 5, l = 2, N = 2") and "bar" not in one


def test_predicted_balls_are_read_beside_the_simulator(bench, checkpoint, tmp_path, capsys):
    out = tmp_path / "out" / "causal-video-quality-tiny.json"
    arguments = ["--model", str(checkpoint()), *FEW, "--clips", "2", "--output", str(out)]
    result = json.loads(bench("causal_video_quality").main(arguments).read_text())
    bench("result_schema").validate(result)
    values = {
        (case["row"], cell["metric"], cell.get("frame")): cell["value"]
        for case in result["cases"]
        for cell in case["cells"]
    }
    floor = values["predict/simulator", "position_error", None]
    assert floor < 0.1 and values["predict/simulator", "on_track", None] == 4
    assert values["predict/last frame repeated", "position_error", None] > 10 * floor
    assert values["predict/straight on", "position_error", None] >= floor
    assert values["long/simulator", "count_right", None] == 1 and values["long/simulator", "outside", None] == 0
    assert 0 <= values["long/model", "count_right", None] <= 1 and math.isfinite(values["long/model", "mass_error", 6])
    assert values["clips/from nothing", "FD[lite0-video]", None] > 0
    text = capsys.readouterr().out
    assert text.strip() == out.with_suffix(".md").read_text().strip()
    assert "| balls that pass through one another |" in text and "no FVD" in text
    assert bench("readme").table_function("causal-video-quality-tiny")(result) in text


def test_predicted_digits_are_read_beside_a_still_picture(bench, checkpoint, tmp_path, capsys):
    folder = checkpoint(sample_size=32, patch_size=8, num_classes=10)
    arguments = ["--model", str(folder), *FEW, "--clips", "0", "--output", str(tmp_path / "q.json")]
    result = json.loads(bench("causal_video_quality").main(arguments).read_text())
    rows = {
        case["row"]: {(cell["metric"], cell.get("frame")): cell for cell in case["cells"]} for case in result["cases"]
    }
    assert set(rows) == {"predict/model", "predict/last frame repeated", "predict/truth"}
    assert rows["predict/truth"]["psnr", None]["equal"] == 8 and rows["predict/truth"]["ssim", 4]["value"] == 1
    assert rows["predict/model"]["psnr", None]["value"] < rows["predict/last frame repeated"]["psnr", None]["value"]
    assert "| PSNR in dB, after 5 given frames |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--ar-steps", "2", "1"], "--ar-steps must grow, like 1 2 4, got 2 1"),
        (["--stream-frames", "9", "9"], "--stream-frames must grow"),
        (["--model", "nowhere"], "'nowhere' is neither a folder"),
        (["--steps", "0"], "must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(bench, tmp_path, change, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench("causal_video").main([*QUICK, "--output", str(tmp_path / "t.json"), *change])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "t.json").exists()


def test_causal_video_can_be_timed_like_any_pipeline(bench, checkpoint):
    calls = bench("calls")
    pipe = calls.load(calls.Work("causal-video", str(checkpoint(num_classes=3))))
    options = {"num_frames": 3, "use_cache": "window"}
    call = calls.make_call(pipe, calls.Work("causal-video", steps=2, options=options), 2)
    runs = []
    for _ in range(2):
        call.before()
        runs.append(call.run())
    assert runs[0].frames.shape == (2, 3, 1, 16, 16) and runs[0].stats.cache_bytes == 0
    assert runs[0].frames.equal(runs[1].frames)


def test_what_cannot_be_compared_is_refused_before_anything_is_measured(bench, checkpoint, tmp_path, capsys):
    arguments = [*QUICK, "--output", str(tmp_path / "t.json"), "--model"]
    for settings, message in (
        ({"num_classes": 3}, "drift needs a model of bouncing balls"),
        ({"pos": "cyclic"}, "the model must have rotary positions"),
        ({"attention_layout": "joint", "prefix_references": 0}, "the model must attend to the past only"),
    ):
        with pytest.raises(SystemExit):
            bench("causal_video").main([*arguments, str(checkpoint(**settings))])
        said = " ".join(capsys.readouterr().err.split())
        assert message in said and "memory of a stream" not in said
    with pytest.raises(SystemExit):
        bench("causal_video_quality").main(["--model", str(checkpoint(num_classes=3))])
    assert "model must make grey square frames" in " ".join(capsys.readouterr().err.split())
