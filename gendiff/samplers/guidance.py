"""Guidance: one predictor pushed away from another, with a strength that may change along the walk.

There is one convention, diffusers': 1 is off. *Any* two predictors of one state will do. With a condition against
none this is classifier-free guidance (Ho & Salimans 2022); with a counterfactual against the factual condition, or
against the counterfactual one whose affected variables are dropped, it amplifies only what the intervention changes.
The result is a predictor again, so guidance nests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gendiff.samplers.loop import Predictor, State, Step

Strength = float | Tensor
"""Of guidance: one number, or (B,) where each sample has its own."""
Schedule = Callable[[Step], Strength]
"""Strength of guidance at a step."""


def guided(
    positive: Predictor,
    negative: Predictor,
    scale: Strength | Schedule = 1.0,
    keep: Callable[[Step], bool] | None = None,
) -> Predictor:
    """Predict `negative + scale * (positive - negative)`.

    The weights sum to 1, so it makes no difference whether the network predicts noise, velocity or the sample.

    Args:
        positive: what to move towards. Not called at a step where the strength is 0.
        negative: what to move away from. Not called at a step where the strength is 1, unless it is to be kept up.
        scale: 0 is `negative` alone, 1 `positive` alone, more extrapolates; a number, one for each sample, or a
            function of the step.
        keep: says at which steps both are called whatever the strength, because later steps read their caches.

    Raises:
        ValueError: a number, here, or a scheduled value, at its step, is negative or not finite.
    """
    if not callable(scale):
        _check("scale", scale)

    def predict(state: State, step: Step) -> Tensor:
        weight, kept = _weight(scale, step), keep is not None and keep(step)
        if is_off(weight):
            said = positive(state, step)
            if kept:
                negative(state, step)
            return said
        none = not isinstance(weight, Tensor) and weight == 0
        if none and not kept:
            return negative(state, step)
        said, base = positive(state, step), negative(state, step)
        return base if none else _mixed(said, base, weight)

    return predict


def guided_jointly(both: Predictor, scale: Strength | Schedule = 1.0) -> Predictor:
    """As `guided`, for a network that makes both predictions in one call, stacked (positive, negative) on axis 0.

    It is called so at every step, also where the strength is 1: a network with a cache must go on writing both.

    Raises:
        ValueError: as `guided`.
    """
    if not callable(scale):
        _check("scale", scale)

    def predict(state: State, step: Step) -> Tensor:
        weight = _weight(scale, step)
        positive, negative = both(state, step).chunk(2)
        return positive if is_off(weight) else _mixed(positive, negative, weight)

    return predict


def is_off(weight: Strength) -> bool:
    """Whether guidance changes no sample."""
    return bool((weight == 1).all()) if isinstance(weight, Tensor) else weight == 1


def interval(scale: float, start: float = 0.0, stop: float = 1.0) -> Schedule:
    """`scale` while start <= progress < stop, and no guidance outside (Kynkäänniemi et al. 2024, arXiv 2404.07724).

    The paper bounds the noise level; `start` and `stop` are shares of the walk, 0 <= start < stop <= 1.
    """
    _check("scale", scale)
    if not 0 <= start < stop <= 1:
        raise ValueError(f"an interval needs 0 <= start < stop <= 1, got start={start}, stop={stop}.")
    return lambda step: scale if start <= step.progress < stop else 1.0


def ramp(start: float, stop: float, shape: Literal["linear", "cosine"] = "linear") -> Schedule:
    """Strength that goes from `start` at the first step to `stop` at the last, evenly or as half a cosine wave."""
    _check("start", start)
    _check("stop", stop)
    curves = {"linear": lambda r: r, "cosine": lambda r: (1 - math.cos(math.pi * r)) / 2}
    if shape not in curves:
        raise ValueError(f"shape must be one of {', '.join(curves)}, got {shape!r}.")
    curve = curves[shape]
    return lambda step: start + (stop - start) * curve(step.index / max(step.count - 1, 1))


def _mixed(positive: Tensor, negative: Tensor, weight: Strength) -> Tensor:
    """negative + weight (positive - negative)."""
    if not isinstance(weight, Tensor):
        # In place, because logits over a large codebook make every copy felt.
        return (positive - negative).mul_(weight).add_(negative)
    own = weight.to(positive).view(-1, *[1] * (positive.ndim - 1))
    # A sample whose own strength is 1 is what it would be alone, to the bit.
    return torch.where(own == 1, positive, (positive - negative).mul_(own).add_(negative))


def _weight(scale: Strength | Schedule, step: Step) -> Strength:
    weight = scale(step) if callable(scale) else scale
    _check(f"scale at step {step.index + 1} of {step.count}", weight)
    return weight


def _check(name: str, value: Strength) -> None:
    values = value.tolist() if isinstance(value, Tensor) else [value]
    if not all(math.isfinite(one) and one >= 0 for one in values):
        raise ValueError(f"guidance {name} must be finite and at least 0, got {value}.")
