"""DDIM on uneven steps: the identity is diffusers' DDIM, a warp agrees with Euler on the same nodes, files keep it."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from gendiff.oracles.gaussian import Gaussian, exact_predictor
from gendiff.samplers.loop import Step, sample
from gendiff.samplers.noise_levels import noise_level
from gendiff.samplers.warp_report import noise_shares
from gendiff.samplers.warped_ddim import WarpedDDIMScheduler
from gendiff.samplers.warps import WarpSpec

# diffusers hands torch tensors to numpy functions, which numpy 2 comments on.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

DATA = Gaussian(torch.tensor([1.7, -0.5]).double(), 0.04 * torch.eye(2).double())
KAPPA2 = {"name": "moebius", "parameter": 2.0}
TYPES = ["epsilon", "v_prediction", "sample"]


def noise(count: int = 256) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def warped(warp=KAPPA2, **config) -> WarpedDDIMScheduler:
    return WarpedDDIMScheduler(warp=warp, **{"clip_sample": False, **config})


def walk(scheduler, steps: int, state: torch.Tensor, **step) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    return sample(exact_predictor(DATA, scheduler), scheduler, state, progress=False, **step)


def distance(scheduler, steps: int) -> float:
    """From the exact solution, root mean square."""
    scheduler.set_timesteps(steps)
    level = noise_level(scheduler, Step(0, steps, scheduler.timesteps[0]))
    return float((walk(scheduler, steps, noise()) - DATA.transport(noise(), level)).square().mean().sqrt())


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_without_a_warp_it_is_diffusers_ddim_bit_for_bit(prediction_type, eta):
    config = {"prediction_type": prediction_type, "timestep_spacing": "trailing"}
    results = []
    for scheduler in (DDIMScheduler(**config), WarpedDDIMScheduler(**config), WarpedDDIMScheduler(**config, warp={})):
        draws = torch.Generator().manual_seed(3)
        results.append((walk(scheduler, 10, noise(), eta=eta, generator=draws), scheduler.timesteps))
    for state, timesteps in results[1:]:
        assert torch.equal(state, results[0][0]) and torch.equal(timesteps, results[0][1])


@pytest.mark.parametrize("prediction_type", TYPES)
def test_it_is_euler_on_the_same_nodes(prediction_type):
    scheduler = warped(prediction_type=prediction_type)
    reached = walk(scheduler, 10, noise())
    euler = EulerDiscreteScheduler.from_config(scheduler.config, prediction_type="epsilon")
    euler.set_timesteps(timesteps=scheduler.timesteps.tolist())
    # The state of Euler is x / alpha.
    start = noise() / noise_level(scheduler, Step(0, 10, scheduler.timesteps[0]))[0]
    other = sample(exact_predictor(DATA, euler), euler, start, progress=False)
    assert (reached - other).abs().max() < 1e-5


def test_on_even_steps_of_its_own_table_it_is_ddim():
    """The general step on the grid of plain DDIM, reached by a split so weak that no timestep moves."""
    plain, ours = DDIMScheduler(clip_sample=False), warped({"name": "split", "parameter": 0.3001, "u_c": 0.3})
    for eta in (0.0, 1.0):
        states = [
            walk(each, 10, noise(), eta=eta, generator=torch.Generator().manual_seed(1)) for each in (plain, ours)
        ]
        assert torch.equal(plain.timesteps, ours.timesteps)
        assert (states[0] - states[1]).abs().max() < 1e-6


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("to_one", [True, False])
def test_ends_stay_and_timesteps_fall(spacing, to_one):
    plain = DDIMScheduler(timestep_spacing=spacing, set_alpha_to_one=to_one)
    plain.set_timesteps(20)
    before = plain.timesteps
    for kappa in (1.5, 3.0, 8.0):
        scheduler = warped({"parameter": kappa}, timestep_spacing=spacing, set_alpha_to_one=to_one)
        scheduler.set_timesteps(20)
        assert len(scheduler.timesteps) == 20 and (scheduler.timesteps.diff() < 0).all()
        assert scheduler.timesteps[0] == plain.timesteps[0]
        assert (scheduler.timesteps >= before).all()
        assert noise_shares(scheduler)[-1] == noise_shares(plain)[-1]
        before = scheduler.timesteps


def test_it_converges_to_the_exact_solution_where_overwritten_timesteps_do_not():
    errors = [distance(warped(), steps) for steps in (40, 80)]
    assert errors[1] < 0.65 * errors[0] and errors[1] < 0.04
    scheduler, plain = warped(), DDIMScheduler(clip_sample=False)
    for each in (scheduler, plain):
        each.set_timesteps(80)
    plain.timesteps = scheduler.timesteps
    exact = DATA.transport(noise(), noise_level(plain, Step(0, 80, plain.timesteps[0])))
    wrong = sample(exact_predictor(DATA, plain), plain, noise(), progress=False)
    assert (wrong - exact).square().mean().sqrt() > 0.15


def test_noise_of_eta_ends_in_the_right_distribution():
    state = walk(warped(), 250, noise(4096), eta=1.0, generator=torch.Generator().manual_seed(2))
    assert (state.mean(0) - DATA.mean).abs().max() < 0.02
    assert (state.std(0) - 0.2).abs().max() < 0.02


def test_it_is_saved_and_loaded_with_its_warp(tmp_path):
    made = warped(WarpSpec("split", 0.6, u_c=0.25, omega=0.5), prediction_type="v_prediction", steps_offset=1)
    made.save_pretrained(tmp_path)
    loaded = WarpedDDIMScheduler.from_pretrained(tmp_path)
    assert loaded.warp == made.warp == WarpSpec("split", 0.6, u_c=0.25, omega=0.5)
    own, other = ({k: v for k, v in each.config.items() if not k.startswith("_")} for each in (made, loaded))
    assert own == other
    assert torch.equal(walk(loaded, 12, noise()), walk(made, 12, noise()))


def test_it_takes_over_the_config_of_ddim():
    plain = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, num_train_timesteps=500)
    ours = WarpedDDIMScheduler.from_config(plain.config, warp=KAPPA2)
    assert ours.warp == WarpSpec("moebius", 2.0)
    assert torch.equal(ours.alphas_cumprod, plain.alphas_cumprod) and ours.config["warp"]["parameter"] == 2.0


def test_a_terminal_signal_of_zero_is_a_node_like_others():
    scheduler = warped(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    state = walk(scheduler, 40, noise())
    assert scheduler.timesteps[0] == 999 and (scheduler.timesteps.diff() < 0).all()
    assert (state.mean(0) - DATA.mean).abs().max() < 0.02


def test_clipping_works_as_in_ddim():
    plain, ours = DDIMScheduler(clip_sample_range=1.2), warped(clip_sample=True, clip_sample_range=1.2)
    for each in (plain, ours):
        each.set_timesteps(10)
    t = int(ours.timesteps[3])
    assert t not in plain.timesteps.tolist()
    for use_clipped in (True, False):
        output, state = noise(8), 3 * noise(8)
        (_, clean), (_, other) = (
            each.step(output, t, state, use_clipped_model_output=use_clipped, return_dict=False)
            for each in (plain, ours)
        )
        assert torch.equal(clean, other) and clean.abs().max() == pytest.approx(1.2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="warp must be a WarpSpec or a dict with keys among name, parameter"):
        WarpedDDIMScheduler(warp={"kappa": 2.0})
    with pytest.raises(ValueError, match=r"kappa.*got 0\.5"):
        WarpedDDIMScheduler(warp={"parameter": 0.5})
    with pytest.raises(ValueError, match="warp must be"):
        WarpedDDIMScheduler(warp="moebius")  # type: ignore[arg-type]
    scheduler = warped()
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(noise(), 999, noise())
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="timestep must be one of the 10 of the schedule, got 998"):
        scheduler.step(noise(), 998, noise())
    with pytest.raises(ValueError, match="generator and variance_noise"):
        scheduler.step(noise(), 900, noise(), eta=1.0, generator=torch.Generator(), variance_noise=noise())


def test_steps_that_collide_name_what_would_do():
    scheduler = warped({"name": "split", "parameter": 0.05, "u_c": 0.95}, timestep_spacing="linspace")
    with pytest.raises(ValueError, match=r"beta = 0.05\) of N = 400 steps makes \d+ .* smallest safe beta is") as error:
        scheduler.set_timesteps(400)
    safe = float(str(error.value).rstrip(".").split()[-1])
    assert 0.05 < safe < 0.95 and math.isfinite(safe)
    warped({"name": "split", "parameter": safe, "u_c": 0.95}, timestep_spacing="linspace").set_timesteps(400)
