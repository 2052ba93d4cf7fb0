"""Commands of `gendiff evaluate` for pairs, videos, weights and pipelines."""

from __future__ import annotations

import csv
import json
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from evaluate_cases import SIDE, TINY, assert_refused, folder_of, pixels

from gendiff.metrics.paired import paired

pytestmark = pytest.mark.usefixtures("no_weights")


class TestPairs:
    def test_scores_of_images(self, evaluate, tmp_path):
        a, b = pixels(6, 1), pixels(6, 2)
        sides = ("--samples", folder_of(tmp_path / "a", a), "--reference", folder_of(tmp_path / "b", b))
        result = evaluate("paired", *sides, "--json", tmp_path / "o.json", "--md", tmp_path / "o.md")
        assert result.code == 0, result.err
        scores = json.loads((tmp_path / "o.json").read_text())["scores"]
        tensors = [torch.from_numpy(side).permute(0, 3, 1, 2) for side in (a, b)]
        for name, found in paired(*tensors, ("psnr", "ssim")).items():
            assert scores[name]["mean"] == pytest.approx(found.mean)
            assert f"{found.mean:.4g}" in result.out and f"{found.mean:.4g}" in (tmp_path / "o.md").read_text()

    def test_names_out_of_step_and_equal_pairs_are_told(self, evaluate, tmp_path):
        images = pixels(4, 1)
        first, second = folder_of(tmp_path / "a", images), folder_of(tmp_path / "b", images)
        (second / "0000.png").rename(second / "0009.png")
        result = evaluate("paired", "--samples", first, "--reference", second, "--metrics", "psnr")
        assert "file names differ (0000.png against 0001.png)" in result.out
        result = evaluate("paired", "--samples", first, "--reference", first, "--metrics", "psnr")
        assert "4 of 4 pairs are equal byte for byte" in result.out

    def test_videos_by_frame(self, evaluate, tmp_path):
        videos = [pixels(5 * 3, seed).reshape(3, 5, SIDE, SIDE, 3) for seed in (1, 2)]
        for name, video in zip("ab", videos, strict=True):
            np.savez(tmp_path / f"{name}.npz", arr_0=video)
        sides = ("--samples", tmp_path / "a.npz", "--reference", tmp_path / "b.npz", "--metrics", "psnr")
        result = evaluate("paired", *sides, "--frames", 4, "--json", tmp_path / "o.json", "--plot", tmp_path / "plots")
        assert result.code == 0, result.err
        found = json.loads((tmp_path / "o.json").read_text())["scores"]["psnr"]["per_frame"]
        tensors = [torch.from_numpy(video[:, :4]).permute(0, 1, 4, 2, 3) for video in videos]
        assert found == pytest.approx(list(paired(*tensors, ("psnr",))["psnr"].per_frame or ()))
        rows = (tmp_path / "plots" / "psnr-against-frame.csv").read_text().splitlines()
        assert rows[0] == "frame,psnr" and len(rows) == 5

    def test_sets_of_unequal_size(self, evaluate, samples, reference, tmp_path):
        arguments = ("paired", "--samples", samples, "--reference", reference)
        assert_refused(evaluate, tmp_path, arguments, "--samples holds 50, --reference 70", plot=False)
        assert_refused(evaluate, tmp_path, arguments, "--plot draws videos against the frame index")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--metrics", "psnr,fid"), "--metrics must be some of psnr,ssim,lpips, got 'psnr,fid'"),
            (("--frames", 3, "--resize", 8), "--resize is for images"),
            (("--num", 60), "--num 60 is more than the 50 samples or 70 targets"),
            (("--num", 5, "--frames", 3), "holds no folders of frames"),
        ],
    )
    def test_bad_input(self, evaluate, samples, reference, tmp_path, options, message):
        arguments = ("--samples", samples, "--reference", reference, *options)
        assert_refused(evaluate, tmp_path, ("paired", *arguments), message, plot=False)


def test_video_distance_with_its_floor(evaluate, tmp_path):
    for name, seed, count in (("a", 1, 4), ("b", 2, 6)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels(count * 3, seed, 32).reshape(count, 3, 32, 32, 3))
    sides = ("--samples", tmp_path / "a.npz", "--reference", tmp_path / "b.npz")
    result = evaluate("fvd", *sides, "--frames", 3, "--json", tmp_path / "o.json")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["label"] == "FD[lite0-video]" and record["n_samples"] == 4 and record["floor"]["n"] == 3
    assert f"{record['value']:.4g}" in result.out and "4 / 6" in result.out and "warning: N=4" in result.out
    message = "frames must be at least 10 for i3d-videogpt, got 3"
    assert_refused(evaluate, tmp_path, ("fvd", *sides, "--frames", 3, "--extractor", "i3d-videogpt"), message)
    message = "video 0 has 3 frames, 16 frames at stride 1 need 16"
    assert_refused(evaluate, tmp_path, ("fvd", *sides), message)


def test_weights_are_listed_with_their_state(evaluate, tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "alexnet-owt-7be5be79.pth").write_bytes(b"cut")
    monkeypatch.setenv("GENDIFF_WEIGHTS_DIR", str(weights))
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    result = evaluate("weights")
    assert result.code == 0, result.err
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if line.strip()}
    states = {line.split()[0]: line.split()[1] for line in result.out.splitlines() if len(line.split()) > 1}
    assert rows["lite0"][:2] == ["ok", "57934424"]
    assert states["inception"] == "missing" and states["lpips-alex"] == "corrupt"
    assert "lpips-alex: " in result.out and "size 3 bytes" in result.out


class TestPipeline:
    @pytest.fixture
    def model(self, tmp_path, tiny_image_pipeline) -> Path:
        tiny_image_pipeline(["circle", "square"]).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    def test_quality_against_network_calls(self, evaluate, model, reference, tmp_path):
        out = ("--json", tmp_path / "o.json", "--md", tmp_path / "o.md", "--plot", tmp_path / "plots")
        asked = ("--steps", "3,2", "--num", 8, "--reference", reference, "--extractor", TINY, "--batch-size", 4)
        result = evaluate("pipeline", model, *asked, *out)
        assert result.code == 0, result.err
        record = json.loads((tmp_path / "o.json").read_text())
        assert [(row["steps"], row["nfe"]) for row in record["rows"]] == [(2, 2.0), (3, 3.0)]
        for row, report in zip(record["rows"], record["reports"], strict=True):
            facts = report["conditions"]["samples"]
            assert facts["steps"] == row["steps"] and facts["labels"] == "balanced" and facts["seeds"] == [0, 7]
            assert f"{row['fd']:.4g}" in result.out and f"{row['fd']:.4g}" in (tmp_path / "o.md").read_text()
        with (tmp_path / "plots" / "quality-against-nfe.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [float(row["fd"]) for row in rows] == [row["fd"] for row in record["rows"]]
        plots = {path.stem for path in (tmp_path / "plots").iterdir()}
        assert plots == {"quality-against-nfe", "samples-2-steps", "samples-3-steps"}
        with (tmp_path / "plots" / "samples-2-steps.csv").open() as file:
            assert [int(row["seed"]) for row in csv.DictReader(file)] == list(range(8))

    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
    def test_scheduler_and_guidance(self, evaluate, model, reference, tmp_path):
        options = ("--scheduler", "dpm-solver++", "--guidance-scale", 2, "--json", tmp_path / "o.json")
        asked = ("--steps", "2", "--num", 4, "--reference", reference, "--extractor", TINY, "--allow-small-n")
        result = evaluate("pipeline", model, *asked, *options)
        assert result.code == 0, result.err
        (report,) = json.loads((tmp_path / "o.json").read_text())["reports"]
        assert report["conditions"]["samples"]["scheduler"] == "DPMSolverMultistepScheduler"
        assert report["conditions"]["samples"]["guidance"] == 2

    def test_a_pipeline_of_diffusers(self, evaluate, reference, tiny_image_pipeline, tmp_path):
        pipe = DDIMPipeline(unet=tiny_image_pipeline().unet, scheduler=DDIMScheduler(num_train_timesteps=100))
        pipe.save_pretrained(tmp_path / "ddim")
        asked = ("--steps", "2", "--num", 8, "--reference", reference, "--extractor", TINY)
        assert evaluate("pipeline", tmp_path / "ddim", *asked, "--scheduler", "ddim").code == 0
        message = "a DDIMPipeline of diffusers works with ddim only"
        command = ("pipeline", tmp_path / "ddim", *asked, "--scheduler", "dpm-solver++")
        assert_refused(evaluate, tmp_path, command, message)
        weights = tmp_path / "ddim" / "unet" / "diffusion_pytorch_model.safetensors"
        weights.unlink()
        weights.with_suffix(".bin").write_bytes(pickle.dumps({}))
        assert_refused(evaluate, tmp_path, ("pipeline", tmp_path / "ddim", *asked), "as a pickle")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--steps", "ten"), "--steps must be whole numbers of at least 1 with commas between, got 'ten'"),
            (("--steps", "5,5"), "--steps names a number twice"),
            (("--steps", "2,500"), "--steps must be whole numbers from 1 to 100, got 500"),
            (("--scheduler", "euler"), "scheduler must be one of ddim, dpm-solver++, got 'euler'"),
            (("--device", "abacus"), "--device 'abacus' cannot be used on this machine"),
        ],
    )
    def test_bad_input(self, evaluate, model, reference, tmp_path, options, message):
        command = ("pipeline", model, "--steps", "2", "--reference", reference, "--extractor", TINY, *options)
        assert_refused(evaluate, tmp_path, command, message)

    def test_the_reference_must_be_known(self, evaluate, model, tmp_path):
        assert_refused(evaluate, tmp_path, ("pipeline", model), "its data is unknown: give --reference")
        assert_refused(evaluate, tmp_path, ("pipeline", "no-such-model"), "'no-such-model' is neither a folder")
