"""How good stages are: models by recipe, samples on disk, bars and verdicts, and the script end to end, tiny."""

from __future__ import annotations

import json

import pytest
import torch

from gendiff.data.fashion_mnist import CLASSES

FEW = ["--data", "fashion-mnist", "--num", "20", "--images", "30", "--batch-size", "10", "--guidance", "1", "3"]
FEW += ["--repeats", "2", "--budget", "0.01", "--baseline-steps", "1", "--threads", "1", "--allow-small-n"]


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
