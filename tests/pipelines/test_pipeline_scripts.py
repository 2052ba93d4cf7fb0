"""The scripts in the folder pipelines/ at the top, run as a user runs them, at tiny size."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gendiff.data.pendulum import pendulum_graph
from gendiff.samplers.recap import ReCAPConfig

SCRIPTS = Path(__file__).parents[2] / "pipelines"


def test_counterfactual(tmp_path, monkeypatch, capsys, tiny_counterfactual_pipeline):
    model, out = tmp_path / "model", tmp_path / "out.png"
    tiny_counterfactual_pipeline(graph=pendulum_graph(), channels=3).save_pretrained(model)
    (model / "recipe.yaml").write_text("data: {name: pendulum, size: 16}\n")
    options = ["--model", str(model), "--do", "angle=20", "light=90", "--index", "3", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["counterfactual.py", *options, "--out", str(out)])
    runpy.run_path(str(SCRIPTS / "counterfactual.py"), run_name="__main__")
    with Image.open(out) as picture:
        assert picture.size == (3 * 16 * 8, 16 * 8)
    printed = capsys.readouterr().out
    assert "->    20.00   truth    20.00" in printed and "8 network calls" in printed


def test_causal_video(tmp_path, monkeypatch, capsys, tiny_video_pipeline):
    model, out = tmp_path / "model", tmp_path / "out"
    tiny_video_pipeline(sample_size=16).save_pretrained(model)
    options = ["--model", str(model), "--classes", "one", "two", "--num-frames", "8", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["causal_video.py", *options, "--out", str(out)])
    runpy.run_path(str(SCRIPTS / "causal_video.py"), run_name="__main__")
    frames = {"video": 8, "endless": 5, "fork": 9, "switch": 8}
    for name, count in frames.items():
        with Image.open(out / f"{name}.gif") as picture:
            assert picture.n_frames == count
            assert picture.size == ((3 if name == "fork" else 1) * 16 * 4, 16 * 4)
    assert "network calls, cache" in capsys.readouterr().out


def test_next_frequency(tmp_path, monkeypatch, capsys, tiny_next_frequency_pipeline):
    model, out = tmp_path / "model", tmp_path / "out.png"
    pipe = tiny_next_frequency_pipeline()
    pipe.save_pretrained(model)
    monkeypatch.setattr(sys, "argv", ["next_frequency.py", "--model", str(model), "--class", "two", "--out", str(out)])
    runpy.run_path(str(SCRIPTS / "next_frequency.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "stage 3:  4 x 4  tokens" in printed and "an image: 4 network calls" in printed
    picture = torch.from_numpy(np.array(Image.open(out)))[::7, ::7] / 255
    assert picture.shape == (2 * 16, 4 * 16)
    alone = pipe("two", generator=torch.Generator().manual_seed(0), output_type="pt").images[0, 0]
    preview = pipe("two", num_stages=2, generator=torch.Generator().manual_seed(0), output_type="pt").images[0, 0]
    again = pipe.vqvae.decode(pipe.vqvae.encode(2 * alone[None, None] - 1).tokens)[0, 0] / 2 + 0.5
    for row, column, wanted in ((0, 3, alone), (0, 1, preview), (1, 3, again)):
        shown = picture[16 * row : 16 * (row + 1), 16 * column : 16 * (column + 1)]
        assert (shown - wanted).abs().max() < 0.01


def test_masked_generation(tmp_path, monkeypatch, capsys, tiny_masked_pipeline):
    model, out = tmp_path / "model", tmp_path / "out.png"
    pipe = tiny_masked_pipeline(grid=6)
    pipe.save_pretrained(model)
    options = ["--model", str(model), "--class", "two", "--steps", "6", "--light", "1", "--warmup", "2"]
    monkeypatch.setattr(sys, "argv", ["masked_generation.py", *options, "--out", str(out)])
    runpy.run_path(str(SCRIPTS / "masked_generation.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "base  6 full and 0 light steps" in printed and "ReCAP 4 full and 2 light steps" in printed
    picture = torch.from_numpy(np.array(Image.open(out)))[::9, ::9] / 255
    assert picture.shape == (12, 4 * 12)
    asked = {"num_inference_steps": 6, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    light = pipe("two", recap=ReCAPConfig(num_warmup_groups=2), **asked)
    assert (picture[:, 12:24] - light.images[0, 0]).abs().max() < 0.01
    steps = [[int(word) - 1 for word in line.split()] for line in printed.splitlines()[2:8]]
    assert steps == light.revealed_at.view(6, 6).tolist()
    hole = picture[:, 24:36]
    assert (hole[4:8, 4:8] - 0.5).abs().max() < 0.01 and torch.equal(hole[:4], picture[:4, :12])


def test_every_script_is_in_the_table():
    table = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    for script in SCRIPTS.glob("*.py"):
        assert f"`{script.name}`" in table
