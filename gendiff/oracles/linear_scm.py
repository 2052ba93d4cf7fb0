"""A linear Gaussian structural causal model: sampling, abduction, `do` and counterfactuals in closed form."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gendiff.causal.graph import CausalGraph


class LinearSCM:
    """`x_i = bias_i + sum over parents p of weight_pi x_p + scale_i u_i`, with independent `u_i ~ N(0, 1)`.

    Values are float64 tensors (B, n) with a column for each variable, in the order of `graph.names`. An intervention
    is a mapping from names to one number or to a number for each row, (B,); it cuts the variable from its parents
    and from its noise.

    Args:
        graph: continuous variables only.
        weights: the effect of each edge (cause, effect), in raw units of effect per unit of cause.
        bias: by name, 0 where left out.
        scale: positive standard deviation of each variable's own noise by name, 1 where left out.

    Raises:
        ValueError: a variable that is not continuous, weights that are not one for each edge, an unknown name
            (`GraphError`), or a scale that is not positive.

    Source: Pearl 2009 (Causality), sections 1.4 and 7.1.
    """

    def __init__(
        self,
        graph: CausalGraph,
        weights: Mapping[tuple[str, str], float],
        bias: Mapping[str, float] | None = None,
        scale: Mapping[str, float] | None = None,
    ):
        discrete = [variable.name for variable in graph.variables if variable.kind != "continuous"]
        if discrete:
            raise ValueError(f"a linear SCM needs continuous variables, got discrete {', '.join(discrete)}.")
        if set(weights) != set(graph.edges):
            raise ValueError(f"weights must name the edges {sorted(graph.edges)}, got {sorted(weights)}.")
        self.graph = graph
        self._weights = torch.zeros(len(graph.names), len(graph.names), dtype=torch.float64)  # [effect, cause]
        for (cause, effect), weight in weights.items():
            self._weights[graph.index(effect), graph.index(cause)] = weight
        self._bias = self._row(bias or {}, default=0.0)
        self._scale = self._row(scale or {}, default=1.0)
        if not (self._scale > 0).all():
            raise ValueError(f"scale must be positive, got {dict(scale or {})}.")

    def sample(
        self, count: int, do: Mapping[str, float | Tensor] | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw from the model, or from the model under `do`; (count, n)."""
        noise = torch.randn(count, len(self.graph.names), generator=generator, dtype=torch.float64)
        return self.solve(noise, do)

    def solve(self, noise: Tensor, do: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """Values (B, n) that follow from the exogenous `noise` (B, n) under `do`."""
        do = do or {}
        causes = (self._bias + self._scale * noise.double()).clone()
        for name, value in do.items():
            causes[:, self.graph.index(name)] = torch.as_tensor(value, dtype=torch.float64)
        return causes @ self._effects(do).mT

    def abduct(self, values: Tensor) -> Tensor:
        """The one exogenous noise (B, n) that explains observed `values` (B, n)."""
        values = values.double()
        return (values - values @ self._weights.mT - self._bias) / self._scale

    def counterfactual(self, values: Tensor, do: Mapping[str, float | Tensor]) -> Tensor:
        """What `values` (B, n) would have been under `do`: abduction, action, prediction. (B, n)"""
        return self.solve(self.abduct(values), do)

    def mean(self, do: Mapping[str, float] | None = None) -> Tensor:
        """Exact mean (n,), under `do` if given."""
        return self.solve(torch.zeros(1, len(self.graph.names)), do)[0]

    def covariance(self, do: Mapping[str, float] | None = None) -> Tensor:
        """Exact covariance (n, n), under `do` if given; it does not depend on the values set."""
        do = do or {}
        scale = self._scale.clone()
        scale[[self.graph.index(name) for name in do]] = 0
        mixing = self._effects(do) * scale
        return mixing @ mixing.mT

    def total_effect(self, cause: str, effect: str) -> float:
        """Change of `effect` when `do(cause)` rises by one: the sum over directed paths of the products of weights."""
        return self._effects({cause: 0.0})[self.graph.index(effect), self.graph.index(cause)].item()

    def _effects(self, do: Mapping[str, float | Tensor]) -> Tensor:
        """(I - W)^-1 of the mutilated model: what every variable receives from every other's own part."""
        weights = self._weights.clone()
        weights[[self.graph.index(name) for name in do]] = 0
        return torch.linalg.inv(torch.eye(len(weights), dtype=weights.dtype) - weights)

    def _row(self, numbers: Mapping[str, float], default: float) -> Tensor:
        row = torch.full((len(self.graph.names),), default, dtype=torch.float64)
        for name, number in numbers.items():
            row[self.graph.index(name)] = number
        return row
