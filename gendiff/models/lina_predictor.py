"""From a prompt to the intervention it needs, as a point of an action box, and whether it needs one at all."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .lina_graph_encoder import LINAGraphEncoder

NUM_GRAPH_FEATURES = 16
NUM_PROBE_FEATURES = 3
NUM_EXTRA_ACTIONS = 4
"""lam, rho, log kappa and s_stop, behind the strengths of the factors."""
GATE_BIAS = -2.0
"""Of an untrained gate, whose probability to be open is then 0.12."""

GRAPH_SCALES = (1 / 8, 1 / 4, 1 / 4, 1 / 4, *([1 / 2] * 8), 1 / 4, 1 / 16, 10.0, 1.0)
"""What brings the features of a scene graph near 1, in their order: explicit and implied nodes, largest and mean hop,
counts of the eight effect types, explicit relations, tokens of the prompt, novelty of pairs, has a mask. Novelty is a
mean: one unseen pair among five things is a tenth."""
PROBE_SCALES = (1 / 4, 1 / 4, 1.0)
"""The same for the probe: log norm of the guidance term, log norm of the contrast, their cosine."""


class LINAPrediction(NamedTuple):
    """What the predictor says of B prompts.

    Attributes:
        action: y (B, K + 4) in (-1, 1), for `ActionBox.intervention`.
        gate_logits: (B,); the gate is open above 0, that is where sigmoid(logit) > 0.5.
    """

    action: Tensor
    gate_logits: Tensor

    @property
    def gate(self) -> Tensor:
        """Bool (B,): which prompts need an intervention."""
        return self.gate_logits > 0


class LINAPredictor(ModelMixin, ConfigMixin):
    """Mean of the prompt embedding, features of its scene graph and a probe of the base model to y and a gate.

    Untrained it says exactly y = 0 with the gate shut, which is the identity.

    Args:
        embed_dim: D, width of the base model's prompt embedding.
        box: limits of the action space, as `ActionBox.to_dict` gives them; only "factors" is read here, the rest is
            kept for the caller.
        base_model: family of the base model that it was trained for.
        hidden_dim: width of the two hidden layers.
        side_dim: width of what graph and probe become.
        graph_encoder: read packed graphs (`packed_graph`) by two rounds of message passing instead of 16 features.
        reads_prompt: False ignores the embedding: a gate learned on prompts of one kind, such as one colour, would
            otherwise be one for that colour, and shut for what is new in the same way.

    Raises:
        ValueError: a width below 1, or a box without a list of factor names that differ.

    Source: LINA (arXiv 2512.13290) has a predictor; this network is gendiff's realisation of it.
    """

    @register_to_config
    def __init__(
        self,
        embed_dim: int,
        box: dict[str, Any],
        base_model: str = "",
        hidden_dim: int = 128,
        side_dim: int = 32,
        graph_encoder: bool = False,
        reads_prompt: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("embed_dim", embed_dim), ("hidden_dim", hidden_dim), ("side_dim", side_dim)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        factors = box.get("factors")
        if not isinstance(factors, list) or len(set(factors)) != len(factors):
            raise ValueError(f"box['factors'] must be a list of names that differ, got {factors!r}.")
        self.num_actions = len(factors) + NUM_EXTRA_ACTIONS
        self.norm = nn.LayerNorm(embed_dim)
        self.read_prompt = nn.Linear(embed_dim, hidden_dim)
        self.read_graph = LINAGraphEncoder(NUM_GRAPH_FEATURES) if graph_encoder else None
        self.read_side = nn.Linear(NUM_GRAPH_FEATURES + NUM_PROBE_FEATURES, side_dim)
        self.mix = nn.Linear(hidden_dim + side_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, self.num_actions + 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.out.bias[-1] = GATE_BIAS
        # Constants of the code, not weights: they are not saved.
        self.register_buffer("graph_scales", torch.tensor(GRAPH_SCALES), persistent=False)
        self.register_buffer("probe_scales", torch.tensor(PROBE_SCALES), persistent=False)

    @property
    def factors(self) -> list[str]:
        """Names of the K factors in the order of y."""
        return list(self.config["box"]["factors"])

    def forward(self, embeds: Tensor, mask: Tensor, graph: Tensor, probe: Tensor | None = None) -> LINAPrediction:
        """What B prompts need.

        Args:
            embeds: prompt embedding E (B, L, D).
            mask: bool (B, L), True where a token is valid; None would count padding, so there is no default.
            graph: features of the scene graphs (B, 16), or packed graphs (B, M, 17 + M) with `graph_encoder`.
            probe: (B, 3): log norm of v_c - v_u, log norm of the contrast, their cosine; None = 0, not probed.

        Raises:
            ValueError: a wrong shape; for a wrong D it says which was expected.
        """
        z = self.out(self.hidden(embeds, mask, graph, probe))
        return LINAPrediction(torch.tanh(z[:, :-1]), z[:, -1])

    def hidden(self, embeds: Tensor, mask: Tensor, graph: Tensor, probe: Tensor | None = None) -> Tensor:
        """What the last layer reads, (B, hidden_dim); arguments and errors as those of `forward`."""
        self._check(embeds, mask, graph, probe)
        dtype = self.out.weight.dtype
        if self.config["reads_prompt"]:
            # A product of matrices reads the embedding once and copies nothing.
            valid = mask.to(device=embeds.device, dtype=dtype).unsqueeze(1)
            mean = (valid @ embeds.to(dtype)).squeeze(1) / valid.sum(2).clamp(min=1)
        else:
            mean = embeds.new_zeros(len(embeds), embeds.shape[-1], dtype=dtype)
        graph = graph.to(dtype)
        said = graph * self.graph_scales.to(dtype) if self.read_graph is None else self.read_graph(graph)
        probed = said.new_zeros(len(said), NUM_PROBE_FEATURES) if probe is None else probe.to(dtype)
        side = torch.cat([said, probed * self.probe_scales.to(dtype)], dim=1)
        act = nn.functional.silu
        hidden = torch.cat([act(self.read_prompt(self.norm(mean))), act(self.read_side(side))], dim=1)
        return act(self.mix(hidden))

    def _check(self, embeds: Tensor, mask: Tensor, graph: Tensor, probe: Tensor | None) -> None:
        width = self.config["embed_dim"]
        if embeds.ndim != 3 or embeds.shape[-1] != width:
            family = self.config["base_model"] or "a base model"
            raise ValueError(
                f"embeds must be (B, L, {width}), as the predictor was made for {family} with D = {width}; got D = "
                f"{embeds.shape[-1] if embeds.ndim else 'none'} in shape {tuple(embeds.shape)}."
            )
        count, length = embeds.shape[:2]
        if tuple(mask.shape) != (count, length):
            raise ValueError(f"mask must be (B, L) = ({count}, {length}), got {tuple(mask.shape)}.")
        if self.read_graph is not None:
            self.read_graph.check(graph, count)
        elif tuple(graph.shape) != (count, NUM_GRAPH_FEATURES):
            raise ValueError(f"graph must be (B, 16) = ({count}, {NUM_GRAPH_FEATURES}), got {tuple(graph.shape)}.")
        if probe is not None and tuple(probe.shape) != (count, NUM_PROBE_FEATURES):
            raise ValueError(f"probe must be (B, 3) = ({count}, {NUM_PROBE_FEATURES}), got {tuple(probe.shape)}.")
