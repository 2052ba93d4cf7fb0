"""Masked generation for people: pictures as they are revealed, maps of when, and the gallery's chapter."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.app import masked_generation_section
from gendiff.app.checkpoint_data import training_examples
from gendiff.app.examples import examples_of
from gendiff.app.gallery import build_gallery
from gendiff.app.masked_generation_answers import by_order, closest, compare, middle, paint, pixels
from gendiff.app.masked_generation_pictures import (
    HIDDEN,
    KNOWN,
    on_pixels,
    order_maps,
    order_sheet,
    shown_steps,
    step_colours,
    step_labels,
    step_pictures,
    veiled,
)
from gendiff.app.section import Settings
from gendiff.cli import main
from gendiff.models.masked.mar import MARTransformer2DModel
from gendiff.models.masked.patch_vq import PatchVQTokenizer
from gendiff.models.masked.pixel_patches import PixelPatchTokenizer
from gendiff.pipelines import registry
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.samplers.masked import MaskedScheduler

NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
RECIPE = "data: {name: fashion-mnist-full, root: nowhere}\nobjective: {flip: true}\n"


@pytest.fixture
def install(tmp_path, monkeypatch, tiny_masked_pipeline):
    """`install(name, recipe=RECIPE, **settings)`: save an untrained pipeline as a built-in checkpoint, the only one."""
    monkeypatch.setattr(registry, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)

    def save(name, recipe=RECIPE, **settings):
        pipe = tiny_masked_pipeline(**{"names": NAMES, "grid": 7, "patch": 4, **settings})
        pipe.save_pretrained(tmp_path / "checkpoints" / name)
        (tmp_path / "checkpoints" / name / "recipe.yaml").write_text(recipe)
        return pipe

    return save


def noise(*seeds) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_token_lies_over_its_pixels_also_where_the_picture_was_padded():
    tokenizer = PatchVQTokenizer(6, 1, 2, 4, padding=1)  # 4 x 4 tokens over 8 x 8 pixels, of which 6 x 6 are shown
    numbers = on_pixels(torch.arange(16.0).view(1, 16, 1), tokenizer)[0, 0]
    assert numbers[0].tolist() == [0, 1, 1, 2, 2, 3] and numbers[:, 0].tolist() == [0, 4, 4, 8, 8, 12]
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 5] = True
    shown = veiled(torch.zeros(1, 1, 6, 6), hidden, tokenizer)
    assert torch.equal(shown[0, :, 1:3, 1:3], HIDDEN[:, None, None].expand(3, 2, 2))
    assert shown.sum().isclose(4 * HIDDEN.sum())


def test_after_a_step_stand_the_tokens_decided_until_then(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline(channels=3)
    out = pipe([0, 1], num_inference_steps=6, generator=noise(0, 1), output_type="pt")
    states = []

    def remember(pipe, step, timestep, kwargs):
        states.append((kwargs["latents"].clone(), kwargs["hidden"].clone()))
        return {}

    names = ["latents", "hidden"]
    pipe(
        [0, 1],
        num_inference_steps=6,
        generator=noise(0, 1),
        callback_on_step_end=remember,
        callback_on_step_end_tensor_inputs=names,
    )
    pictures = step_pictures(out.images, out.revealed_at, range(-1, 6), pipe.image_tokenizer)
    assert pictures.shape == (7, 2, 3, 8, 8) and torch.equal(pictures[-1], out.images)
    assert torch.equal(pictures[0], HIDDEN[:, None, None].expand(2, 3, 8, 8))
    for shown, (tokens, hidden) in zip(pictures[1:], states, strict=True):
        # Each token is a patch of its own, so what a step knows can be decoded by itself.
        decoded = pipe.image_tokenizer.decode(tokens.masked_fill(hidden, 0)) / 2 + 0.5
        assert torch.allclose(shown, veiled(decoded, hidden, pipe.image_tokenizer), atol=1e-6)


def test_maps_are_lighter_where_tokens_were_decided_later_and_grey_where_they_were_known():
    tokenizer = PatchVQTokenizer(4, 1, 2, 4)
    maps = order_maps(torch.tensor([[-1, 0, 1, 2]]), 3, tokenizer)
    assert maps.shape == (1, 3, 4, 4)
    cells = maps[0, :, ::2, ::2].flatten(1).T
    assert torch.equal(cells, torch.stack([KNOWN, *step_colours(3)]))
    lights = step_colours(16).sum(1)
    assert (lights.diff() > 0).all()


@pytest.mark.parametrize(
    ("count", "steps"), [(0, []), (1, [0]), (5, [0, 1, 2, 3, 4]), (16, [1, 3, 5, 7, 9, 11, 13, 15])]
)
def test_the_steps_that_are_shown_end_with_the_last(count, steps):
    assert shown_steps(count) == steps


def test_labels_say_what_a_step_was():
    groups, revealed = [[0], [1, 2]], [1, 2, 4]
    assert step_labels([-1, 0, 2], groups, revealed, 3) == [
        "given\n\n3 of 10",
        "step 1\nfull\n4 of 10",
        "step 3\nlight\n10 of 10",
    ]
    assert step_labels([1], [[0], [1], [2]], revealed, 0) == ["step 2\n3 of 7"]


def test_a_sheet_begins_a_row_with_each_name_and_ends_with_the_colours():
    images, maps = torch.rand(6, 1, 28, 28), torch.rand(6, 3, 28, 28)
    sheet = order_sheet(images, maps, 5, ["a"] * 5 + ["b"])
    pair, bar = 112 + 4 + 112 + 8, 14 + 16
    assert sheet.height == 8 + 3 * (112 + 8) + bar and 4 * pair < sheet.width < 4 * pair + 40
    row = np.asarray(sheet)[-bar // 2]
    ends = [(255 * colour).round() for colour in (step_colours(5)[0], step_colours(5)[-1])]
    where = [np.flatnonzero((row == end.numpy()).all(1)) for end in ends]
    assert len(where[0]) == len(where[1]) == 48 and where[0][0] < where[1][0], "five colours over 240 px"


def test_four_ways_of_one_seed_the_third_at_the_price_of_the_second(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline(NAMES, grid=7, patch=4)
    ways = compare(pipe, [2, 5], 3, 12)
    groups = [[len(group) for group in way.output.stats.plan["groups"]] for way in ways]
    assert groups[0] == [1] * 12 and groups[1] == [1, 1, 1, 2, 2, 2, 2, 1] and groups[3] == [4, 4, 4]
    base, light, fewer, more = (way.output.stats for way in ways)
    assert base.flops > light.flops > more.flops
    step = base.flops / base.network_calls
    assert abs(fewer.flops - light.flops) < 2 * step, "within a step of both branches"
    assert [bool(way.staleness) for way in ways] == [False, True, False, True]
    assert all(way.seconds > 0 for way in ways)
    alone = pipe([2], num_inference_steps=12, generator=noise(3), output_type="pt").images
    assert torch.allclose(pixels(ways[0].output)[:1], alone, atol=1e-5)


def test_orders_are_compared_and_the_scheduler_is_left_as_it_was(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    own = pipe.scheduler
    outputs = by_order(pipe, 1, 0, 4)
    assert list(outputs) == ["confidence", "halton"] and pipe.scheduler is own
    assert not torch.equal(*(output.revealed_at for output in outputs.values()))


@pytest.mark.parametrize("flip", [True, False])
def test_a_mirrored_copy_of_training_is_found_where_training_mirrored(install, tmp_path, flip):
    install("clothes", RECIPE if flip else RECIPE.replace("true", "false"))
    folder = tmp_path / "checkpoints" / "clothes"
    copies = training_examples(folder)[[4, 90]]
    assert closest(folder, copies)[1] == [0, 0]
    distances = closest(folder, copies.flip(-1))[1]
    assert (distances == [0, 0]) == flip


def test_what_is_drawn_anew_is_hidden_with_a_ring_and_the_rest_is_kept(tiny_masked_pipeline, tmp_path):
    pipe = tiny_masked_pipeline(grid=9, patch=1)
    given = examples_of(tmp_path, 3, 2, 0, lambda labels: pixels(pipe(labels, output_type="pt", generator=noise(0, 1))))
    assert not given.unseen and len(set(given.labels)) == 2
    painted = paint(pipe, given, 0, 3)
    assert painted.masks[0].sum() == 9 and painted.hidden[0].sum() == 25, "3 x 3 and the ring around it"
    assert torch.equal(painted.masks[:1], middle(9)) and painted.masks[1].sum() == 9 * 5
    kept = ~painted.hidden[0].view(9, 9)
    assert torch.allclose(painted.draws[0][:, 0, kept], given.images[0, 0, kept].expand(3, -1), atol=1e-5)
    outside = painted.masks[0, 0] == 0
    assert torch.allclose(painted.blended[0, 0][outside], given.images[0, 0][outside], atol=1e-5)
    assert not torch.allclose(painted.draws[0, 0], painted.draws[0, 1])


def test_the_chapter(install, tmp_path, capsys):
    pipe = install("maskgit-fashion")
    page = build_gallery(Settings(tmp_path / "demo", seed=3, steps=6)).read_text(encoding="utf-8")
    for name in NAMES:
        assert f"<span>{name}</span>" in page
    assert "7 &times; 7, each one of 16 codes" in page and "surest first, cosine schedule" in page
    assert "Test images of which a part" in page and "nearest training image" in page
    costs = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', page)
    cells = {name: re.findall(r"<td>(.*?)</td>", row) for name, row in costs}
    assert list(cells) == ["Base", "ReCAP", "Base, fewer", "ReCAP, more"]
    assert (
        cells["Base"][:2] == ["6", "0"] and cells["ReCAP"][:2] == ["4", "2"] and cells["ReCAP, more"][:2] == ["2", "4"]
    )
    ratios = [float(row[4]) for row in cells.values()]
    assert ratios[0] == 1 and ratios[3] < ratios[1] < 1
    assert page.count("nats away from what a full one would have said") == 2
    # Two classes in two orders, six steps and the map; four ways of four classes; ten draws and their nearest; two
    # examples of seven pictures. And the cover.
    assert page.count("<img") == 2 * 2 * 7 + 4 * 4 + 2 * 10 + 2 * 7 + 6
    files = {path.name for path in (tmp_path / "demo" / "maskgit-fashion").iterdir()}
    assert files == {"classes.png", "order.png", "recap.png", "in-painting.png", "image.png", "mask.png"}

    shell, python = (unescape(block) for block in re.findall(r"<pre><code>(.*?)</code></pre>", page, re.S))
    commands = [shlex.split(line)[1:] for line in shell.replace("\\\n", " ").splitlines()]
    assert [main(command) for command in commands] == [0, 0, 0]
    assert (tmp_path / "out" / "order" / "order.png").is_file()
    plan = json.loads((tmp_path / "out" / "recap" / "run.json").read_text())["stats"]["plan"]
    capsys.readouterr()
    exec(compile(python, "page", "exec"), {})
    assert capsys.readouterr().out.startswith(str(plan["groups"]))
    with Image.open("picture.png") as picture, Image.open(tmp_path / "out" / "recap" / "images" / "000.png") as drawn:
        assert np.abs(np.asarray(picture, float) - np.asarray(drawn, float)).max() <= 1
    assert pipe.num_classes == 10


def test_one_class_with_a_name_that_is_markup(install, tmp_path):
    install("faces", "data: {name: emoji, root: nowhere, size: 32}\n", names=("a & b",), grid=4)
    with pytest.raises(FileNotFoundError, match="emoji"):
        build_gallery(Settings(tmp_path / "demo", num_images=1, steps=2))
    assert not (tmp_path / "demo").exists()
    recipe = "data: {name: pendulum, size: 16, num_images: 12}\n"
    install("faces", recipe, names=("a & b",), grid=4, patch=4, channels=3)
    page = build_gallery(Settings(tmp_path / "demo", num_images=1, steps=2)).read_text(encoding="utf-8")
    assert "a &amp; b" in page and "a & b" not in page and "colour" in page
    assert "Pictures that the model drew (its test images are not on this machine)" in page


@pytest.fixture
def continuous(tmp_path, monkeypatch):
    """An installation whose only checkpoint is an untrained MAR, 3 x 3 vectors of 16 numbers."""
    monkeypatch.setattr(registry, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    mar = MARTransformer2DModel(3, 16, 2, num_buffer_rows=2, head_width=16, head_layers=1, token_range=1.0, **sizes)
    pipe = MaskedGenerationPipeline(
        mar.eval(), PixelPatchTokenizer(12), MaskedScheduler(order="random"), ("one", "two")
    )
    folder = tmp_path / "checkpoints" / "mar-tiny"
    pipe.save_pretrained(folder)
    (folder / "recipe.yaml").write_text("data: {name: pendulum, size: 12, num_images: 12}\n")
    return pipe


def test_the_chapter_of_continuous_tokens(continuous, monkeypatch, tmp_path):
    monkeypatch.setattr(masked_generation_section, "closest", lambda folder, images: (images, [0.0] * len(images)))
    page = build_gallery(Settings(tmp_path / "demo", num_images=1, steps=4)).read_text(encoding="utf-8")
    assert "3 &times; 3, each a vector of 16 numbers" in page and "random, cosine schedule" in page
    assert "GFLOP / image (head)" in page and page.count("% off those of a full one") == 2
    assert "<b>Random</b>" in page and "<b>Halton points</b>" in page


def test_the_command_for_continuous_tokens(continuous, tmp_path, capsys):
    def sample(out, *arguments):
        start = ["sample", "masked-generation", "--model", "mar-tiny", "--class", "two", "--steps", "4"]
        return main([*start, *arguments, "--out", str(tmp_path / out)])

    assert sample("a", "--head-steps", "5", "--recap", "light=1,light_head_steps=2", "--order-map") == 0
    assert sample("b", "--head-steps", "5") == 0
    plans = [json.loads((tmp_path / out / "run.json").read_text())["stats"]["plan"] for out in "ab"]
    assert plans[0]["groups"] == [[0, 1], [2, 3]] and 0 < plans[0]["flops"]["head"] < plans[1]["flops"]["head"]
    continuous.set_progress_bar_config(disable=True)
    wanted = continuous("two", 4, 4, generator=noise(0, 1, 2, 3), num_head_steps=5, output_type="pt").images
    with Image.open(tmp_path / "b" / "images" / "002.png") as drawn:
        assert np.abs(np.asarray(drawn, float) - 255 * wanted[2, 0].numpy()).max() <= 0.51
    capsys.readouterr()
    for arguments, message in (
        (["--temperature", "2"], "--temperature needs a model that predicts codes"),
        (["--sampling-temperature", "2"], "--sampling-temperature needs a model that predicts codes"),
        (["--order", "confidence"], "order must be halton or random for continuous tokens, got 'confidence'"),
        (["--head-steps", "0"], "num_head_steps must be a whole number from"),
        (["--recap", "light_head_steps=9", "--head-steps", "5"], "light_head_steps must be"),
    ):
        assert sample("c", *arguments) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gendiff")]
        assert len(lines) == 1 and message in lines[0] and not (tmp_path / "c").exists()
