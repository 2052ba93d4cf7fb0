"""How much noise a scheduler's step holds, and what a prediction says of the clean sample.

All formulas are about `x = alpha * x_0 + sigma * noise`, what a network sees under any diffusers scheduler.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .loop import Step

NoiseLevel = tuple[float, float]
"""`(alpha, sigma)`: the amplitudes of data and of noise in what the network sees."""

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")


def noise_level(scheduler: Any, step: Step) -> NoiseLevel:
    """Amplitudes `(alpha, sigma)` of data and noise in what the network sees at `step`.

    The scheduler's own numbers are read, so a predictor built on them makes no error of its own.

    Args:
        scheduler: a diffusers scheduler with `alphas_cumprod` or with flow-matching sigmas.
        step: where the walk stands, as `sample` hands it to a predictor.

    Raises:
        ValueError: the scheduler has neither, or asks for predictions between its own noise levels.
    """
    if hasattr(scheduler, "sigmas_interpol"):
        raise ValueError(f"{type(scheduler).__name__} asks for predictions between its sigmas; it has no exact level.")
    if is_flow(scheduler):
        sigma = float(scheduler.sigmas[step.index])
        return 1 - sigma, sigma
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{type(scheduler).__name__} has neither alphas_cumprod nor flow-matching sigmas.")
    if hasattr(scheduler, "sigmas"):
        # These schedulers store sigma / alpha, and their timesteps may be rounded: the stored sigma is the truth.
        ratio = float(scheduler.sigmas[step.index])
        return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
    signal = float(scheduler.alphas_cumprod[int(step.timestep)])
    return math.sqrt(signal), math.sqrt(1 - signal)


def noise_share(level: NoiseLevel) -> float:
    """s = sigma / (alpha + sigma) in [0, 1]: one scale for all families, 1 = pure noise.

    A flow model's s is its own sigma; with sigma' = sigma / alpha of VE notation it is sigma' / (1 + sigma').
    """
    alpha, sigma = level
    return sigma / (alpha + sigma)


def prediction_type(scheduler: Any) -> str:
    """What a network under this scheduler predicts, one of `PREDICTION_TYPES`.

    Raises:
        ValueError: the scheduler's own `prediction_type` is another one.
    """
    kind = "flow_prediction" if is_flow(scheduler) else scheduler.config.get("prediction_type")
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {kind!r}.")
    return kind


def to_x0(prediction: Tensor, x: Tensor, level: NoiseLevel, kind: str) -> Tensor:
    """The clean sample that a prediction of `kind` about `x` stands for.

    Source: Salimans & Ho 2022 (Progressive Distillation), appendix D; flow: Lipman et al. 2023, v = noise - x_0.
    """
    alpha, sigma = level
    if kind == "sample":
        return prediction
    if kind == "epsilon":
        return (x - sigma * prediction) / alpha
    if kind == "v_prediction":
        return alpha * x - sigma * prediction
    # x = alpha x_0 + sigma noise and v = noise - x_0; alpha + sigma is 1 on a flow's own levels.
    return (x - sigma * prediction) / (alpha + sigma)


def from_x0(clean: Tensor, x: Tensor, level: NoiseLevel, kind: str) -> Tensor:
    """The prediction of `kind` about `x` that stands for the clean sample: inverse of `to_x0`, where sigma > 0."""
    alpha, sigma = level
    if kind == "sample":
        return clean
    noise = (x - alpha * clean) / sigma
    if kind == "epsilon":
        return noise
    return alpha * noise - sigma * clean if kind == "v_prediction" else noise - clean


def is_flow(scheduler: Any) -> bool:
    """Whether `x = (1 - sigma) x_0 + sigma noise`; flow-only schedulers of diffusers have no prediction type."""
    uses_flow = scheduler.config.get("use_flow_sigmas", False)
    return uses_flow or (hasattr(scheduler, "sigmas") and "prediction_type" not in scheduler.config)
