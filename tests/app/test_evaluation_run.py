"""What `gendiff evaluate` shows and writes: all of it or none, the same from the same numbers."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.app import evaluation_outcome
from gendiff.app.evaluation_outcome import Outcome, Outputs, deliver, table_lines
from gendiff.app.evaluation_pipeline import PipelineOrder, open_pipeline, open_sources, own_reference
from gendiff.app.evaluation_run import grids, score_images
from gendiff.errors import InvalidInputError
from gendiff.metrics.report import Score, floor_cell, value_cell

OUTCOME = Outcome(("metric", "value"), [["FD[x]", "1.5"]], ["N is small"], {"value": 1.5})


def test_nothing_is_left_of_a_delivery_that_fails(tmp_path, monkeypatch, capsys):
    outputs = Outputs(tmp_path / "a" / "o.json", tmp_path / "o.md", tmp_path / "plots")

    def draw(folder):
        for name in ("p.png", "q.png"):
            (folder / name).write_bytes(b"1")

    plots = Outcome(OUTCOME.columns, OUTCOME.rows, [], {}, plots=draw)
    written = []

    def write(path, content):
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        written.append(path.write_bytes(content))

    monkeypatch.setattr("gendiff.app.output_folder.write_whole", write)
    with pytest.raises(OSError, match="No space left"):
        deliver(plots, outputs)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()] and not capsys.readouterr().out


def test_a_record_that_is_no_json_is_not_written(tmp_path):
    broken = Outcome(OUTCOME.columns, OUTCOME.rows, [], {"value": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        deliver(broken, Outputs(tmp_path / "o.json", tmp_path / "o.md"))
    assert not list(tmp_path.iterdir())


def test_what_is_delivered(tmp_path, capsys):
    deliver(OUTCOME, Outputs(tmp_path / "o.json", tmp_path / "o.md"))
    assert json.loads((tmp_path / "o.json").read_text()) == {"value": 1.5}
    assert (tmp_path / "o.md").read_text() == "| metric | value |\n| --- | --- |\n| FD[x] | 1.5 |\n\n- N is small\n"
    printed = capsys.readouterr().out
    assert "FD[x]" in printed and printed.endswith("warning: N is small\n")
    assert table_lines(["a"], [["1"]], []) == ["| a |", "| --- |", "| 1 |"]


def test_outputs_that_cannot_be_written(tmp_path, monkeypatch):
    Outputs(tmp_path / "new" / "o.json", None, tmp_path / "plots").check()
    assert not list(tmp_path.iterdir())
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(InvalidInputError, match="--plot must be a folder"):
        Outputs(plot=tmp_path / "link").check()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation_outcome, "find_spec", lambda _: None)
        with pytest.raises(ImportError, match="--plot needs matplotlib"):
            Outputs(plot=tmp_path / "plots").check()
    monkeypatch.setattr(evaluation_outcome.os, "access", lambda *_: False)
    with pytest.raises(InvalidInputError, match="cannot be written to"):
        Outputs(md=tmp_path / "o.md").check()


def test_cells_say_what_is_scaled_and_what_is_not_known():
    kid = Score(
        "kid", "KID[x]", -0.00123, "lower", {"std": 0.0005}, {"value": 0.002, "n": 5, "n_real": 9, "std": 0.001}
    )
    assert value_cell(kid) == "-1.23 ± 0.5"
    assert floor_cell(kid) == "2 ± 1 (N=5 / 9)"
    fd = Score("fd", "FD[x]", 12.3456, "lower")
    assert (value_cell(fd), floor_cell(fd)) == ("12.35", "-")


def test_grids_show_both_sets_beside_each_other():
    black, white = torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.full((5, 3, 8, 8), 255, dtype=torch.uint8)
    picture = np.asarray(Image.open(io.BytesIO(grids([("a", black), ("b", white)]))).convert("L"))
    left, right = np.array_split(picture, 2, axis=1)
    assert (left == 0).mean() > 0.3 > (right == 0).mean()
    alone = Image.open(io.BytesIO(grids([("a", black)])))
    assert alone.width < picture.shape[1]


def test_sources_differ_by_their_steps_only(tmp_path, tiny_image_pipeline):
    tiny_image_pipeline(["a", "b"]).save_pretrained(tmp_path / "model")
    first, second = open_sources(PipelineOrder(str(tmp_path / "model"), (1, 2), num=4, seed=3, resize=16))
    assert first.labels(4).tolist() == second.labels(4).tolist() == [0, 1, 0, 1]
    facts = [source.describe() for source in (first, second)]
    assert [fact["steps"] for fact in facts] == [1, 2] and facts[0]["sha256"] != facts[1]["sha256"]
    assert facts[0]["seeds"] == [3, 6] and facts[0]["size"] == [16, 16]
    assert facts[0]["weights_sha256"] == facts[1]["weights_sha256"]


def test_a_checkpoint_names_its_unseen_data(tmp_path):
    for name, expected in (("fashion-mnist-full", "fashion-mnist"), ("pendulum", "pendulum")):
        (tmp_path / "recipe.yaml").write_text(f"data: {{name: {name}, root: data}}\n")
        assert own_reference(str(tmp_path)) == f"dataset:{expected}:test"


def test_a_class_of_nobody_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(InvalidInputError, match="NoSuchPipeline, a pipeline that neither gendiff nor diffusers has"):
        open_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(InvalidInputError, match="UNet2DModel"):
        open_pipeline(str(tmp_path))


def test_a_pipeline_that_needs_more_than_noise_is_refused(tmp_path, tiny_counterfactual_pipeline):
    tiny_counterfactual_pipeline().save_pretrained(tmp_path / "cf")
    with pytest.raises(InvalidInputError, match="CounterfactualPipeline"):
        open_sources(PipelineOrder(str(tmp_path / "cf"), (2,), num=4))


def test_a_pickle_beside_statistics_is_refused(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((3, 8, 8, 3), dtype=np.uint8))
    (tmp_path / "stats.npz").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match=r"stats\.npz"):
        score_images(str(tmp_path / "images.npy"), str(tmp_path / "stats.npz"), ["fd"])
