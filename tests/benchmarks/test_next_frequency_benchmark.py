"""The benchmarks of stages: cost by formula, bars and verdicts, samples on disk, and both scripts end to end, tiny."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch

from gendiff.data.fashion_mnist import CLASSES
from gendiff.pipelines.next_frequency import NextFrequencyPipeline

QUICK = ["--quick", "--threads", "1", "--calibration-seconds", "0.001"]
FEW = ["--data", "fashion-mnist", "--num", "20", "--images", "30", "--batch-size", "10", "--guidance", "1", "3"]
FEW += ["--repeats", "2", "--budget", "0.01", "--baseline-steps", "1", "--threads", "1", "--allow-small-n"]
ROW = {"row": "model", "seed": 0, "fingerprint": None}


@pytest.fixture
def runs_of_models(tiny_next_frequency_pipeline, tmp_path):
    """Folders of finished runs: two seeds with bands, two without."""

    def save(bands: str, name: str, seed: int):
        pipe = tiny_next_frequency_pipeline(CLASSES, 28, (1, 2, 3, 4, 5, 7), band_spacing=bands)
        torch.manual_seed(10 + seed)
        for parameter in (*pipe.transformer.parameters(), *pipe.vqvae.parameters()):
            parameter.data += 0.01 * torch.randn_like(parameter)
        folder = tmp_path / f"{name}-{seed}"
        pipe.save_pretrained(folder / "final")
        (folder / "recipe.yaml").write_text(f"name: {name}\nseed: {seed}\n")
        return folder

    pairs = (("area", "bands"), ("none", "scales"))
    return [save(bands, name, seed) for bands, name in pairs for seed in (1, 0)]


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


def test_models_are_found_by_run_and_grouped_by_recipe(bench, runs_of_models, tmp_path):
    models = bench("next_frequency_models")
    found = models.find_models([str(folder) for folder in runs_of_models])
    assert [(model.row, model.seed) for model in found] == [("bands", 0), ("bands", 1), ("scales", 0), ("scales", 1)]
    assert found[0].folder == runs_of_models[1] / "final" and len({model.sha256 for model in found}) == 4
    assert models.facts_of(models.open_model(found[0], "cpu"))["tokens"] == 104
    with pytest.raises(ValueError, match="are both bands with seed 0"):
        models.find_models([str(runs_of_models[1]), str(runs_of_models[1] / "final")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a pipeline nor a finished run"):
        models.find_models([str(tmp_path / "empty")])
    (runs_of_models[0] / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match=r"holds no recipe\.yaml"):
        models.find_models([str(runs_of_models[0])])
    with pytest.raises(ValueError, match="a NextFrequencyPipeline is needed"):
        models.open_model(models.find_models(["ddpm-fashion"])[0], "cpu")


def test_samples_on_disk_are_not_made_again(bench, tiny_next_frequency_pipeline, tmp_path):
    samples = bench("next_frequency_samples")
    from gendiff.data.pipeline_source import PipelineSource

    samples.PART = 4
    pipe = tiny_next_frequency_pipeline()

    def source(**call):
        return PipelineSource(pipe, 10, batch_size=2, labels="balanced", **call)

    first = samples.kept_images(source(), "tiny", tmp_path)
    assert first.shape == (10, 3, 16, 16) and len(list(tmp_path.glob("tiny-*/*.npy"))) == 3
    sorted(tmp_path.glob("tiny-*/*.npy"))[1].unlink()
    again = source()
    assert samples.kept_images(again, "tiny", tmp_path).equal(first) and again.stats()["images"] == 4
    samples.kept_images(source(guidance_scale=1.0), "tiny", tmp_path)
    assert len(list(tmp_path.glob("tiny-*"))) == 2
    pipe.transformer.head.weight.data *= 3
    assert not samples.kept_images(source(), "tiny", tmp_path).equal(first)


def test_a_tokenizer_is_measured_on_the_images_it_is_given(bench, tiny_next_frequency_pipeline):
    from gendiff.data.fashion_mnist import FashionMNIST

    scores = bench("next_frequency_scores")
    pipe = tiny_next_frequency_pipeline(CLASSES, 28, (1, 2, 3, 4, 5, 7))
    data = FashionMNIST("test", 20)
    cells = scores.tokenizer_cells(pipe.vqvae, data, 20)
    psnr = {cell.get("stage", cell.get("of")): cell["value"] for cell in cells if cell["metric"] == "psnr"}
    with torch.no_grad():
        images = data.images.float() / 127.5 - 1
        restored = pipe.vqvae.decode(pipe.vqvae.encode(images).tokens)
    errors = ((restored - images) / 2).square().flatten(1).mean(dim=1)
    assert psnr[5] == pytest.approx((-10 * errors.log10()).mean().item(), rel=1e-4) and "unquantised" in psnr
    assert scores.reconstructed(pipe.vqvae, data.images).equal(((restored / 2 + 0.5) * 255).round().byte())
    codes = [cell for cell in cells if cell["metric"] == "codes"]
    assert [cell["most"] for cell in codes] == [20] + [32] * 5 and all(1 <= cell["value"] <= 32 for cell in codes)

    # A head that says the same of all codes: log V nats a token.
    for parameter in (*pipe.transformer.head.parameters(),):
        parameter.data.zero_()
    nats = scores.nats_cells(pipe, data, 20)
    assert [cell["value"] for cell in nats[:7]] == pytest.approx([torch.tensor(32.0).log().item()] * 7)
    assert nats[-1]["metric"] == "nats_image" and nats[-1]["value"] == pytest.approx(104 * nats[0]["value"])


def result_of(**cells_of_rows):
    """A result of the rows, whose cells are (metric, value, fields) for each seed."""
    facts = {"stages": [1, 2, 3], "tokens": 14, "bands": "area", "codes": 4}
    cases = []
    for name, seeds in cells_of_rows.items():
        model = name in ("bands", "scales")
        row = name if model else {"real": "real: held out", "baseline": "baseline"}[name]
        for seed, cells in enumerate(seeds):
            case = {"row": row, "seed": seed, "cells": [{"metric": m, "value": v, "n": 9, **f} for m, v, f in cells]}
            cases.append(case | ({"facts": facts | {"bands": "none" if name == "scales" else "area"}} if model else {}))
    settings = {"extractors": {"cnn": ["fd", "accuracy"]}, "table_guidance": None, "baseline": "ddpm"}
    return {"settings": settings, "cases": cases}


def model_cells(distance, accuracy=0.9, psnr=25.0, used=3):
    cells: list = [("psnr", psnr - 2 + stage, {"stage": stage}) for stage in range(3)]
    cells += [("codes", used, {"stage": stage, "most": 4}) for stage in range(3)]
    cells += [("nats", 1.0 + stage, {"stage": stage}) for stage in range(3)]
    cells += [("nats", 2.0, {}), ("nats_image", 28.0, {}), ("psnr", 30.0, {"of": "unquantised"})]
    cells += [("fd", 2.0, {"extractor": "cnn", "of": f"reconstructions of {of} images"}) for of in ("test", "training")]
    for guidance, worse in ((1.0, 0.0), (2.0, 5.0)):
        place = {"guidance": guidance}
        cells.append(("fd", distance + worse, {"extractor": "cnn", **place}))
        cells.append(("accuracy", accuracy, {"extractor": "cnn", **place}))
        cells.append(("seconds", 0.01, place))
    return cells


REAL = [[("fd", 1.0, {"extractor": "cnn"}), ("accuracy", 0.93, {"extractor": "cnn"})]]
DIFFUSION = [[("fd", 6.0, {"extractor": "cnn"}), ("accuracy", 0.92, {"extractor": "cnn"}), ("seconds", 0.1, {})]]


def test_bars_are_judged_for_each_seed(bench):
    module = bench("next_frequency_bars")
    result = result_of(real=REAL, baseline=DIFFUSION, bands=[model_cells(5.0), model_cells(7.0, 0.87, 23.0, 1)])
    scores = module.Scores(result)
    assert scores.guidance("bands") == 1.0 and scores.guidances("bands") == [1.0, 2.0]
    found = {bar.words: bar for bar in module.bars(scores, "bands")}
    assert [bar.met for bar in found.values()] == [1, 1, 1, 1, 2, 1, 1]
    assert found["class accuracy: that of real test images less 5 points"].limits == pytest.approx([0.88] * 2)
    assert found["times as fast as the baseline, batch 16"].values == pytest.approx([10.0] * 2)
    assert found["FD[cnn]: 3 times that of its reconstructions of test images"].limits == [6.0, 6.0]
    table = bench("next_frequency_quality_tables").bar_table(scores)
    assert "| bands: PSNR of reconstructions, dB | 24.000 ± 1.414 | at least 24.000 | **missed** by 1 of 2 |" in table
    # Of a model alone, nothing to compare with: what it must reach by itself.
    alone = module.Scores({**result, "cases": [case for case in result["cases"] if case["row"] == "bands"]})
    assert len(module.bars(alone, "bands")) == 4
    asked = module.Scores({**result, "settings": {**result["settings"], "table_guidance": 2.0}})
    assert asked.guidance("bands") == 2.0


def test_a_schedule_wins_only_where_all_its_seeds_do(bench):
    module, tables = bench("next_frequency_bars"), bench("next_frequency_quality_tables")
    assert module.verdict("fd", [1.0, 2.0], [3.0, 4.0]) == "ours"
    assert module.verdict("accuracy", [1.0, 2.0], [3.0, 4.0]) == "theirs"
    assert module.verdict("fd", [1.0, 3.0], [3.0, 4.0]) == "tie"
    assert module.verdict("fd", [1.0], [3.0, 4.0]) == "one seed"
    result = result_of(
        bands=[model_cells(5.0), model_cells(6.0)], scales=[model_cells(8.0, 0.91), model_cells(9.0, 0.95)]
    )
    scores = module.Scores(result)
    assert module.rivals(scores) == [("bands", "scales")]
    table = tables.rival_table(scores)
    assert "| FD[cnn]: bands / scales | 5.50 ± 0.71 | 8.50 ± 0.71 | bands better |" in table
    assert "scales better |" in table and "| PSNR, dB: bands / scales | 25.00 ± 0.00 | 25.00 ± 0.00 | tie |" in table


def test_quality_is_read_beside_its_floors_and_goes_on_where_it_stopped(
    bench, runs_of_models, tmp_path, monkeypatch, capsys
):
    yardstick, quality = bench("next_frequency_yardstick"), bench("next_frequency_quality")
    monkeypatch.setitem(yardstick.EXTRACTORS, "lite0-112", ("fd",))
    monkeypatch.delitem(yardstick.EXTRACTORS, "lite0-112")  # seconds for a thousand images
    out = tmp_path / "out" / "next-frequency-quality.json"
    more = [*FEW, "--samples", str(tmp_path / "samples"), "--output", str(out), "--model"]
    quality.main([*more, *map(str, runs_of_models[1:3])])
    capsys.readouterr()
    first = json.loads(out.read_text())
    path = quality.main([*more, *map(str, runs_of_models)])
    text, said = capsys.readouterr()
    assert "bands, seed 1" in said and "bands, seed 0" not in said
    result = json.loads(path.read_text())
    bench("result_schema").validate(result)
    rows = [(case["row"], case["seed"]) for case in result["cases"]]
    models = [(name, seed) for name in ("bands", "scales") for seed in (0, 1)]
    assert rows == [("real: held out", 0), ("real: training images", 0), ("baseline", 0), *models]
    kept = [case for case in result["cases"] if (case["row"], case["seed"]) in {("bands", 0), ("scales", 1)}]
    assert all(case in first["cases"] for case in kept)
    values = {
        (case["row"], cell["metric"], cell.get("guidance"), cell.get("of")): cell["value"]
        for case in result["cases"]
        for cell in case["cells"]
        if "stage" not in cell
    }
    floor = values["real: held out", "fd", None, None]
    assert floor < values["baseline", "fd", None, None] < values["bands", "fd", 1.0, None]
    assert values["bands", "fd", None, "reconstructions of test images"] > 2 * floor
    assert 0.85 < values["real: held out", "accuracy", None, None] < 1
    assert values["baseline", "seconds", None, None] > 0 and values["bands", "cpu_seconds", 3.0, None] > 0
    assert text.strip() == path.with_suffix(".md").read_text().strip()
    assert "| bands, 2 seeds | 104 | 6 |" in text and "cannot be compared across tokenizers" in text
    assert "bands: least share of codes in use, stages 2 to 5" in text and "scales, unquantised" in text
    assert path.with_suffix(".png").stat().st_size > 10_000
    function = bench("readme").table_function("next-frequency-quality")
    assert function(result) in text
    card = function({**result, "cases": [case for case in result["cases"] if case["row"] == "bands"]})
    assert "scales" not in card and "| bands, seed 0 | 104 | 6 |" in card


def test_cases_of_the_same_settings_and_weights_stay(bench, tmp_path):
    quality, module = bench("next_frequency_quality"), bench("next_frequency_bars")
    models = {"bands": [model_cells(5.0), model_cells(6.0)], "scales": [model_cells(7.0)]}
    found = result_of(real=REAL, baseline=DIFFUSION, **models)
    for case in found["cases"]:
        case["fingerprint"] = "new" if case["seed"] else "old"
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"schema": "gendiff-bench/1", **found}))
    jobs = {(module.REAL, 0): ("old", None), ("bands", 0): ("new", None), ("bands", 1): ("new", None)}

    def kept(**settings):
        cases = quality.kept_cases(path, {**found["settings"], **settings}, jobs)
        return [(case["row"], case["seed"]) for case in cases]

    # The baseline is not wanted any more, one model has other weights, another is not named.
    assert kept() == kept(table_guidance=2.0) == [(module.REAL, 0), ("bands", 1), ("scales", 0)]
    assert kept(baseline="another") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--guidance", "-1"], "must be a number of at least 0"),
        (["--guidance", "nan"], "must be a number of at least 0"),
        (["--num", "0"], "must be at least 1, got 0"),
        (["--model", "nowhere"], "'nowhere' is neither a folder"),
        (["--set", "top_k"], "--set must look like NAME=VALUE"),
    ],
)
def test_bad_arguments_are_said_in_a_line(bench, runs_of_models, change, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench("next_frequency_quality").main(["--model", str(runs_of_models[0]), "--data", "fashion-mnist", *change])
    assert stop.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_models_of_other_pictures_and_too_few_samples_are_refused(
    bench, tiny_next_frequency_pipeline, runs_of_models, tmp_path, capsys
):
    quality = bench("next_frequency_quality")
    folder = tmp_path / "small"
    tiny_next_frequency_pipeline(CLASSES).save_pretrained(folder)
    (folder / "recipe.yaml").write_text("name: small\nseed: 0\n")
    for model, more, message in (
        (folder, [], "models must draw (1, 28, 28) of 10 classes, as the data has them, got (1, 16, 16) of 10."),
        (runs_of_models[0], ["--num", "20"], "--num must be at least 128, the features of an image, got 20"),
    ):
        with pytest.raises(SystemExit):
            arguments = ["--model", str(model), "--data", "fashion-mnist", "--output", str(tmp_path / "q.json"), *more]
            quality.main(arguments)
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "q.json").exists()


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
