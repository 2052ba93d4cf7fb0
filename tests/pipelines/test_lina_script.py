"""The script pipelines/lina.py, run as a user runs it, at tiny size."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.samplers.intervention import Intervention

SCRIPT = Path(__file__).parents[2] / "pipelines" / "lina.py"


@pytest.mark.parametrize("by_hand", [False, True])
def test_both_ways_and_their_scores(tmp_path, monkeypatch, capsys, tiny_lina, by_hand):
    model, out = tmp_path / "model", tmp_path / "out.png"
    pipe = tiny_lina("swap-world", gate=5.0)
    pipe.save_pretrained(model)
    prompt = "a ring above a cross"
    options = ["--model", str(model), "--prompt", prompt, "--num-images", "2", "--steps", "3", "--seed", "4"]
    more = ["--lam", "1.5", "--stop", "0.5"] if by_hand else []
    monkeypatch.setattr(sys, "argv", ["lina.py", *options, *more, "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert "hop 0: top, bottom\nhop 1: order\ncontrast against: a cross above a ring" in printed
    assert printed.count("pap@0") == printed.count("pap_all 0.00") == 2, "an untrained model is never right"
    picture = torch.from_numpy(np.array(Image.open(out)))[::3, ::3].permute(2, 0, 1) / 255
    assert picture.shape == (3, 2 * 32, 2 * 32)
    chosen = Intervention(lam=1.5, window=(1.0, 0.5)) if by_hand else "auto"
    for row, intervention in enumerate(("off", chosen)):
        noise = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
        asked = {"num_inference_steps": 3, "num_images_per_prompt": 2, "generator": noise, "output_type": "pt"}
        wanted = pipe(prompt, intervention=intervention, **asked)
        shown = picture[:, 32 * row : 32 * row + 32]
        assert (shown - torch.cat(list(wanted.images), dim=2)).abs().max() < 0.01
        assert f"{wanted.nfe[0]:g} network rows an image, {wanted.interventions[0].to_json()}" in printed
