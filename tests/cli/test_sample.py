"""`gendiff sample`: files that say how they were made, one line and no files for anything that does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import gendiff
from gendiff.app.checkpoint_data import checkpoint_dataset
from gendiff.cli import main
from gendiff.data.pendulum import pendulum_graph


@pytest.fixture
def model(tmp_path, tiny_counterfactual_pipeline):
    folder = tmp_path / "model"
    tiny_counterfactual_pipeline(graph=pendulum_graph(), channels=3).save_pretrained(folder)
    (folder / "recipe.yaml").write_text("data: {name: pendulum, size: 16, num_images: 9000, experiments: 0.5}\n")
    return folder


def sample(*arguments) -> int:
    return main(["sample", "counterfactual", *(str(argument) for argument in arguments)])


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_joint_intervention_on_a_test_image(model, tmp_path, capsys):
    out = tmp_path / "out"
    do = ("--do", "angle=-30", "--do", "light=90")
    assert sample("--model", model, *do, "--steps", 3, "--seed", 5, "--sweep", "shadow_len=4:10:3", "--out", out) == 0
    assert "angle" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "counterfactual.png",
        "factual.png",
        "grid.png",
        "run.json",
        "sweep.png",
    ]
    run = json.loads((out / "run.json").read_text())
    assert run["arguments"]["do"] == ["angle=-30", "light=90"] and run["arguments"]["seed"] == 5
    assert run["factors"]["counterfactual"]["angle"] == [-30] and run["factors"]["counterfactual"]["light"] == [90]
    assert set(run["pixels"]["counterfactual"]) == {"angle", "light", "shadow_len", "shadow_pos"}
    assert run["stats"]["network_calls"] == 12 and run["stats"]["flops"] > 0
    assert set(run["versions"]) >= {"gendiff", "torch", "diffusers"}

    (index,) = run["test_images"]
    dataset = checkpoint_dataset(model)
    assert (pixels(out / "factual.png") == dataset.images[index].permute(1, 2, 0).numpy()).all()
    truth = (dataset.counterfactual(index, {"angle": -30, "light": 90})[0] + 1) / 2
    pipe = gendiff.load_pipeline(model)
    image = dataset.images[[index]].float() / 255
    answer = pipe(image, {"angle": -30, "light": 90}, num_inference_steps=3, output_type="pt").images
    assert run["l1_to_truth"][0] == pytest.approx(255 * (answer[0] - truth).abs().mean().item(), abs=1e-3)
    assert abs(pixels(out / "counterfactual.png") - 255 * answer[0].permute(1, 2, 0).numpy()).max() <= 0.51


def test_a_picture_of_ones_own_and_what_is_known_of_it(model, tmp_path):
    picture = tmp_path / "mine.png"
    Image.fromarray(checkpoint_dataset(model).images[3].permute(1, 2, 0).numpy()).save(picture)
    out = tmp_path / "out"
    given = ("--image", picture, "--label", "angle=12", "--do", "light=100")
    assert sample("--model", model, *given, "--steps", 2, "--inversion", "ddim", "--out", out) == 0
    run = json.loads((out / "run.json").read_text())
    assert run["test_images"] is None and "l1_to_truth" not in run
    assert run["factors"]["factual"]["angle"] == [pytest.approx(12, abs=1e-4)]
    assert run["factors"]["counterfactual"]["angle"] == [pytest.approx(12, abs=1e-4)]


def test_the_sweep_is_one_answer_for_each_value(model, tmp_path, tiny_counterfactual_pipeline):
    pipe = tiny_counterfactual_pipeline(graph=pendulum_graph(), channels=3)
    state = pipe.abduct(torch.rand(2, 3, 16, 16), num_inference_steps=2)
    together = pipe.predict(state.repeated(1, 2), {"angle": [-10, 30]}, output_type="pt").images
    for value, image in zip((-10, 30), together, strict=True):
        alone = pipe.predict(state, {"angle": value}, output_type="pt").images[1]
        assert torch.allclose(alone, image, atol=1e-5)


def test_several_images_are_numbered_and_repeat(model, tmp_path):
    for out in ("one", "two"):
        code = sample(
            *("--model", model, "--do", "angle=0", "--num-images", 2, "--noise", "random"),
            *("--steps", 2, "--seed", 1, "--out", tmp_path / out),
        )
        assert code == 0
    names = ["counterfactual-00.png", "counterfactual-01.png", "factual-00.png", "factual-01.png", "grid.png"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to change"),
        (("--do", "angel=3"), "unknown variable 'angel'; known: angle, light, shadow_len, shadow_pos. Did you mean"),
        (("--do", "angle"), "--do must be NAME=VALUE, got 'angle'"),
        (("--do", "angle=up"), "'up' is not a number"),
        (("--do", "angle=nan"), "angle must be finite"),
        (("--do", "angle=1", "--do", "angle=2"), "names 'angle' twice"),
        (("--do", "angle=99"), "angle=99 is outside the training range [-40, 43]"),
        (("--do", "angle=1", "--sweep", "angle=0:1:3"), "in --do and in --sweep"),
        (("--sweep", "angle=0:99:3"), "angle=49.5 is outside the training range"),
        (("--sweep", "angle=0:1"), "--sweep must be NAME=START:STOP:COUNT"),
        (("--sweep", "angle=0:1:1"), "a whole COUNT from 2 to 64"),
        (("--do", "angle=1", "--steps", "0"), "num_inference_steps must lie in 1..100, got 0"),
        (("--do", "angle=1", "--inversion", "magic"), "inversion must be one of edict, ddim, fixed_point"),
        (("--do", "angle=1", "--noise", "pink"), "noise must be one of abducted, random"),
        (("--do", "angle=1", "--guidance-scale", "-1"), "guidance_scale must be finite and at least 0"),
        (("--do", "angle=1", "--guidance-mode", "both"), "guidance_mode must be one of factual, affected, uncond"),
        (("--do", "angle=1", "--num-images", "0"), "--num-images must be at least 1"),
        (("--do", "angle=1", "--device", "abacus"), "device 'abacus' cannot be used"),
        (("--do", "angle=1", "--label", "size=1"), "unknown variable 'size'"),
        (("--do", "angle=1", "--image", "missing.png"), "missing.png"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(model, tmp_path, capsys, arguments, message):
    out = tmp_path / "new" / "out"
    assert sample("--model", model, "--out", out, "--steps", 2, *arguments) == 2
    written = capsys.readouterr()
    lines = [line for line in written.err.splitlines() if line.startswith("gendiff")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in written.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"not a picture", b""])
def test_a_file_that_is_no_picture(model, tmp_path, capsys, content):
    (tmp_path / "fake.png").write_bytes(content)
    out = tmp_path / "out"
    assert sample("--model", model, "--do", "angle=1", "--image", tmp_path / "fake.png", "--out", out) == 2
    assert "fake.png is not a picture" in capsys.readouterr().err
    assert not out.exists()


def test_a_picture_of_the_wrong_size(model, tmp_path, capsys):
    Image.new("RGB", (28, 28)).save(tmp_path / "large.png")
    assert sample("--model", model, "--do", "angle=1", "--image", tmp_path / "large.png", "--out", tmp_path / "o") == 2
    assert "expected (B,3,16,16), got (1,3,28,28)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(model, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert sample("--model", model, "--do", "angle=1", "--out", tmp_path / "file" / "out") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_disk_that_fills_up_leaves_nothing(model, tmp_path, capsys, monkeypatch):
    def full(path, content):
        if path.name == "run.json":
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(content)

    monkeypatch.setattr("gendiff.app.output_folder.write_whole", full)
    out = tmp_path / "out"
    assert sample("--model", model, "--do", "angle=1", "--steps", 1, "--out", out) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not out.exists()


def test_a_pickle_is_refused(model, tmp_path, capsys):
    for path in (model / "unet").glob("*.safetensors"):
        torch.save({}, path.with_suffix(".bin"))
        path.unlink()
    assert sample("--model", model, "--do", "angle=1", "--out", tmp_path / "out") == 2
    written = capsys.readouterr().err
    assert "unet" in written and "Traceback" not in written
