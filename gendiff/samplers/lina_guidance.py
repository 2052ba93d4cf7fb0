"""LINA's causal contrast as a guider, for diffusers' modular pipelines: swap it in and nothing else changes.

    guider = LINAGuidance(guidance_scale=5.0, lam=2.0, window=(1.0, 0.5))
    guider.set_conditions(counterfactual, scheduler=pipe.scheduler)
    pipe.update_components(guider=guider)

Wan2.2 has `guider` and `guider_2`, one for each expert: set both, or the first alone for the high noise. Classic
pipelines have no guider; there `gendiff.pipelines.lina_attach` does the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput, rescale_noise_cfg
from torch import Tensor

from gendiff.samplers.contrast import CausalContrast, difference
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import Step
from gendiff.samplers.noise_levels import noise_level, noise_share
from gendiff.samplers.prompt_embeds import PromptEmbeds

FIELDS: Mapping[str, tuple[str, ...]] = {
    "embeds": ("encoder_hidden_states", "prompt_embeds"),
    "pooled": ("text_embeds", "pooled_projections", "pooled_prompt_embeds"),
    "mask": ("encoder_hidden_states_mask", "encoder_attention_mask", "prompt_embeds_mask"),
}
"""What modular pipelines call what a denoiser reads of a prompt."""


class LINAGuidance(BaseGuidance):
    """Classifier-free guidance, and a causal contrast between E+ and E- while the window is open.

    `v = cfg(v_c, v_u) + lam * w(s) * M * P(v(E+) - v(E-))`, after guidance and its rescaling. Outside the window, and
    with lam = 0, it is `ClassifierFreeGuidance` with as many denoiser calls. gendiff's realisation of LINA.

    Args:
        guidance_scale: g, 1 = off.
        guidance_rescale: as of `ClassifierFreeGuidance`, 0 .. 1.
        lam: strength of the contrast, at least 0.
        window: (s_start, s_stop) in noise shares.
        projection, clip, momentum, shape: as of `CausalContrast`.
        start, stop, enabled: where classifier-free guidance acts, in shares of the steps, as of diffusers' guiders;
            `enabled=False` also stops the contrast.

    Raises:
        ValueError: a number outside its range.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_pos", "pred_neg"]  # noqa: RUF012 (diffusers' form)

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        lam: float = 0.0,
        window: tuple[float, float] | list[float] = (1.0, 0.3),
        projection: str = "none",
        clip: float = 3.0,
        momentum: float = -0.5,
        shape: str = "box",
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        self.guidance_scale, self.guidance_rescale = guidance_scale, guidance_rescale
        self.intervention = Intervention(lam=lam, window=(window[0], window[1]))
        self.contrast = CausalContrast(projection, clip, momentum, shape)
        self._told: dict[str, PromptEmbeds] = {}
        self._scheduler: Any = None
        self._running: Tensor | None = None

    def set_conditions(
        self, counterfactual: PromptEmbeds, factual: PromptEmbeds | None = None, *, scheduler: Any
    ) -> None:
        """Say what is contrasted. It is no part of the config: a saved guider holds strengths only.

        Args:
            counterfactual: E-, as the pipeline's own text encoder blocks encode it.
            factual: E+; None takes the prompt's own prediction, which costs nothing.
            scheduler: the pipeline's, from which noise levels are read.
        """
        self._told = {"pred_neg": counterfactual} | ({} if factual is None else {"pred_pos": factual})
        self._scheduler = scheduler

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self._running = None

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """One batch of denoiser inputs for each prediction. Called by pipelines."""
        batches = [
            self._prepare_batch(dict(data), index, name)
            for index, name in enumerate(self._predictions()[: self._plain])
        ]
        return batches + [self._told_batch(batches[0], data, name) for name in self._contrasted()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:
        """The same from a block's state. Called by pipelines."""
        plain, fields = self._predictions()[: self._plain], dict(input_fields)
        batches = [self._prepare_batch_from_block_state(fields, data, i, name) for i, name in enumerate(plain)]
        return batches + [self._told_batch(batches[0], input_fields, name) for name in self._contrasted()]

    def forward(
        self,
        pred_cond: Tensor,
        pred_uncond: Tensor | None = None,
        pred_pos: Tensor | None = None,
        pred_neg: Tensor | None = None,
    ) -> GuiderOutput:
        """The guided prediction, shapes as of `pred_cond`.

        Raises:
            ValueError: the projection is about `v_c - v_u`, and guidance is off.
        """
        guide, pred = None, pred_cond
        if pred_uncond is not None:
            pred = pred_uncond + self.guidance_scale * (pred_cond - pred_uncond)
        if self.guidance_rescale > 0:
            pred = rescale_noise_cfg(pred, pred_cond, self.guidance_rescale)
        if pred_neg is not None:
            if self.contrast.needs_guide:
                if pred_uncond is None:
                    raise ValueError(f"projection {self.contrast.projection!r} needs guidance_scale other than 1.")
                guide = difference(pred_cond, pred_uncond)
            delta = difference(pred_cond if pred_pos is None else pred_pos, pred_neg)
            lam, window = self.intervention.lam, self.intervention.window
            term = self.contrast.term(delta, guide, self._share(), lam, window, self._running)
            if self.contrast.projection == "momentum":
                self._running = self.contrast.averaged(delta, self._running)
            pred = pred + term.to(pred.dtype)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self) -> bool:
        """Whether the batch being prepared holds a prompt; the second one holds none, under guidance."""
        return not (self._plain == 2 and self._count_prepared == 2)

    @property
    def num_conditions(self) -> int:
        """Denoiser calls in this step."""
        return len(self._predictions())

    def _predictions(self) -> list[str]:
        plain = self._input_predictions or []
        return [*plain[: self._plain], *self._contrasted()]

    @property
    def _plain(self) -> int:
        """1, or 2 where classifier-free guidance acts."""
        if not self._enabled or math.isclose(self.guidance_scale, 1):
            return 1
        if self._num_inference_steps is None or self._step is None:
            return 2
        first, last = (int(share * self._num_inference_steps) for share in (self._start, self._stop))
        return 2 if first <= self._step < last else 1

    def _contrasted(self) -> list[str]:
        """Names of the predictions that the contrast needs in this step."""
        if not self._enabled or self._step is None or self.intervention.lam == 0:
            return []
        if not self._told:
            raise ValueError("lam is above 0 but set_conditions was not called: there is nothing to contrast.")
        return [name for name in ("pred_pos", "pred_neg") if name in self._told and self._acts()]

    def _acts(self) -> bool:
        return self.intervention.acts_at(self._share())

    def _share(self) -> float:
        assert self._step is not None and self._num_inference_steps is not None and self._timestep is not None
        # A pipeline that starts in the midst of its schedule counts its own steps from 0.
        index = self._step + (getattr(self._scheduler, "begin_index", None) or 0)
        return noise_share(noise_level(self._scheduler, Step(index, self._num_inference_steps, self._timestep)))

    def _told_batch(self, conditional: Any, fields: Mapping[str, Any], name: str) -> Any:
        """The conditional batch with what it says of the prompt exchanged."""
        found = {part: next((one for one in names if one in fields), None) for part, names in FIELDS.items()}
        key = found["embeds"]
        old = None if key is None else getattr(conditional, key)
        if key is None or old is None:
            raise ValueError(f"the pipeline's guider inputs have no prompt: {', '.join(fields)}.")
        told = self._told[name].rows(len(old))
        batch = type(conditional)(**conditional.as_dict())
        for part, field in found.items():
            old = None if field is None else getattr(conditional, field, None)
            if field is not None and old is not None:
                setattr(batch, field, _exchanged(field, old, getattr(told, part)))
        setattr(batch, self._identifier_key, name)
        return batch


def _exchanged(name: str, old: Tensor, new: Tensor | None) -> Tensor:
    if new is None:
        raise ValueError(f"the pipeline hands in {name} of shape {tuple(old.shape)}; set_conditions was given none.")
    seen = [f"{tuple(one.shape)} {one.dtype} on {one.device}" for one in (old, new)]
    if seen[0] != seen[1]:
        raise ValueError(f"{name} of the conditions must be as the pipeline's, {seen[0]}, got {seen[1]}.")
    return new
