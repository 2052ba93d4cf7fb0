"""Closed forms of contrast, guidance and prompt edits against walks of LinearWorld, and its planted optima."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gendiff.oracles.contrast_shift import contrast_shift, guidance_shift, surviving_share
from gendiff.oracles.linear_world import LinearWorld
from gendiff.oracles.mode_world import ModeWorldPipeline
from gendiff.samplers.contrast import CausalContrast, contrasted
from gendiff.samplers.guidance import guided
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import Predictor, State, Step, sample
from gendiff.samplers.noise_levels import noise_level, noise_share

STEPS = 400
WORLD = LinearWorld()
EMBEDS = WORLD.prompts(3, torch.Generator().manual_seed(0)).double()
MEANS = WORLD.denoiser.mean(EMBEDS)
NOISE = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def flow() -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - index / STEPS for index in range(STEPS)])
    return scheduler


def under(embeds: Tensor) -> Predictor:
    def predict(x: State, step: Step) -> Tensor:
        return WORLD.denoiser(x, step.timestep, embeds.expand(len(x), -1, -1)).sample

    return predict


def end(wrap: Callable[[Predictor, FlowMatchEulerDiscreteScheduler], Predictor]) -> Tensor:
    scheduler = flow()
    return sample(wrap(under(EMBEDS[:1]), scheduler), scheduler, NOISE, progress=False)


PLAIN = end(lambda predict, scheduler: predict)


def contrast(plus: int, minus: int, lam: float, window: tuple[float, float]) -> Tensor:
    return end(
        lambda predict, scheduler: contrasted(
            predict,
            under(EMBEDS[plus : plus + 1]),
            under(EMBEDS[minus : minus + 1]),
            contrast=CausalContrast(),
            intervention=Intervention(lam=lam, window=window),
            share=lambda step: noise_share(noise_level(scheduler, step)),
        )
    )


@pytest.mark.parametrize("window", [(1.0, 0.0), (1.0, 0.3), (1.0, 0.6), (0.8, 0.2)])
def test_windowed_contrast_ends_where_the_closed_form_says(window: tuple[float, float]):
    expected = contrast_shift(MEANS[1] - MEANS[2], 1.0, 0.2, window)
    shift = contrast(1, 2, 1.0, window) - PLAIN
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(shift, expected.expand_as(shift), rtol=0, atol=1e-2)


def test_twice_the_strength_is_twice_the_shift_and_swapped_prompts_turn_it_around():
    window = (1.0, 0.6)
    shift = contrast(1, 2, 1.0, window) - PLAIN
    torch.testing.assert_close(contrast(1, 2, 2.0, window) - PLAIN, 2 * shift, rtol=0, atol=1e-5)
    torch.testing.assert_close(contrast(2, 1, 1.0, window) - PLAIN, -shift, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guidance_ends_where_the_closed_form_says(scale: float):
    shift = end(lambda predict, scheduler: guided(predict, under(EMBEDS[1:2]), scale)) - PLAIN
    expected = guidance_shift(MEANS[0] - MEANS[1], scale, 0.2)
    torch.testing.assert_close(expected, (scale - 1) * (MEANS[0] - MEANS[1]))
    torch.testing.assert_close(shift, expected.expand_as(shift), rtol=0, atol=1e-2)


def test_a_prompt_edit_ends_where_the_closed_form_says():
    edited = WORLD.edited(EMBEDS[:1], torch.tensor([0.7]))
    moved = WORLD.denoiser.mean(edited) - MEANS[:1]
    shift = end(lambda predict, scheduler: under(edited)) - PLAIN
    torch.testing.assert_close(shift, moved.expand_as(shift), rtol=0, atol=1e-2)
    in_window = end(
        lambda predict, scheduler: (
            lambda x, step: (under(edited) if float(scheduler.sigmas[step.index]) > 0.3 + 1e-6 else predict)(x, step)
        )
    )
    expected = surviving_share(0.2, (1.0, 0.3)) * moved
    torch.testing.assert_close(in_window - PLAIN, expected.expand_as(shift), rtol=0, atol=1e-2)


def test_little_survives_an_early_window_on_one_mode():
    assert surviving_share(0.2) == pytest.approx(1)
    assert surviving_share(0.2, (1.0, 0.3)) == pytest.approx(0.42, abs=0.005)
    assert surviving_share(0.2, (1.0, 0.6)) == pytest.approx(0.13, abs=0.005)
    parts = [surviving_share(0.7, window) for window in ((1.0, 0.5), (0.5, 0.2), (0.2, 0.0))]
    assert sum(parts) == pytest.approx(1) and min(parts) > 0
    wide = surviving_share(1e6, (1.0, 0.6))
    assert wide == pytest.approx(1, abs=1e-3)  # data far wider than the noise: nothing is undone


def test_what_has_no_answer_is_refused():
    for spread in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="spread must be finite and above 0"):
            surviving_share(spread)
    for window in ((0.3, 0.3), (1.2, 0.0), (0.5, -0.1)):
        with pytest.raises(ValueError, match="window must be"):
            surviving_share(0.2, window)
    with pytest.raises(ValueError, match="num_tokens must be at least 2, got 1"):
        LinearWorld(num_tokens=1)


def test_planted_strengths_are_the_best_and_about_half_of_them_are_zero():
    embeds = WORLD.prompts(400, torch.Generator().manual_seed(3))
    best = WORLD.best_alpha(embeds)
    assert 0.4 < (best == 0).float().mean() < 0.6 and best.abs().max() <= 1 and best.std() > 0.2
    assert torch.equal(WORLD.edited(embeds, torch.zeros(400)), embeds)
    alphas = torch.linspace(-1, 1, 201)
    scores = torch.stack([WORLD.expected_score(embeds, alpha.expand(400)) for alpha in alphas])
    torch.testing.assert_close(alphas[scores.argmax(0)], best, rtol=0, atol=0.0051)
    edited = WORLD.edited(embeds, best)
    assert torch.equal(edited[:, 0], embeds[:, 0])
    torch.testing.assert_close(WORLD.denoiser.mean(edited), WORLD.target(embeds))


def test_expected_scores_are_the_means_of_scores_of_samples():
    embeds = EMBEDS[:1].float()
    alpha = torch.tensor([0.4])
    exact = WORLD.denoiser.mean(WORLD.edited(embeds, alpha))
    draws = exact + 0.2 * torch.randn(20_000, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = WORLD.expected_score(embeds, alpha)
    torch.testing.assert_close(WORLD.score(draws, embeds).mean()[None], expected, rtol=0, atol=2e-3)


def test_the_pipeline_runs_on_a_linear_world_by_its_embeddings():
    pipe = ModeWorldPipeline(WORLD.denoiser, FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    sigmas = [1 - index / STEPS for index in range(STEPS)]
    images = pipe(prompt_embeds=EMBEDS[:1], num_images_per_prompt=4, latents=NOISE, sigmas=sigmas).images
    torch.testing.assert_close(images, PLAIN, rtol=0, atol=1e-5)
    # The walk of one Gaussian is known: noise times S, around the mean.
    torch.testing.assert_close(PLAIN, MEANS[:1] + 0.2 * NOISE, rtol=0, atol=1e-2)
