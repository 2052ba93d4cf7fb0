"""Energy steering: a walk pushed down the gradient of any differentiable energy of what it is about to become.

An energy V(x0_hat) -> (B,) is at least 0 and says how far a clean sample is from what is wanted. LINA's third strength,
`rho`, moves along `-dV/dx`, through the network, as gendiff realises it. Energies whose best answer is known in closed
form need no gradient: `gendiff.samplers.linear_energies`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import Predictor, State, Step
from gendiff.samplers.noise_levels import from_x0, noise_level, noise_share, prediction_type, to_x0

Energy = Callable[[Tensor], Tensor]
"""V: clean samples (B, ...) -> (B,), at least 0, differentiable."""


@dataclass(frozen=True)
class EnergySteering:
    """An energy, and the step against its gradient.

    V is asked about `x0_hat`, what the network takes the clean sample to be, and never about the noisy `x`: rewards
    that were not trained on noise give coloured noise there.

    Attributes:
        energy: V.
        name: what errors call it.
        start: no step at noise shares above it, in (0, 1]: at first x0_hat says little but the mean of the data.

    Raises:
        ValueError: `start` is outside (0, 1].
    """

    energy: Energy
    name: str = "energy"
    start: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise ValueError(f"start must be in (0, 1], got {self.start!r}.")

    def shift(
        self, denoise: Callable[[Tensor], tuple[Tensor, Any]], x: Tensor, share: float, rho: float
    ) -> tuple[Tensor, Any]:
        """The step to subtract, `rho * s^2 * rms(x) * G / (rms(G) + 1e-8)` with `G = dV(x0_hat) / dx`.

        rms is taken in each sample, so one sample's energy does not set another's step. Works under `torch.no_grad`
        and `torch.inference_mode`: the gradient is switched on here and nowhere else.

        Args:
            denoise: x -> (x0_hat, anything else to hand back), differentiable in x.
            x: the noisy state, (B, ...).
            share: s in [0, 1].
            rho: strength, at least 0; around 0.01 to 0.3, in units of the state's rms.

        Returns: the step, float32 or finer, of the shape of x; and what `denoise` handed back, still with its graph.

        Raises:
            RuntimeError: V, or the network, lets no gradient through; names the energy.
            ValueError: V's result is not (B,).
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            clean, rest = denoise(leaf)
            gradient = self._gradient(clean, leaf)
        fine = torch.promote_types(x.dtype, torch.float32)
        gradient, state = gradient.to(fine), leaf.detach().to(fine)
        return rho * share**2 * _rms(state) * gradient / (_rms(gradient) + 1e-8), rest

    def _gradient(self, clean: Tensor, leaf: Tensor) -> Tensor:
        if not clean.requires_grad:
            raise RuntimeError(
                f"{self.name}: the network lets no gradient through, e.g. because it has its own no_grad."
            )
        value = self.energy(clean)
        if value.shape != (len(clean),):
            raise ValueError(f"{self.name} must give one number for each sample, ({len(clean)},), got {value.shape}.")
        if not value.requires_grad:
            raise RuntimeError(f"{self.name} is not differentiable: its value has no gradient.")
        # Samples do not touch each other, so the gradient of the sum is each sample's own.
        (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise RuntimeError(f"{self.name} is not differentiable: its value does not depend on the clean sample.")
        return gradient


def steered(predict: Predictor, steering: EnergySteering, *, intervention: Intervention, scheduler: Any) -> Predictor:
    """Predict what stands for `x0_hat - shift` instead of `x0_hat`, while the window is open and s <= `start`.

    A predictor returns predictions and can not move the state, so the shift is taken from the clean sample that the
    prediction stands for, with x and its noise level as they are. How this differs from `x <- x - shift`: a first-order
    step from s to s' then moves the next state by `(s - s') / s` of the shift (flow; `alpha' - sigma' alpha / sigma`
    in general) and the last step by all of it. So twice the steps are half the push each, and `rho` means the same at
    any number of steps. Shifting x moves the next state by about the whole shift at each step, so that the push grows
    with their number. Both lower V to first order.

    The network is called once a step, and backwards once. Put it around guidance and contrast, not inside: what it
    calls is asked about a copy of the state.

    Args:
        predict: what would be predicted without it; differentiable in the state.
        steering: the energy.
        intervention: rho, window and gate; its other strengths are not looked at.
        scheduler: the one that is walked; levels and the kind of prediction are read from it.

    Returns: `predict` itself where rho is 0 or the gate is shut.

    Raises:
        ValueError: as `prediction_type`; at a step, as `EnergySteering.shift`.
        RuntimeError: at a step, as `EnergySteering.shift`.
    """
    if not intervention.gate or intervention.rho == 0:
        return predict
    kind = prediction_type(scheduler)

    def pushed(state: State, step: Step) -> Tensor:
        level = noise_level(scheduler, step)
        share = round(noise_share(level), 6)  # a scheduler's float32 0.6 lies above 0.6, and would be out of (0.6, 0.3)
        if share > steering.start or not intervention.acts_at(share):
            return predict(state, step)

        def denoise(x: Tensor) -> tuple[Tensor, tuple[Tensor, torch.dtype]]:
            said = predict(x, step)
            if not said.requires_grad:  # x0_hat would still have a gradient, by x alone, and a wrong one
                return said, (said, said.dtype)
            fine = torch.promote_types(said.dtype, torch.float32)
            clean = to_x0(said.to(fine), x.to(fine), level, kind)
            return clean, (clean.detach(), said.dtype)

        shift, (clean, dtype) = steering.shift(denoise, state, share, intervention.rho)
        return from_x0(clean.to(shift) - shift, state.to(shift), level, kind).to(dtype)

    return pushed


def _rms(values: Tensor) -> Tensor:
    """Root mean square of each sample, (B, 1, ..., 1)."""
    return values.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (values.ndim - 1))
