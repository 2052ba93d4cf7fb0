"""Sets of images for tests of `gendiff evaluate`, and what it must do with what it cannot use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HELPERS = Path(__file__).parents[1] / "metrics"
TINY = "tiny_extractor:TinyExtractor"
SIDE = 12


def pixels(count, seed, side=SIDE, spread=60) -> np.ndarray:
    """uint8 (N, side, side, 3): noise about a level of each image's own."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(60, 200, (count, 1, 1, 3))
    return (levels + rng.normal(0, spread, (count, side, side, 3))).clip(0, 255).astype(np.uint8)


def folder_of(path: Path, images: np.ndarray, suffix=".png") -> Path:
    path.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(path / f"{index:04d}{suffix}")
    return path


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def assert_refused(evaluate, tmp_path, command, message, code=2, plot=True):
    """One line on standard error, and nothing else anywhere."""
    before = tree(tmp_path)
    outputs = () if command[0] == "fvd" or not plot else ("--plot", tmp_path / "new" / "plots")
    outputs = () if command[0] == "stats" else (*outputs, "--json", tmp_path / "new" / "o.json")
    result = evaluate(*command, *outputs)
    assert result.code == code, (result.code, result.err)
    assert result.err.startswith("gendiff: ") and result.err.count("\n") == 1 and result.err.endswith("\n")
    assert message in result.err and not result.out
    assert tree(tmp_path) == before
