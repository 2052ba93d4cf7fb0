"""`gendiff sample masked-generation`: what the pipeline draws as files, and one line for what does not fit."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff import MaskedScheduler, ReCAPConfig
from gendiff.cli import main
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline

NAMES = ("shoe", "bag", "7")


@pytest.fixture
def pipe(tiny_masked_pipeline):
    return tiny_masked_pipeline(NAMES)


@pytest.fixture
def model(tmp_path, pipe):
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def given(tmp_path):
    """A picture, and a mask that has its right quarter drawn anew; as files and as tensors in [0, 1]."""
    picture = torch.randint(256, (8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[:, 6:] = 255
    for name, values in (("image", picture), ("mask", mask)):
        Image.fromarray(values.numpy()).save(tmp_path / f"{name}.png")
    return {
        "files": (tmp_path / "image.png", tmp_path / "mask.png"),
        "image": picture[None, None] / 255,
        "mask_image": mask[None, None] / 255,
    }


def sample(*arguments) -> int:
    return main(["sample", "masked-generation", *(str(argument) for argument in arguments)])


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
    options = ("--steps", 6, "--recap", "light=1,warmup=2", "--guidance", 3, "--seed", 5)
    assert sample("--model", model, "--class", "bag", "--class", 0, "--num-images", 2, *options, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"images", "grid.png", "run.json"}
    recap = ReCAPConfig(num_light_steps=1, num_warmup_groups=2)
    asked = {"num_inference_steps": 6, "recap": recap, "guidance_scale": 3.0, "output_type": "pt"}
    wanted = pipe([1, 1, 0, 0], generator=noise(5, 6, 7, 8), **asked)
    assert close(images(out), wanted.images)
    run = json.loads((out / "run.json").read_text())
    assert run["task"] == "masked-generation" and run["classes"] == ["bag", "bag", "shoe", "shoe"]
    assert run["arguments"]["recap"] == "light=1,warmup=2" and run["versions"]["torch"]
    assert run["scheduler"]["order"] == "confidence"
    assert run["stats"]["plan"]["groups"] == [[0], [1], [2, 3], [4, 5]] == wanted.stats.plan["groups"]
    assert run["stats"]["flops"] == wanted.stats.flops and run["stats"]["cache_bytes"] > 0
    printed = capsys.readouterr().out
    assert "4 images in 6 steps, 4 full, 2 light: 11 network calls" in printed, "the first step is not guided"
    assert f"grid.png and 5 more files in {out}" in printed


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


@pytest.mark.parametrize(
    ("typed", "changed"),
    [
        (("--schedule", "pow2.5"), {"schedule": "pow2.5"}),
        (("--order", "halton"), {"order": "halton"}),
        (
            ("--order", "random", "--guidance-schedule", "constant"),
            {"order": "random", "guidance_schedule": "constant"},
        ),
        (("--temperature", "0"), {"confidence_temperature": 0.0}),
        (("--temperature", "9,1"), {"confidence_temperature": [9.0, 1.0]}),
        (("--sampling-temperature", "0.5"), {"sampling_temperature": 0.5}),
    ],
)
def test_the_scheduler_is_the_models_own_with_what_was_asked_changed(tmp_path, tiny_masked_pipeline, typed, changed):
    pipe = tiny_masked_pipeline(NAMES, scheduler={"schedule": "linear", "halton_roll": True})
    pipe.save_pretrained(tmp_path / "model")
    assert sample("--model", tmp_path / "model", "--class", "bag", "--steps", 5, *typed, "--out", tmp_path / "out") == 0
    plain = pipe("bag", 4, 5, generator=noise(0, 1, 2, 3), output_type="pt").images
    pipe.scheduler = MaskedScheduler.from_config(pipe.scheduler.config, **changed)
    assert close(images(tmp_path / "out"), pipe("bag", 4, 5, generator=noise(0, 1, 2, 3), output_type="pt").images)
    assert not close(images(tmp_path / "out"), plain)
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["scheduler"]
    assert changed.items() <= settings.items() and settings["halton_roll"] is True


def test_without_a_class_nothing_is_spent_on_guidance(model, pipe, tmp_path):
    assert sample("--model", model, "--unconditional", "--steps", 4, "--out", tmp_path / "out") == 0
    wanted = pipe([None] * 4, num_inference_steps=4, guidance_scale=1.0, generator=noise(0, 1, 2, 3), output_type="pt")
    assert close(images(tmp_path / "out"), wanted.images)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["stats"]["network_calls"] == 4 and run["classes"] == [""] * 4


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ((), {}),
        (("--class", "bag"), {"class_labels": "bag"}),
        (("--dilation", "0", "--blend"), {"mask_dilation": 0, "blend_pixels": True}),
        (("--recap", "light=2"), {"recap": ReCAPConfig(num_light_steps=2)}),
    ],
)
def test_what_is_kept_of_a_picture(model, pipe, given, tmp_path, typed, meant):
    out, (image, mask) = tmp_path / "out", given["files"]
    typed = ("--image", image, "--mask", mask, "--num-images", 3, "--steps", 5, *typed)
    assert sample("--model", model, *typed, "--out", out) == 0
    guided = {"guidance_scale": 2.0} if "class_labels" in meant else {"unconditional": True, "guidance_scale": 1.0}
    wanted = pipe(
        num_images_per_prompt=3,
        num_inference_steps=5,
        image=given["image"],
        mask_image=given["mask_image"],
        generator=noise(0, 1, 2),
        output_type="pt",
        **{**guided, **meant},
    )
    assert close(images(out), wanted.images)
    if "blend_pixels" in meant:
        assert close(images(out)[..., :6], given["image"][..., :6].expand(3, -1, -1, -1))
    # The picture and what is kept of it above the three that were drawn.
    assert len(pixels(out / "grid.png")) == 8 + 2 * (80 + 8)


def test_the_order_map_shows_when_each_token_was_decided(model, pipe, tmp_path):
    asked = ("--class", "bag", "--num-images", 3, "--steps", 10, "--order", "halton", "--order-map")
    assert sample("--model", model, *asked, "--out", tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"images", "grid.png", "run.json", "order.png", "steps.png"}
    order = pixels(tmp_path / "out" / "order.png")
    pipe.scheduler = MaskedScheduler.from_config(pipe.scheduler.config, order="halton")
    decided = pipe("bag", num_inference_steps=10, generator=noise(0)).revealed_at[0].view(4, 4)
    left = order.shape[1] - 3 * (112 + 4 + 112 + 8) + 112 + 4
    cells = order[8 + 14 : 8 + 112 : 28, left + 14 : left + 112 : 28].astype(int)
    colours = {step: {tuple(cell) for cell in cells[decided.numpy() == step].tolist()} for step in range(10)}
    assert all(len(found) == 1 for found in colours.values()), "one colour for each step"
    lights = [sum(next(iter(colours[step]))) for step in range(10)]
    assert lights == sorted(lights) and len(set(lights)) == 10, "later is lighter"


def test_the_strip_has_a_row_for_each_image_and_a_column_for_each_step(model, given, tmp_path):
    image, mask = given["files"]
    kept = ("--image", image, "--mask", mask)
    for out, steps, columns, more in (("few", 3, 3, ()), ("many", 12, 8, ()), ("kept", 3, 4, kept)):
        asked = ("--class", "bag", "--num-images", 2, "--steps", steps, "--recap", "light=1", *more)
        assert sample("--model", model, *asked, "--order-map", "--out", tmp_path / out) == 0
        strip = pixels(tmp_path / out / "steps.png")
        labels = strip.shape[1] - (columns + 1) * (112 + 8)
        assert 8 < labels < 60 and 2 * (112 + 8) < len(strip) < 3 * (112 + 8), out


def test_staleness_is_measured_and_said(model, tmp_path, capsys):
    asked = ("--class", "bag", "--steps", 6, "--recap", "light=1", "--measure-staleness")
    assert sample("--model", model, *asked, "--out", tmp_path / "out") == 0
    measured = json.loads((tmp_path / "out" / "run.json").read_text())["stats"]["plan"]["staleness"]
    assert [one["step"] for one in measured] == [1, 3, 5] and all(one["kl"] > 0 for one in measured)
    mean = sum(one["kl"] for one in measured) / 3
    assert f"mean over 3 light steps: kl {mean:.3g}, top1_agreement" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "shoes"], "class_labels has 'shoes'; known: shoe, bag, 7. Did you mean 'shoe'?"),
        (["--class", "3"], "class_labels must be 0 to 2, or a name, got 3"),
        (["--unconditional", "--class", "bag"], "--class and --unconditional exclude each other"),
        (["--class", "bag", "--prompt", "a bag"], "--class and --prompt exclude each other"),
        (["--prompt", "a bag"], "prompt must be None: the model reads no text, got ['a bag']"),
        (["--num-images", "0"], "--num-images must be at least 1, got 0"),
        (["--steps", "0"], "num_inference_steps must be a whole number of at least 1, got 0"),
        (["--steps", "1.5"], "Invalid value for '--steps'"),
        (["--guidance", "-1"], "guidance_scale must be finite and at least 0, got -1.0"),
        (["--guidance", "nan"], "guidance_scale must be finite and at least 0, got nan"),
        (["--unconditional", "--guidance", "2"], "--guidance 2 needs --class"),
        (
            ["--schedule", "cosin"],
            "schedule must be one of cosine, arccos, linear, root, log, exp, pow<p>, got",
        ),
        (["--order", "raster"], "order must be one of confidence, halton, random, got 'raster'"),
        (["--guidance-schedule", "up"], "guidance_schedule must be one of constant, linear_step, linear_open"),
        (["--temperature", "hot"], "--temperature must be a number, or two as 4.5,0, got 'hot'"),
        (["--temperature", "1,2,3"], "confidence_temperature must be a number of at least 0, or (first, last)"),
        (["--temperature", "2", "--order", "halton"], "--temperature needs --order confidence, got halton"),
        (["--temperature", "-1"], "confidence_temperature must be a number of at least 0"),
        (["--sampling-temperature", "0"], "sampling_temperature must be above 0 and finite, got 0.0"),
        (["--recap", "light"], "recap must be name=value, separated by commas, got 'light'"),
        (["--recap", "lite=1"], "recap has 'lite'; known: num_light_steps, num_warmup_groups"),
        (["--recap", "light=-1"], "num_light_steps must be a whole number of at least 0, got -1"),
        (["--recap", "warmup=0.5"], "num_warmup_groups must be a whole number of at least 0, got 0.5"),
        (["--recap", "light=1,light_head_steps=4"], "light_head_steps must be None: no diffusion head here, got 4"),
        (["--recap", "layout=spread"], "layout must be one of in_place, concat, got 'spread'"),
        (["--measure-staleness"], "--measure-staleness needs --recap"),
        (["--head-steps", "4"], "--head-steps needs a model with a diffusion head"),
        (["--mask", "MASK"], "--mask needs --image"),
        (["--image", "IMAGE"], "--image needs --mask"),
        (["--dilation", "1"], "--dilation needs --image and --mask"),
        (["--blend"], "--blend needs --image and --mask"),
        (
            ["--image", "IMAGE", "--mask", "MASK", "--dilation", "-1"],
            "mask_dilation must be a whole number",
        ),
        (["--image", "IMAGE", "--mask", "MASK", "--guidance", "3"], "--guidance 3 needs --class"),
        (["--image", "/no/such.png", "--mask", "MASK"], "/no/such.png: No such file or directory"),
        (["--model", "maskgit-fashio"], "'maskgit-fashio' is neither a folder, nor a hub repository"),
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
        ("image", Image.new("L", (9, 8)), "is 9 x 8 px, and pictures of this model are 8 x 8"),
        ("image", Image.new("RGB", (8, 8), (9, 0, 0)), "(1,3,8,8)"),
        ("mask", Image.new("L", (4, 4)), "is 4 x 4 px, and pictures of this model are 8 x 8"),
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


def test_a_mask_that_leaves_nothing_to_draw_gives_the_picture_back(model, given, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "nothing.png")
    image = given["files"][0]
    kept = ("--image", image, "--mask", tmp_path / "nothing.png", "--blend", "--order-map")
    assert sample("--model", model, *kept, "--out", tmp_path / "out") == 0
    assert close(images(tmp_path / "out"), given["image"].expand(4, -1, -1, -1))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["stats"]["network_calls"] == 0


def test_texts_take_the_place_of_classes(tmp_path, tiny_amused, capsys):
    pipe = MaskedGenerationPipeline.from_amused(tiny_amused)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "model")
    start = ("--model", tmp_path / "model", "--steps", 3, "--num-images", 2)
    typed = ("--prompt", "a red hat", "--prompt", "a cat", "--negative-prompt", "bad", "--recap", "light=1")
    assert sample(*start, *typed, "--order-map", "--out", tmp_path / "out") == 0
    drawn = [pixels(path) for path in sorted((tmp_path / "out" / "images").iterdir())]
    asked = {"num_inference_steps": 3, "recap": ReCAPConfig(), "generator": noise(0, 1, 2, 3), "output_type": "pt"}
    wanted = pipe(prompt=["a red hat", "a cat"], negative_prompt="bad", num_images_per_prompt=2, **asked).images
    assert np.abs(np.stack(drawn) - 255 * wanted.permute(0, 2, 3, 1).numpy()).max() <= 0.51
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["classes"] == ["a red hat", "a red hat", "a cat", "a cat"]
    capsys.readouterr()
    assert sample(*start, "--out", tmp_path / "none") == 2
    assert "prompt is missing" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_pipeline_of_another_task(tmp_path, tiny_image_pipeline, capsys):
    tiny_image_pipeline().save_pretrained(tmp_path / "model")
    assert sample("--model", tmp_path / "model", "--out", tmp_path / "out") == 2
    assert "holds a ImageGenerationPipeline, not a MaskedGenerationPipeline" in capsys.readouterr().err


def test_help_imports_no_torch():
    code = "import sys; from gendiff.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    arguments = [sys.executable, "-c", code, "sample", "masked-generation", "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "--order-map" in result.stdout and "--measure-staleness" in result.stdout
