"""The one loop of the library: walk a scheduler's timesteps from noise to sample, or back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

State = Any
"""A tensor, or a (nested) tuple of tensors where a method moves several together (EDICT's pair)."""


@dataclass(frozen=True)
class Step:
    """Where a walk stands.

    Attributes:
        index: steps done before this one, 0 .. count - 1.
        count: steps of the whole walk.
        timestep: the scheduler's own timestep, a 0-dim tensor.
    """

    index: int
    count: int
    timestep: Tensor

    @property
    def progress(self) -> float:
        """Share of the walk already done, from 0 (first step) to just below 1."""
        return self.index / self.count


def steps_of(scheduler: Any) -> list[Step]:
    """The steps of a walk, for those who ask what it will be; walking them is `sample`'s alone."""
    timesteps = scheduler.timesteps
    return [Step(index, len(timesteps), timestep) for index, timestep in enumerate(timesteps)]


Predictor = Callable[[State, Step], Any]
"""What the network says at a step. Wrap one in another to add guidance, interventions or reuse."""


def sample(
    predict: Predictor,
    scheduler: Any,
    state: State,
    *,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step_end: Callable[[Step, State], State | None] | None = None,
    progress: bool | Callable[[Iterable], Iterable] = True,
    **step_kwargs: Any,
) -> State:
    """Walk `scheduler.timesteps` from `state` and return the state at the end.

    Every step is `predict`, then `scheduler.step`, then `on_step_end`. The scheduler decides what the predictor
    sees (`scale_model_input`), so one that needs several predictions a step, like EDICT, lists the timestep as often.

    Args:
        predict: called as `predict(model_input, step)`; its result is handed to `scheduler.step` untouched.
        scheduler: any diffusers scheduler after `set_timesteps`, or one of the same shape.
        state: the start, e.g. noise (B, C, H, W) times `scheduler.init_noise_sigma`; may be a tuple of tensors.
        generator: source of the scheduler's own draws; a list gives each sample of the batch its own.
        on_step_end: called as `on_step_end(step, state)`; a returned value other than None replaces the state.
        progress: True for a bar, False for none, or a function that wraps the iterable (`pipeline.progress_bar`).
        step_kwargs: passed to `scheduler.step`, e.g. `eta=1.0` for DDIM.

    Raises:
        FloatingPointError: the state stopped being finite; names the step, the timestep and the dtype.
        ValueError: the scheduler has no timesteps yet.
    """
    timesteps = scheduler.timesteps
    if timesteps is None or len(timesteps) == 0:
        raise ValueError(f"{type(scheduler).__name__} has no timesteps; call set_timesteps before sample.")
    if generator is not None and "generator" in inspect.signature(scheduler.step).parameters:
        step_kwargs["generator"] = generator
    # Flow-matching schedulers of diffusers have no input scaling at all.
    model_input = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    bar = progress if callable(progress) else lambda iterable: tqdm(iterable, disable=not progress)
    for index, timestep in enumerate(bar(timesteps)):
        step = Step(index, len(timesteps), timestep)
        prediction = predict(model_input(state, timestep), step)
        state = scheduler.step(prediction, timestep, state, return_dict=False, **step_kwargs)[0]
        _check_finite(state, step)
        if on_step_end is not None:
            replacement = on_step_end(step, state)
            state = state if replacement is None else replacement
    return state


def _check_finite(state: State, step: Step) -> None:
    for tensor in state if isinstance(state, tuple) else (state,):
        if isinstance(tensor, tuple):
            _check_finite(tensor, step)
        elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"the state stopped being finite at step {step.index + 1} of {step.count} "
                f"(timestep {step.timestep.item():g}, {tensor.dtype}). Half precision overflows first: try float32."
            )
