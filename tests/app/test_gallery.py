"""The gallery page: stands alone, shows what the models answer beside the truth, and can be asked again."""

from __future__ import annotations

import base64
import io
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import gendiff
from gendiff.app import gallery
from gendiff.app.counterfactual_answers import decimals, exhibit, grey_levels, spread, sweep_values
from gendiff.app.gallery import CHAPTERS, build_gallery
from gendiff.app.markup import enlargement, listing, number
from gendiff.app.section import Settings
from gendiff.causal.graph import CausalGraph, Variable
from gendiff.cli import main
from gendiff.data import load_dataset
from gendiff.data.handwriting import handwriting_graph
from gendiff.data.pendulum import pendulum_graph
from gendiff.data.rendered import RenderedDataset
from gendiff.pipelines import registry

STEPS, COUNT = 2, 3
DIGIT = Variable("digit", kind="categorical", num_classes=10)
SIDE = Variable("side", kind="binary")


class Page(HTMLParser):
    """Tags of a page with their attributes, and the text of its code blocks."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.code = re.findall(r"<pre><code>(.*?)</code></pre>", text, re.S)
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def images(self) -> list[Image.Image]:
        sources = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


@pytest.fixture
def installed(tmp_path, monkeypatch, tiny_counterfactual_pipeline):
    """An installation whose only checkpoint is an untrained pendulum of 16 px."""
    folder = tmp_path / "checkpoints" / "counterfactual-pendulum"
    pipe = tiny_counterfactual_pipeline(graph=pendulum_graph(), channels=3)
    pipe.save_pretrained(folder)
    (folder / "recipe.yaml").write_text("data: {name: pendulum, size: 16, num_images: 12}\n")
    monkeypatch.setattr(registry, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(pipe=pipe, dataset=load_dataset("pendulum", "test", size=16, num_images=12), root=tmp_path)


@pytest.fixture
def page(installed):
    path = build_gallery(Settings(installed.root / "demo", seed=1, steps=STEPS, num_images=COUNT))
    return SimpleNamespace(folder=path.parent, text=path.read_text(encoding="utf-8"), **vars(installed))


def test_every_task_has_a_chapter():
    assert set(CHAPTERS) == set(registry.TASKS)


def test_the_page_stands_alone_and_its_pictures_lie_beside_it(page):
    parsed = Page(page.text)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "iframe", "object", "embed", "base"}
    for tag, attributes in parsed.tags:
        assert re.match(r"data:image/(png|gif);base64,", attributes.get("src") or "") or tag != "img"
        assert attributes.get("href", "#").startswith(("#", "data:,"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|url\(|@import", page.text)
    anchors = {attributes["href"][1:] for tag, attributes in parsed.tags if tag == "a"}
    assert anchors == {"counterfactual-pendulum"} <= {attributes.get("id") for _, attributes in parsed.tags}
    assert all(image.size == (16, 16) and image.format == "PNG" for image in parsed.images())
    names = {path.name for path in (page.folder / "counterfactual-pendulum").iterdir()}
    variables = page.pipe.graph.names
    assert names == {f"image-{i}.png" for i in (1, 2, 3)} | {f"{a}-{n}.png" for a in ("do", "sweep") for n in variables}
    assert {path.name for path in page.folder.iterdir()} == {"index.html", "counterfactual-pendulum"}
    assert "${" not in page.text and "$style" not in page.text


def test_each_variable_has_a_graph_and_its_pictures(page):
    parsed = Page(page.text)
    graphs = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(graphs) == 1 + len(page.pipe.graph.names)
    for name in page.pipe.graph.names:
        assert f"<h4>do({name})</h4>" in page.text
        assert sum(f"set by hand: {name}" in svg["aria-label"] for svg in graphs) == 1
    # A cover of 7; for each variable the images, answers and truths, a sweep of 7 and its truths; one example of 3.
    assert len(parsed.images()) == 7 + 4 * (3 * COUNT + 2 * 7) + 3


def test_the_page_can_be_asked_again(page, capsys):
    shell, python = (block.replace("&quot;", '"').replace("&#x27;", "'") for block in Page(page.text).code)
    assert main(shlex.split(shell.replace("\\\n", " ").splitlines()[0])[1:]) == 0
    exec(compile(python, "page", "exec"), {})
    capsys.readouterr()
    answer = np.asarray(Image.open("answer.png"), dtype=int)
    assert np.abs(answer - np.asarray(Image.open("out/answer/counterfactual.png"), dtype=int)).max() <= 1
    shown = [np.asarray(image, dtype=int) for image in Page(page.text).images()]
    assert np.abs(answer - shown[-2]).max() <= 1, "the model's picture in the page's example"
    sweep = shlex.split(shell.replace("\\\n", " ").splitlines()[1])[1:]
    assert main(sweep) == 0 and (page.root / "out" / "sweep" / "sweep.png").is_file()


@pytest.fixture
def shown(installed):
    return exhibit(installed.pipe, installed.dataset, COUNT, 5, STEPS, lambda stage: None)


def test_answers_are_those_of_the_pipeline_asked_one_by_one(installed, shown):
    for name in ("angle", "shadow_pos"):
        answers = shown.one_value_each[name]
        for i, value in enumerate(answers.values):
            alone = installed.pipe(shown.images[i : i + 1], {name: value}, num_inference_steps=STEPS, output_type="pt")
            assert torch.allclose(alone.images[0], answers.pictures[i], atol=1e-4)
            assert alone.counterfactual["shadow_pos"].item() == pytest.approx(answers.factors["shadow_pos"][i].item())
        swept = shown.sweeps[name]
        last = installed.pipe(
            shown.images[:1], {name: swept.values[-1]}, num_inference_steps=STEPS, output_type="pt"
        ).images[0]
        assert torch.allclose(last, swept.pictures[-1], atol=1e-4)
        assert torch.equal(swept.before, shown.images[:1].expand_as(swept.before))


def test_truths_and_distances_are_those_of_the_data(installed, shown):
    answers = shown.one_value_each["light"]
    for i, (index, value) in enumerate(zip(shown.indices, answers.values, strict=True)):
        truth, values = installed.dataset.counterfactual(index, {"light": value})
        truth = (truth.numpy() + 1) / 2
        assert np.allclose(answers.truth[i], truth)
        assert answers.true_values["shadow_len"][i].item() == pytest.approx(values["shadow_len"])
        assert answers.errors[i] == pytest.approx(255 * np.abs(answers.pictures[i].numpy() - truth).mean(), rel=1e-5)
        assert answers.unchanged_errors[i] == pytest.approx(
            255 * np.abs(shown.images[i].numpy() - truth).mean(), rel=1e-5
        )
    assert max(shown.reconstruction_errors) < 0.1


def test_the_cost_is_counted(shown):
    # EDICT asks the network twice a step: abduction, decoding, and one batch for each of four variables.
    assert shown.network_calls == 2 * STEPS * (2 + 4)
    assert shown.seconds > 0


def test_the_seed_chooses_the_images(installed, shown):
    again = exhibit(installed.pipe, installed.dataset, COUNT, 5, STEPS, lambda stage: None)
    other = exhibit(installed.pipe, installed.dataset, COUNT, 6, STEPS, lambda stage: None)
    assert again.indices == shown.indices != other.indices
    assert torch.equal(again.one_value_each["angle"].pictures, shown.one_value_each["angle"].pictures)


class Unanswerable(RenderedDataset):
    """Handwriting's graph on noise of 16 px; no intervention has a truth and nothing can be read."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.graph = handwriting_graph()
        self.images = torch.randint(256, (4, 1, 16, 16), generator=generator, dtype=torch.uint8)
        self.labels = torch.tensor([[3.0, 100.0, 7.0]]).repeat(4, 1)

    def structural(self, index, interventions):
        raise ValueError("no truth")

    def render(self, labels, indices):
        raise ValueError("no picture")

    def read(self, images):
        return {}


def test_without_truth_there_is_no_truth_row(tmp_path, monkeypatch, tiny_counterfactual_pipeline):
    tiny_counterfactual_pipeline(graph=handwriting_graph()).save_pretrained(tmp_path / "checkpoints" / "digits")
    monkeypatch.setattr(registry, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr("gendiff.app.counterfactual_section.checkpoint_dataset", lambda model: Unanswerable())
    text = build_gallery(Settings(tmp_path / "demo", steps=1, num_images=2)).read_text(encoding="utf-8")
    assert text.count("there is nothing to compare with") == 6
    assert "<b>Truth</b><small>" not in text and "<small>as measured</small>" not in text
    # A cover of 7, sweeps of 7, 7 and 10, two images with an answer each for three variables, an example of 2.
    assert len(Page(text).images()) == 7 + 24 + 3 * 4 + 2


def test_a_failure_leaves_nothing_behind(installed, monkeypatch):
    def fail(checkpoint, settings, say):
        assert settings.out.is_dir()
        raise RuntimeError("no memory")

    monkeypatch.setitem(CHAPTERS, "counterfactual", replace(CHAPTERS["counterfactual"], build=fail))
    with pytest.raises(RuntimeError, match="no memory"):
        build_gallery(Settings(installed.root / "new" / "demo"))
    assert not (installed.root / "new").exists()


def test_an_older_page_survives_a_failure(page, monkeypatch):
    monkeypatch.setattr(gallery, "render_page", lambda *arguments: 1 / 0)
    before = {path: path.read_bytes() for path in page.folder.rglob("*.*")}
    with pytest.raises(ZeroDivisionError):
        build_gallery(Settings(page.folder, seed=2, steps=STEPS, num_images=1))
    assert {path: path.read_bytes() for path in page.folder.rglob("*.*")} == before


def test_no_checkpoint_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "CHECKPOINTS", tmp_path)
    with pytest.raises(ValueError, match="no built-in checkpoint"):
        build_gallery(Settings(tmp_path / "demo"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"num_images": True}, "num_images must be a whole number of at least 1, got True"),
    ],
)
def test_settings_are_checked(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(tmp_path, **settings)


def test_more_images_than_there_are(installed):
    with pytest.raises(ValueError, match="num_images must be at most 12, the number of test images, got 13"):
        exhibit(installed.pipe, installed.dataset, 13, 0, STEPS, lambda stage: None)


@pytest.mark.parametrize("variable", [*pendulum_graph().variables, *handwriting_graph().variables, SIDE])
def test_values_lie_in_range_and_can_be_typed(variable):
    graph = CausalGraph([variable])
    for values in (spread(variable, 7), sweep_values(variable)):
        gendiff.causal.intervention.check_interventions(graph, {variable.name: values}, len(values))
    typed = spread(variable, 7)
    assert typed == [float(f"{value:g}") for value in typed]
    assert typed == sorted(typed) or variable is SIDE
    assert len(set(typed)) == (2 if variable is SIDE else 7)


def test_sweeps_reach_both_ends():
    angle = pendulum_graph()["angle"]
    assert (sweep_values(angle)[0], sweep_values(angle)[-1]) == (angle.low, angle.high)
    assert sweep_values(DIGIT) == list(range(10)) and spread(DIGIT, 12)[-2:] == [0, 1]
    assert sweep_values(Variable("free", loc=5.0, scale=2.0))[0] == 3.0


def test_distance_is_in_grey_levels():
    assert grey_levels(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)) == [255.0, 255.0]


def test_captions():
    assert [number(-0.001, 2), number(-12.34, 1), number(254.6, 0)] == ["0.00", "\N{MINUS SIGN}12.3", "255"]
    assert [decimals(variable) for variable in pendulum_graph().variables[:3]] == [1, 1, 2] and decimals(DIGIT) == 0
    assert [enlargement(28, 7), enlargement(32, 7), enlargement(28, 10), enlargement(64, 3), enlargement(256)] == [
        *(3, 3, 2, 1, 1)
    ]
    assert listing(["a", "b", "<c>"]) == "<code>a</code>, <code>b</code> and <code>&lt;c&gt;</code>"
