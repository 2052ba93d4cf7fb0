"""Training a tokenizer: what the objective says, what a run leaves behind, and that a stopped one ends the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_stages import TOKENIZER, Bars, tokenizer_recipe, whole_batch

from gendiff.errors import InvalidInputError
from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.training import codebook, trainer
from gendiff.training.frequency_vq import METHOD, build, objective
from gendiff.training.recipe import builtin_recipes, load_recipe

WEIGHTS = "final/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codebook, "REVIVE_EVERY", 4)  # so that codes move in so short a run
        trainer.train(tokenizer_recipe(), folder, dataset=Bars())
    return folder


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return build({"vqvae": TOKENIZER}, Bars())


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_training_lowers_the_error_and_logs_code_use_by_stage(trained):
    log = rows(trained)
    assert log[-1]["l2"] < 0.6 * log[0]["l2"]
    assert all(1 <= row[f"codes_{k}"] <= min(32, 8 * (k + 1) ** 2) for row in log for k in range(4))
    assert log[-1]["loss"] == pytest.approx(log[-1]["l2"] + 0.1 * log[-1]["l1"] + 0.1 * log[-1]["vq"], rel=1e-5)


def test_a_stopped_run_ends_with_the_same_bits_counts_included(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(codebook, "REVIVE_EVERY", 4)
    trainer.train(tokenizer_recipe(steps=7), tmp_path, dataset=Bars())
    trainer.train(tokenizer_recipe(), tmp_path, resume=True, dataset=Bars())
    assert (tmp_path / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    state = load_file(tmp_path / WEIGHTS)
    assert int(state["quantizer.updates"]) == 17, "one call tries the objective before training"
    assert state["quantizer.code_use"].sum() > 0


def test_the_final_folder_is_the_bare_model_and_its_card_says_how_stages_are_used(trained):
    vqvae = FrequencyVQModel.from_pretrained(trained / "final")
    assert vqvae.stages == (1, 2, 3, 4) and vqvae.config["sample_size"] == 16
    card = (trained / "final" / "README.md").read_text()
    assert "FrequencyVQModel.from_pretrained(" in card and "load_pipeline" not in card
    images = whole_batch()["image"]
    for k, codes in enumerate(vqvae.encode(images).tokens):
        assert f"| {k} | {k + 1} x {k + 1} | {codes.unique().numel()} of 32 | " in card


def test_terms_are_what_they_say(tokenizer):
    batch = {"image": whole_batch()["image"][:4]}
    terms = objective(tokenizer.components, batch, generator())
    output = tokenizer.model(batch["image"])
    error = output.sample - batch["image"]
    assert terms["l2"].item() == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert terms["l1"].item() == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert terms["vq"].item() == pytest.approx(output.vq_loss.item(), rel=1e-5)
    assert terms["feature"].item() == pytest.approx(output.feature_loss.item(), rel=1e-5)
    assert not {"lpips", "gan", "discriminator"} & terms.keys(), "off unless asked for"
    without = objective(tokenizer.components, batch, generator(), beta=0.0)["vq"]
    assert terms["vq"].item() == pytest.approx(1.25 * without.item(), rel=1e-5)


def test_every_weight_gets_a_gradient(tokenizer):
    terms = objective(tokenizer.components, whole_batch(), generator(), revive_steps=0)
    (terms["l2"] + terms["vq"]).backward()
    silent = [name for name, p in tokenizer.model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not silent


def test_stage_dropout_decodes_a_share_after_a_random_stage(monkeypatch):
    class Spy(SimpleNamespace):
        def __call__(self, images, last_stage, beta):
            seen.append(last_stage)
            raise StopIteration

    seen = []
    models = {"vqvae": Spy(stages=(1, 2, 3, 4))}
    batch = {"image": torch.zeros(4000, 1, 2, 2)}
    for share in (0.0, 0.5, 1.0):
        with pytest.raises(StopIteration):
            objective(models, batch, generator(), stage_dropout=share)
    assert seen[0] is None
    assert (seen[1] < 3).float().mean().item() == pytest.approx(0.5 * 3 / 4, abs=0.03)
    for stage in range(4):
        assert (seen[2] == stage).float().mean().item() == pytest.approx(1 / 4, abs=0.03)


def test_augmentation_and_dropout_follow_from_the_generator_alone(tokenizer):
    options = {"stage_dropout": 0.5, "shift": 2, "flip": True}
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(values))
        values.append(objective(tokenizer.components, whole_batch(), generator(seed), **options)["l2"].item())
    assert values[0] == values[1] != values[2]


def test_the_preview_has_the_images_above_what_each_stage_makes_of_them(tokenizer):
    picture = METHOD.preview(tokenizer, Bars(), generator())
    assert picture is not None and picture.shape == (1, 16 * 5, 16 * 8)
    assert torch.equal(picture[:, :16, :16], Bars()[0]["image"] / 2 + 0.5)
    decoded = tokenizer.model.decode(tokenizer.model.encode(Bars()[0]["image"][None]).tokens)
    torch.testing.assert_close(picture[:, -16:, :16], decoded[0] / 2 + 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage_dropout": 1.5}, r"objective\.stage_dropout must be a number from 0 to 1, got 1\.5"),
        ({"stage_dropout": "a"}, r"objective\.stage_dropout must be a number from 0 to 1, got 'a'"),
        ({"revive_steps": 0.5}, r"objective\.revive_steps must be an integer of at least 0, got 0\.5"),
        ({"beta": -1}, r"objective\.beta must be a number of at least 0, got -1"),
        ({"shift": 16}, r"objective\.shift must be an integer from 0 to below the side, got 16"),
        ({"flip": 1}, r"objective\.flip must be true or false, got 1"),
    ],
)
def test_bad_options_are_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        objective(tokenizer.components, whole_batch(), generator(), **options)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"vae": {}}, r"unknown key models\.vae"),
        ({"vqvae": {**TOKENIZER, "bands": "area"}}, r"unknown key models\.vqvae\.bands\. Did you mean"),
        ({"vqvae": {**TOKENIZER, "stages": [1, 2, 8]}}, r"stages .*4"),
        ({"vqvae": TOKENIZER, "lpips": {"network": "vgg"}}, r"unknown key models\.lpips\.network"),
        ({"vqvae": TOKENIZER, "discriminator": {"depth": 3}}, r"unknown key models\.discriminator\.depth"),
    ],
)
def test_bad_models_are_refused(models, message):
    with pytest.raises(ValueError, match=message):
        build(models, Bars())


@pytest.mark.parametrize("images", [torch.zeros(4, 1, 16, 12), None])
def test_data_that_are_not_square_images_are_refused(images):
    data = SimpleNamespace() if images is None else SimpleNamespace(images=images)
    with pytest.raises(InvalidInputError, match=r"data must be square images \(N, C, S, S\), but those of Simple"):
        build({"vqvae": TOKENIZER}, data)


def test_a_decoder_is_trained_on_alone_and_the_tokens_stay(trained, tmp_path):
    recipe = tokenizer_recipe(steps=4)
    models = {"vqvae": {"path": str(trained / "final")}}
    recipe = dataclasses.replace(recipe, models=models, objective={"revive_steps": 10**6})
    made = trainer.train(recipe, tmp_path, dataset=Bars())
    before, images = FrequencyVQModel.from_pretrained(trained / "final"), whole_batch()["image"]
    for old, new in zip(before.encode(images).tokens, made.model.encode(images).tokens, strict=True):
        assert torch.equal(old, new)
    state, after = before.state_dict(), made.model.state_dict()
    changed = {name.split(".")[0] for name in state if not torch.equal(state[name], after[name])}
    assert changed == {"decoder", "post_quant_conv", "quantizer"}
    assert all(torch.equal(p, after[f"quantizer.{name}"]) for name, p in before.quantizer.named_parameters())
    with pytest.raises(ValueError, match=r"\(channels, side\) \(1, 16\), the data have \(3, 16\)"):
        build(models, Bars(channels=3))
    with pytest.raises(ValueError, match=r"unknown key models\.vqvae\.stages"):
        build({"vqvae": {**models["vqvae"], "stages": [1]}}, Bars())


@pytest.mark.parametrize("name", [name for name in builtin_recipes() if name.startswith("next-")])
def test_built_in_recipes_read_what_another_leaves(name):
    recipe = load_recipe(name)
    path = recipe.models["vqvae"].get("path")
    if path is None:
        assert recipe.task == "frequency-tokenizer"
        assert 0 < recipe.objective["revive_steps"] < recipe.train.steps
        return
    # A run is in runs/NAME if --out is not given.
    before = load_recipe(Path(path).parts[1])
    assert path == f"runs/{before.name}/final" and before.task == "frequency-tokenizer"
    assert before.data == recipe.data
