"""Our pipeline beside plain diffusers: the same images, and a ratio with its interval."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from gendiff.pipelines.image_generation import ImageGenerationPipeline

QUICK = ["--steps", "3", "--warmup", "1", "--repeats", "2", "--budget", "0.2", "--calibration-seconds", "0.001"]
SCHEDULE = {"num_train_timesteps": 100, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}


@pytest.fixture
def folder(plain_unet, tmp_path):
    """`folder(classes)`: a saved pipeline of ours, untrained."""

    def save(classes, scheduler=DDIMScheduler):
        names = [f"class {number}" for number in range(classes)]
        unet = plain_unet(classes + 1 if classes else None)
        ImageGenerationPipeline(unet, scheduler(**SCHEDULE), names).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def run(bench, folder, out):
    options = ["--model", str(folder), "--batches", "2", "--output", str(out)]
    return json.loads(bench("peer").main([*QUICK, *options]).read_text())


@pytest.mark.parametrize(("classes", "name"), [(0, "diffusers.DDIMPipeline"), (4, "hand-written loop (DDIMScheduler)")])
def test_both_ways_make_the_same_images(bench, folder, tmp_path, classes, name):
    result = run(bench, folder(classes), tmp_path / "p.json")
    bench("result_schema").validate(result)
    (case,) = result["cases"]
    assert case["peer"]["name"] == name and case["peer"]["max_abs_diff"] < 1e-5
    assert case["nfe"] == 3 and case["batch"] == 2 and len(case["timings_s"]) == len(case["peer"]["timings_s"])
    low, high = case["peer"]["ratio_ci95"]
    assert 0 < low <= case["peer"]["ratio_p50"] <= high
    assert 0 < case["peer"]["outside_share"] < 1
    text = (tmp_path / "p.md").read_text()
    assert name in text and "| ours - peer, ms |" in text


def test_a_peer_with_other_images_is_refused(bench, folder, tmp_path, monkeypatch, capsys):
    peer = bench("peer")
    monkeypatch.setattr(peer, "peer_of", lambda pipe: ("black", lambda generators, *_: torch.zeros(2, 1, 8, 8)))
    with pytest.raises(SystemExit):
        run(bench, folder(0), tmp_path / "p.json")
    assert "do not do the same work" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


def test_a_scheduler_without_a_peer_is_refused(bench, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        model = folder(0, lambda **settings: DPMSolverMultistepScheduler(num_train_timesteps=100))
        run(bench, model, tmp_path / "p.json")
    assert "DDIMPipeline needs a DDIMScheduler, but the model has a DPMSolver" in capsys.readouterr().err
