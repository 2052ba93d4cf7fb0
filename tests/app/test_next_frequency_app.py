"""Next-frequency prediction for people: pictures stage by stage, their spectra, and the gallery's chapter."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.app.gallery import build_gallery
from gendiff.app.given_pictures import without
from gendiff.app.next_frequency_answers import counterpart, examples
from gendiff.app.next_frequency_pictures import band_labels, log_power, spectra, stage_pictures, stages_strip
from gendiff.app.section import Settings
from gendiff.cli import main
from gendiff.data import load_dataset
from gendiff.pipelines import registry
from gendiff.pipelines.registry import builtin_checkpoints

STAGES = (1, 2, 3, 4, 5, 7)
NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DATA = "data: {name: fashion-mnist-full, root: nowhere}\n"


@pytest.fixture
def install(tmp_path, monkeypatch, tiny_next_frequency_pipeline):
    """`install(name, recipe=DATA, **settings)`: save an untrained pipeline as a built-in checkpoint, the only ones."""
    monkeypatch.setattr(registry, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)

    def save(name, recipe=DATA, **settings):
        pipe = tiny_next_frequency_pipeline(**{"names": NAMES, "side": 28, "stages": STAGES, **settings})
        pipe.save_pretrained(tmp_path / "checkpoints" / name)
        (tmp_path / "checkpoints" / name / "recipe.yaml").write_text(recipe)
        return pipe

    return save


def noise(*seeds) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("smooth", [False, True])
def test_after_each_stage_stands_the_preview_of_so_many_stages(tiny_next_frequency_pipeline, smooth):
    pipe = tiny_next_frequency_pipeline(channels=3)
    asked = {"class_labels": [0, 2], "smooth": smooth, "output_type": "pt"}
    pictures = stage_pictures(pipe.vqvae, pipe(generator=noise(0, 1), **asked).tokens)
    assert pictures.shape == (4, 2, 3, 16, 16) and pictures.min() >= 0 and pictures.max() <= 1
    for stage in range(4):
        preview = pipe(generator=noise(0, 1), num_stages=stage + 1, **asked).images
        assert torch.allclose(pictures[stage], preview, atol=1e-6)
    assert not torch.allclose(pictures[2], pictures[3], atol=1e-3)


@pytest.mark.parametrize("shape", [(12, 12), (7, 9)])
def test_powers_add_up_to_the_mean_square_around_the_mean_in_the_middle(shape):
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    power = 10 ** log_power(images)
    assert power.shape == (2, *shape)
    assert torch.allclose(power.sum((1, 2)), images.square().mean((1, 2, 3)), rtol=1e-4)
    middle = power[:, shape[0] // 2, shape[1] // 2]
    assert torch.allclose(middle, images.mean((2, 3)).square().mean(1), rtol=1e-4)


def test_a_wave_is_two_lights_at_its_frequency():
    x = torch.arange(16) / 16
    light = spectra(0.5 + 0.02 * torch.cos(2 * torch.pi * 3 * x).expand(1, 16, 16)).sum(0)
    darkest = torch.tensor([18, 20, 46]).sum() / 255
    assert (light > darkest + 0.1).nonzero().tolist() == [[8, 5], [8, 8], [8, 11]]
    assert light[8, 8] > light[8, 5] + 0.3 and torch.isclose(light[0, 0], darkest)


def test_stronger_is_lighter():
    levels = torch.tensor([1e-4, 1e-3, 1e-2, 1e-1])
    x = torch.cos(2 * torch.pi * torch.arange(8) / 8)
    lights = [spectra(level * x.expand(1, 8, 8))[:, 4, 5].sum().item() for level in levels]
    assert lights == sorted(lights) and len(set(lights)) == 4


def test_labels_say_which_frequencies_and_where_there_are_none(tiny_next_frequency_pipeline):
    def labels(**settings):
        return band_labels(tiny_next_frequency_pipeline(**settings).vqvae)

    assert labels(band_spacing=[0.5, 1.25, 2.0]) == ["< 0.5", "0.5 - 1.2", "1.2 - 2", ">= 2"]
    assert labels(band_spacing="none") == ["all"] * 4
    assert labels(stages=(4,)) == ["all"]
    # By the paper's rule the first radii of many stages lie between the same two frequencies.
    linear = labels(side=64, stages=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16), band_spacing="linear")
    assert linear[1:5] == ["none"] * 4 and linear[0] == "< 0.017" and "none" not in linear[5:]


def test_a_strip_shows_the_pictures_and_their_spectra(tiny_next_frequency_pipeline):
    vqvae = tiny_next_frequency_pipeline().vqvae
    pictures = torch.rand(3, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    sheet = stages_strip(pictures, vqvae)
    pixels = np.asarray(sheet)
    cell, top = 112 + 4 + 56, sheet.height - 2 * (112 + 8)
    for stage in range(3):
        for row in range(2):
            y, x = top + row * (112 + 8), 8 + stage * (cell + 8)
            shown = pixels[y + 3 : y + 112 : 7, x + 3 : x + 112 : 7, 0]
            assert np.abs(shown - 255 * pictures[stage, row, 0].numpy()).max() <= 0.51
            panel = pixels[y + 28 : y + 84, x + 116 : x + 172]
            middle = panel[28:31, 28:31].reshape(-1, 3)
            assert (middle == middle[0]).all() and middle[0].sum() > panel[:3, :3].mean() * 3, "the mean is brightest"
    named = stages_strip(pictures, vqvae, ["a", "b"], shown=32)
    assert named.height < sheet.height and named.width < sheet.width


def test_what_a_mask_hides_is_grey():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = 1
    shown = without(torch.ones(2, 3, 4, 4), mask)
    assert (shown[..., :2] == 1).all() and (shown[..., 2:] == 0.5).all()


def test_the_chapter_of_two_schedules(install, tmp_path, capsys):
    pipe = install("next-frequency-fashion")
    install("next-scale-fashion", band_spacing="none")
    page = build_gallery(Settings(tmp_path / "demo", seed=3)).read_text(encoding="utf-8")
    frequency, scale = page.split('<section id="next-scale-fashion">')
    for name in NAMES:
        assert frequency.count(f"<span>{name}</span>") >= 1
    edges = [f"{radius:.2g}" for radius in pipe.vqvae.radii]
    for band in [f"<span>&lt; {edges[0]}</span>", f"<span>{edges[1]}\N{EN DASH}{edges[2]}</span>"]:
        assert frequency.count(band) == 2 and band not in scale
    assert frequency.count("<b>Next scale</b>") == scale.count("<b>Next scale</b>") == 2
    assert "<b>Next frequency</b>" not in scale and "same seed" in frequency and "same seed" not in scale
    assert "104 tokens in 6 steps" in frequency and "A test image of the class" in frequency
    # The cover and four draws of ten classes; two classes in six stages with spectra, by both; 4 rows of 8; 2 of 8.
    assert frequency.count("<img") - 10 == 10 + 40 + 2 * 2 * 2 * 6 + 4 * 8 + 2 * 8
    assert scale.count("<img") == 40 + 2 * 2 * 6 + 4 * 8 + 2 * 8
    files = {path.name for path in (tmp_path / "demo" / "next-frequency-fashion").iterdir()}
    strips = {"stages-next-frequency-fashion.png", "stages-next-scale-fashion.png"}
    assert files == {"classes.png", "kept-stages.png", "in-painting.png", "image.png", "mask.png"} | strips

    shell, python = (unescape(block) for block in re.findall(r"<pre><code>(.*?)</code></pre>", frequency, re.S)[:2])
    commands = [shlex.split(line)[1:] for line in shell.replace("\\\n", " ").splitlines()]
    assert [main(command) for command in commands] == [0, 0, 0]
    exec(compile(python, "page", "exec"), {})
    capsys.readouterr()
    assert (tmp_path / "out" / "stages" / "stages.png").is_file()
    first = tmp_path / "out" / "stages" / "images" / "000.png"
    with Image.open("picture.png") as picture, Image.open(first) as drawn:
        assert np.abs(np.asarray(picture, float) - np.asarray(drawn, float)).max() <= 1
    plan = json.loads((tmp_path / "out" / "kept" / "run.json").read_text())["stats"]["plan"]
    assert plan["keep_stages"] == 2


def test_examples_are_test_images_of_different_classes_that_the_seed_chooses(install):
    pipe = install("clothes")
    folder = builtin_checkpoints()["clothes"].path
    first, again, other = (examples(pipe, folder, 3, seed) for seed in (0, 0, 1))
    assert first.unseen and len(set(first.labels)) == 3
    assert torch.equal(first.images, again.images) and first.labels == again.labels != other.labels
    tests = load_dataset("fashion-mnist", "test")
    rows = [int((tests.images == (255 * image).round()).flatten(1).all(1).nonzero()[0]) for image in first.images]
    assert tests.labels[rows].tolist() == first.labels


def test_without_test_images_a_picture_of_its_own_is_kept(install, tmp_path):
    recipe = "data: {name: emoji, root: nowhere, size: 32}\n"
    pipe = install("faces", recipe, names=("a & b", "c"), side=32, channels=3, stages=(1, 2, 4, 8))
    page = build_gallery(Settings(tmp_path / "demo", num_images=1)).read_text(encoding="utf-8")
    assert "A picture the model drew (its test images are not on this machine), of the class" in page
    assert "colour" in page and "a &amp; b" in page and "a & b" not in page
    given = examples(pipe, builtin_checkpoints()["faces"].path, 2, 5)
    assert not given.unseen and sorted(given.labels) == [0, 1]
    assert torch.equal(given.images, pipe(given.labels, generator=noise(5, 6), output_type="pt").images)


def test_only_what_can_be_compared_is(install):
    install("bands")
    install("other-classes", names=NAMES[:9], band_spacing="none")
    install("other-stages", stages=(1, 3, 7), band_spacing="none")
    found = builtin_checkpoints()
    assert counterpart(found["bands"]) is None and counterpart(found["other-classes"]) is None
    install("scales", band_spacing="none")
    assert counterpart(found["bands"]) == builtin_checkpoints()["scales"]


def test_a_model_without_names_of_classes(install, tmp_path):
    pipe = install("numbers")
    pipe.register_to_config(class_names={})
    pipe.save_pretrained(tmp_path / "checkpoints" / "numbers")
    page = build_gallery(Settings(tmp_path / "demo", num_images=1)).read_text(encoding="utf-8")
    assert "<span>9</span>" in page and "--class" in page
