"""Gaussians, and mixtures of them, as data with a perfect network: the truth a sampler is measured against.

All formulas are about `x_t = alpha * x_0 + sigma * noise`, what a network sees under any diffusers scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gendiff.samplers.loop import Predictor, State, Step
from gendiff.samplers.noise_levels import NoiseLevel, noise_level, prediction_type


class Gaussian:
    """Data `x_0 ~ N(mean, covariance)`, for which every quantity of diffusion is known.

    Numbers are computed in the dtype of `mean` and come back in the dtype of the input.

    Args:
        mean: of any shape, e.g. (C, H, W); it is the shape of one sample.
        covariance: symmetric positive definite (D, D), with D the number of elements of `mean`.

    Raises:
        ValueError: the covariance has another shape, is not symmetric or not positive definite.
    """

    def __init__(self, mean: Tensor, covariance: Tensor):
        size = mean.numel()
        if covariance.shape != (size, size):
            raise ValueError(f"covariance must be ({size}, {size}) for this mean, got {tuple(covariance.shape)}.")
        if not torch.allclose(covariance, covariance.mT):
            raise ValueError("covariance must be symmetric.")
        self.mean = mean
        self.covariance = covariance
        self._variances, self._axes = torch.linalg.eigh(covariance)
        if not (self._variances > 0).all():
            raise ValueError(f"covariance must be positive definite, its smallest eigenvalue is {self._variances[0]}.")

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw data, (count, *mean.shape)."""
        noise = torch.randn(count, len(self._variances), generator=generator, dtype=self.mean.dtype)
        return self._compose(self._variances.sqrt() * noise.to(self.mean.device), 1.0)

    def posterior(self, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """What a perfect network knows of a noisy `x`: `(E[x_0 | x], E[noise | x])`.

        Args:
            x: noisy samples, (B, *mean.shape).
            level: `(alpha, sigma)` of `x`.
        """
        alpha, sigma = level
        coordinates = self._decompose(x, alpha) / self._spread(level)
        data = self._compose(alpha * self._variances * coordinates, 1.0)
        noise = self._compose(sigma * coordinates, 0.0)
        return data.to(x.dtype), noise.to(x.dtype)

    def log_prob(self, x: Tensor, level: NoiseLevel = (1.0, 0.0)) -> Tensor:
        """Log density of `x` (B, *mean.shape) among noisy samples of `level`; the data's own by default. (B,)"""
        spread = self._spread(level)
        squares = self._decompose(x, level[0]).square() / spread
        return (-0.5 * (squares + spread.log() + math.log(2 * math.pi)).sum(-1)).to(x.dtype)

    def transport(self, x: Tensor, start: NoiseLevel, end: NoiseLevel = (1.0, 0.0)) -> Tensor:
        """Exact solution of the probability-flow ODE: where `x` of level `start` is at level `end`.

        Along every axis of the covariance the distance to the mean keeps its share of the standard deviation,
        so the path depends on the two ends only and is the same for every noise schedule. From `(0, 1)` it maps
        noise to data, from `(1, 0)` data to noise.

        Args:
            x: samples at level `start`, (B, *mean.shape).
            start: `(alpha, sigma)` of `x`.
            end: `(alpha, sigma)` of the result.

        Source: Song et al. 2021 (Score-Based Generative Modeling through SDEs), equation 13, solved for a Gaussian.
        """
        stretch = (self._spread(end) / self._spread(start)).sqrt()
        return self._compose(stretch * self._decompose(x, start[0]), end[0]).to(x.dtype)

    def _spread(self, level: NoiseLevel) -> Tensor:
        alpha, sigma = level
        return alpha**2 * self._variances + sigma**2

    def _decompose(self, x: Tensor, alpha: float) -> Tensor:
        return (x.to(self.mean.dtype) - alpha * self.mean).flatten(1) @ self._axes

    def _compose(self, coordinates: Tensor, alpha: float) -> Tensor:
        return (coordinates @ self._axes.mT).unflatten(1, self.mean.shape) + alpha * self.mean


class GaussianMixture:
    """A mixture of Gaussians: an exact network too, but a nonlinear one.

    Args:
        components: Gaussians of one shape.
        weights: their positive shares, normalised here; equal by default.

    Raises:
        ValueError: no component, shapes that differ, or weights that do not fit.
    """

    def __init__(self, components: Sequence[Gaussian], weights: Sequence[float] | None = None):
        if len({component.mean.shape for component in components}) != 1:
            raise ValueError("components must be one or more Gaussians of one shape.")
        weights = weights if weights is not None else [1.0] * len(components)
        if len(weights) != len(components) or min(weights) <= 0:
            raise ValueError(f"weights must be {len(components)} positive numbers, got {list(weights)}.")
        self.components = tuple(components)
        self.weights = torch.as_tensor(weights, dtype=components[0].mean.dtype) / sum(weights)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw data, (count, *shape of a sample)."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        draws = torch.stack([component.sample(count, generator) for component in self.components])
        return draws[chosen, torch.arange(count)]

    def posterior(self, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """What a perfect network knows of a noisy `x`: `(E[x_0 | x], E[noise | x])`; see `Gaussian.posterior`."""
        shares = self._joint(x, level).softmax(0).unflatten(1, (-1,) + (1,) * (x.ndim - 1))
        data, noise = zip(*(component.posterior(x, level) for component in self.components), strict=True)
        return (shares * torch.stack(data)).sum(0), (shares * torch.stack(noise)).sum(0)

    def log_prob(self, x: Tensor, level: NoiseLevel = (1.0, 0.0)) -> Tensor:
        """Log density of `x` among noisy samples of `level`; the data's own by default. (B,)"""
        return self._joint(x, level).logsumexp(0)

    def _joint(self, x: Tensor, level: NoiseLevel) -> Tensor:
        logs = torch.stack([component.log_prob(x, level) for component in self.components])
        return logs + self.weights.log().to(logs)[:, None]  # (components, B)


def exact_predictor(data: Gaussian | GaussianMixture, scheduler: Any) -> Predictor:
    """The perfect network for `data`, in the parametrisation that `scheduler` expects.

    Epsilon, v-prediction, sample and flow velocity (`noise - data`) are told apart by the scheduler's config.

    Args:
        data: the distribution of clean samples.
        scheduler: the diffusers scheduler that will be walked; see `samplers.noise_levels.noise_level` for which.

    Raises:
        ValueError: the scheduler's `prediction_type` is none of the four.
    """
    parametrise = _PARAMETRISATIONS[prediction_type(scheduler)]

    def predict(x: State, step: Step) -> Tensor:
        level = noise_level(scheduler, step)
        return parametrise(*data.posterior(x, level), *level)

    return predict


# Salimans & Ho 2022 (Progressive Distillation), appendix D; flow: Lipman et al. 2023 (Flow Matching).
_PARAMETRISATIONS = {
    "epsilon": lambda data, noise, alpha, sigma: noise,
    "sample": lambda data, noise, alpha, sigma: data,
    "v_prediction": lambda data, noise, alpha, sigma: alpha * noise - sigma * data,
    "flow_prediction": lambda data, noise, alpha, sigma: noise - data,
}
