"""Training a convolutional tokenizer of masked generation: its losses, its run, and the folder that is left."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_stages import Bars, whole_batch

from gendiff.errors import InvalidInputError
from gendiff.models.masked.fsq import FSQTokenizer
from gendiff.training import masked, trainer
from gendiff.training.fsq_tokenizer import METHOD, build, objective, preview
from gendiff.training.recipe import Recipe, load_recipe

TOKENIZER = {"levels": [4, 4, 4], "patch_size": 4, "block_out_channels": [16], "norm_num_groups": 4}
DISCRIMINATOR = {"block_out_channels": [8, 16], "norm_num_groups": 4}
WEIGHTS = "final/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def recipe(**train: Any) -> Recipe:
    settings = {"steps": 40, "batch_size": 8, "learning_rate": 4e-3, "ema_decay": 0, "threads": 1, "log_every": 5}
    return Recipe.from_dict(
        {
            "name": "bars-tokenizer",
            "task": "fsq-tokenizer",
            "seed": 5,
            "models": {"tokenizer": TOKENIZER, "discriminator": DISCRIMINATOR},
            "objective": {"shift": 1},
            "losses": {"l2": 1.0, "l1": 0.1, "gan": 0.01, "discriminator": 1.0},
            "train": {**settings, **train},
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer.train(recipe(), folder, dataset=Bars())
    return folder


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    return build({"tokenizer": TOKENIZER}, Bars())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_errors_fall_and_the_card_says_how_codes_are_used(trained):
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert log[-1]["l2"] < 0.3 * log[0]["l2"]
    terms = log[-1]
    weighed = terms["l2"] + 0.1 * terms["l1"] + 0.01 * terms["gan"] + terms["discriminator"]
    assert terms["loss"] == pytest.approx(weighed, rel=1e-4)
    found = re.search(
        r"On 48 training images: (\d+) of 64 codes in use, reconstructions at (-?[\d.]+) dB",
        (trained / "final" / "README.md").read_text(),
    )
    assert found is not None
    tokenizer = FSQTokenizer.from_pretrained(trained / "final")
    images = whole_batch()["image"]
    with torch.no_grad():
        tokens = tokenizer.encode(images)
        error = ((tokenizer.decode(tokens).clamp(-1, 1) - images) / 2).square().mean()
    assert int(found[1]) == len(tokens.unique()) > 1
    assert float(found[2]) == pytest.approx(-10 * error.log10().item(), abs=0.01)


def test_what_is_left_is_the_tokenizer_alone_and_masked_training_takes_it(trained):
    assert not any(name.startswith("discriminator") for name in load_file(trained / WEIGHTS))
    assert not (trained / "final" / "model_index.json").exists()
    small = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8}
    pipe = masked.build({"image_tokenizer": {"path": str(trained / "final")}, "transformer": small}, Bars())
    assert pipe.image_tokenizer.codebook_size == 64 and pipe.num_tokens == 16


def test_a_stopped_run_ends_with_the_same_bits(trained, tmp_path):
    trainer.train(recipe(steps=17), tmp_path, dataset=Bars())
    trainer.train(recipe(), tmp_path, resume=True, dataset=Bars())
    assert (tmp_path / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()


def test_terms_by_hand(pipeline):
    images = whole_batch()["image"]
    terms = objective(pipeline.components, {"image": images}, generator())
    assert terms.keys() == {"l2", "l1"}
    with torch.no_grad():
        off = pipeline.model.decode(pipeline.model.encode(images)) - images
    assert terms["l2"].item() == pytest.approx(off.square().mean().item(), rel=1e-4)
    assert terms["l1"].item() == pytest.approx(off.abs().mean().item(), rel=1e-4)
    judged = build({"tokenizer": TOKENIZER, "discriminator": DISCRIMINATOR}, Bars())
    assert objective(judged.components, {"image": images}, generator()).keys() == {"l2", "l1", "gan", "discriminator"}


def test_gradients_reach_every_weight_through_the_rounding(pipeline):
    terms = objective(pipeline.components, whole_batch(), generator())
    (terms["l2"] + terms["l1"]).backward()
    silent = [name for name, p in pipeline.model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # A bias in front of a norm over one channel a group would be silent; no group here has one channel alone.
    assert not silent


def test_the_preview_shows_images_above_their_reconstructions(pipeline):
    picture = preview(pipeline, Bars(), generator(), columns=5)
    assert picture.shape == (1, 2 * 16, 5 * 16) and picture.min() >= 0 and picture.max() <= 1
    upper = torch.cat(list(whole_batch()["image"][:5]), dim=2) / 2 + 0.5
    torch.testing.assert_close(picture[:, :16], upper)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"vqvae": {}}, r"unknown key models\.vqvae"),
        ({"tokenizer": {"level": [4]}}, r"unknown key models\.tokenizer\.level"),
        ({"tokenizer": {"levels": [1, 4]}}, r"levels must be whole numbers from 2 to 256, got \[1, 4\]"),
        ({"tokenizer": {"patch_size": 3}}, r"sample_size \+ 2 padding must be a multiple of the stride 3, got 16"),
        ({"discriminator": {"width": 3}}, r"unknown key models\.discriminator\.width"),
    ],
)
def test_bad_models_are_refused(models, message):
    with pytest.raises(ValueError, match=message):
        build(models, Bars())


def test_images_must_be_square():
    data = Bars()
    data.images = data.images[..., :8]
    with pytest.raises(InvalidInputError, match="data must be square images"):
        build({}, data)


def test_the_recipe_that_comes_along_is_of_this_task():
    made = load_recipe("maskgit-fashion-tokenizer")
    assert made.task == "fsq-tokenizer" and METHOD.build is build
