"""Training a transformer over stages: what the objective says, and the whole way from pictures to new pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_stages import TOKENIZER, TRANSFORMER, Bars, transformer_recipe, whole_batch
from torch import nn
from torch.nn.functional import cross_entropy

import gendiff
from gendiff.errors import InvalidInputError
from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.models.image_classifier import ImageClassifier
from gendiff.models.next_frequency import NextFrequencyTransformer2DModel
from gendiff.training import frequency_vq, trainer
from gendiff.training.next_frequency import build, objective, preview
from gendiff.training.recipe import load_recipe

WEIGHTS = "final/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a tokenizer whose codes lie where k-means has put them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    frequency_vq.build({"vqvae": TOKENIZER}, Bars()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("run")
    trainer.train(transformer_recipe(tokenizer), folder, dataset=Bars())
    return folder


@pytest.fixture
def pipeline(tokenizer):
    torch.manual_seed(0)
    return build({"vqvae": {"path": str(tokenizer)}, "transformer": TRANSFORMER}, Bars())


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nats_fall_and_the_pipeline_that_is_left_makes_pictures(trained):
    log = rows(trained)
    assert 2.5 < log[0]["nats"] < math.log(32) + 0.2, "of a network that knows next to nothing"
    assert log[-1]["nats"] < 0.8 * log[0]["nats"]
    pipe = gendiff.load_pipeline(str(trained / "final"))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.class_names == list(Bars.classes)
    images = pipe([0, 1, 2], output_type="pt", generator=generator()).images
    assert images.shape == (3, 1, 16, 16) and torch.isfinite(images).all()
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.01
    assert "| 3 | 4 x 4 | " in (trained / "final" / "README.md").read_text()


def test_the_tokenizer_stays_as_it_was(trained, tokenizer):
    before = FrequencyVQModel.from_pretrained(tokenizer).state_dict()
    after = FrequencyVQModel.from_pretrained(trained / "final" / "vqvae").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_stopped_run_ends_with_the_same_bits(trained, tokenizer, tmp_path):
    trainer.train(transformer_recipe(tokenizer, steps=7), tmp_path, dataset=Bars())
    trainer.train(transformer_recipe(tokenizer), tmp_path, resume=True, dataset=Bars())
    assert (tmp_path / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()


def test_terms_are_cross_entropies_of_the_true_tokens(pipeline):
    batch = whole_batch()
    terms = objective(pipeline.components, batch, generator(), label_dropout=0.0)
    tokens = pipeline.vqvae.encode(batch["image"]).tokens
    logits = pipeline.transformer(pipeline.vqvae.tokens_to_inputs(tokens), batch["label"]).sample
    for k, (stage, codes) in enumerate(zip(logits.split([1, 4, 9, 16], dim=1), tokens, strict=True)):
        expected = cross_entropy(stage.flatten(0, 1), codes.flatten()).item()
        assert terms[f"nats_{k}"].item() == pytest.approx(expected, rel=1e-5)
    mean = cross_entropy(logits.flatten(0, 1), torch.cat(tokens, dim=1).flatten()).item()
    assert terms["nats"].item() == pytest.approx(mean, rel=1e-5)
    assert terms["cross_entropy"].item() == pytest.approx(mean, rel=1e-5)


def test_stage_weights_have_a_mean_of_one_over_tokens(pipeline):
    weights = [3.0, 2.0, 1.0, 0.5]
    pipeline.transformer.head.weight.data.normal_(0, 0.3)  # or all stages are as hard
    terms = objective(pipeline.components, whole_batch(), generator(), stage_loss_weights=weights)
    counts, nats = [1, 4, 9, 16], [terms[f"nats_{k}"].item() for k in range(4)]
    shares = [weight * count for weight, count in zip(weights, counts, strict=True)]
    expected = sum(share * value for share, value in zip(shares, nats, strict=True)) / sum(shares)
    assert terms["cross_entropy"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["nats"].item() != pytest.approx(expected, rel=1e-3)
    same = objective(pipeline.components, whole_batch(), generator(), stage_loss_weights=[2] * 4)
    assert same["cross_entropy"].item() == pytest.approx(same["nats"].item(), rel=1e-6)


def test_gradients_reach_every_weight_of_the_transformer_and_none_of_the_tokenizer(pipeline):
    # Half of the labels are hidden, so that the row for "no class" is read as well.
    objective(pipeline.components, whole_batch(), generator(), label_dropout=0.5)["cross_entropy"].backward()
    silent = [name for name, p in pipeline.transformer.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not silent
    assert all(not p.requires_grad and p.grad is None for p in pipeline.vqvae.parameters())


class Spy(nn.Module):
    """In place of the transformer; keeps the labels that it is given."""

    counts, config = (1, 4, 9, 16), {"num_classes": 3}

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, inputs, labels, return_dict):
        self.seen.append((inputs, labels))
        return (torch.zeros(len(labels), 30, 32),)


def test_the_class_is_hidden_by_draws_from_the_generator_alone(pipeline):
    spy, batch = Spy(), whole_batch()
    batch = {name: value.repeat(10, *[1] * (value.ndim - 1)) for name, value in batch.items()}
    for seed, share in ((0, 0.0), (0, 0.25), (0, 0.25), (1, 0.25), (0, 1.0)):
        torch.manual_seed(len(spy.seen))
        objective({"transformer": spy, "vqvae": pipeline.vqvae}, batch, generator(seed), label_dropout=share)
        hidden = spy.seen[-1][1] == 3
        assert hidden.float().mean().item() == pytest.approx(share, abs=0.05)
        assert torch.equal(spy.seen[-1][1][~hidden], batch["label"][~hidden])
    assert torch.equal(spy.seen[1][1], spy.seen[2][1]) and not torch.equal(spy.seen[1][1], spy.seen[3][1])


def test_tokens_are_of_full_precision_under_autocast(pipeline):
    spy = Spy()
    objective({"transformer": spy, "vqvae": pipeline.vqvae}, whole_batch(), generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective({"transformer": spy, "vqvae": pipeline.vqvae}, whole_batch(), generator())
    assert torch.equal(spy.seen[0][0], spy.seen[1][0])


def test_augmented_images_have_other_tokens(pipeline):
    spy = Spy()
    cases: list[dict[str, Any]] = [{}, {"shift": 3}, {"flip": True}]
    for options in cases:
        objective({"transformer": spy, "vqvae": pipeline.vqvae}, whole_batch(), generator(), **options)
    assert not torch.equal(spy.seen[0][0], spy.seen[1][0]) and not torch.equal(spy.seen[0][0], spy.seen[2][0])


def test_the_preview_has_a_column_for_each_class_but_not_for_a_thousand(pipeline):
    assert preview(pipeline, Bars(), generator()).shape == (1, 6 * 16, 3 * 16)
    assert preview(pipeline, Bars(), generator(), rows=1, columns=2).shape == (1, 16, 2 * 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dropout": -0.1}, r"objective\.label_dropout must be a number from 0 to 1, got -0\.1"),
        ({"stage_loss_weights": [1, 1]}, r"objective\.stage_loss_weights must be 4 positive numbers, got \[1, 1\]"),
        ({"stage_loss_weights": [1, 1, 0, 1]}, r"must be 4 positive numbers, got \[1, 1, 0, 1\]"),
        ({"stage_loss_weights": [1, 1, math.inf, 1]}, "must be 4 positive numbers"),
        ({"shift": 1.5}, r"objective\.shift must be an integer from 0 to below the side, got 1\.5"),
    ],
)
def test_bad_options_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        objective(pipeline.components, whole_batch(), generator(), **options)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, r"models\.vqvae\.path is missing"),
        ({"vqvae": {"path": "x", "stages": [1]}}, r"unknown key models\.vqvae\.stages"),
        ({"vae": {}}, r"unknown key models\.vae"),
    ],
)
def test_bad_models_are_refused(models, message):
    with pytest.raises(ValueError, match=message):
        build(models, Bars())


def test_a_tokenizer_is_found_in_its_own_folder_or_in_a_pipelines_and_else_the_path_is_named(trained, tmp_path):
    models = {"vqvae": {"path": str(trained / "final")}, "transformer": TRANSFORMER}
    assert build(models, Bars()).vqvae.stages == (1, 2, 3, 4)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no tokenizer; its recipe, named .*-tokenizer"):
        build({"vqvae": {"path": str(tmp_path)}}, Bars())
    ImageClassifier(1, 16, 3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a ImageClassifier, not a FrequencyVQModel"):
        build({"vqvae": {"path": str(tmp_path)}}, Bars())


def test_data_and_tokenizer_must_fit(tokenizer):
    models = {"vqvae": {"path": str(tokenizer)}, "transformer": TRANSFORMER}
    with pytest.raises(ValueError, match=r"for images of \(channels, side\) \(1, 16\), the data have \(3, 16\)"):
        build(models, Bars(channels=3))
    with pytest.raises(InvalidInputError, match="must have one class a picture, but SimpleNamespace has no labels"):
        build(models, SimpleNamespace(images=Bars().images))
    with pytest.raises(ValueError, match="must agree on codebook_size"):
        build({**models, "transformer": {**TRANSFORMER, "codebook_size": 64}}, Bars())


def test_paper_sized_recipes_have_the_papers_parameters():
    transformer, tokenizer = (
        load_recipe("next-frequency-imagenet-256"),
        load_recipe("next-frequency-imagenet-256-tokenizer"),
    )
    with torch.device("meta"):
        vqvae = FrequencyVQModel(sample_size=256, in_channels=3, **tokenizer.models["vqvae"])
        network = NextFrequencyTransformer2DModel(
            vqvae.stages, 32, 4096, num_classes=1000, **transformer.models["transformer"]
        )
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(310.28e6, rel=1e-4)
    assert sum(p.numel() for p in vqvae.parameters()) == pytest.approx(108.95e6, rel=1e-3)
    assert transformer.train.steps * 8 * transformer.train.batch_size / 1_281_167 == pytest.approx(350, rel=1e-2)
