"""The gallery's chapter on LINA: the same noise both ways, verdicts of the world's own verifier, and honest words."""

from __future__ import annotations

import base64
import io
import re
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.app import lina_section
from gendiff.app.gallery import build_gallery
from gendiff.app.lina_answers import answers
from gendiff.app.lina_verdicts import verdicts
from gendiff.app.lina_worlds import KINDS, true_picture, world_class
from gendiff.app.section import Settings
from gendiff.data.shadow_world import ShadowWorld
from gendiff.data.swap_world import SwapWorld
from gendiff.models.lina_predictor import LINAPredictor
from gendiff.pipelines import registry
from gendiff.pipelines.base import pipeline
from gendiff.pipelines.lina import LINAPipeline
from gendiff.pipelines.registry import builtin_checkpoints
from gendiff.samplers.action_box import PRESETS
from gendiff.training.lina import build

WORLDS = {"shadow-world": ShadowWorld, "swap-world": SwapWorld}
COUNT, SEED, STEPS = 2, 3, 2


def tiny(world: str, gate: float) -> LINAPipeline:
    """An untrained model of a world with a predictor that opens its gate, or not, for every prompt."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = build({"transformer": {"num_layers": 1, "num_attention_heads": 2}}, WORLDS[world](num_images=96))
        # Zero at first, which would draw the same picture whatever the prompt.
        torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.3)
        predictor = LINAPredictor(pipe.text_encoder.config.hidden_size, PRESETS["small"].box(["side"]).to_dict())
    with torch.no_grad():
        predictor.out.bias.copy_(torch.tensor([0.0, 0.3, 0.0, 0.0, 0.0, gate]))
    pipe.register_modules(predictor=predictor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(pipe)`: save it as the only built-in checkpoint, "lina-tiny"."""
    monkeypatch.setattr(registry, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)

    def save(pipe):
        pipe.save_pretrained(tmp_path / "checkpoints" / "lina-tiny")
        return builtin_checkpoints()["lina-tiny"]

    return save


def section(checkpoint, tmp_path):
    settings = Settings(tmp_path / "demo", seed=SEED, steps=STEPS, num_images=COUNT)
    return lina_section.build(checkpoint, settings, lambda stage: None)


def drawn(html: str, alt: str) -> np.ndarray:
    """The first picture whose text begins with `alt`, (S, S, 3)."""
    found = re.search(rf'<img src="data:image/png;base64,([^"]+)"[^>]*alt="{re.escape(alt)}', html)
    assert found is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))), dtype=int)


@pytest.mark.parametrize("world", WORLDS)
def test_each_kind_of_prompt_is_drawn_both_ways_and_judged_by_the_world(world):
    pipe = tiny(world, gate=5.0)
    found = answers(pipe, COUNT, SEED, STEPS)
    assert [answer.kind for answer in found] == list(KINDS[world])
    for answer in found:
        assert len(set(answer.prompts)) == COUNT
        assert set(answer.prompts) <= set(WORLDS[world].prompts(answer.kind.name))
        assert answer.calibrated is (answer.kind.name in WORLDS[world].calibration)
        for way, intervention in ((answer.plain, "off"), (answer.lina, "auto")):
            generator = [torch.Generator().manual_seed(answer.seed + i) for i in range(COUNT)]
            again = pipe(
                answer.prompts,
                num_inference_steps=STEPS,
                intervention=intervention,
                generator=generator,
                output_type="pt",
                return_dict=False,
            )[0]
            assert torch.equal(again, way.images)
            checks = WORLDS[world].check(2 * again - 1, answer.prompts)
            for i, verdict in enumerate(way.found):
                assert verdict.checks == {name: bool(passed[i]) for name, passed in checks.items()}
        assert not torch.equal(answer.plain.images, answer.lina.images)
    seeds = [answer.seed + i for answer in found for i in range(COUNT)]
    assert len(set(seeds)) == len(seeds), "no two prompts share their noise"


def test_a_shut_gate_draws_the_plain_picture_to_the_bit():
    for answer in answers(tiny("shadow-world", gate=-5.0), COUNT, SEED, STEPS):
        assert torch.equal(answer.plain.images, answer.lina.images)
        assert answer.plain.output.nfe == answer.lina.output.nfe


@pytest.mark.parametrize("world", WORLDS)
def test_the_right_picture_of_a_prompt_passes_and_that_of_another_does_not(world):
    pipe = tiny(world, gate=0.0)
    prompts = WORLDS[world].prompts(KINDS[world][0].name)
    graph = pipe.grammar.parse(prompts[0])
    right = [true_picture(world, pipe.grammar.values(text)) for text in prompts]
    truths = torch.stack([picture for picture in right if picture is not None])
    assert len(truths) == len(prompts)
    assert all(verdict.passed and not verdict.failed for verdict in verdicts(world, truths, prompts, graph))
    # What the contrast pushes away from.
    others = [pipe.grammar.counterfactual(text) for text in prompts]
    wrong = verdicts(world, truths, others, graph)
    missed = {"shadow-world": {"side", "shadow dir"}, "swap-world": {"order"}}[world]
    assert all(missed <= set(verdict.failed) and verdict.scores["pap_all"] == 0 for verdict in wrong)
    assert world_class(world) is WORLDS[world]


@pytest.mark.parametrize("world", WORLDS)
def test_the_section_counts_what_it_shows_and_says_what_was_done(world, install, tmp_path):
    checkpoint = install(tiny(world, gate=5.0))
    made = section(checkpoint, tmp_path)
    found = answers(pipeline("lina", checkpoint.path), COUNT, SEED, STEPS)
    plain, lina = (sum(getattr(answer, way).right for answer in found) for way in ("plain", "lina"))
    said = re.findall(r"<b>(\d+) of (\d+)</b> plain, <b>(\d+) of (\d+)</b> with", made.html)
    assert [sum(int(row[i]) for row in said) for i in range(4)] == [plain, COUNT * len(found), lina, COUNT * len(found)]
    assert made.html.count('class="cell right"') == plain + lina
    assert made.html.count('class="cell wrong"') == 2 * COUNT * len(found) - plain - lina
    lam = found[0].lina.output.interventions[0].lam
    assert lam > 0 and made.html.count(f"contrast {lam:.2g}") == COUNT * len(found)
    # A right picture, a plain one and LINA's of each prompt; the cover is apart.
    assert made.html.count("<img") == 3 * COUNT * len(found) and made.cover.count("<img") == 2 * COUNT
    for answer in found:
        for i, prompt in enumerate(answer.prompts):
            for name, way in (("Plain", answer.plain), ("LINA", answer.lina)):
                shown = drawn(made.html, f"{name}, {prompt}")
                assert np.abs(shown - 255 * way.images[i].permute(1, 2, 0).numpy()).max() <= 0.51
    assert "benchmarks/results/lina.md" in made.html
    # The graph of the first prompt, with every node.
    graph = made.html.split("<svg")[1].split("</svg>")[0]
    assert all(node.id in graph for node in pipeline("lina", checkpoint.path).grammar.parse(found[0].prompts[0]).nodes)
    pictures = [name for name in made.files if name.endswith(".png")]
    assert sorted(pictures) == sorted(f"lina-tiny/{kind.name}.png" for kind in KINDS[world])


def test_a_picture_that_is_wrong_says_what_is(install, tmp_path):
    checkpoint = install(tiny("swap-world", gate=-5.0))
    html = section(checkpoint, tmp_path).html
    for answer in answers(pipeline("lina", checkpoint.path), COUNT, SEED, STEPS):
        for prompt, verdict in zip(answer.prompts, answer.plain.found, strict=True):
            assert verdict.failed, "an untrained model draws no shape"
            assert f"Plain, {prompt}; wrong: {', '.join(verdict.failed)}" in html
            assert all(f"<span>{name}</span>" in html for name in verdict.failed)


def test_a_model_of_an_unknown_world_is_shown_without_verdicts(install, tmp_path):
    pipe = tiny("swap-world", gate=5.0)
    pipe.register_to_config(world="")
    html = section(install(pipe), tmp_path).html
    assert html.count("<img") == 2 * COUNT
    assert "All right" not in html and 'class="cell right"' not in html and 'class="cell wrong"' not in html


def test_the_page_has_the_chapter_and_its_example_draws_the_picture_shown(install, tmp_path):
    checkpoint = install(tiny("shadow-world", gate=5.0))
    settings = Settings(tmp_path / "demo", seed=SEED, steps=STEPS, num_images=COUNT)
    page = build_gallery(settings).read_text(encoding="utf-8")
    assert 'id="lina"' in page and 'id="lina-tiny"' in page
    assert "arXiv 2512.13290" in page and "formulas are not published" in " ".join(page.split())
    assert "gendiff&rsquo;s realisation of LINA" in page
    assert (tmp_path / "demo" / "lina-tiny" / "ood-blue.png").is_file()
    python = unescape(re.findall(r"<code>(import gendiff.*?)</code>", page, flags=re.DOTALL)[-1])
    exec(compile(python, "page", "exec"), {})
    first = answers(pipeline("lina", checkpoint.path), COUNT, SEED, STEPS)[0].prompts[0]
    example = np.asarray(Image.open("picture.png"), dtype=int)
    assert np.abs(example - drawn(page, f"LINA, {first}")).max() <= 1
