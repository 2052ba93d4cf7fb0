"""The structural causal model in latent space: noise in, causal factors out, and `do` in between."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from gendiff.causal.graph import CausalGraph
from gendiff.causal.labels import embed

# Bounds log-scales of the affine mechanism: exp(±2) keeps it invertible in float32.
MAX_LOG_SCALE = 2.0

# What decides where a config is read from.
HUB_OPTIONS = ("subfolder", "revision", "cache_dir", "token", "local_files_only")

MECHANISMS = ("additive", "affine", "legacy_sum")
ACTIVATIONS = {"silu": nn.SiLU, "leaky_relu": nn.LeakyReLU}


class CausalMechanisms(ModelMixin, ConfigMixin):
    """Maps exogenous noise u to causal factors z along a graph, exactly invertibly.

    In topological order, with parents concatenated in declaration order:

    - "additive": z_i = f_i(z_pa) + u_i, and z_i = u_i for a root.
    - "affine": z_i = m_i(z_pa) + exp(2 tanh s_i(z_pa)) u_i.
    - "legacy_sum": z_i = g_i(sum of the parents' *noise*) + u_i, roots too. What the published code of CausalDiffAE
      computes; an effect cannot travel two edges and parents are added up, so it is kept for comparison only.

    Args:
        graph: `CausalGraph.to_dict()`.
        hidden_dim: width h of each mechanism's two hidden layers.
        mechanism: one of "additive", "affine", "legacy_sum".
        activation: "silu", or "leaky_relu" for mechanisms with kinks, which it fits several times better.

    Buffers `noise_mean` (D,) and `noise_cov` (D, D), block-diagonal, hold the noise as training data has it; drawing
    whole samples needs them. Source: Komanduri et al. 2024 (CausalDiffAE), section 4; Pearl 2009, chapter 7.
    """

    @register_to_config
    def __init__(
        self, graph: dict[str, Any], hidden_dim: int = 64, mechanism: str = "additive", activation: str = "silu"
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
        if mechanism not in MECHANISMS:
            raise ValueError(f"mechanism must be one of {', '.join(MECHANISMS)}, got {mechanism!r}.")
        self.graph = CausalGraph.from_dict(graph)
        widths = {variable.dim for variable in self.graph.variables}
        if mechanism == "legacy_sum" and len(widths) > 1:
            raise ValueError(f"legacy_sum adds parents up, so all variables need one dim, got {sorted(widths)}.")
        self.functions = nn.ModuleDict(
            {name: self._make_function(name) for name in self.graph.names if self._has_function(name)}
        )
        self.register_buffer("noise_mean", torch.zeros(self.graph.dim))
        self.register_buffer("noise_cov", torch.eye(self.graph.dim))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load saved mechanisms; arguments as in `ModelMixin.from_pretrained`.

        Raises:
            ValueError: `graph` is given and differs from the saved one, if only in a variable's units: weights trained
                for one graph mean nothing for another.
        """
        if "graph" in kwargs:
            options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
            config: Any = cls.load_config(pretrained_model_name_or_path, **options)
            saved = CausalGraph.from_dict(config["graph"])
            if CausalGraph.from_dict(kwargs["graph"]) != saved:
                raise ValueError(f"graph differs from the one these mechanisms were saved with, {saved}.")
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def forward(self, u: Tensor) -> Tensor:
        """Factors z (B, D) that noise u (B, D) leads to when nothing is intervened on."""
        z: dict[str, Tensor] = {}
        noise = self._blocks(u)
        for name in self.graph.topological_order:
            shift, scale = self.effect(name, noise if self._reads_noise else z)
            z[name] = shift + scale * noise[name]
        return self._join(z)

    def inverse(self, z: Tensor) -> Tensor:
        """Abduction: the noise u (B, D) that explains factors z (B, D)."""
        u: dict[str, Tensor] = {}
        factors = self._blocks(z)
        for name in self.graph.topological_order:
            shift, scale = self.effect(name, u if self._reads_noise else factors)
            u[name] = (factors[name] - shift) / scale
        return self._join(u)

    def intervene(self, u: Tensor, z: Tensor, do: Mapping[str, Tensor]) -> Tensor:
        """Factors z' (B, D) under `do`, for the same noise.

        Args:
            u: noise (B, D) that belongs to z.
            z: factors (B, D) without the intervention; blocks that the intervention cannot reach are returned as they
                are, bit for bit.
            do: raw values (B,) by name.
        """
        noise, factors = self._blocks(u), self._blocks(z)
        for name, values in do.items():
            factors[name] = embed(self.graph[name], values.to(z))
            if self._reads_noise:
                noise[name] = factors[name]
        for name in self.graph.descendants(*do) if do else ():
            if name not in do:
                shift, scale = self.effect(name, noise if self._reads_noise else factors)
                factors[name] = shift + scale * noise[name]
        return self._join(factors)

    def effect(self, name: str, blocks: Mapping[str, Tensor]) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale (B, d) which the parents' `blocks` give `name`; (0, 1) for a root without a mechanism."""
        if name not in self.functions:
            return 0.0, 1.0
        parents = [blocks[parent] for parent in self.graph.parents(name)]
        if self._reads_noise:
            total = torch.stack(parents).sum(dim=0) if parents else self._zeros_like_block(name, blocks)
            return self._call_function(name, total), 1.0
        out = self._call_function(name, torch.cat(parents, dim=1))
        if self.config["mechanism"] == "additive":
            return out, 1.0
        shift, log_scale = out.chunk(2, dim=1)
        return shift, torch.exp(MAX_LOG_SCALE * torch.tanh(log_scale))

    @torch.no_grad()
    def store_noise(self, u: Tensor) -> None:
        """Keep mean and covariance, block by block, of the training data's noise u (N, D), N >= 2."""
        if len(u) < 2:
            raise ValueError(f"store_noise needs at least 2 samples, got {len(u)}.")
        self.noise_mean.copy_(u.mean(dim=0))
        self.noise_cov.zero_()
        for block in self.graph.slices.values():
            self.noise_cov[block, block] = torch.cov(u[:, block].T).reshape(u[:, block].shape[1], -1).to(self.noise_cov)

    @property
    def _reads_noise(self) -> bool:
        return self.config["mechanism"] == "legacy_sum"

    def _has_function(self, name: str) -> bool:
        return self.config["mechanism"] == "legacy_sum" or bool(self.graph.parents(name))

    def _make_function(self, name: str) -> nn.Module:
        dim, hidden = self.graph[name].dim, self.config["hidden_dim"]
        if self.config["mechanism"] == "legacy_sum":
            return nn.Sequential(nn.Linear(dim, self.graph.dim), nn.LeakyReLU(), nn.Linear(self.graph.dim, dim))
        width = sum(self.graph[parent].dim for parent in self.graph.parents(name))
        out = dim if self.config["mechanism"] == "additive" else 2 * dim
        activation = ACTIVATIONS[self.config["activation"]]
        return nn.Sequential(
            nn.Linear(width, hidden), activation(), nn.Linear(hidden, hidden), activation(), nn.Linear(hidden, out)
        )

    def _call_function(self, name: str, inputs: Tensor) -> Tensor:
        """The network runs in its own dtype; factors keep theirs, so that half-precision weights cost no exactness."""
        function: Any = self.functions[name]
        return function(inputs.to(function[0].weight.dtype)).to(inputs.dtype)

    def _zeros_like_block(self, name: str, blocks: Mapping[str, Tensor]) -> Tensor:
        function: Any = self.functions[name]
        linear = function[0]
        batch = len(next(iter(blocks.values()))) if blocks else 1
        dtype = next(iter(blocks.values())).dtype if blocks else linear.weight.dtype
        return linear.weight.new_zeros(batch, linear.in_features, dtype=dtype)

    def _blocks(self, flat: Tensor) -> dict[str, Tensor]:
        if flat.ndim != 2 or flat.shape[1] != self.graph.dim:
            raise ValueError(f"expected latents of shape (B, {self.graph.dim}), got {tuple(flat.shape)}.")
        return {name: flat[:, block] for name, block in self.graph.slices.items()}

    def _join(self, blocks: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([blocks[name] for name in self.graph.names], dim=1)
