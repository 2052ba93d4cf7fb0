"""Training MAGE: what is hidden and dropped, what the objective says, and the way from pictures to new pictures."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from tiny_stages import Bars, whole_batch
from torch import Tensor

import gendiff
from gendiff.training import trainer
from gendiff.training.mage import build, objective, preview
from gendiff.training.mage_draws import hide_and_drop
from gendiff.training.recipe import Recipe, load_recipe

TOKENIZER = {"patch_size": 4, "codebook_size": 6}
TRANSFORMER = {"num_encoder_layers": 2, "num_decoder_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def models(**transformer: Any) -> dict[str, dict[str, Any]]:
    return {"image_tokenizer": TOKENIZER, "transformer": {**TRANSFORMER, **transformer}}


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    return build(models(), Bars())


@pytest.fixture(scope="module")
def class_pipeline():
    torch.manual_seed(0)
    return build(models(num_classes=3), Bars())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recipe(**train: Any) -> Recipe:
    settings = {"steps": 40, "batch_size": 16, "learning_rate": 5e-3, "ema_decay": 0.8, "threads": 1, "log_every": 4}
    return Recipe.from_dict(
        {
            "name": "bars",
            "task": "mage",
            "seed": 5,
            "models": models(),
            "losses": {"cross_entropy": 1.0},
            "train": settings | train,
        }
    )


def test_half_is_dropped_and_the_hidden_share_is_a_truncated_normal():
    hidden, dropped = hide_and_drop(4000, 64, generator())
    assert (dropped.sum(dim=1) == 32).all() and not (dropped & ~hidden).any()
    counts = hidden.sum(dim=1)
    assert counts.min() >= 32 and counts.max() <= 64

    # By hand: the distribution function of N(0.55, 0.25) cut to [0.5, 1].
    def phi(share: float) -> float:
        return 0.5 * math.erf((share - 0.55) / 0.25 / math.sqrt(2))

    for least in (40, 48, 56):
        expected = (phi(1) - phi(least / 64)) / (phi(1) - phi(0.5))
        assert float((counts > least).double().mean()) == pytest.approx(expected, abs=0.005)
    places = hidden.double().mean(dim=0)
    assert (places - places.mean()).abs().max() < 5 * (0.25 / 4000) ** 0.5
    again = hide_and_drop(4000, 64, generator())
    assert torch.equal(again[0], hidden) and torch.equal(again[1], dropped)


def test_nothing_or_nearly_all_can_be_dropped():
    hidden, dropped = hide_and_drop(50, 9, generator(), dropped_share=0.0)
    assert not dropped.any() and hidden.sum(dim=1).min() >= 1 and hidden.sum(dim=1).float().std() > 1
    hidden, dropped = hide_and_drop(5, 9, generator(), dropped_share=1.0)
    assert hidden.all() and (dropped.sum(dim=1) == 8).all()


@pytest.mark.parametrize("classes", [False, True])
def test_terms_are_cross_entropies_of_hidden_tokens(pipeline, class_pipeline, classes: bool):
    pipe, batch = class_pipeline if classes else pipeline, whole_batch()
    asked: dict[str, Tensor] = {}
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: asked.update(args=args, **kwargs), with_kwargs=True
    )
    terms = objective(pipe.components, batch, generator(), label_dropout=0.4)
    handle.remove()
    tokens, hidden, labels = asked["args"]
    assert torch.equal(tokens, pipe.image_tokenizer.encode(batch["image"]))
    assert asked["dropped"].sum(dim=1).unique().tolist() == [8]
    logits = pipe.transformer(tokens, hidden, labels, dropped=asked["dropped"]).sample
    logs = logits.log_softmax(dim=-1)
    right = -logs.gather(2, tokens[..., None])[..., 0][hidden]
    assert terms["nats"].item() == pytest.approx(right.mean().item(), rel=1e-5)
    smooth = 0.9 * right.mean() - 0.1 * logs.mean(dim=-1)[hidden].mean()
    assert terms["cross_entropy"].item() == pytest.approx(smooth.item(), rel=1e-5)
    share = (logits.argmax(dim=-1) == tokens)[hidden].float().mean()
    assert terms["accuracy"].item() == pytest.approx(share.item())
    if classes:
        assert 0 < (labels == 3).sum() < 40 and torch.equal(labels[labels != 3], batch["label"][labels != 3])
    else:
        assert labels is None
    plain = objective(pipe.components, batch, generator(), label_smoothing=0.0, label_dropout=0.4)
    assert plain["cross_entropy"].item() == pytest.approx(terms["nats"].item(), rel=1e-6)


def test_gradients_reach_all_weights_of_the_transformer_and_none_of_the_tokenizer(class_pipeline):
    class_pipeline.transformer.zero_grad()
    objective(class_pipeline.components, whole_batch(), generator(), label_dropout=0.5)["cross_entropy"].backward()
    silent = [name for name, p in class_pipeline.transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    assert all(p.grad is None for p in class_pipeline.image_tokenizer.parameters())


def test_nats_fall_and_the_pipeline_that_is_left_makes_pictures(tmp_path):
    trainer.train(recipe(), tmp_path / "run", dataset=Bars())
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert 1.5 < log[0]["nats"] < math.log(6) + 0.3, "of a network that knows nothing"
    assert log[-1]["nats"] < 0.85 * log[0]["nats"] and log[-1]["accuracy"] > log[0]["accuracy"]
    pipe = gendiff.load_pipeline(str(tmp_path / "run" / "final"))
    assert type(pipe.transformer).__name__ == "MAGETransformer2DModel"
    picture = preview(pipe, Bars(), generator(), rows=2, columns=3)
    assert picture.shape == (1, 32, 48) and picture.std() > 0.01


def test_a_column_for_each_class(class_pipeline):
    picture = preview(class_pipeline, Bars(), generator(), rows=2)
    assert picture.shape == (1, 32, 48) and class_pipeline.class_names == list(Bars.classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropped_share": 1.5}, "objective.dropped_share must be a number from 0 to 1"),
        ({"label_smoothing": -0.1}, "objective.label_smoothing must be a number from 0 to 1"),
        ({"hidden_std": 0}, "objective.hidden_std must be a number above 0, got 0"),
    ],
)
def test_options_out_of_range_are_refused(pipeline, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        objective(pipeline.components, whole_batch(), generator(), **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (models(num_classes=2), "num_classes must be 0, or 3 as in the data, got 2"),
        (models(num_layers=2), "unknown key models.transformer.num_layers"),
        ({"vqvae": {}}, "unknown key models.vqvae"),
    ],
)
def test_what_cannot_be_built_is_refused(given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build(given, Bars())


def test_the_recipe_fits_its_method():
    given = load_recipe("mage-fashion")
    transformer = given.models["transformer"]
    torch.manual_seed(0)
    pipe = build({"image_tokenizer": TOKENIZER, "transformer": transformer}, Bars())
    terms = objective(pipe.components, whole_batch(), generator(), **given.objective)
    assert given.task == "mage" and set(given.losses) <= set(terms)
