"""Continuous tokens: values drawn by a diffusion head from the features of the places that are revealed (MAR)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gendiff.samplers.draws import Generators
from gendiff.samplers.guidance import Strength, is_off
from gendiff.samplers.loop import Step
from gendiff.samplers.masked import MaskedScheduler, MaskedState
from gendiff.samplers.recap import ReCAPConfig
from gendiff.samplers.token_diffusion import sample_tokens

from .stats import Meter


class Head:
    """Draws values of tokens from their features, in fewer steps where ReCAP says so.

    Args:
        network: `network(x, t, z)`, see `DiffusionHead`.
        num_steps: denoising steps of a token.
        temperature: factor of their noise.
        recap: its `light_head_steps` hold in light steps.
    """

    def __init__(self, network: Any, num_steps: int, temperature: float, recap: ReCAPConfig | None) -> None:
        self._network, self._temperature = network, temperature
        self.token_channels: int = network.token_channels
        self.token_range: float | None = network.token_range
        light = None if recap is None else recap.light_head_steps
        self._steps = (num_steps, num_steps if light is None else light)
        self.meter = Meter()

    def __call__(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The network, counted."""
        return self.meter(self._network, x, t, z)

    def draw(
        self, z: Tensor, negative: Tensor | None, strength: Strength, light: bool, rows: Tensor, generator: Generators
    ) -> Tensor:
        """Values (B, n, c) from features (B, n, D) of `rows` (B, n), -1 = padding, whose values mean nothing."""
        counts = (rows >= 0).sum(dim=1)
        return sample_tokens(self, z, negative, strength, self._steps[light], self._temperature, generator, counts)


class HeadPredictor:
    """A predictor of continuous tokens: features of the places to be revealed, and values drawn from them.

    Args:
        positive: features under the condition.
        negative: without it; None for none.
        weight: strength of guidance at a step.
        keep: whether `negative` is called also where the strength is 1, for its cache.
        scheduler: says which places come next.
        head: draws the values.
        generator: of its noise.
    """

    def __init__(
        self,
        positive: Callable[[MaskedState, Step], Tensor],
        negative: Callable[[MaskedState, Step], Tensor] | None,
        weight: Callable[[Step], Strength],
        keep: Callable[[Step], bool],
        scheduler: MaskedScheduler,
        head: Head,
        generator: Generators,
    ) -> None:
        self._positive, self._negative, self._weight, self._keep = positive, negative, weight, keep
        self._scheduler, self._head, self._generator = scheduler, head, generator

    def __call__(self, state: MaskedState, step: Step) -> Tensor:
        rows, strength = self._scheduler.upcoming(state, step.index), self._weight(step)
        light = state.group.shape[1] > 0
        features, other = self._positive(state, step), None
        if self._negative is not None and (not is_off(strength) or self._keep(step)):
            other = self._negative(state, step)
        place = rows.clamp(min=0)
        if light:
            # Columns of the group, in which the features are ordered.
            place = (state.group[:, None] == rows[..., None]).int().argmax(dim=2)
        negative = None if other is None or is_off(strength) else _rows(other, place)
        return self._head.draw(_rows(features, place), negative, strength, light, rows, self._generator)


def _rows(features: Tensor, place: Tensor) -> Tensor:
    return features.gather(1, place[..., None].expand(-1, -1, features.shape[2]))
