"""A scheduler over hidden tokens: each step reveals some. With ReCAP, a step also fixes what the next ones reveal.

The state says all that a step needs, so the loop knows nothing of groups: an empty group means that the next step is a
full one; otherwise the predictor is asked for the group's rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from gendiff.errors import NotFiniteError
from gendiff.samplers.draws import Generators, gumbel, pick_tokens, uniform
from gendiff.samplers.guidance import Strength
from gendiff.samplers.mask_schedules import (
    GUARDS,
    SAMPLING_SCHEDULES,
    check_guidance,
    check_steps,
    confidence_temperature_at,
    guidance_at,
    halton_order,
    power_of,
    reveal_counts,
    sampling_temperature_at,
)
from gendiff.samplers.masked_state import (
    MaskedState,
    ended,
    next_of,
    ranked,
    revealed,
    scattered,
    staleness,
    waiting,
)
from gendiff.samplers.recap import ReCAPConfig, group_stop, plan_groups

ORDERS = ("confidence", "halton", "random")
SCORES = ("log_prob", "logit")


@dataclass
class MaskedSchedulerOutput(BaseOutput):
    """After a step.

    Attributes:
        prev_sample: the state.
        pred_original_sample: (B, N) every token as this step would draw it, known ones as they are; (B, N, c) for
            continuous tokens, of which only revealed ones are new.
    """

    prev_sample: MaskedState
    pred_original_sample: Tensor


class MaskedScheduler(SchedulerMixin, ConfigMixin):
    """Which tokens are revealed when, and how they are drawn.

    Args:
        schedule: share hidden over the steps, see `mask_ratio`.
        order: "confidence": the surest first, with noise that falls; "halton": evenly over the picture; "random".
        guard: see `reveal_counts`.
        confidence_temperature: weight of the noise in confidences: a number that falls to 0, or (first, last).
        sampling_temperature: what logits are divided by before a token is drawn; of continuous tokens, the factor of
            the noise that draws them.
        sampling_schedule: how it goes, see `sampling_temperature_at`.
        guidance_schedule: see `guidance_at`.
        score: a token's confidence is its "log_prob" or its "logit", before the noise.
        halton_roll: each image starts somewhere else in Halton's order.

    Raises:
        ValueError: an unknown name or a temperature out of range.

    Source: Chang et al. 2022 (MaskGIT); Besnier et al. 2025 (Halton-MaskGIT); Li et al. 2024 (MAR); ReCAP.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        schedule: str = "cosine",
        order: str = "confidence",
        guard: str = "clamp",
        confidence_temperature: float | Sequence[float] = 4.5,
        sampling_temperature: float = 1.0,
        sampling_schedule: str = "constant",
        guidance_schedule: str = "linear_step",
        score: str = "log_prob",
        halton_roll: bool = False,
    ) -> None:
        power_of(schedule)
        check_guidance(guidance_schedule, 1.0)
        choices = {
            "order": (order, ORDERS),
            "guard": (guard, GUARDS),
            "sampling_schedule": (sampling_schedule, SAMPLING_SCHEDULES),
            "score": (score, SCORES),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
        check_temperatures(confidence_temperature, sampling_temperature)
        if not isinstance(halton_roll, bool):
            raise ValueError(f"halton_roll must be True or False, got {halton_roll!r}.")
        self.timesteps = torch.empty(0, dtype=torch.long)
        self.recap: ReCAPConfig | None = None
        self.groups: list[list[int]] = []
        self.changes: list[float] = []
        self._stop = 0

    def set_timesteps(
        self,
        num_inference_steps: int,
        unknown: int | Sequence[int] | Tensor,
        recap: ReCAPConfig | None = None,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """Plan a walk.

        Args:
            num_inference_steps: T. An image with fewer hidden tokens takes as many steps as it has.
            unknown: hidden tokens of each image, or of the only one.
            recap: where light steps lie; None for none.
            device: of `timesteps`.

        Returns: counts (B, T') int64 on the CPU, tokens revealed at each step; T' is the number of steps walked.

        Raises:
            ValueError: T is not a whole number of at least 1.
        """
        check_steps(num_inference_steps)
        hidden = [unknown] if isinstance(unknown, int) else [int(count) for count in unknown]
        schedule, guard = self.config["schedule"], self.config["guard"]
        rows = [reveal_counts(num_inference_steps, count, schedule, guard) for count in hidden]
        steps = max(len(row) for row in rows)
        padded = [row + [0] * (steps - len(row)) for row in rows]
        self.counts = torch.tensor(padded, dtype=torch.long).reshape(len(rows), steps)
        self._unknown, self._steps = torch.tensor(hidden), [len(row) for row in rows]
        self.timesteps = torch.arange(steps, device=device)
        # A plan without light steps is the base decoder, whatever else a recipe says.
        light = any(len(group) > 1 for group in plan_groups(steps, recap))
        self.recap = recap if light else None
        self.groups, self.changes, self._stop = [], [], 0
        return self.counts

    @property
    def plan(self) -> list[list[int]]:
        """Groups of steps, the first of each a full one, as they are if no bound on staleness ends one early."""
        return plan_groups(len(self.timesteps), self.recap)

    def start(self, tokens: Tensor, hidden: Tensor, generator: Generators = None) -> MaskedState:
        """The state before the first step; where the order is drawn, it is drawn here.

        Args:
            tokens: (B, N) int64 or (B, N, c).
            hidden: (B, N) bool.
            generator: one, or one for each image.

        Raises:
            ValueError: tokens are continuous and the order is by confidence, or a Halton order of a grid that is not
                square.
        """
        batch, count = hidden.shape
        kind = self.config["order"]
        if kind == "confidence":
            if tokens.is_floating_point():
                raise ValueError("order must be halton or random for continuous tokens, got 'confidence'.")
            order = torch.empty(batch, 0, device=hidden.device)
        elif kind == "random":
            order = uniform((batch, count), generator, hidden)
        else:
            order = self._halton(batch, count, generator, hidden)
        nothing = torch.empty(batch, 0, dtype=torch.long, device=hidden.device)
        return MaskedState(tokens, hidden, nothing, order, torch.empty(batch, 0, 0, device=hidden.device))

    def guidance(self, scale: float) -> list[Strength]:
        """Strength of guidance at each step; 1 = off.

        A number where it is the same for all images, and else (B,): each image goes by its own steps and by what it
        has left of its hidden tokens.
        """
        name, left = self.config["guidance_schedule"], self._unknown[:, None] - self.counts.cumsum(dim=1)
        strengths: list[Strength] = []
        for t in range(len(self.timesteps)):
            own = [
                guidance_at(name, scale, min(t, steps - 1), steps, int(left[b, t]) / int(self._unknown[b]))
                for b, steps in enumerate(self._steps)
                if steps
            ]
            alike = len(set(own)) == 1
            rest = iter(own)
            # An image with nothing hidden is asked about as well, and its answer not used.
            strengths.append(own[0] if alike else torch.tensor([next(rest) if steps else 1.0 for steps in self._steps]))
        return strengths

    def group_stop(self, step: int) -> int:
        """First step behind the group that `step` is in, or that it begins."""
        if step < self._stop:
            return self._stop
        return group_stop(step, len(self.groups), len(self.timesteps), self.recap)

    def scale_model_input(self, sample: MaskedState, timestep: Tensor | int | None = None) -> MaskedState:
        """The state as it is."""
        return sample

    def upcoming(self, state: MaskedState, step: int) -> Tensor:
        """Positions (B, n) that a step will reveal, -1 = padding; known beforehand but for a full step by confidence.

        Raises:
            ValueError: confidence decides, and the step is a full one.
        """
        now = self.counts[:, step]
        if state.group.shape[1] == 0:
            if state.order.shape[1] == 0:
                raise ValueError("what a full step reveals is not known before it where confidence decides.")
            return ranked(-state.order, state.hidden, now)
        return next_of(state.group, state.hidden, now)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: MaskedState,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> MaskedSchedulerOutput | tuple[MaskedState]:
        """Draw tokens and reveal some.

        Args:
            model_output: logits (B, N, V) in a full step, (B, m, V) of the group's rows in a light one; for continuous
                tokens their values (B, n, c) at `upcoming`.
            timestep: t.
            sample: the state before.
            generator: one, or one for each image. Every step draws N numbers an image, whatever is hidden.
            return_dict: False for a tuple.

        Raises:
            NotFiniteError: logits that are not finite; names the step and its kind.
        """
        step, state = int(timestep), sample
        full = state.group.shape[1] == 0
        if full:
            self._stop = self.group_stop(step)
            self.groups.append([step])
        else:
            self.groups[-1].append(step)
        if state.tokens.is_floating_point():
            new, drawn = self._place(model_output, step, state)
        else:
            logits = model_output.float()
            # The extremes are NaN if any number is.
            if not torch.stack(torch.aminmax(logits)).isfinite().all():
                kind = "full" if full else "light"
                raise NotFiniteError(
                    f"logits of step {step + 1} of {len(self.timesteps)}, a {kind} one, are not finite "
                    f"({model_output.dtype}): use float32 or bfloat16 weights."
                )
            new, drawn = (self._full if full else self._light)(logits, step, state, generator)
        if step + 1 >= self._stop:
            new = ended(new)
        return MaskedSchedulerOutput(new, drawn) if return_dict else (new,)

    def _full(self, logits: Tensor, step: int, state: MaskedState, generator: Generators) -> tuple[MaskedState, Tensor]:
        device, (batch, count) = logits.device, state.hidden.shape
        cooled = self._cooled(logits, step)
        drawn = pick_tokens(cooled, uniform((batch, count), generator, logits))
        drawn = torch.where(state.hidden, drawn, state.tokens)
        if state.order.shape[1]:
            confidence = -state.order
        else:
            scores = logits if self.config["score"] == "logit" else logits.log_softmax(dim=-1)
            noise = gumbel((batch, count), generator, logits) * self._noise_weights(step, device)[:, None]
            confidence = scores.gather(2, drawn[..., None])[..., 0] + noise
        sizes = self.counts[:, step : self._stop].sum(dim=1)
        group = ranked(confidence, state.hidden, sizes)
        if self.recap is not None and self.recap.resample_committed:
            again = pick_tokens(cooled, uniform((batch, count), generator, logits))
            drawn = torch.where(state.hidden, again, state.tokens)
        now = next_of(group, state.hidden, self.counts[:, step])
        reference = state.reference
        if self.recap is not None and self.recap.max_staleness is not None and self._stop > step + 1:
            index = group.clamp(min=0)[..., None].expand(-1, -1, logits.shape[2])
            reference = logits.gather(1, index).log_softmax(dim=-1)
        return revealed(state._replace(group=group, reference=reference), now, drawn), drawn

    def _light(
        self, logits: Tensor, step: int, state: MaskedState, generator: Generators
    ) -> tuple[MaskedState, Tensor]:
        numbers = uniform(state.hidden.shape, generator, logits).gather(1, state.group.clamp(min=0))
        drawn = scattered(state.tokens, state.group, pick_tokens(self._cooled(logits, step), numbers))
        drawn = torch.where(state.hidden, drawn, state.tokens)
        now = next_of(state.group, state.hidden, self.counts[:, step])
        if self.recap is not None and self.recap.max_staleness is not None:
            change = staleness(state.reference, logits.log_softmax(dim=-1), waiting(state))[0]
            self.changes.append(float(change.max()))
            if self.changes[-1] > self.recap.max_staleness:
                self._stop = step + 1
        return revealed(state, now, drawn), drawn

    def _place(self, values: Tensor, step: int, state: MaskedState) -> tuple[MaskedState, Tensor]:
        """Reveal continuous tokens, which the predictor has drawn."""
        now = self.upcoming(state, step)
        if values.shape[:2] != now.shape:
            raise ValueError(f"model_output must be {(*now.shape, state.tokens.shape[2])}, got {tuple(values.shape)}.")
        if state.group.shape[1] == 0:
            sizes = self.counts[:, step : self._stop].sum(dim=1)
            state = state._replace(group=ranked(-state.order, state.hidden, sizes))
        drawn = scattered(state.tokens, now, values.to(state.tokens.dtype))
        return revealed(state, now, drawn), drawn

    def _halton(self, batch: int, count: int, generator: Generators, like: Tensor) -> Tensor:
        side = math.isqrt(count)
        if side * side != count:
            raise ValueError(f"order 'halton' needs a square grid, got {count} tokens.")
        ranks = torch.tensor(halton_order(side, side)).argsort().to(like.device).expand(batch, -1)
        if not self.config["halton_roll"]:
            return ranks.float()
        offsets = (uniform((batch, 1), generator, like) * count).long()
        return ((ranks + offsets) % count).float()

    def _ratios(self, step: int) -> list[tuple[float, float]]:
        """r = (t + 1) / T and t / (T - 1) of each image, which has its own T; both end at 1."""
        return [
            (min(1.0, (step + 1) / max(steps, 1)), min(1.0, step / max(steps - 1, 1)) if steps > 1 else 1.0)
            for steps in self._steps
        ]

    def _cooled(self, logits: Tensor, step: int) -> Tensor:
        """Logits divided by each image's temperature."""
        name, theta = self.config["sampling_schedule"], self.config["sampling_temperature"]
        own = [sampling_temperature_at(name, theta, *pair) for pair in self._ratios(step)]
        return logits if set(own) == {1.0} else logits / torch.tensor(own, device=logits.device)[:, None, None]

    def _noise_weights(self, step: int, device: torch.device) -> Tensor:
        """Of a group's only draw, which ranks what its last step reveals, too."""
        tau = self.config["confidence_temperature"]
        if self.recap is not None and self.recap.anneal_over == "group":
            done, plans = len(self.groups), [len(plan_groups(steps, self.recap)) for steps in self._steps]
            pairs = [(min(1.0, done / max(n, 1)), min(1.0, (done - 1) / max(n - 1, 1))) for n in plans]
        else:
            pairs = self._ratios(self._stop - 1)
        return torch.tensor([confidence_temperature_at(tau, *pair) for pair in pairs], device=device)


def check_temperatures(confidence: Any, sampling: Any) -> None:
    """Raise ValueError unless confidence is a number or a pair of them of at least 0, and sampling is above 0."""
    values = list(confidence) if isinstance(confidence, list | tuple) else [confidence]
    fits = not isinstance(confidence, list | tuple) or len(values) == 2
    if not fits or any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v < math.inf for v in values):
        raise ValueError(
            f"confidence_temperature must be a number of at least 0, or (first, last), got {confidence!r}."
        )
    if isinstance(sampling, bool) or not isinstance(sampling, int | float) or not 0 < sampling < math.inf:
        raise ValueError(f"sampling_temperature must be above 0 and finite, got {sampling!r}.")
