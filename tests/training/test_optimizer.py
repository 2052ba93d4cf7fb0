"""Who is decayed, by how much, and where the learning rate ends."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gendiff.models.next_frequency import NextFrequencyTransformer2DModel
from gendiff.training.optimizer import make_optimizer, make_schedule
from gendiff.training.recipe import Recipe, TrainSettings

CPU = torch.device("cpu")


def transformer() -> NextFrequencyTransformer2DModel:
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    return NextFrequencyTransformer2DModel((1, 2), 4, 8, 3, shared_adaln=True, qk_norm=True, **sizes)


def decayed(module: nn.Module, decay: str) -> dict[str, float]:
    """Weight decay by name of parameter."""
    optimizer = make_optimizer({"m": module}, TrainSettings(weight_decay=0.05, decay=decay), CPU)
    rates = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rates[id(p)] for name, p in module.named_parameters() if p.requires_grad}


def test_all_are_decayed_unless_matrices_are_asked_for():
    assert set(decayed(transformer(), "all").values()) == {0.05}


def test_of_matrices_those_are_spared_that_the_model_excepts():
    rates = decayed(transformer(), "matrices")
    spared = {name for name, rate in rates.items() if not rate}
    assert set(rates.values()) == {0.0, 0.05}
    for name in ("pos", "pos_start", "lvl_embed.weight", "blocks.0.attn.log_scale", "blocks.1.adaln_table"):
        assert name in spared
    assert "blocks.0.attn.q_bias" in spared and "head.bias" in spared
    for name in ("condition_embedder", "word_embed", "adaln", "head", "blocks.0.fc1"):
        assert rates[f"{name}.weight"] == 0.05


def test_a_step_shrinks_what_is_decayed_and_nothing_else():
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    make_optimizer({"m": module}, TrainSettings(learning_rate=0.1, weight_decay=0.5, decay="matrices"), CPU).step()
    torch.testing.assert_close(module[0].weight, before["0.weight"] * 0.95)
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(dict(module.named_parameters())[name], before[name])


def test_frozen_parameters_and_empty_groups_are_left_out():
    module = nn.Linear(3, 3)
    module.weight.requires_grad_(False)
    optimizer = make_optimizer({"m": module}, TrainSettings(weight_decay=0.5, decay="matrices"), CPU)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_betas_reach_the_optimizer():
    assert make_optimizer({"m": nn.Linear(2, 2)}, TrainSettings(), CPU).defaults["betas"] == (0.9, 0.999)
    optimizer = make_optimizer({"m": nn.Linear(2, 2)}, TrainSettings(betas=(0.9, 0.95)), CPU)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def rates(**settings) -> list[float]:
    train = TrainSettings(learning_rate=2.0, steps=20, lr_warmup_steps=4, **settings)
    optimizer = make_optimizer({"m": nn.Linear(2, 2)}, train, CPU)
    schedule, seen = make_schedule(optimizer, train), []
    for _ in range(21):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_rate_falls_to_its_final_share_and_rises_as_before(name):
    plain, floored = rates(lr_schedule=name), rates(lr_schedule=name, lr_final=0.1)
    assert floored[:4] == plain[:4] == [0, 0.5, 1.0, 1.5]
    assert floored[4] == plain[4] == 2.0
    assert plain[20] == pytest.approx(0, abs=1e-12) and floored[20] == pytest.approx(0.2)
    for before, after in zip(plain[4:], floored[4:], strict=True):
        assert after == pytest.approx(0.9 * before + 0.2)


def test_a_schedule_that_does_not_fall_is_not_changed():
    assert rates(lr_schedule="constant_with_warmup", lr_final=0.1) == rates(lr_schedule="constant_with_warmup")


def test_a_recipe_holds_them_and_goes_to_yaml_and_back():
    given = {"name": "a", "task": "next-frequency", "losses": {"a": 1}}
    train = {"betas": [0.9, 0.95], "decay": "matrices", "lr_final": 0.1}
    recipe = Recipe.from_dict({**given, "train": train})
    assert recipe.train.betas == (0.9, 0.95) and recipe.to_dict()["train"]["betas"] == [0.9, 0.95]
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert dataclasses.asdict(Recipe.from_dict(given).train)["decay"] == "all"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"betas": 0.9}, r"train\.betas must be two numbers, got 0\.9"),
        ({"betas": [0.9]}, r"train\.betas must be two numbers, got \[0\.9\]"),
        ({"betas": [0.9, 1.0]}, r"train\.betas must be a number of at least 0 and below 1, got 1\.0"),
        ({"decay": "none"}, r"train\.decay must be one of all, matrices, got 'none'"),
        ({"lr_final": 1.5}, r"train\.lr_final must be a number of at least 0 and below 1, got 1\.5"),
    ],
)
def test_bad_values_are_refused(train, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({"name": "a", "task": "next-frequency", "losses": {"a": 1}, "train": train})
