"""The small text-to-image model: what it is told, how it learns, and how its predictor comes about."""

from __future__ import annotations

import pytest
import torch

from gendiff.data.shadow_world import ShadowWorld
from gendiff.data.swap_world import SwapWorld
from gendiff.models.lina_predictor import LINAPredictor
from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.intervention import Intervention
from gendiff.training.lina import METHOD, build, objective
from gendiff.training.lina_calibrate import best_guidance, calibrate
from gendiff.training.lina_score import VerifierScore
from gendiff.training.methods import get_method
from gendiff.training.prompt_text import build_tokenizer

SMALL = {"transformer": {"num_layers": 1, "num_attention_heads": 2}}


@pytest.fixture(scope="module")
def world():
    return ShadowWorld(num_images=96, rare=0.5)


@pytest.fixture
def pipe(world):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(SMALL, world)


class Easy(ShadowWorld):
    """A verifier that is content with bright pictures, which contrast or guidance may well change."""

    @staticmethod
    def check(images, prompts):
        return {"bright": images.mean((1, 2, 3)) > 0, "red": images[:, 0].mean((1, 2)) > 0}


def test_the_tokenizer_keeps_one_token_for_each_word_with_meaning(world):
    tokenizer = build_tokenizer(world.grammar)
    prompt = "a tall red pole, low sun on the left, a plant near right"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)
    assert tokens == ["<start>", "tall", "red", "low", "left", "near right"]
    assert tokenizer("", padding="max_length").input_ids == [1, 0, 0, 0, 0, 0]
    swap = build_tokenizer(SwapWorld.grammar)
    assert swap.convert_ids_to_tokens(swap("a ring above a cross").input_ids) == ["<start>", "ring", "cross"]


def test_no_two_prompts_of_a_world_are_told_alike(world):
    tokenizer = build_tokenizer(world.grammar)
    told = {tuple(tokenizer(text).input_ids) for text in world.prompts("train") + world.prompts("ood")}
    assert len(told) == 128 and all(len(ids) == 6 and 2 not in ids for ids in told)


def test_an_untrained_model_predicts_nothing_and_its_loss_is_that_of_nothing(pipe, world):
    batch = {"image": torch.stack([world[i]["image"] for i in range(32)]), "caption": world.captions[:32]}
    loss = objective(pipe.components, batch, torch.Generator().manual_seed(0))["flow"]
    # The target is noise less image, of variance 1 + E[image^2].
    assert loss.item() == pytest.approx(1 + batch["image"].square().mean().item(), rel=0.1)


def test_the_loss_follows_from_the_generator_and_reads_the_captions(pipe, world):
    torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.3)
    batch = {"image": torch.stack([world[i]["image"] for i in range(8)]), "caption": world.captions[:8]}

    def loss(captions, dropout=0.1, seed=0):
        given = {**batch, "caption": captions}
        return objective(pipe.components, given, torch.Generator().manual_seed(seed), caption_dropout=dropout)["flow"]

    own, others = batch["caption"], batch["caption"][::-1]
    assert loss(own) == loss(own) != loss(own, seed=1)
    assert loss(own) != loss(others)
    assert loss(own, dropout=1.0) == loss(others, dropout=1.0)


def test_a_few_steps_lower_the_loss(pipe, world):
    trained = [*pipe.transformer.parameters(), *pipe.text_encoder.parameters()]
    optimizer = torch.optim.AdamW(trained, 3e-3)
    batch = {"image": torch.stack([world[i]["image"] for i in range(32)]), "caption": world.captions[:32]}
    losses = []
    for step in range(12):
        loss = objective(pipe.components, batch, torch.Generator().manual_seed(step))["flow"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_method_is_known_and_built_with_what_training_saw(pipe, world):
    assert get_method("lina") is METHOD
    assert pipe.config["world"] == "shadow-world"
    assert pipe.cooccurrence.count("colour=red", "side=left") > 0
    assert pipe.cooccurrence.count("colour=red", "side=right") == 0
    with pytest.raises(ValueError, match=r"models\.transformer"):
        build({"transformer": {"layers": 1}}, world)


def test_scores_are_shares_of_checks_on_noise_of_their_own(pipe, world):
    prompts = world.prompts("ood")[:3]
    score = VerifierScore(pipe, Easy, prompts, num_inference_steps=2)
    both = score(Intervention(), [0, 2], seeds=[5, 6])
    assert both.shape == (2, 2) and set(both.flatten().tolist()) <= {0.0, 0.25, 1.0}
    assert torch.equal(score(Intervention(), [2], seeds=[6, 5])[0], both[1].flip(0))
    checks = score.checks(Intervention(), [0, 2], seeds=[5, 6])
    assert all(passed.shape == (4,) for passed in checks.values())
    with pytest.raises(ValueError, match="share"):
        VerifierScore(pipe, Easy, prompts, share=1.5)


def test_calibration_gives_a_predictor_and_leaves_the_model_alone(pipe, world):
    torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.3)
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    box = ActionBox(("side",), lam_max=4.0, kappa_max=1.0, stop_range=0.0)
    arguments = {"num_inference_steps": 2, "seeds": (0, 1), "fresh_seeds": (7, 8), "look_seeds": (9,), "epochs": 20}
    hard, easy = world.prompts("ood-red")[:2], world.prompts("train")[:4]
    predictor, found = calibrate(pipe, Easy(num_images=8), hard, easy, box=box, **arguments)
    assert isinstance(predictor, LINAPredictor) and predictor.factors == ["side"]
    assert found.guidance_scale == max(found.guidance, key=found.guidance.get)
    assert len(found.diagnosis.base) == 6 and set(found.search.prompts) == set(found.diagnosis.hard_prompts)
    assert f"Guidance {found.guidance_scale:g} was kept" in found.as_markdown()
    assert all(torch.equal(value, before[name]) for name, value in pipe.transformer.state_dict().items())
    assert pipe.predictor is None
    again, _ = calibrate(pipe, Easy(num_images=8), hard, easy, box=box, **arguments)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in predictor.state_dict().items())


def test_guidance_is_judged_on_the_plain_model(pipe, world):
    scores = best_guidance(
        pipe, Easy, world.prompts("ood-red")[:2], scales=(1.0, 3.0), seeds=(0, 1), num_inference_steps=2
    )
    assert set(scores) == {1.0, 3.0} and all(0 <= value <= 1 for value in scores.values())
