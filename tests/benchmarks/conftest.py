from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCHEDULE = {"num_train_timesteps": 100, "timestep_spacing": "trailing", "clip_sample": False}


@pytest.fixture
def bench(monkeypatch):
    """`bench("report")`: a module of benchmarks/ as it is when a script runs, forgotten after the test.

    Calibration is small, because nothing here reads its figures.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["benchmarks/script.py"])
    calibration = importlib.import_module("calibration")
    monkeypatch.setattr(calibration, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(calibration, "GEMM_SIDE", {"cpu": 64})
    yield importlib.import_module
    for name in list(sys.modules):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def make_plain_unet(classes: int | None = None) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=classes,
    ).eval()


@pytest.fixture
def plain_unet():
    """`plain_unet(classes=None)`: diffusers' own U-Net, 8 px, untrained."""
    return make_plain_unet


@pytest.fixture
def ddim_folder(tmp_path):
    """A saved `diffusers.DDIMPipeline`, untrained."""
    folder = tmp_path / "ddim"
    DDIMPipeline(make_plain_unet(), DDIMScheduler(**SCHEDULE)).save_pretrained(folder)
    return folder


@pytest.fixture
def result(bench):
    """`result(p50, ...)`: a valid result with one timed case, whose runs scatter by 1 % about `p50`."""

    def make(p50=1.0, batch=2, noisy=False, **env):
        timing = bench("timing").Timing([p50 * (1 + 0.001 * k) for k in range(-10, 11)], [1.0], [p50], True, None)
        case = {"id": "made-up", "pipeline": "made-up", "steps": 5, "shape": [1, 8, 8]}
        case |= {**bench("harness").figures(timing, batch, nfe=10, flops=4_000_000_000), "noisy": noisy}
        provenance = bench("provenance")
        return {
            "schema": "gendiff-bench/1",
            "created": provenance.now(),
            "gendiff": "0",
            "git": {"commit": None, "dirty": None},
            "command": "python benchmarks/made_up.py",
            "env": {**provenance.environment("cpu", "float32"), **env},
            "calibration": {"gemm_fp32_gflops": 50.0, "copy_gbs": 10.0},
            "cases": [case],
        }

    return make
