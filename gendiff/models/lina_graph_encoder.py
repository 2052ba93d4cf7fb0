"""A scene graph read by two rounds of message passing, in the place of features made by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gendiff.causal.scene_graph import CausalSceneGraph
from gendiff.causal.scene_node import EFFECTS, NODE_KINDS

HOPS = (0, 1, 2)
"""Classes of hops; the last holds all from two on."""
NUM_NODE_FEATURES = len(NODE_KINDS) + len(EFFECTS) + len(HOPS)
"""17: one-hot kind, effect type (all 0 unless an effect) and hop. Explicit is hop 0, so it needs no entry."""


def packed_graph(graph: CausalSceneGraph, max_nodes: int = 16) -> Tensor:
    """A scene graph as one tensor (M, 17 + M): features of its nodes, then who is a direct cause of whom.

    Entry (i, 17 + j) is 1 where node j is a parent of node i. Rows beyond the last node are 0.

    Raises:
        ValueError: more nodes than `max_nodes`.
    """
    order = list(graph.topological())
    if len(order) > max_nodes:
        raise ValueError(f"a packed graph holds at most max_nodes = {max_nodes} nodes, got {len(order)}.")
    place = {name: index for index, name in enumerate(order)}
    hops, packed = graph.hops(), torch.zeros(max_nodes, NUM_NODE_FEATURES + max_nodes)
    for node in graph.nodes:
        row = packed[place[node.id]]
        row[NODE_KINDS.index(node.kind)] = 1
        if node.effect is not None:
            row[len(NODE_KINDS) + EFFECTS.index(node.effect)] = 1
        row[len(NODE_KINDS) + len(EFFECTS) + min(hops[node.id], HOPS[-1])] = 1
    for edge in graph.edges:
        packed[place[edge.dst], NUM_NODE_FEATURES + place[edge.src]] = 1
    return packed


class LINAGraphEncoder(nn.Module):
    """Packed graphs (B, M, 17 + M) to (B, out_features), the same whatever the order of the nodes.

    A round adds to every node what it makes of itself and of the means of its causes and of its effects. The nodes'
    mean and largest values are read at the end.
    """

    def __init__(self, out_features: int, hidden_dim: int = 32, rounds: int = 2) -> None:
        super().__init__()
        self.enter = nn.Linear(NUM_NODE_FEATURES, hidden_dim)
        self.rounds = nn.ModuleList(nn.Linear(3 * hidden_dim, hidden_dim) for _ in range(rounds))
        self.leave = nn.Linear(2 * hidden_dim, out_features)

    def forward(self, packed: Tensor) -> Tensor:
        features, causes = packed[..., :NUM_NODE_FEATURES], packed[..., NUM_NODE_FEATURES:]
        there = features.amax(dim=-1, keepdim=True)
        effects = causes.transpose(1, 2)
        hidden = nn.functional.silu(self.enter(features)) * there
        for layer in self.rounds:
            message = torch.cat([hidden, _mean(causes, hidden), _mean(effects, hidden)], dim=-1)
            hidden = (hidden + nn.functional.silu(layer(message))) * there
        mean = hidden.sum(1) / there.sum(1).clamp(min=1)
        largest = hidden.masked_fill(there == 0, -1e4).amax(1) * there.amax(1)
        return self.leave(torch.cat([mean, largest], dim=-1))

    def check(self, packed: Tensor, count: int) -> None:
        """See to it that `packed` holds `count` graphs.

        Raises:
            ValueError: it does not.
        """
        good = packed.ndim == 3 and len(packed) == count
        if not good or packed.shape[2] != NUM_NODE_FEATURES + packed.shape[1]:
            raise ValueError(
                f"graph must be packed graphs (B, M, {NUM_NODE_FEATURES} + M) with B = {count}, got "
                f"{tuple(packed.shape)}."
            )


def _mean(weights: Tensor, hidden: Tensor) -> Tensor:
    return weights @ hidden / weights.sum(-1, keepdim=True).clamp(min=1)
