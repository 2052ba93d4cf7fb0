"""No extractor test reaches the network, or finds weights that happen to lie on the machine."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENDIFF_WEIGHTS_DIR", raising=False)
    monkeypatch.delenv("GENDIFF_OFFLINE", raising=False)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """A state dict of Inception-v3 with random weights."""
    spec = importlib.util.spec_from_file_location("random_inception", BENCHMARKS / "random_inception.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_random_inception(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="session")
def photos():
    """Seeded pictures with edges and gradients, uint8 (5, 3, 40, 36), the last one grey."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :36] / 40
    waves = [np.sin(rng.uniform(2, 20) * x + rng.uniform(2, 20) * y + rng.uniform(0, 6)) for _ in range(15)]
    images = [127 + 90 * wave + rng.normal(0, 12, wave.shape) for wave in waves]
    photos = torch.from_numpy(np.stack(images).reshape(5, 3, 40, 36).round().clip(0, 255).astype(np.uint8))
    photos[:, :, 10:20, 8:24] //= 2
    photos[-1] = photos[-1, :1]
    return photos
