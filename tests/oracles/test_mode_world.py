"""ModeWorld: the network against Bayes' rule, the pipeline against a plain walk, and what steers its modes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gendiff.oracles.gaussian import exact_predictor
from gendiff.oracles.mode_denoisers import ModeDenoiser
from gendiff.oracles.mode_world import ModeWorld, ModeWorldPipeline
from gendiff.samplers.contrast import CausalContrast, contrasted
from gendiff.samplers.guidance import guided
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import Step, sample
from gendiff.samplers.noise_levels import noise_level, noise_share

WORLD = ModeWorld()
COUNT = 600  # samples of a rate: its standard error is at most 0.02
NOISE = torch.randn(COUNT, 2, 2, 2, generator=torch.Generator().manual_seed(0))
EVEN = [1 - index / 10 for index in range(10)]


def flow(sigmas: list[float] = EVEN) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=sigmas)
    return scheduler


def ends(
    mode: int,
    scale: float = 1.0,
    intervention: Intervention | None = None,
    projection: str = "none",
    swap: bool = False,
) -> Tensor:
    scheduler = flow()
    texts = [WORLD.prompt(mode), "", WORLD.factual(mode), WORLD.counterfactual(mode)]
    asked, empty, plus, minus = (WORLD.predictor(text, scheduler) for text in texts)
    if swap:
        plus, minus = minus, plus
    predict = contrasted(
        guided(asked, empty, scale),
        plus,
        minus,
        contrast=CausalContrast(projection),
        intervention=intervention or Intervention(),
        share=lambda step: noise_share(noise_level(scheduler, step)),
        unconditional=empty,
    )
    return sample(predict, scheduler, NOISE, progress=False)


@cache
def rate(**how: Any) -> float:
    """Share of samples at the target, averaged over all modes as targets."""
    return sum(WORLD.rate(ends(mode, **how), mode) for mode in range(WORLD.num_modes)) / WORLD.num_modes


@pytest.mark.parametrize("prompt", ["", "mode 2", "plainly mode 5", "mode 1, not mode 2"])
def test_the_network_is_bayes_rule(prompt: str):
    scheduler = flow([1.0, 0.8, 0.3, 0.02])
    exact, network = exact_predictor(WORLD.mixture(prompt), scheduler), WORLD.predictor(prompt, scheduler)
    for index, timestep in enumerate(scheduler.timesteps):
        step = Step(index, 4, timestep)
        sigma = float(scheduler.sigmas[index])
        data = WORLD.mixture(prompt).sample(50, torch.Generator().manual_seed(index))
        x = (1 - sigma) * data + sigma * NOISE[:50].double()
        torch.testing.assert_close(network(x, step), exact(x, step), rtol=1e-5, atol=1e-5)
        half = network(x.bfloat16(), step)
        assert half.dtype == torch.bfloat16
        single = network(x.bfloat16().float(), step)
        torch.testing.assert_close(half.float(), single, rtol=0.01, atol=0.01)


def test_each_row_has_its_own_prompt_and_its_own_noise_level():
    embeds = WORLD.pipeline().encode_prompt(["mode 0", "mode 3", ""], do_classifier_free_guidance=False)[0]
    times = torch.tensor([900.0, 500.0, 100.0])
    together = WORLD.denoiser(NOISE[:3], times, embeds, return_dict=False)[0]
    for row in range(3):
        alone = WORLD.denoiser(NOISE[row : row + 1], times[row], embeds[row : row + 1]).sample
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_samples_are_those_of_the_prompt():
    """Exact ends by many steps: shares to their standard error, and spread S around each mode."""
    scheduler = flow([1 - index / 150 for index in range(150)])
    end = sample(WORLD.predictor("mode 0", scheduler), scheduler, NOISE, progress=False)
    shares = WORLD.nearest(end).bincount(minlength=6) / COUNT
    assert (shares - torch.tensor(WORLD.prompts["mode 0"])).abs().max() < 0.06  # three standard errors
    assert WORLD.distance(end).square().mean().sqrt().item() == pytest.approx(0.15, abs=0.01)


def test_raising_guidance_takes_the_shortcut():
    """The reference run has .27/.26/.19/.08/.01 at 1/2/3/5/8, for a draw of modes that is not known."""
    rates = [rate(scale=scale) for scale in (1, 2, 3, 5, 8)]
    assert rates[0] == pytest.approx(0.25, abs=0.03)
    assert rates[1] > rates[2] > rates[3] > rates[4]
    assert rates[4] < rates[0] - 0.1


def test_early_contrast_brings_the_target_back_and_late_contrast_adds_nothing():
    """The reference run: .85/.91/.91 for windows that stop at .6/.3/0, and .98 for twice the strength."""
    early, middle, whole = (rate(intervention=Intervention(lam=1.0, window=(1.0, stop))) for stop in (0.6, 0.3, 0.0))
    assert early == pytest.approx(0.85, abs=0.05) and middle == pytest.approx(0.91, abs=0.03)
    assert abs(whole - middle) < 0.01 and middle > early + 0.05
    assert rate(intervention=Intervention(lam=2.0)) == pytest.approx(0.98, abs=0.02)
    best = max(rate(scale=scale) for scale in (1, 1.5, 2, 3))
    assert early > best + 0.4
    late = rate(intervention=Intervention(lam=1.0, window=(0.3, 0.0)))
    assert abs(late - rate()) < 0.02
    assert rate(intervention=Intervention(lam=1.0), swap=True) < 0.1


def test_what_is_orthogonal_to_guidance_is_a_part_of_the_gain_only():
    """Guidance leads to the shortcut, so most of what contrast does here is to take guidance back."""
    plain, strong = rate(scale=3.0), Intervention(lam=2.0)
    part = rate(scale=3.0, intervention=strong, projection="clip+orthogonal")
    assert plain + 0.2 < part < rate(scale=3.0, intervention=strong) - 0.3
    assert rate(scale=3.0, intervention=strong, projection="clip") > 0.95


def test_moving_steps_early_finds_the_mode_of_a_fine_walk_more_often_and_blurs_short_walks():
    """The reference run at 8 steps: .931/.950/.954 for kappa 1/2/3; at 5 steps kappa 5 blurs from .10 to .34."""

    def end(count: int, kappa: float) -> Tensor:
        scheduler = flow([1 - u / (kappa - (kappa - 1) * u) for u in (index / count for index in range(count))])
        return sample(WORLD.predictor("mode 0", scheduler), scheduler, NOISE, progress=False)

    fine = WORLD.nearest(end(300, 1.0))
    even, early, earlier = ((WORLD.nearest(end(8, kappa)) == fine).double().mean() for kappa in (1.0, 2.0, 3.0))
    assert early > even + 0.005 and earlier > even + 0.005 and even > 0.9
    sharp, blurred = (WORLD.distance(end(5, kappa)).square().mean().sqrt().item() for kappa in (1.0, 5.0))
    assert sharp == pytest.approx(0.1, abs=0.02) and blurred == pytest.approx(0.34, abs=0.05)


@pytest.mark.parametrize("intervention", [Intervention(), Intervention(lam=3.0, gate=False)])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_shut_gate_is_the_plain_run_bit_for_bit(intervention: Intervention, scale: float):
    scheduler = flow()
    asked, empty = WORLD.predictor("mode 4", scheduler), WORLD.predictor("", scheduler)
    plain = sample(guided(asked, empty, scale), scheduler, NOISE, progress=False)
    assert torch.equal(ends(4, scale, intervention), plain)


class Counting(ModeDenoiser):
    """The network, which notes the rows of each call."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.rows = [*getattr(self, "rows", []), len(kwargs["hidden_states"])]
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_pipeline_is_the_walk_with_guidance_in_one_batched_call(scale: float):
    network = Counting()
    pipe = ModeWorldPipeline(network, FlowMatchEulerDiscreteScheduler(), WORLD.prompts)
    pipe.set_progress_bar_config(disable=True)
    images = pipe("mode 2", guidance_scale=scale, sigmas=EVEN, latents=NOISE[:1]).images
    torch.testing.assert_close(images, ends(2, scale)[:1], rtol=0, atol=1e-5)
    assert network.rows == [2 if scale > 1 else 1] * 10


def test_the_pipeline_is_called_as_those_of_diffusers():
    pipe = WORLD.pipeline()
    twice = pipe(["mode 1", "mode 2"], num_images_per_prompt=2, generator=torch.Generator().manual_seed(1)).images
    assert twice.shape == (4, 2, 2, 2) and pipe.num_timesteps == 10
    each = [torch.Generator().manual_seed(seed) for seed in range(2)]
    batch = pipe(["mode 1", "mode 2"], guidance_scale=2.0, generator=each, output_type="latent", return_dict=False)[0]
    alone = pipe("mode 2", guidance_scale=2.0, generator=torch.Generator().manual_seed(1)).images
    torch.testing.assert_close(batch[1:], alone, rtol=0, atol=1e-5)
    embeds, negative = pipe.encode_prompt("mode 2", negative_prompt="mode 3", num_images_per_prompt=3)
    assert negative is not None and embeds.shape == negative.shape == (3, 4, 6)
    same = [
        pipe("mode 2", negative_prompt="mode 3", guidance_scale=2.0, latents=NOISE[:1]).images,
        pipe(
            prompt_embeds=embeds[:1], negative_prompt_embeds=negative[:1], guidance_scale=2.0, latents=NOISE[:1]
        ).images,
    ]
    assert torch.equal(*same)


def test_a_callback_reads_and_replaces_the_tensors_of_the_walk():
    pipe, seen = WORLD.pipeline(), []

    def swap(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((index, tensors["prompt_embeds"].shape))
        return {"latents": tensors["latents"] * 0} if index == 9 else {}

    names = ("latents", "prompt_embeds")
    end = pipe(
        "mode 0",
        guidance_scale=3.0,
        callback_on_step_end=swap,
        callback_on_step_end_tensor_inputs=names,
        generator=torch.Generator().manual_seed(0),
    ).images
    assert not end.any() and seen == [(index, (2, 4, 6)) for index in range(10)]


def test_a_saved_world_is_the_same_world(tmp_path: Path):
    world = ModeWorld(num_modes=4, sample_shape=(3, 1, 2), spread=0.2, seed=5, num_tokens=3)
    pipe = world.pipeline()
    pipe.save_pretrained(tmp_path)
    again = ModeWorldPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    first, second = (
        one(["mode 3", ""], guidance_scale=2.0, generator=torch.Generator().manual_seed(0)).images
        for one in (pipe, again)
    )
    assert first.shape == (2, 3, 1, 2) and torch.equal(first, second)


def test_what_the_world_does_not_have_is_refused():
    pipe, network = WORLD.pipeline(), {"prompt": "mode 0"}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "mode 9"}, "prompt 'mode 9' is none of the world's: '', 'mode 0'"),
        ({}, "pass prompt or prompt_embeds"),
        ({**network, "prompt_embeds": torch.zeros(1, 4, 6)}, "both given; choose one"),
        ({**network, "output_type": "pil"}, "output_type must be pt or latent, got 'pil'"),
        ({**network, "callback_on_step_end_tensor_inputs": ["pixels"]}, "callback input 'pixels' is none of latents"),
        (
            {**network, "negative_prompt": ["mode 1", "mode 2"], "guidance_scale": 2.0},
            "negative_prompt has 2 entries, prompt 1",
        ),
    ]
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            pipe(**given)
    with pytest.raises(ValueError, match="num_modes must be at least 3, got 2"):
        ModeWorld(num_modes=2)
    with pytest.raises(ValueError, match="predicts flow velocity, DDIMScheduler expects another kind"):
        WORLD.predictor("", DDIMScheduler())
