"""Training on hidden tokens: what is hidden, what the objective says, and the whole way from pictures to pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from tiny_stages import Bars, whole_batch
from torch import nn

import gendiff
from gendiff.errors import InvalidInputError
from gendiff.models.image_classifier import ImageClassifier
from gendiff.models.masked.fsq import FSQTokenizer
from gendiff.models.masked.patch_vq import PatchVQTokenizer
from gendiff.models.masked.pixel_patches import PixelPatchTokenizer
from gendiff.training import trainer
from gendiff.training.mask_draws import hide_tokens
from gendiff.training.masked import build, objective, preview
from gendiff.training.patch_centres import fit_patches
from gendiff.training.recipe import Recipe, load_recipe

V = 8
PATCHES = {"patch_size": 4, "codebook_size": V}
TRANSFORMER = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "long_skips": True}
MODELS = {"image_tokenizer": PATCHES, "transformer": TRANSFORMER}
WEIGHTS = "final/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def recipe(models: dict[str, Any] | None = None, **train: Any) -> Recipe:
    settings = {"steps": 90, "batch_size": 8, "learning_rate": 4e-3, "ema_decay": 0.9, "threads": 1, "log_every": 15}
    return Recipe.from_dict(
        {
            "name": "bars",
            "task": "masked-generation",
            "seed": 5,
            "models": {**MODELS, **(models or {})},
            "objective": {"label_dropout": 0.1, "shift": 1},
            "losses": {"cross_entropy": 1.0},
            "train": {**settings, **train},
        }
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """The folder of a tokenizer whose codes are centres of the data's patches."""
    folder, made = tmp_path_factory.mktemp("tokenizer"), PatchVQTokenizer(16, 1, **PATCHES)
    fit_patches(made, Bars())
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer.train(recipe({"image_tokenizer": {"path": str(tokenizer)}}), folder, dataset=Bars())
    return folder


@pytest.fixture
def pipeline(tokenizer):
    torch.manual_seed(0)
    return build({**MODELS, "image_tokenizer": {"path": str(tokenizer)}}, Bars())


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Spy(nn.Module):
    """In place of the transformer; keeps what it is given."""

    config: ClassVar = {"num_classes": 3}

    def __init__(self, codes: int = V) -> None:
        super().__init__()
        self.codes = codes
        self.seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def forward(self, tokens: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor, return_dict: bool) -> tuple:
        self.seen.append((tokens, hidden, labels))
        return (torch.zeros(*tokens.shape, self.codes),)


# A run


def test_nats_fall_and_the_pipeline_that_is_left_makes_pictures(trained):
    log = rows(trained)
    assert 1.5 < log[0]["nats"] < math.log(V) + 0.3, "of a network that knows next to nothing"
    assert log[-1]["nats"] < 0.8 * log[0]["nats"] and log[-1]["accuracy"] > log[0]["accuracy"]
    pipe = gendiff.load_pipeline(str(trained / "final"))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.class_names == list(Bars.classes)
    output = pipe([0, 1, 2], output_type="pt", generator=generator(), num_inference_steps=4)
    assert output.images.shape == (3, 1, 16, 16) and torch.isfinite(output.images).all()
    assert output.tokens.max() < V and output.images.std() > 0.01


def test_the_tokenizer_stays_as_it_was_and_no_path_is_saved(trained, tokenizer):
    before = PatchVQTokenizer.from_pretrained(tokenizer).state_dict()
    after = PatchVQTokenizer.from_pretrained(trained / "final" / "image_tokenizer").state_dict()
    assert before and all(torch.equal(before[name], after[name]) for name in before)
    for name in ("model_index.json", "image_tokenizer/config.json", "transformer/config.json"):
        assert str(tokenizer) not in (trained / "final" / name).read_text()


def test_a_stopped_run_ends_with_the_same_bits(trained, tokenizer, tmp_path):
    models = {"image_tokenizer": {"path": str(tokenizer)}}
    trainer.train(recipe(models, steps=40), tmp_path, dataset=Bars())
    trainer.train(recipe(models), tmp_path, resume=True, dataset=Bars())
    assert (tmp_path / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()


def test_a_run_without_a_tokenizer_fits_its_own_and_resumes_with_it(tmp_path):
    trainer.train(recipe(steps=2), tmp_path / "whole", dataset=Bars())
    trainer.train(recipe(steps=1), tmp_path / "parts", dataset=Bars())
    trainer.train(recipe(steps=2), tmp_path / "parts", resume=True, dataset=Bars())
    for name in (WEIGHTS, "final/image_tokenizer/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


# What is hidden


def test_hidden_shares_are_those_of_the_cosine_spread_over_the_batch():
    """Of the image whose rho is the i-th smallest of B, between N cos(pi / 2 (i + 1) / B) and N cos(pi / 2 i / B)."""
    batch, tokens = 500, 64
    hidden = hide_tokens(batch, tokens, generator())
    assert hidden.shape == (batch, tokens) and hidden.dtype == torch.bool
    counts = hidden.sum(dim=1).sort(descending=True).values
    edges = tokens * torch.cos(torch.arange(batch + 1) / batch * math.pi / 2)
    assert (counts <= edges[:-1].ceil().clamp(min=1)).all() and (counts >= edges[1:].ceil().clamp(min=1)).all()
    assert counts[0] == tokens and counts[-1] == 1
    assert hidden.float().mean().item() == pytest.approx(2 / math.pi + 0.5 / tokens, abs=0.002)


def test_one_image_at_a_time_has_the_same_shares():
    shares = torch.stack([hide_tokens(1, 64, generator(seed)).float().mean() for seed in range(400)])
    assert shares.mean().item() == pytest.approx(2 / math.pi + 0.5 / 64, abs=4 * 0.308 / 20)
    assert shares.min() >= 1 / 64


def test_every_token_is_hidden_as_often_and_every_image_by_its_own_draw():
    hidden = hide_tokens(4000, 16, generator()).float()
    share = hidden.mean().item()
    assert (hidden.mean(dim=0) - share).abs().max().item() < 5 * math.sqrt(share * (1 - share) / 4000)
    shares = hidden.mean(dim=1)
    assert abs(torch.corrcoef(torch.stack([shares[:-1], shares[1:]]))[0, 1]) < 5 / math.sqrt(4000)
    pairs = torch.corrcoef(hidden.T)[0, 1:]
    assert (pairs - pairs.mean()).abs().max() < 0.1


def test_something_is_hidden_whatever_the_draw():
    assert all(hide_tokens(3, 1, generator(seed)).all() for seed in range(20))
    assert all((hide_tokens(7, 2, generator(seed)).sum(dim=1) >= 1).all() for seed in range(50))


# The objective


def test_terms_by_hand(pipeline):
    for seed, smoothing in ((0, 0.0), (1, 0.1), (2, 0.5)):
        given: list[Any] = []
        keep = given.append
        hook = pipeline.transformer.register_forward_hook(lambda _, args, output, keep=keep: keep((*args, output[0])))
        terms = objective(pipeline.components, whole_batch(), generator(seed), label_smoothing=smoothing)
        hook.remove()
        ((tokens, hidden, _, logits),) = given
        assert torch.equal(tokens, pipeline.image_tokenizer.encode(whole_batch()["image"]))
        nats, spread, right = [], [], []
        for b, place in hidden.nonzero().tolist():
            said = logits[b, place].double().log_softmax(dim=0)
            nats.append(-said[tokens[b, place]].item())
            spread.append(-said.mean().item())
            right.append(int(said.argmax()) == int(tokens[b, place]))
        count = len(nats)
        assert terms["nats"].item() == pytest.approx(sum(nats) / count, rel=1e-5)
        expected = (1 - smoothing) * sum(nats) / count + smoothing * sum(spread) / count
        assert terms["cross_entropy"].item() == pytest.approx(expected, rel=1e-5)
        assert terms["accuracy"].item() == pytest.approx(sum(right) / count, abs=1e-6)
        assert terms["cross_entropy"].requires_grad and not terms["nats"].requires_grad


def test_hidden_tokens_are_not_seen_and_visible_ones_are_not_scored(pipeline):
    """Other tokens at hidden places give the same logits; other logits at visible places give the same loss."""
    network = pipeline.transformer
    tokens = pipeline.image_tokenizer.encode(whole_batch()["image"])[:4]
    hidden, labels = hide_tokens(4, 16, generator()), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        said = network(tokens, hidden, labels).sample
        changed = network(torch.where(hidden, (tokens + 1) % V, tokens), hidden, labels).sample
    assert torch.equal(said, changed)

    class Sure(Spy):
        """Right at hidden places, and wrong, by as much, at visible ones."""

        def forward(self, tokens, hidden, labels, return_dict):
            right = nn.functional.one_hot(tokens, V).float()
            return (40 * torch.where(hidden[..., None], right, -right),)

    terms = objective({**pipeline.components, "transformer": Sure()}, whole_batch(), generator(), label_smoothing=0.0)
    assert terms["nats"].item() < 1e-6 and terms["accuracy"] == 1


def test_gradients_reach_every_weight_of_the_transformer_and_none_of_the_tokenizer(pipeline):
    # Half of the labels are hidden, so that the row for "no class" is read as well.
    objective(pipeline.components, whole_batch(), generator(), label_dropout=0.5)["cross_entropy"].backward()
    silent = [name for name, p in pipeline.transformer.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not silent
    for embedding in (pipeline.transformer.class_embed, pipeline.transformer.pos_embed):
        weight = embedding.weight if isinstance(embedding, nn.Embedding) else embedding
        assert weight.grad.flatten(0, -2).abs().sum(dim=-1).all(), "each row of it"
    assert pipeline.transformer.word_embed.weight.grad[V].abs().sum() > 0, "that of a hidden token"
    assert all(not p.requires_grad and p.grad is None for p in pipeline.image_tokenizer.parameters())


def test_the_class_is_hidden_by_draws_from_the_generator_alone(pipeline):
    spy, batch = Spy(), whole_batch()
    batch = {name: value.repeat(10, *[1] * (value.ndim - 1)) for name, value in batch.items()}
    for seed, share in ((0, 0.0), (0, 0.25), (0, 0.25), (1, 0.25), (0, 1.0)):
        torch.manual_seed(len(spy.seen))
        objective({**pipeline.components, "transformer": spy}, batch, generator(seed), label_dropout=share)
        without = spy.seen[-1][2] == 3
        assert without.float().mean().item() == pytest.approx(share, abs=0.05)
        assert torch.equal(spy.seen[-1][2][~without], batch["label"][~without])
    first, same, other = (spy.seen[i] for i in (1, 2, 3))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[1], other[1]) and not torch.equal(first[2], other[2])


def test_tokens_are_of_full_precision_under_autocast(pipeline):
    spy = Spy()
    models = {**pipeline.components, "transformer": spy}
    objective(models, whole_batch(), generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective(models, whole_batch(), generator())
        terms = objective(pipeline.components, whole_batch(), generator())
    assert torch.equal(spy.seen[0][0], spy.seen[1][0])
    assert terms["cross_entropy"].dtype == torch.float32


def test_augmented_images_have_other_tokens(pipeline):
    spy = Spy()
    cases: list[dict[str, Any]] = [{}, {"shift": 3}, {"flip": True}]
    for options in cases:
        objective({**pipeline.components, "transformer": spy}, whole_batch(), generator(), **options)
    assert not torch.equal(spy.seen[0][0], spy.seen[1][0]) and not torch.equal(spy.seen[0][0], spy.seen[2][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dropout": -0.1}, r"objective\.label_dropout must be a number from 0 to 1, got -0\.1"),
        ({"label_smoothing": 1.5}, r"objective\.label_smoothing must be a number from 0 to 1, got 1\.5"),
        ({"shift": 1.5}, r"objective\.shift must be an integer from 0 to below the side, got 1\.5"),
    ],
)
def test_bad_options_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        objective(pipeline.components, whole_batch(), generator(), **options)


# Building


def test_centres_are_those_of_the_datas_patches_and_the_same_each_time():
    first, second = build(MODELS, Bars()).image_tokenizer, build(MODELS, Bars()).image_tokenizer
    assert torch.equal(first.codebook, second.codebook) and not first.codebook.requires_grad
    images = whole_batch()["image"]
    error = (first.decode(first.encode(images)) - images).square().mean()
    # A third of the pixels is bright; noise, which 8 centres can not follow, has a variance of (40 / 127.5)^2 / 12.
    assert error < 1.2 * (40 / 127.5) ** 2 / 12 < 0.1 * images.var()
    assert len(first.encode(images).unique()) == V


def test_sizes_and_classes_are_those_of_tokenizer_and_data(pipeline):
    config = pipeline.transformer.config
    assert (config["sample_size"], config["codebook_size"], config["num_classes"]) == (4, V, 3)
    assert pipeline.class_names == ["left", "middle", "right"]
    assert build({**MODELS, "scheduler": {"order": "halton"}}, Bars()).scheduler.config["order"] == "halton"


def test_a_tokenizer_is_found_in_its_own_folder_or_in_a_pipelines_and_else_the_path_is_named(trained, tmp_path):
    models = {**MODELS, "image_tokenizer": {"path": str(trained / "final")}}
    assert build(models, Bars()).image_tokenizer.codebook_size == V
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no tokenizer; its recipe, named .*-tokenizer"):
        build({"image_tokenizer": {"path": str(tmp_path)}}, Bars())
    ImageClassifier(1, 16, 3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a ImageClassifier, not a FSQTokenizer or .*PatchVQTokenizer or "):
        build({"image_tokenizer": {"path": str(tmp_path)}}, Bars())


def test_a_convolutional_tokenizer_fits_as_well_and_one_of_vectors_does_not(tmp_path):
    fsq = FSQTokenizer(16, 1, (4, 4), 4, (8,), norm_num_groups=4)
    fsq.save_pretrained(tmp_path / "fsq")
    pipe = build({"image_tokenizer": {"path": str(tmp_path / "fsq")}, "transformer": TRANSFORMER}, Bars())
    assert all(torch.equal(a, b) for a, b in zip(fsq.parameters(), pipe.image_tokenizer.parameters(), strict=True))
    assert not any(p.requires_grad for p in pipe.image_tokenizer.parameters())
    assert torch.isfinite(objective(pipe.components, whole_batch(), generator())["cross_entropy"])
    PixelPatchTokenizer(16, 1, 4).save_pretrained(tmp_path / "pixels")
    with pytest.raises(ValueError, match=r"models\.image_tokenizer must have discrete tokens; .* the task mar"):
        build({"image_tokenizer": {"path": str(tmp_path / "pixels")}}, Bars())


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"image_tokenizer": {"path": "x", "patch_size": 4}}, r"unknown key models\.image_tokenizer\.patch_size"),
        ({"image_tokenizer": {"patches": 4}}, r"unknown key models\.image_tokenizer\.patches"),
        ({"vae": {}}, r"unknown key models\.vae"),
        ({**MODELS, "transformer": {"layers": 2}}, r"unknown key models\.transformer\.layers"),
        ({**MODELS, "scheduler": {"steps": 2}}, r"unknown key models\.scheduler\.steps"),
        ({**MODELS, "scheduler": {"order": "raster"}}, "order must be one of confidence, halton, random, got 'raster'"),
        ({"image_tokenizer": {"patch_size": 3}}, "must be a multiple of patch_size 3"),
        ({"image_tokenizer": {"patch_size": 4, "codebook_size": 10_000}}, "codebook_size must be at most 768, as the"),
        ({**MODELS, "transformer": {"codebook_size": 64}}, "must agree on codebook_size, got 64 and 8"),
    ],
)
def test_bad_models_are_refused(models, message):
    with pytest.raises(ValueError, match=message):
        build(models, Bars())


def test_data_must_fit(tokenizer):
    models = {**MODELS, "image_tokenizer": {"path": str(tokenizer)}}
    with pytest.raises(ValueError, match=r"for images of \(channels, side\) \(1, 16\), the data have \(3, 16\)"):
        build(models, Bars(channels=3))
    with pytest.raises(InvalidInputError, match="must have one class a picture, but SimpleNamespace has no labels"):
        build(models, SimpleNamespace(images=Bars().images))


def test_the_preview_has_a_column_for_each_class_but_not_for_a_thousand(pipeline):
    assert preview(pipeline, Bars(), generator()).shape == (1, 6 * 16, 3 * 16)
    small = preview(pipeline, Bars(), generator(), rows=1, columns=2)
    assert small.shape == (1, 16, 2 * 16) and small.min() >= 0 and small.max() <= 1


def test_built_in_recipes_can_be_built():
    made = load_recipe("maskgit-fashion")
    assert made.task == "masked-generation" and made.losses.keys() <= {"cross_entropy", "nats"}
