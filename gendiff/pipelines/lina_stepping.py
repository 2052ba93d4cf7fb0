"""The scheduler of an attached pipeline: a copy of its own whose `step` first adds LINA's terms to the prediction.

`scheduler.step` is where every pipeline hands in its finished prediction, guidance and rescaling included. What is
added there is the same as the term added to each row before guidance, for any guidance scale g:
`v_u + l + g ((v_c + l) - (v_u + l)) = v_cfg + l`.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

from torch import Tensor

from gendiff.samplers.contrast import difference
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import Step
from gendiff.samplers.noise_levels import NoiseLevel, from_x0, noise_level, noise_share, prediction_type, to_x0
from gendiff.samplers.warped import warp_scheduler
from gendiff.samplers.warps import WarpSpec

from .lina_conditions import Conditions
from .lina_edits import PromptEdit
from .lina_recorder import Call, Recorder, ask_quietly
from .lina_rows import StepRows, step_rows


class SteeredSteps:
    """Overrides `set_timesteps`, `step` and `scale_model_input` on a copy, whose class, config and order stay.

    Attributes:
        scheduler: the copy.
        batch: samples of the running or last call; 0 before its first step.
    """

    def __init__(self, pipe: Any, intervention: Intervention, conditions: Conditions, recorder: Recorder) -> None:
        self._name = type(pipe).__name__
        self._intervention, self._conditions, self._recorder = intervention, conditions, recorder
        self.scheduler = _copied(pipe.scheduler, intervention.warp)
        self.edit: PromptEdit | None = None
        self._plain_step = self.scheduler.step
        self._plain_set_timesteps = self.scheduler.set_timesteps
        # Pipelines look into the signatures of these methods, so they are to look like the plain ones.
        self.scheduler.step = _like(self._plain_step, self._step)
        self.scheduler.set_timesteps = _like(self._plain_set_timesteps, self._set_timesteps)
        if hasattr(self.scheduler, "scale_model_input"):
            self._plain_scale = self.scheduler.scale_model_input
            self.scheduler.scale_model_input = _like(self._plain_scale, self._scale)
        self._begin()

    def acts(self) -> bool:
        """Whether the window holds the noise level that the denoiser is about to be asked at."""
        return self._intervention.acts_at(noise_share(self._level()))

    def _begin(self) -> None:
        self.batch, self._timestep, self._next = 0, None, 0
        self._trusted, self._running = False, None
        self._recorder.reset()
        if self.edit is not None:
            self.edit.reset()

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        self._plain_set_timesteps(*args, **kwargs)
        self._begin()
        self._level()  # a scheduler without noise levels is refused before any work

    def _scale(self, sample: Tensor, timestep: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        self._timestep = timestep
        return self._plain_scale(sample, timestep, *args, **kwargs)

    def _step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._timestep, self.batch = timestep, len(sample)
        calls, level, index = self._recorder.take(), self._level(), self._index()
        if self._intervention.acts_at(noise_share(level)):
            model_output = self._pushed(model_output, calls, level)
            if self.edit is not None:
                self.edit.check()
        result = self._plain_step(model_output, timestep, sample, *args, **kwargs)
        self._timestep, self._next = None, index + 1
        return result

    def _pushed(self, prediction: Tensor, calls: list[Call], level: NoiseLevel) -> Tensor:
        intervention, share = self._intervention, noise_share(level)
        if not (intervention.lam or intervention.rho):
            return prediction
        rows = step_rows(calls, prediction, self._name)
        if not self._trusted:
            rows.check_prediction(prediction, self._name)
            self._trusted = True
        if intervention.lam and not self._conditions.contrast.is_masked_out:
            prediction = prediction + self._contrast(rows, share).to(prediction.dtype)
        energy = self._conditions.energy
        if intervention.rho and energy is not None and share <= energy.start:
            prediction = self._steered(rows, prediction, level)
        return prediction

    def _contrast(self, rows: StepRows, share: float) -> Tensor:
        given, contrast = self._conditions, self._conditions.contrast
        assert given.counterfactual is not None
        plus = rows.positive if given.factual is None else self._ask(rows, given.factual, "lina-factual")
        delta = difference(plus, self._ask(rows, given.counterfactual, "lina"))
        guide = None
        if contrast.needs_guide:
            none = rows.negative
            if none is None and given.unconditional is not None:
                none = self._ask(rows, given.unconditional, "lina-unconditional")
            if none is None:
                raise ValueError(
                    f"projection {contrast.projection!r} is about v_c - v_u, but {self._name} makes no unconditional "
                    "prediction (guidance off or distilled); give conditions.unconditional or use 'none'."
                )
            guide = difference(rows.positive, none)
        term = contrast.term(delta, guide, share, self._intervention.lam, self._intervention.window, self._running)
        if contrast.projection == "momentum":
            self._running = contrast.averaged(delta, self._running)
        return term

    def _ask(self, rows: StepRows, prompt: Any, context: str) -> Tensor:
        said = ask_quietly(rows.call.under(prompt), context)
        self._recorder.count(len(said))
        return rows.fitted(said)

    def _steered(self, rows: StepRows, prediction: Tensor, level: NoiseLevel) -> Tensor:
        """As `gendiff.samplers.energy.steered`: what stands for `x0_hat - shift` instead of `x0_hat`.

        x0_hat is that of the guided prediction; the gradient runs through the prompt's row alone, one row and one
        backward, as guidance only scales what differs between rows.
        """
        energy, kind = self._conditions.energy, prediction_type(self.scheduler)
        assert energy is not None
        said_before, x = rows.positive.float(), rows.latents.float()

        def denoise(leaf: Tensor) -> tuple[Tensor, Tensor]:
            said = rows.fitted(rows.call.ask("lina", rows.with_latents(leaf))).float()
            if not said.requires_grad:
                return said, said
            moved = prediction.detach().float() + (said - said_before)
            clean = to_x0(moved, leaf, level, kind)
            return clean, clean.detach()

        shift, clean = energy.shift(denoise, x, noise_share(level), self._intervention.rho)
        self._recorder.count(len(x))
        return from_x0(clean - shift, x, level, kind).to(prediction.dtype)

    def _level(self) -> NoiseLevel:
        """Of the step that is about to be made."""
        index, timesteps = self._index(), self.scheduler.timesteps
        return noise_level(self.scheduler, Step(index, len(timesteps), timesteps[index]))

    def _index(self) -> int:
        """Of the step that is about to be made, in the scheduler's timesteps; a pipeline may begin in their midst."""
        for name in ("step_index", "begin_index"):
            if getattr(self.scheduler, name, None) is not None:
                return int(getattr(self.scheduler, name))
        found = [] if self._timestep is None else (self.scheduler.timesteps == self._timestep).nonzero()
        return int(found[0]) if len(found) else self._next


def _like(plain: Any, ours: Any) -> Any:
    @functools.wraps(plain)
    def method(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    return method


def _copied(scheduler: Any, warp: WarpSpec) -> Any:
    if warp.is_identity:
        return copy.deepcopy(scheduler)
    return warp_scheduler(scheduler, warp)
