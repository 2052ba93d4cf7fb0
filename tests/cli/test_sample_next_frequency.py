"""`gendiff sample next-frequency`: what the pipeline draws as files, and one line for what does not fit."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.cli import main

NAMES = ("shoe", "bag", "7")


@pytest.fixture
def pipe(tiny_next_frequency_pipeline):
    return tiny_next_frequency_pipeline(NAMES)


@pytest.fixture
def model(tmp_path, pipe):
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def given(tmp_path):
    """A picture, and a mask that has its right half drawn anew; as files and as tensors in [0, 1]."""
    picture = torch.randint(256, (16, 16), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[:, 8:] = 255
    for name, pixels in (("image", picture), ("mask", mask)):
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{name}.png")
    return {
        "files": (tmp_path / "image.png", tmp_path / "mask.png"),
        "image": picture[None, None] / 255,
        "mask_image": mask[None, None] / 255,
    }


def sample(*arguments) -> int:
    return main(["sample", "next-frequency", *(str(argument) for argument in arguments)])


def images(out) -> torch.Tensor:
    """All images of a folder, (N, 1, S, S) in [0, 1]."""
    paths = sorted((out / "images").iterdir())
    assert [path.name for path in paths] == [f"{number:03d}.png" for number in range(len(paths))]
    return torch.stack([torch.from_numpy(pixels(path))[None] / 255 for path in paths])


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def close(first, second) -> bool:
    return first.shape == second.shape and bool((first - second).abs().max() <= 0.51 / 255)


def noise(*seeds) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_files_hold_what_the_pipeline_draws(model, pipe, tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--guidance", 4, "--top-k", 9, "--top-p", 0.9, "--temperature", 1.5, "--seed", 5)
    assert sample("--model", model, "--class", "bag", "--class", 0, "--num-images", 2, *options, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"images", "grid.png", "run.json"}
    asked = {"guidance_scale": 4.0, "top_k": 9, "top_p": 0.9, "temperature": 1.5, "output_type": "pt"}
    wanted = pipe([1, 1, 0, 0], generator=noise(5, 6, 7, 8), **asked).images
    assert close(images(out), wanted)
    run = json.loads((out / "run.json").read_text())
    assert run["task"] == "next-frequency" and run["classes"] == ["bag", "bag", "shoe", "shoe"]
    assert run["arguments"]["guidance_scale"] == 4 and run["versions"]["torch"]
    assert [stage["tokens"] for stage in run["stages"]] == [1, 4, 9, 16]
    assert run["stages"][0]["band"].startswith("< ") and run["stages"][-1]["band"].startswith(">= ")
    assert run["stats"]["network_calls"] == 4 and run["stats"]["cache_bytes"] > 0
    printed = capsys.readouterr().out
    assert "4 images in 4 stages: 4 network calls" in printed and f"grid.png and 5 more files in {out}" in printed


def test_an_image_does_not_depend_on_how_many_are_drawn(model, tmp_path):
    for out, count in (("one", 1), ("many", 9)):
        assert sample("--model", model, "--class", "shoe", "--num-images", count, "--out", tmp_path / out) == 0
    assert close(images(tmp_path / "many")[:1], images(tmp_path / "one"))
    # Nine are shown as eight and one, each enlarged to 80 px.
    assert len(pixels(tmp_path / "many" / "grid.png")) == 8 + 2 * (80 + 8)


def test_every_class_is_drawn_unasked_and_a_name_of_digits_is_a_name(model, tmp_path):
    assert sample("--model", model, "--num-images", 1, "--out", tmp_path / "all") == 0
    assert json.loads((tmp_path / "all" / "run.json").read_text())["classes"] == list(NAMES)
    assert sample("--model", model, "--class", "7", "--num-images", 1, "--out", tmp_path / "one") == 0
    assert json.loads((tmp_path / "one" / "run.json").read_text())["classes"] == ["7"]


def test_many_classes_are_not_drawn_unasked(tmp_path, tiny_next_frequency_pipeline, capsys):
    tiny_next_frequency_pipeline([f"name {number}" for number in range(101)]).save_pretrained(tmp_path / "model")
    assert sample("--model", tmp_path / "model", "--out", tmp_path / "out") == 2
    assert "knows 101 classes: choose some with --class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("--stages", "2"), {"num_stages": 2}),
        (
            ("--guidance-schedule", "constant", "--guidance", "3"),
            {"guidance_schedule": "constant", "guidance_scale": 3},
        ),
        (("--guidance-schedule", "1,0.5,2,3"), {"guidance_schedule": [1, 0.5, 2, 3]}),
        (("--no-cache",), {"use_cache": True}),
        (("--smooth",), {"smooth": True}),
    ],
)
def test_options_reach_the_pipeline(model, pipe, tmp_path, typed, meant):
    out = tmp_path / "out"
    assert sample("--model", model, "--class", "bag", "--num-images", 2, *typed, "--out", out) == 0
    drawn = pipe("bag", 2, generator=noise(0, 1), output_type="pt", **meant)
    assert close(images(out), drawn.images)
    stats = json.loads((out / "run.json").read_text())["stats"]
    assert stats["plan"]["stages"] == drawn.stats.plan["stages"]
    assert (stats["cache_bytes"] == 0) == ("--no-cache" in typed)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("--keep-stages", "4"), {"keep_stages": 4}),
        (("--keep-stages", "2", "--class", "bag"), {"keep_stages": 2, "class_labels": "bag"}),
        (("--strength", "0.5"), {"keep_stages": 2}),
        (("MASK",), {"mask_image": None}),
        (("MASK", "--blend-pixels"), {"mask_image": None, "blend_pixels": True}),
    ],
)
def test_what_is_kept_of_a_picture(model, pipe, given, tmp_path, typed, meant):
    out, (image, mask) = tmp_path / "out", given["files"]
    typed = [part for word in typed for part in (("--mask", mask) if word == "MASK" else (word,))]
    meant = {name: given.get(name, value) for name, value in meant.items()}
    assert sample("--model", model, "--image", image, "--num-images", 3, *typed, "--out", out) == 0
    meant = {"class_labels": None, "guidance_scale": 2.5 if "class_labels" in meant else 1.0, **meant}
    wanted = pipe(
        num_images_per_prompt=3, image=given["image"], generator=noise(0, 1, 2), output_type="pt", **meant
    ).images
    assert close(images(out), wanted)
    if "blend_pixels" in meant:
        assert close(images(out)[..., :8], given["image"][..., :8].expand(3, -1, -1, -1))
    # The picture, and with a mask what is kept of it, above the three that were drawn.
    assert len(pixels(out / "grid.png")) == 8 + 2 * (80 + 8)


def test_a_strip_has_a_row_for_each_image_and_a_column_for_each_stage(model, tmp_path):
    for out, stages in (("whole", 4), ("preview", 2)):
        options = ("--class", "bag", "--num-images", 3, "--stages", stages, "--stages-strip")
        assert sample("--model", model, *options, "--out", tmp_path / out) == 0
    whole, preview = (pixels(tmp_path / out / "stages.png") for out in ("whole", "preview"))
    cell = 112 + 4 + 56 + 8
    assert len(whole) == len(preview) > 3 * (112 + 8) and whole.shape[1] - preview.shape[1] == 2 * cell
    # The stages the two have in common are the same pixels.
    shared = preview.shape[1] - 8
    assert (whole[:, :shared] == preview[:, :shared]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "shoes"], "class_labels has 'shoes'; known: shoe, bag, 7. Did you mean 'shoe'?"),
        (["--num-images", "0"], "--num-images must be at least 1, got 0"),
        (["--guidance-schedule", "cosine"], "--guidance-schedule must be one of linear, constant, or numbers as"),
        (["--guidance-schedule", "1,2"], "guidance_schedule must be 4 numbers, one for each stage"),
        (["--top-k", "33"], "top_k must be a whole number from 0 (off) to 32, got 33"),
        (["--top-p", "1.5"], "top_p must be from 0 (off) to 1, got 1.5"),
        (["--temperature", "0"], "temperature must be above 0 and finite, got 0.0"),
        (["--stages", "5"], "num_stages must be a whole number from 1 to 4, got 5"),
        (["--keep-stages", "1"], "keep_stages needs image"),
        (["--mask", "MASK"], "--mask needs --image"),
        (["--image", "IMAGE"], "image needs keep_stages, strength or mask_image"),
        (["--image", "IMAGE", "--keep-stages", "5"], "keep_stages must be a whole number from 0 to 4, got 5"),
        (["--image", "IMAGE", "--keep-stages", "1", "--strength", "1"], "give one of them"),
        (["--image", "IMAGE", "--keep-stages", "1", "--guidance", "3"], "guidance_scale 3.0 needs --class"),
        (["--image", "/no/such.png", "--keep-stages", "1"], "/no/such.png: No such file or directory"),
        (["--model", "next-frequency-fashio"], "'next-frequency-fashio' is neither a folder, nor a hub repository"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(model, given, tmp_path, capsys, arguments, message):
    names = dict(zip(("IMAGE", "MASK"), given["files"], strict=True))
    out = tmp_path / "new" / "out"
    assert sample("--model", model, "--out", out, *(names.get(word, word) for word in arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gendiff")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "picture", "message"),
    [
        ("image", Image.new("L", (28, 20)), "is 28 x 20 px, and pictures of this model are 16 x 16."),
        ("mask", Image.new("L", (16, 8)), "is 16 x 8 px, and pictures of this model are 16 x 16."),
        ("image", Image.new("RGB", (16, 16), (9, 0, 0)), "expected (B,1,16,16), got (1,3,16,16)"),
        ("image", Image.new("RGBA", (16, 16), (0, 0, 0, 9)), "transparent pixels"),
    ],
)
def test_a_picture_that_does_not_fit_is_named(model, given, tmp_path, capsys, option, picture, message):
    files = dict(zip(("image", "mask"), given["files"], strict=True))
    files[option] = tmp_path / "other.png"
    picture.save(files[option])
    typed = [part for name, path in files.items() for part in (f"--{name}", path)]
    assert sample("--model", model, *typed, "--out", tmp_path / "out") == 2
    written = capsys.readouterr().err
    assert "other.png" in written and message in written and not (tmp_path / "out").exists()


def test_what_is_no_picture_at_all(model, tmp_path, capsys):
    (tmp_path / "fake.png").write_bytes(b"not a picture")
    typed = ("--image", tmp_path / "fake.png", "--keep-stages", 1)
    assert sample("--model", model, *typed, "--out", tmp_path / "out") == 2
    assert "fake.png is not a picture" in capsys.readouterr().err


def test_a_pipeline_of_another_task(tmp_path, tiny_image_pipeline, capsys):
    tiny_image_pipeline().save_pretrained(tmp_path / "model")
    assert sample("--model", tmp_path / "model", "--out", tmp_path / "out") == 2
    assert "holds a ImageGenerationPipeline, not a NextFrequencyPipeline" in capsys.readouterr().err


def test_help_imports_no_torch():
    code = "import sys; from gendiff.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    arguments = [sys.executable, "-c", code, "sample", "next-frequency", "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "--stages-strip" in result.stdout and "--keep-stages" in result.stdout
