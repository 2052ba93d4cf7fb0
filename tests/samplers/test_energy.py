"""Energy steering and the energies that need none: gradients through the network, projections that end exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gendiff.oracles.gaussian import Gaussian, GaussianMixture, exact_predictor
from gendiff.samplers.energy import EnergySteering, steered
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.linear_energies import (
    LinearMeasurement,
    inpainting,
    projected,
    region_means,
    super_resolution,
)
from gendiff.samplers.loop import Predictor, Step, sample
from gendiff.samplers.noise_levels import noise_level, noise_share, prediction_type, to_x0

# diffusers hands torch tensors to numpy functions, which numpy 2 comments on.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SHAPE = (2, 4, 4)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture() -> GaussianMixture:
    factor = randn(32, 32, seed=1) / 6
    covariance = factor @ factor.mT + 0.05 * torch.eye(32, dtype=torch.float64)
    return GaussianMixture([Gaussian(randn(*SHAPE, seed=seed), covariance) for seed in (2, 3)])


DATA, NOISE, GOAL = mixture(), randn(5, *SHAPE), randn(*SHAPE, seed=9)


def distance(clean: Tensor) -> Tensor:
    return (clean - GOAL.to(clean)).square().flatten(1).mean(1)


STEERING = EnergySteering(distance, "distance to the goal")


def flow(count: int = 10) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - index / count for index in range(count)])
    return scheduler


def ddim(count: int = 10, kind: str = "epsilon") -> DDIMScheduler:
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=kind, timestep_spacing="trailing")
    scheduler.set_timesteps(count)
    return scheduler


def euler(count: int = 10) -> EulerDiscreteScheduler:
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(count)
    return scheduler


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "flow": flow,
    "ddim": ddim,
    "ddim v": lambda: ddim(kind="v_prediction"),
    "ddim sample": lambda: ddim(kind="sample"),
    "euler": euler,
}


def clean_of(predict: Predictor, scheduler: Any, step: Step) -> Tensor:
    return to_x0(predict(NOISE, step), NOISE, noise_level(scheduler, step), prediction_type(scheduler))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_small_step_lowers_the_energy_of_every_sample_and_is_as_long_as_it_says(name: str):
    scheduler = SCHEDULERS[name]()
    base = exact_predictor(DATA, scheduler)
    acted = 0
    for index, timestep in enumerate(scheduler.timesteps):
        step = Step(index, len(scheduler.timesteps), timestep)
        share = round(noise_share(noise_level(scheduler, step)), 6)
        before = clean_of(base, scheduler, step)
        for rho in (0.001, 0.05):
            walk = steered(base, STEERING, intervention=Intervention(rho=rho), scheduler=scheduler)
            after = clean_of(walk, scheduler, step)
            if not 0.9 >= share > 0.3:
                assert torch.equal(after, before)
                continue
            acted += 1
            assert (distance(after) < distance(before)).all()
            moved, size = (
                values.flatten(1).square().mean(1).sqrt() for values in (after - before, rho * share**2 * NOISE)
            )
            torch.testing.assert_close(moved, size, rtol=1e-5, atol=0)
    assert acted >= 4


def test_the_gradient_goes_through_the_network():
    """For one Gaussian d x0_hat / dx is a known matrix, and G its transpose times the gradient of V."""
    data, scheduler = DATA.components[0], flow()
    step = Step(4, 10, scheduler.timesteps[4])
    alpha, sigma = noise_level(scheduler, step)
    spread = alpha**2 * data.covariance + sigma**2 * torch.eye(32, dtype=torch.float64)
    clean = data.posterior(NOISE, (alpha, sigma))[0]
    slope = 2 / 32 * (clean - GOAL).flatten(1) @ (alpha * data.covariance @ torch.linalg.inv(spread))
    expected = 0.1 * sigma**2 * slope.view_as(NOISE)
    expected *= (NOISE.flatten(1).norm(dim=1) / slope.norm(dim=1)).view(-1, 1, 1, 1)
    walk = steered(exact_predictor(data, scheduler), STEERING, intervention=Intervention(rho=0.1), scheduler=scheduler)
    torch.testing.assert_close(clean - clean_of(walk, scheduler, step), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_walk_ends_at_lower_energy_under_any_gradient_mode(mode: Callable[[], Any]):
    scheduler = flow(20)
    base = exact_predictor(DATA, scheduler)
    ends = []
    for rho in (0.0, 0.05, 0.3):
        walk = steered(base, STEERING, intervention=Intervention(rho=rho, window=(1.0, 0.0)), scheduler=scheduler)
        with mode():
            ends.append(sample(walk, scheduler, NOISE, progress=False))
        scheduler = flow(20)
        base = exact_predictor(DATA, scheduler)
    assert not any(end.requires_grad for end in ends)
    plain, little, more = (distance(end) for end in ends)
    assert (little < plain).all() and (more < little).all()


def test_a_sample_is_steered_as_it_is_alone():
    scheduler = flow()
    walk = steered(exact_predictor(DATA, scheduler), STEERING, intervention=Intervention(rho=0.2), scheduler=scheduler)
    step = Step(3, 10, scheduler.timesteps[3])
    torch.testing.assert_close(walk(NOISE, step)[2:3], walk(NOISE[2:3], step), rtol=0, atol=1e-12)


def test_nothing_is_wrapped_without_strength_and_energy_is_asked_inside_its_window_only():
    scheduler, asked = flow(), []

    def energy(clean: Tensor) -> Tensor:
        asked.append(clean)
        return distance(clean)

    base = exact_predictor(DATA, scheduler)
    for off in (Intervention(), Intervention(lam=1.0), Intervention(rho=1.0, gate=False)):
        assert steered(base, EnergySteering(energy), intervention=off, scheduler=scheduler) is base
    walk = steered(base, EnergySteering(energy), intervention=Intervention(rho=0.1), scheduler=scheduler)
    sample(walk, scheduler, NOISE, progress=False)
    assert len(asked) == 6  # s = .9 to .4


def test_an_energy_or_network_without_gradient_is_named():
    scheduler = flow()
    step, base = Step(3, 10, scheduler.timesteps[3]), exact_predictor(DATA, scheduler)
    on = {"intervention": Intervention(rho=0.1), "scheduler": scheduler}
    energies: list[Callable[[Tensor], Tensor]] = [
        lambda clean: distance(clean.detach()),
        lambda clean: (clean > 0).double().flatten(1).mean(1),
        lambda clean: torch.ones(len(clean), requires_grad=True),
    ]
    for energy in energies:
        with pytest.raises(RuntimeError, match="shadow length is not differentiable"):
            steered(base, EnergySteering(energy, "shadow length"), **on)(NOISE, step)
    with pytest.raises(RuntimeError, match="distance to the goal: the network lets no gradient through"):
        steered(torch.no_grad()(base), STEERING, **on)(NOISE, step)
    with pytest.raises(ValueError, match=r"one number for each sample, \(5,\)"):
        steered(base, EnergySteering(lambda clean: distance(clean).mean()), **on)(NOISE, step)
    with pytest.raises(ValueError, match=r"start must be in \(0, 1\], got 1.5"):
        EnergySteering(distance, start=1.5)


def test_half_precision_stays_what_it_is():
    scheduler = flow()
    step, state = Step(3, 10, scheduler.timesteps[3]), NOISE.bfloat16()
    base = exact_predictor(DATA.components[0], scheduler)
    walk = steered(base, STEERING, intervention=Intervention(rho=0.1), scheduler=scheduler)
    said = walk(state, step)
    assert said.dtype == torch.bfloat16
    assert (said.double() - walk(state.double(), step)).abs().max() < 0.1


HALF = torch.arange(4) < 2
REGIONS = torch.stack([HALF[:, None] & HALF, ~HALF[:, None] & HALF])
MEASUREMENTS: dict[str, LinearMeasurement] = {
    "in-painting": inpainting(GOAL[None], HALF[:, None] & HALF),
    "in-painting, a mask each": inpainting(randn(5, *SHAPE, seed=7), randn(5, 1, 4, 4, seed=8) > 0),
    "region means": region_means(randn(1, 2, 2, seed=5), REGIONS),
    "super-resolution": super_resolution(randn(5, 2, 2, 2, seed=6), 2),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_projection_is_the_nearest_sample_that_fits(name: str):
    measurement = MEASUREMENTS[name]
    there = measurement.project(NOISE)
    torch.testing.assert_close(measurement.measure(there), measurement.target.expand_as(measurement.measure(there)))
    torch.testing.assert_close(measurement.project(there), there)
    assert (measurement.energy(there) < 1e-25).all() and (measurement.energy(NOISE) > 1e-3).all()
    # A^+ of Penrose: A A^+ A = A, and the null space that is kept is orthogonal to what was changed.
    once = measurement.measure(NOISE)
    torch.testing.assert_close(measurement.measure(measurement.pseudo_inverse(once)), once)
    kept = NOISE - measurement.pseudo_inverse(once)
    assert ((there - NOISE) * kept).flatten(1).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize("scheduler", ["flow", "ddim", "ddim v", "ddim sample", "euler"])
def test_a_walk_ends_exactly_where_it_was_told_and_elsewhere_as_the_network_has_it(name: str, scheduler: str):
    measurement, made = MEASUREMENTS[name], SCHEDULERS[scheduler]()
    if scheduler.startswith("ddim"):
        made.final_alpha_cumprod = torch.tensor(1.0)
    predict = projected(exact_predictor(DATA, made), measurement, made)
    end = sample(predict, made, NOISE * made.init_noise_sigma if scheduler == "euler" else NOISE, progress=False)
    assert measurement.energy(end).sqrt().max() < 1e-5
    # What is not told follows the data: far likelier than what is told pasted into a sample made without it.
    if scheduler == "flow":
        again = flow()
        pasted = measurement.project(sample(exact_predictor(DATA, again), again, NOISE, progress=False))
        assert (DATA.log_prob(end) > DATA.log_prob(pasted)).float().mean() >= 0.8


def test_unknown_pixels_may_be_nan_and_half_precision_is_kept():
    known = torch.full((1, *SHAPE), torch.nan)
    known[..., :2, :2] = 3.0
    scheduler = flow()
    step = Step(9, 10, scheduler.timesteps[9])
    predict = projected(exact_predictor(DATA, scheduler), inpainting(known, HALF[:, None] & HALF), scheduler)
    said = predict(NOISE.half(), step)
    assert said.dtype == torch.half and said.isfinite().all()


def test_measurements_that_do_not_fit_are_refused():
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: inpainting(GOAL[None], torch.full((4, 4), 0.5)), "mask must hold 0 and 1 only"),
        (lambda: inpainting(GOAL[None], torch.ones(3, 4)), r"mask of shape \(3, 4\) does not fit .*\(1, 2, 4, 4\)"),
        (lambda: MEASUREMENTS["in-painting"].project(randn(2, 2, 8, 8)), r"known is .* samples are \(2, 2, 8, 8\)"),
        (lambda: MEASUREMENTS["in-painting, a mask each"].project(NOISE[:2]), "in-painting"),
        (lambda: region_means(randn(1, 3, 2), REGIONS), r"values must be \(1 or B, 2, C\), got \(1, 3, 2\)"),
        (lambda: region_means(randn(1, 2, 2), torch.stack([HALF[None], HALF[None]])), "must not overlap"),
        (lambda: region_means(randn(1, 2, 2), torch.stack([REGIONS[0], REGIONS[0] & False])), "region 1 is empty"),
        (lambda: MEASUREMENTS["region means"].project(randn(2, 3, 4, 4)), "region means: the target has shape"),
        (lambda: MEASUREMENTS["region means"].project(randn(2, 2, 5, 4)), "region means: regions are"),
        (lambda: super_resolution(randn(1, 2, 2, 2), 0), "factor >= 1"),
        (lambda: MEASUREMENTS["super-resolution"].project(randn(5, 2, 5, 4)), "factor 2 does not divide"),
        (lambda: MEASUREMENTS["super-resolution"].project(randn(5, 2, 8, 8)), "super-resolution: the target has"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()
