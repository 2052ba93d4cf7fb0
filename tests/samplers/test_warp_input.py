"""What a warp refuses: grids of the caller's own, classes never tested, few-step models, steps that collide."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from diffusers.configuration_utils import FrozenDict

from gendiff.samplers.few_step import few_step_model
from gendiff.samplers.warped import warp_scheduler
from gendiff.samplers.warped_ddim import WarpedDDIMScheduler
from gendiff.samplers.warps import WarpSpec

# diffusers hands torch tensors to numpy functions, which numpy 2 comments on.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

KAPPA2 = WarpSpec("moebius", 2.0)


def test_a_grid_of_the_callers_is_refused():
    warped = warp_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(), KAPPA2)
    with pytest.raises(ValueError, match=r"sigmas was passed while a warp \(moebius, kappa = 2\) .* choose one"):
        warped.set_timesteps(sigmas=[1.0, 0.6, 0.3])
    euler = warp_scheduler(diffusers.EulerDiscreteScheduler(), KAPPA2)
    with pytest.raises(ValueError, match=r"timesteps was passed while a warp .* choose one"):
        euler.set_timesteps(timesteps=[999, 500, 100])
    forced = warp_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(), KAPPA2, force=True)
    forced.set_timesteps(sigmas=[1.0, 0.6, 0.3])
    assert forced.sigmas[1] == pytest.approx(0.76)  # w(1/3) = 1/5, three fifths into the first of three intervals
    with pytest.raises(ValueError, match="timesteps was passed"):
        forced.set_timesteps(sigmas=[1.0, 0.6], timesteps=[1000.0, 600.0])


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("DDIMScheduler", "WarpedDDIMScheduler"),
        ("PNDMScheduler", "EulerDiscreteScheduler"),
        ("DDPMScheduler", "WarpedDDIMScheduler"),
        ("LCMScheduler", "EulerDiscreteScheduler"),
        ("TCDScheduler", "EulerDiscreteScheduler"),
        ("KDPM2AncestralDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
        ("EDMEulerScheduler", "one of DEISMultistepScheduler"),
        ("DDIMParallelScheduler", "one of DEISMultistepScheduler"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_classes_that_cannot_be_warped_are_refused_by_name(name, replacement, force):
    with pytest.raises(ValueError, match=f"^{name} .*use .*{replacement}"):
        warp_scheduler(getattr(diffusers, name)(num_train_timesteps=100), KAPPA2, force=force)


def test_subclasses_and_other_objects_are_refused():
    class EulerDiscreteScheduler(diffusers.EulerDiscreteScheduler):
        pass

    for scheduler in (EulerDiscreteScheduler(), object()):
        with pytest.raises(ValueError, match=f"^{type(scheduler).__name__} was not tested under a warp"):
            warp_scheduler(scheduler, KAPPA2)
    with pytest.raises(ValueError, match="takes its warp in its config"):
        warp_scheduler(WarpedDDIMScheduler(), KAPPA2)
    with pytest.raises(ValueError, match=r"spec must be a WarpSpec, got 2\.0"):
        warp_scheduler(diffusers.EulerDiscreteScheduler(), 2.0)  # type: ignore[arg-type]
    predicting = diffusers.UniPCMultistepScheduler(solver_p=diffusers.DEISMultistepScheduler())
    with pytest.raises(ValueError, match="solver_p"):
        warp_scheduler(predicting, KAPPA2)


def test_few_step_schedulers_need_force():
    for scheduler in (
        diffusers.FlowMatchLCMScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    ):
        with pytest.raises(ValueError, match=r"few-step distilled models.*force=True"):
            warp_scheduler(scheduler, KAPPA2)
        warp_scheduler(scheduler, KAPPA2, force=True).set_timesteps(4)


def test_few_step_models_are_told_by_what_they_hold():
    def pipeline(name="", **parts):
        return SimpleNamespace(name_or_path=name, **parts)

    flux = type("FluxTransformer2DModel", (), {})()
    flux.config = {"guidance_embeds": False}
    assert "guidance_embeds" in str(few_step_model(pipeline(transformer=flux)))
    unet = SimpleNamespace(config=FrozenDict(time_cond_proj_dim=256))
    assert "time_cond_proj_dim" in str(few_step_model(pipeline(unet=unet)))
    assert "'Turbo'" in str(few_step_model(pipeline("some/SDXL-Turbo")))
    assert "LCMScheduler" in str(few_step_model(pipeline(scheduler=diffusers.LCMScheduler())))
    assert few_step_model(pipeline("some/SD-3.5-large", scheduler=diffusers.EulerDiscreteScheduler())) is None


def collision(scheduler: Any, spec: WarpSpec, steps: int) -> tuple[str, float]:
    with pytest.raises(ValueError) as caught:
        warp_scheduler(scheduler, spec).set_timesteps(steps)
    return str(caught.value), float(str(caught.value).rstrip(".").split()[-1])


def test_steps_that_collide_name_what_would_do():
    scheduler = diffusers.DPMSolverMultistepScheduler()
    message, safe = collision(scheduler, WarpSpec("split", 0.01, u_c=0.99), 200)
    assert "(split, beta = 0.01) of N = 200 steps makes" in message and "the smallest safe beta is" in message
    warp_scheduler(scheduler, WarpSpec("split", safe, u_c=0.99)).set_timesteps(200)
    # Levels themselves run into one another where float32 ends.
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=100.0)
    message, safe = collision(flow, WarpSpec("moebius", 1000.0), 1000)
    assert "(moebius, kappa = 1000) of N = 1000 steps makes" in message and "the largest safe kappa is" in message
    assert 1 < safe < 1000
    warp_scheduler(flow, WarpSpec("moebius", safe)).set_timesteps(1000)
