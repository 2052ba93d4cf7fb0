"""A command of `gendiff evaluate` run in this process, and two small sets of images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from evaluate_cases import HELPERS, folder_of, pixels

from gendiff.cli import main


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """The tiny feature network can be named, and no weights can be found."""
    monkeypatch.syspath_prepend(HELPERS)
    monkeypatch.delenv("GENDIFF_WEIGHTS_DIR", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))


@pytest.fixture
def evaluate(capsys):
    """Run a command in this process: exit code, standard output and standard error."""

    def run(*arguments) -> SimpleNamespace:
        code = main(["evaluate", *map(str, arguments)])
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return run


@pytest.fixture
def samples(tmp_path) -> Path:
    return folder_of(tmp_path / "samples", pixels(50, 1))


@pytest.fixture
def reference(tmp_path) -> Path:
    np.savez(tmp_path / "real.npz", arr_0=pixels(70, 2, spread=40))
    return tmp_path / "real.npz"
