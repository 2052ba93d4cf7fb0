"""Any diffusers scheduler under a warp: same class, same config, same number of steps, other places for them.

A scheduler's own `set_timesteps` runs first and the grid it leaves is resampled (`sigma_tables`). So shifts, Karras
spacings and dynamic shifting keep their say, and a warp acts on what they made. Handing a warped grid to `sigmas=`
would not do: flow schedulers shift what they are given once more.

    pipe.scheduler = warp_scheduler(pipe.scheduler, WarpSpec("moebius", 2.0))
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .few_step import few_step_scheduler
from .sigma_tables import timesteps_at, training_sigmas, warped_tables
from .warps import WarpSpec

Scheduler = TypeVar("Scheduler")

# Classes whose resampled walks were compared with exact answers. A subclass may do anything, so names are exact.
TESTED = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "UniPCMultistepScheduler",
)
_REPLACEMENTS = {
    "DDIMScheduler": "gendiff.samplers.warped_ddim.WarpedDDIMScheduler, or EulerDiscreteScheduler at eta 0",
    "PNDMScheduler": "EulerDiscreteScheduler or DPMSolverMultistepScheduler",
    "DDPMScheduler": "gendiff.samplers.warped_ddim.WarpedDDIMScheduler with eta=1",
    "LCMScheduler": "EulerDiscreteScheduler",
    "TCDScheduler": "EulerDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler": "EulerAncestralDiscreteScheduler",
}
_WITHOUT_TABLE = ("DDIMScheduler", "PNDMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")


def warp_scheduler(scheduler: Scheduler, spec: WarpSpec, force: bool = False) -> Scheduler:
    """A copy of a diffusers scheduler that spaces its steps by a warp.

    The number of steps, the first and the last noise level and the cost stay as they are. Steps that come early are
    missing late: on few steps the solver's own error grows (see `samplers/warps.py`), so keep kappa at or below 3 under
    12 steps. The warp belongs to the object and not to its config: a saved pipeline holds the plain scheduler.

    Args:
        scheduler: of a class in `TESTED`; it is left as it is. One that is warped already is warped further, if the two
            warps compose to a warp with a name.
        spec: the warp. The identity returns a plain copy.
        force: warp a scheduler made for few-step distilled models, which were trained for their own fixed steps, too;
            and take a grid that a caller passes as `sigmas=` for the one to warp.

    Returns: a scheduler of the same class. Its `set_timesteps` refuses `timesteps=`, and `sigmas=` other than the even
        ramp 1, .., 1 / N that pipelines such as FLUX pass by themselves.

    Raises:
        ValueError: the class has no table of noise levels or was never tested under a warp, is made for few-step
            models, or is warped already in a way that does not compose. The scheduler's `set_timesteps` raises
            ValueError if steps collide.
    """
    if not isinstance(spec, WarpSpec):
        raise ValueError(f"spec must be a WarpSpec, got {spec!r}.")
    check_can_warp(scheduler, force)
    previous = _attached(scheduler)
    composed = spec if previous is None else previous.spec.then(spec)
    warped = copy.deepcopy(scheduler)
    if previous is not None:
        del warped.__dict__["set_timesteps"]
    if not composed.is_identity:
        warped.__dict__["set_timesteps"] = _WarpedSetTimesteps(warped, composed, force)
    return warped


def warp_of(scheduler: Any) -> WarpSpec:
    """The warp that `warp_scheduler` gave a scheduler; the identity if none."""
    attached = _attached(scheduler)
    return WarpSpec() if attached is None else attached.spec


def check_can_warp(scheduler: Any, force: bool = False) -> None:
    """Raise ValueError unless `warp_scheduler` takes this scheduler; the message names the class and a replacement."""
    name = type(scheduler).__name__
    replacement = _REPLACEMENTS.get(name, "one of " + ", ".join(TESTED))
    ours = type(scheduler).__module__.split(".")[0] != "diffusers"
    if name == "WarpedDDIMScheduler":
        raise ValueError("WarpedDDIMScheduler takes its warp in its config; use from_config(config, warp=...).")
    if name in _WITHOUT_TABLE:
        raise ValueError(f"{name} has no table of noise levels that a warp could resample; use {replacement}.")
    if name not in TESTED or ours:
        raise ValueError(f"{name} was not tested under a warp; use {replacement}.")
    if (reason := few_step_scheduler(scheduler)) and not force:
        raise ValueError(f"{reason}, trained at fixed noise levels; use force=True, or a model that is not distilled.")
    if scheduler.config.get("solver_p") is not None:
        raise ValueError(f"{name} with solver_p was not tested under a warp; use solver_p=None.")


class _WarpedSetTimesteps:
    """`set_timesteps` of one scheduler, with its signature, followed by the warp.

    An object rather than a closure: a closure in a copied or pickled scheduler would go on setting the original's
    timesteps.
    """

    def __init__(self, scheduler: Any, spec: WarpSpec, force: bool) -> None:
        functools.update_wrapper(self, scheduler.set_timesteps)
        self.spec = spec
        self.force = force

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        own = self.__wrapped__  # type: ignore[attr-defined]
        given = inspect.signature(own).bind(*args, **kwargs).arguments
        _check_no_grid(given, self.spec, self.force)
        own(*args, **kwargs)
        scheduler = own.__self__
        sigmas, timesteps = warped_tables(scheduler, self.spec)
        _write(scheduler, sigmas, timesteps)


def _attached(scheduler: Any) -> _WarpedSetTimesteps | None:
    own = getattr(scheduler, "__dict__", {}).get("set_timesteps")
    return own if isinstance(own, _WarpedSetTimesteps) else None


def _check_no_grid(given: dict[str, Any], spec: WarpSpec, force: bool) -> None:
    for name in ("timesteps", "sigmas"):
        grid = given.get(name)
        if grid is None or (name == "sigmas" and (force or _is_even_ramp(grid))):
            continue
        raise ValueError(
            f"{name} was passed while a warp ({spec.label}) is attached to the scheduler; choose one: leave {name} "
            "out, or use the scheduler without the warp."
        )


def _is_even_ramp(grid: Any) -> bool:
    """Whether it is 1, .., 1 / N, which flow pipelines of diffusers pass when their caller passes nothing."""
    values = np.asarray(grid, dtype=np.float64)
    return len(values) > 0 and bool(np.allclose(values, 1 - np.arange(len(values)) / len(values), rtol=0, atol=1e-6))


def _write(scheduler: Any, sigmas: Tensor, timesteps: Tensor) -> None:
    """Put a table of nodes, each once, into a scheduler whose own `set_timesteps` has just reset its state."""
    like, times = scheduler.sigmas, scheduler.timesteps
    if hasattr(scheduler, "sigmas_interpol"):
        # DPM-Solver-2 asks between two levels, at their geometric mean; it arrives at 0 in a single evaluation.
        between = (sigmas[1:] * sigmas[:-1]).sqrt()
        asked = timesteps_at(between[:-1], training_sigmas(scheduler))
        timesteps = torch.cat([timesteps[:1], torch.stack([asked, timesteps[1:]], dim=1).flatten()])
        levels = torch.cat([sigmas[:1], between])
        levels = torch.cat([levels[:1], levels[1:].repeat_interleave(2), levels[-1:]])
        scheduler.sigmas_interpol = levels.to(scheduler.sigmas_interpol)
        sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2), sigmas[-1:]])
    elif scheduler.order == 2:
        timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.sigmas = sigmas.to(like)
    scheduler.timesteps = timesteps.to(times)
    # Whole timesteps of flow models may repeat; a scheduler that looked its first one up would start at the second.
    scheduler.set_begin_index(0)
