"""Plain diffusion in the gallery and on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import gendiff
from gendiff.app.gallery import build_gallery
from gendiff.app.section import Settings
from gendiff.cli import main
from gendiff.pipelines import registry

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2
NAMES = ["T-shirt/top", "Trouser", "Bag"]


@pytest.fixture
def model(tmp_path, monkeypatch, tiny_image_pipeline):
    folder = tmp_path / "checkpoints" / "clothes"
    tiny_image_pipeline(NAMES, side=28).save_pretrained(folder)
    (folder / "recipe.yaml").write_text("data: {name: fashion-mnist-full, root: data}\n")
    monkeypatch.setattr(registry, "CHECKPOINTS", tmp_path / "checkpoints")
    return folder


def test_the_command_writes_what_the_pipeline_draws(model, tmp_path):
    out = tmp_path / "out"
    arguments = ["--class", "Bag", "--class", "1", "--num-images", "2", "--steps", "3", "--seed", "5"]
    assert main(["sample", "image-generation", "--model", str(model), "--out", str(out), *arguments]) == 0
    assert {path.name for path in out.iterdir()} == {"images", "grid.png", "run.json"}
    # Alone in their folder, so that it can be scored as it is.
    assert {path.name for path in (out / "images").iterdir()} == {f"{i:03d}.png" for i in range(4)}
    run = json.loads((out / "run.json").read_text())
    assert run["classes"] == ["Bag", "Bag", "Trouser", "Trouser"]
    assert run["stats"]["network_calls"] == 3 and run["arguments"]["seed"] == 5 and run["versions"]["torch"]
    pipe = gendiff.load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    alone = pipe("Trouser", num_inference_steps=3, generator=torch.Generator().manual_seed(7), output_type="np").images
    drawn = np.asarray(Image.open(out / "images" / "002.png"), dtype=float)
    assert np.abs(drawn - 255 * alone[0, ..., 0]).max() <= 0.51


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "Bagg"], "Did you mean 'Bag'"),
        (["--class", "3"], "class_labels must be 0 to 2"),
        (["--scheduler", "dpm"], "scheduler must be one of ddim, dpm-solver++, got 'dpm'"),
        (["--num-images", "0"], "--num-images must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_leaves_nothing(model, tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert main(["sample", "image-generation", "--model", str(model), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_page_shows_every_class_by_both_solvers_and_the_nearest_training_image(model, tmp_path):
    page = build_gallery(Settings(tmp_path / "demo", steps=2, num_images=1)).read_text(encoding="utf-8")
    assert 'id="clothes"' in page and (tmp_path / "demo" / "clothes" / "solvers.png").is_file()
    for text in (*NAMES, "dpm-solver++", "nearest training image"):
        assert text in page
    assert page.count("<img") == 4 * len(NAMES) + 2  # three walks and the nearest, and the cover's half
