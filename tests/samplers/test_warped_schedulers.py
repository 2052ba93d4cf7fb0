"""Schedulers of diffusers under a warp: every supported class walks to the exact answer, all others are refused."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import pickle
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from gendiff.oracles.gaussian import Gaussian, exact_predictor
from gendiff.samplers.loop import Step, sample
from gendiff.samplers.noise_levels import is_flow, noise_level
from gendiff.samplers.warp_report import StepTrade, noise_shares, step_trade, steps_at_least
from gendiff.samplers.warped import TESTED, warp_of, warp_scheduler
from gendiff.samplers.warped_ddim import WarpedDDIMScheduler
from gendiff.samplers.warps import WarpSpec

# diffusers hands torch tensors to numpy functions, which numpy 2 comments on.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

DATA = Gaussian(torch.tensor([1.7, -0.5]).double(), 0.04 * torch.eye(2).double())
KAPPA2 = WarpSpec("moebius", 2.0)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
KARRAS = {"use_karras_sigmas": True}
# One-step methods lose half their error with twice the steps; so do the others here, whose last step is of first order.
DETERMINISTIC: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", KARRAS),
    "Euler v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM++": ("DPMSolverMultistepScheduler", {}),
    "DPM++ flow": ("DPMSolverMultistepScheduler", FLOW),
    "DPM++ single": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "DPM++ single flow": ("DPMSolverSinglestepScheduler", {"lower_order_final": True, **FLOW}),
    "DEIS flow": ("DEISMultistepScheduler", FLOW),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "UniPC flow": ("UniPCMultistepScheduler", FLOW),
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow Euler even": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
}
ALL = DETERMINISTIC | {
    "DEIS": ("DEISMultistepScheduler", {}),
    "DEIS Karras": ("DEISMultistepScheduler", KARRAS),
    "DPM++ Karras": ("DPMSolverMultistepScheduler", KARRAS),
    "UniPC Karras": ("UniPCMultistepScheduler", KARRAS),
    "DPM++ ending above 0": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "use_lu_lambdas": True}),
    "Euler continuous": (
        "EulerDiscreteScheduler",
        {"prediction_type": "v_prediction", "timestep_type": "continuous", **KARRAS},
    ),
    "Euler zero SNR": ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    "ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "flow LCM": ("FlowMatchLCMScheduler", {"shift": 3.0}),
    "flow terminal": ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}),
    "flow inverted": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
}


@functools.cache  # some take a second to make
def made(case: str) -> Any:
    name, config = ALL[case]
    return getattr(diffusers, name)(**config)


def plain(case: str) -> Any:
    return copy.deepcopy(made(case))


def set_up(case: str, spec: WarpSpec, steps: int) -> Any:
    scheduler = warp_scheduler(made(case), spec, force=True)
    scheduler.set_timesteps(steps)
    return scheduler


def predictor(scheduler: Any):
    if not hasattr(scheduler, "sigmas_interpol"):
        return exact_predictor(DATA, scheduler)

    def predict(x, step):
        levels = scheduler.sigmas_interpol if step.index % 2 else scheduler.sigmas
        return DATA.posterior(x, level_of(levels[step.index]))[1]

    return predict


def level_of(ratio) -> tuple[float, float]:
    length = float(torch.hypot(ratio, torch.ones_like(ratio)))
    return 1 / length, float(ratio) / length


def walk(scheduler: Any, count: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """What a run reaches, and where the exact solution is."""
    normal = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if hasattr(scheduler, "sigmas_interpol"):
        start = level_of(scheduler.sigmas[0])
    else:
        start = noise_level(scheduler, Step(0, len(scheduler.timesteps), scheduler.timesteps[0]))
    last = float(scheduler.sigmas[-1])
    noisy = start[0] * DATA.mean + (start[0] ** 2 * 0.04 + start[1] ** 2) ** 0.5 * normal
    # These keep x / alpha.
    state = noisy / start[0] if getattr(scheduler, "init_noise_sigma", 1.0) > 1.5 else noisy
    draws = torch.Generator().manual_seed(1)
    reached = sample(predictor(scheduler), scheduler, state, generator=draws, progress=False)
    return reached, DATA.transport(noisy, start, (1 - last, last) if is_flow(scheduler) else (1.0, 0.0))


def error(case: str, spec: WarpSpec, steps: int) -> float:
    reached, exact = walk(set_up(case, spec, steps))
    return float((reached - exact).square().mean().sqrt())


def test_every_supported_class_is_tried():
    assert {name for name, _ in ALL.values()} == set(TESTED)


@pytest.mark.parametrize("case", DETERMINISTIC)
def test_a_warped_walk_converges_to_the_exact_sample(case):
    coarse, fine = (error(case, KAPPA2, steps) for steps in (80, 160))
    # The third order of DEIS may pass through zero on its way.
    assert fine < 0.03 and fine < max(0.6 * coarse, 0.003), (coarse, fine)


@pytest.mark.parametrize("kappa", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("case", ["Euler Karras", "flow Euler even"])
def test_the_error_of_euler_halves(case, kappa):
    errors = [error(case, WarpSpec("moebius", kappa), steps) for steps in (40, 80, 160)]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.1)


def test_the_noise_of_an_ancestral_walk_ends_in_the_right_distribution():
    reached, _ = walk(set_up("ancestral", KAPPA2, 400), count=2048)
    assert (reached.mean(0) - DATA.mean).abs().max() < 0.02
    assert (reached.std(0) - 0.2).abs().max() < 0.02


def test_a_walk_with_fresh_noise_at_every_step_keeps_the_mean():
    """Consistency models jump to the data; a perfect denoiser jumps to a mean, so that the spread shrinks."""
    reached, _ = walk(set_up("flow LCM", KAPPA2, 50), count=2048)
    assert (reached.mean(0) - DATA.mean).abs().max() < 0.02
    assert 0.05 < float(reached.std(0).mean()) < 0.2


def test_repeated_inner_nodes_are_warped_once():
    """Resampled as they stand, the nodes of a two-evaluation method tear it apart."""
    scheduler = set_up("flow Heun", KAPPA2, 10)
    assert torch.equal(scheduler.sigmas[1:-1:2], scheduler.sigmas[2::2])
    assert torch.equal(scheduler.timesteps[1::2], scheduler.timesteps[2::2])
    reached, _ = walk(scheduler)
    assert 0.1 < float(reached.std(0).mean()) < 0.25


@pytest.mark.parametrize("case", ALL)
def test_ends_and_number_of_steps_stay(case):
    base = plain(case)
    base.set_timesteps(12)
    before = noise_shares(base)
    for kappa in (1.0, 1.5, 3.0, 8.0):
        scheduler = set_up(case, WarpSpec("moebius", kappa), 12)
        assert scheduler.sigmas.shape == base.sigmas.shape and scheduler.sigmas.dtype == base.sigmas.dtype
        assert scheduler.timesteps.shape == base.timesteps.shape and scheduler.timesteps.dtype == base.timesteps.dtype
        assert scheduler.sigmas[0] == base.sigmas[0] and scheduler.sigmas[-1] == base.sigmas[-1]
        assert scheduler.timesteps[0] == base.timesteps[0]
        shares = noise_shares(scheduler)
        falling = shares.diff() < 0
        # Where the base ends above 0 on a level it repeats, so does the warp.
        assert falling[:-1].all() and (falling[-1] or before[-1] == before[-2])
        assert (shares >= before - 1e-7).all()
        assert getattr(scheduler, "init_noise_sigma", 1) == getattr(base, "init_noise_sigma", 1)
        before = shares


@pytest.mark.parametrize("case", ALL)
def test_the_identity_returns_the_schedulers_own_tensors(case):
    base = plain(case)
    base.set_timesteps(11)
    for spec in (WarpSpec(), WarpSpec("split", 0.3, u_c=0.3), WarpSpec("power", 3.0, omega=0.0)):
        scheduler = set_up(case, spec, 11)
        assert torch.equal(scheduler.sigmas, base.sigmas) and torch.equal(scheduler.timesteps, base.timesteps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_route_over_sigmas_gives_the_same_table(shift):
    warped = warp_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), KAPPA2)
    warped.set_timesteps(20)
    table = warped.sigmas[:-1].double()
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    other.set_timesteps(sigmas=(table / (shift - (shift - 1) * table)).tolist())
    assert (other.sigmas - warped.sigmas).abs().max() < 1e-6
    assert (other.timesteps - warped.timesteps).abs().max() < 1e-3


@pytest.mark.parametrize("case", ALL)
def test_class_config_order_and_signature_survive(case):
    base = plain(case)
    state = copy.deepcopy(base.__dict__)
    warped = warp_scheduler(base, KAPPA2, force=True)
    assert type(warped) is type(base) and warped.config == base.config and warped.order == base.order
    assert inspect.signature(warped.set_timesteps) == inspect.signature(base.set_timesteps)
    warped.set_timesteps(7)
    assert base.__dict__.keys() == state.keys() and len(base.timesteps) == len(state["timesteps"])
    assert warp_of(warped) == KAPPA2 and warp_of(base) == WarpSpec()


def test_copies_and_pickles_keep_a_warp_of_their_own():
    warped = set_up("UniPC flow", KAPPA2, 10)
    for other in (copy.deepcopy(warped), pickle.loads(pickle.dumps(warped))):
        other.set_timesteps(20)
        assert len(warped.timesteps) == 10 and len(other.timesteps) == 20
        assert torch.equal(other.sigmas, set_up("UniPC flow", KAPPA2, 20).sigmas)


def test_a_warped_scheduler_is_warped_further():
    base = diffusers.FlowMatchEulerDiscreteScheduler()
    twice = warp_scheduler(warp_scheduler(base, KAPPA2), WarpSpec("moebius", 3.0))
    once = warp_scheduler(base, WarpSpec("moebius", 6.0))
    for scheduler in (twice, once):
        scheduler.set_timesteps(10)
    assert torch.equal(twice.sigmas, once.sigmas)
    with pytest.raises(ValueError, match="no warp with a name"):
        warp_scheduler(twice, WarpSpec("power", 2.0))


def test_a_second_run_starts_from_the_beginning():
    wan = diffusers.UniPCMultistepScheduler(**{**FLOW, "flow_shift": 5.0})
    scheduler = warp_scheduler(wan, WarpSpec("moebius", 8.0))
    scheduler.set_timesteps(50)
    assert len(scheduler.timesteps.unique()) == 45  # flow models may repeat whole timesteps: steps go by position
    first, _ = walk(scheduler)
    scheduler.set_timesteps(50)
    assert torch.equal(walk(scheduler)[0], first)


def test_pipelines_that_pass_an_even_ramp_are_served():
    warped = warp_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), KAPPA2)
    base = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for scheduler in (warped, base):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=0.8)
    assert (warped.sigmas[1:-1] > base.sigmas[1:-1]).all()


def test_whole_timesteps_stay_distinct_and_keep_their_level():
    scheduler = set_up("DPM++", WarpSpec("moebius", 8.0), 300)
    assert (scheduler.timesteps.diff() < 0).all() and (scheduler.sigmas.diff() < 0).all()
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    told = scheduler.timesteps.float()
    near = torch.from_numpy(np.interp(scheduler.sigmas[:-1].numpy(), table.numpy(), np.arange(1000.0)))
    assert (near - told).abs().max() < 0.51


def test_the_high_noise_expert_of_wan_runs_as_many_steps_as_measured():
    wan = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0)
    for kappa, expected in [(1.0, 21), (2.0, 30), (4.0, 38), (8.0, 43)]:
        (trade,) = step_trade(wan, WarpSpec("moebius", kappa), 50, (0.875,))
        assert trade == StepTrade(share=0.875, plain=21, warped=expected, steps=50)
        scheduler = warp_scheduler(wan, WarpSpec("moebius", kappa))
        scheduler.set_timesteps(50)
        assert int((scheduler.timesteps >= 875).sum()) == expected  # as the pipeline chooses its expert


def test_steps_are_counted_once_and_shares_checked():
    heun = set_up("flow Heun", WarpSpec(), 10)
    euler = set_up("flow Euler", WarpSpec(), 10)
    assert steps_at_least(heun, 0.5) == steps_at_least(euler, 0.5) > 5
    assert noise_shares(plain_set("DEIS", 10))[0] == pytest.approx(0.9936, abs=1e-3)
    with pytest.raises(ValueError, match=r"share must be within \[0, 1\], got 1.2"):
        steps_at_least(heun, 1.2)


def plain_set(case: str, steps: int) -> Any:
    scheduler = plain(case)
    scheduler.set_timesteps(steps)
    return scheduler


def tiny_flux(scheduler: Any) -> Any:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), latent_channels=1, norm_num_groups=1, shift_factor=0.1)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    texts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = diffusers.FluxPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **texts)  # type: ignore
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_an_unedited_pipeline_walks_the_warped_grid():
    """FLUX passes sigmas and mu by itself, which is the hardest case."""
    pipe = tiny_flux(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    asked: list[float] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    call = {
        "prompt_embeds": torch.zeros(1, 3, 8),
        "pooled_prompt_embeds": torch.zeros(1, 8),
        "height": 16,
        "width": 16,
        "num_inference_steps": 4,
        "output_type": "latent",
    }

    def run(**more) -> torch.Tensor:
        asked.clear()
        return pipe(**call, **more, generator=torch.Generator().manual_seed(0)).images

    before, plain_walk = run(), list(asked)
    own, pipe.scheduler = pipe.scheduler, warp_scheduler(pipe.scheduler, KAPPA2)
    assert not torch.equal(run(), before)
    assert len(asked) == 4 and all(a > b for a, b in zip(asked[1:], plain_walk[1:], strict=True))
    assert asked == pytest.approx((pipe.scheduler.timesteps / 1000).tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="sigmas was passed while a warp"):
        run(sigmas=[1.0, 0.5, 0.3, 0.1])
    for scheduler in (own, warp_scheduler(own, WarpSpec())):
        pipe.scheduler = scheduler
        assert torch.equal(run(), before) and asked == plain_walk


def test_a_ddim_pipeline_takes_the_scheduler_that_warps_itself():
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = WarpedDDIMScheduler.from_config(pipe.scheduler.config, warp={"parameter": 2.0})
    asked = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: asked.append(int(args[1])))
    pipe(num_inference_steps=5, output_type="np", generator=torch.Generator().manual_seed(0))
    hook.remove()
    assert asked == pipe.scheduler.timesteps.tolist() and asked != [800, 600, 400, 200, 0]
