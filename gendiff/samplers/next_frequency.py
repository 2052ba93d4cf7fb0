"""A scheduler over stages: each step turns the logits of a stage into its codes. No noise, no network.

Source: Tian et al. 2024 (VAR, arXiv 2404.02905) and its code: guidance that grows from stage to stage, top-k before
top-p, and Gumbel weights over codes for pictures that are to look smooth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from gendiff.errors import NotFiniteError
from gendiff.nn.stages import check_stages
from gendiff.samplers.draws import draw_tokens, gumbel

GUIDANCE_SCHEDULES = ("linear", "constant")

Codes = tuple[Tensor, ...]
"""The state: codes of the stages done, tokens (B, n_k) int64, or weights over all codes (B, n_k, V)."""


@dataclass
class NextFrequencySchedulerOutput(BaseOutput):
    """After a stage.

    Attributes:
        prev_sample: codes of all stages done, the new one last.
    """

    prev_sample: Codes


class NextFrequencyScheduler(SchedulerMixin, ConfigMixin):
    """Walks stages 0 .. K - 1; the state is the tuple of their codes.

    Args:
        stages: side of each token grid, as in tokenizer and transformer.
        top_k: codes that may be drawn at each token, 0 = all; what a call uses that names none.
        top_p: share of the probability that may be drawn, 0 = all; likewise.

    Raises:
        ValueError: not stages, or a number out of its range.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, stages: Sequence[int] = (1, 2, 3, 4, 6, 8), top_k: int = 0, top_p: float = 0.0) -> None:
        self.register_to_config(stages=list(check_stages(stages)))
        check_filters(top_k, top_p)
        self.timesteps = torch.arange(len(stages))

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.config["stages"])

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None) -> None:
        """Walk the first `num_inference_steps` stages, all of them if None.

        Raises:
            ValueError: not from 1 to K.
        """
        count = self.num_stages if num_inference_steps is None else num_inference_steps
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= self.num_stages:
            raise ValueError(f"num_stages must be a whole number from 1 to {self.num_stages}, got {count!r}.")
        self.timesteps = torch.arange(count, device=device)

    def scale_model_input(self, sample: Codes, timestep: Tensor | int | None = None) -> Codes:
        """The codes as they are."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Codes,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        smooth: bool = False,
        known: Sequence[tuple[Tensor, Tensor] | None] | None = None,
        return_dict: bool = True,
    ) -> NextFrequencySchedulerOutput | tuple[Codes]:
        """Draw the codes of a stage.

        Args:
            model_output: logits (B, n_k, V).
            timestep: k.
            sample: codes of the stages before.
            generator: one, or one for each sample; one uniform number is drawn for each token.
            temperature: logits are divided by it.
            top_k: codes that may be drawn; None for the config's.
            top_p: share of the probability that may be drawn; None for the config's.
            smooth: weights over codes instead of one code, for the eye only: metrics judge drawn codes.
            known: for each stage None, or (tokens (B, n_k), kept (B or 1, n_k) bool): where a token is kept, it takes
                the place of the drawn one.
            return_dict: False for a tuple.

        Raises:
            NotFiniteError: logits that are not finite; names the stage.
            ValueError: temperature, top_k or top_p out of range.
        """
        stage = int(timestep)
        allowed_k: int = self.config["top_k"] if top_k is None else top_k
        allowed_p: float = self.config["top_p"] if top_p is None else top_p
        # A scheduler's own top_k may be meant for a larger codebook.
        check_filters(allowed_k, allowed_p, None if top_k is None else model_output.shape[-1])
        check_temperature(temperature)
        check_finite(model_output, stage, model_output.dtype)
        logits = model_output.float() if temperature == 1 else model_output.float() / temperature
        filtered = filter_logits(logits, allowed_k, allowed_p)
        if smooth:
            codes = gumbel_weights(filtered, stage / max(self.num_stages - 1, 1), generator)
        else:
            codes = draw_tokens(filtered, generator)
        kept = known[stage] if known is not None else None
        if kept is not None:
            codes = _replaced(codes, *kept)
        state = (*sample, codes)
        return NextFrequencySchedulerOutput(prev_sample=state) if return_dict else (state,)


def guidance_by_stage(scale: float, schedule: str | Sequence[float], num_stages: int) -> list[float]:
    """Strength of guidance at each stage, in diffusers' convention: 1 = off.

    Args:
        scale: at the last stage for "linear", which starts with 1; at all stages for "constant"; unused for numbers.
        schedule: "linear", as in VAR, whose cfg is `scale - 1`; "constant"; or K numbers.
        num_stages: K, of the model, however many are walked.

    Raises:
        ValueError: an unknown schedule, or a strength that is negative or not finite.
    """
    if isinstance(schedule, str):
        if schedule not in GUIDANCE_SCHEDULES:
            raise ValueError(
                f"guidance_schedule must be one of {', '.join(GUIDANCE_SCHEDULES)}, or {num_stages} numbers, got "
                f"{schedule!r}."
            )
        last = max(num_stages - 1, 1)
        # A model of one stage has nothing to grow over: it is at the end of the ramp.
        ratios = [k / last if num_stages > 1 else 1.0 for k in range(num_stages)]
        if not _is_strength(scale):
            raise ValueError(f"guidance_scale must be finite and at least 0, got {scale!r}.")
        return [1 + (scale - 1) * ratio for ratio in ratios] if schedule == "linear" else [scale] * num_stages
    values = list(schedule)
    if len(values) != num_stages or not all(_is_strength(value) for value in values):
        raise ValueError(
            f"guidance_schedule must be {num_stages} numbers, one for each stage, finite and at least 0, got {values}."
        )
    return [float(value) for value in values]


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless it is a finite number above 0."""
    if not _is_number(temperature) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature!r}.")


def check_finite(logits: Tensor, stage: int, dtype: torch.dtype) -> None:
    """Raise NotFiniteError unless all logits are finite; `dtype` is the network's."""
    # The extremes are NaN if any number is.
    if not torch.stack(torch.aminmax(logits)).isfinite().all():
        raise NotFiniteError(f"logits of stage {stage} are not finite ({dtype}): use float32 or bfloat16 weights.")


def check_filters(top_k: int, top_p: float, codebook_size: int | None = None) -> None:
    """Raise ValueError unless top_k is 0 .. V and top_p is in [0, 1]."""
    most = "V" if codebook_size is None else str(codebook_size)
    whole = isinstance(top_k, int) and not isinstance(top_k, bool)
    if not whole or top_k < 0 or (codebook_size is not None and top_k > codebook_size):
        raise ValueError(f"top_k must be a whole number from 0 (off) to {most}, got {top_k!r}.")
    if not _is_number(top_p) or not 0 <= top_p <= 1:
        raise ValueError(f"top_p must be from 0 (off) to 1, got {top_p!r}.")


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (..., V) with those that may not be drawn at minus infinity: top-k first, then top-p of what is left.

    Codes equal to the k-th are kept, and the best one always.
    """
    by_mass = 0 < top_p < 1
    if not 0 < top_k < logits.shape[-1]:
        if not by_mass:
            return logits
        ascending, order = logits.sort(dim=-1)
        return logits.scatter(-1, order, _without_tail(ascending, top_p))
    # One more than wanted, which tells whether the last one is tied with any that would be left out.
    best, order = logits.topk(top_k + 1, dim=-1)
    tied = best[..., -1] == best[..., -2]
    smallest, best, order = best[..., -2:-1], best[..., :-1].flip(-1), order[..., :-1].flip(-1)
    filtered = torch.full_like(logits, -math.inf)
    filtered.scatter_(-1, order, _without_tail(best, top_p) if by_mass else best)
    if tied.any():
        rows = logits[tied].masked_fill(logits[tied] < smallest[tied], -math.inf)
        filtered[tied] = filter_logits(rows, 0, top_p)
    return filtered


def gumbel_weights(logits: Tensor, ratio: float, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Weights (B, n, V) over codes, softer at early stages; `ratio` is k / (K - 1)."""
    noise = gumbel(logits.shape, generator, logits)
    sharpness = max(0.27 * (1 - 0.95 * ratio), 0.005)
    return ((logits * (1 + ratio) + noise) / sharpness).softmax(dim=-1)


def _without_tail(ascending: Tensor, top_p: float) -> Tensor:
    """Ascending values with the lowest that hold at most 1 - top_p of the probability at minus infinity."""
    tail = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    tail[..., -1] = False
    return ascending.masked_fill(tail, -math.inf)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_strength(value: Any) -> bool:
    return _is_number(value) and 0 <= value < math.inf


def _replaced(codes: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
    if not codes.is_floating_point():
        return torch.where(kept, tokens, codes)
    sharp = torch.nn.functional.one_hot(tokens, codes.shape[-1]).to(codes.dtype)
    return torch.where(kept[..., None], sharp, codes)
