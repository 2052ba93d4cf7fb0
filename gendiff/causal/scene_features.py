"""A causal scene graph as sixteen numbers, and how often training captions name two things together."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .scene_node import EFFECTS, Node

if TYPE_CHECKING:
    from torch import Tensor

    from .scene_graph import CausalSceneGraph

# What each number is, in the order of a trained predictor's input.
FEATURES = (
    "explicit nodes",
    "implied nodes",
    "max hop",
    "mean hop",
    *(f"{effect} effects" for effect in EFFECTS),
    "explicit relations",
    "words of the prompt",
    "pair novelty",
    "has mask",
)


class CooccurrenceTable:
    """In how many captions two terms stand together. Terms are what `scene_terms` makes of a graph.

    Args:
        counts: number of captions by pair of terms, at least 0; the order within a pair does not matter.

    Raises:
        ValueError: a key is no pair of strings, or a count no whole number of at least 0.
    """

    def __init__(self, counts: Mapping[tuple[str, str], int] | None = None) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        for pair, count in (counts or {}).items():
            if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(term, str) for term in pair):
                raise ValueError(f"counts must have pairs of terms as keys, got {pair!r}.")
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"count of {pair} must be a whole number of at least 0, got {count!r}.")
            self._counts[_ordered(*pair)] += count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CooccurrenceTable) and +self._counts == +other._counts

    def __len__(self) -> int:
        """Number of pairs that stand together in any caption."""
        return len(+self._counts)

    def count(self, first: str, second: str) -> int:
        """Number of captions that hold both terms."""
        return self._counts[_ordered(first, second)]

    @classmethod
    def from_graphs(cls, graphs: Iterable[CausalSceneGraph]) -> CooccurrenceTable:
        """Of the graphs of training captions, repeats included."""
        return cls._from_terms(scene_terms(graph) for graph in graphs)

    @classmethod
    def from_values(cls, captions: Iterable[Mapping[str, str]]) -> CooccurrenceTable:
        """Of the slot values of training captions of one template, as `TemplateGrammar.values` gives them."""
        return cls._from_terms([_slot_term(name, value) for name, value in values.items()] for values in captions)

    @classmethod
    def _from_terms(cls, captions: Iterable[Iterable[str]]) -> CooccurrenceTable:
        counts: Counter[tuple[str, str]] = Counter()
        for terms in captions:
            counts.update(itertools.combinations(sorted(set(terms)), 2))
        return cls(counts)

    def to_json(self) -> str:
        """One line of JSON: {"pairs": [[term, term, count], ...]}, sorted."""
        return json.dumps({"pairs": [[*pair, count] for pair, count in sorted((+self._counts).items())]})

    @classmethod
    def from_json(cls, text: str) -> CooccurrenceTable:
        """Inverse of `to_json`. Raises ValueError for anything else."""
        data: Any = json.loads(text)
        rows = data.get("pairs") if isinstance(data, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
            raise ValueError('a co-occurrence table must be {"pairs": [[term, term, count], ...]}.')
        return cls({(first, second): count for first, second, count in rows})


def scene_terms(graph: CausalSceneGraph) -> list[str]:
    """One term for each explicit node, in the order of the nodes: "side=left" of a template's slot, else the word."""
    return [_term(graph, node) for node in graph.nodes if node.explicit]


def scene_features(graph: CausalSceneGraph, table: CooccurrenceTable | None = None) -> Tensor:
    """Hand-made features of a graph; the order of its nodes and edges does not change a bit of them.

    In the order of `FEATURES`, all raw counts or means: explicit nodes, implied nodes, max hop, mean hop (over all
    nodes), effects of each of the 8 types (stated or implied), explicit relations, words of the prompt, pair novelty =
    mean over pairs of explicit nodes of 1 / (1 + number of training captions that name both), and 1 if any node has a
    region. Source: gendiff's realisation of LINA.

    Args:
        graph: of one prompt.
        table: of the training captions; None = pair novelty is 0.

    Returns: float32 (16,).
    """
    import torch

    hops = list(graph.hops().values())
    effects = Counter(node.effect for node in graph.nodes if node.kind == "effect")
    pairs = list(itertools.combinations(sorted(scene_terms(graph)), 2))
    novelty = 0.0
    if table is not None and pairs:
        # fsum rounds once, so the order of the pairs cannot show.
        novelty = math.fsum(1 / (1 + table.count(*pair)) for pair in pairs) / len(pairs)
    values = [
        len(graph.nodes) - len(graph.implied()),
        len(graph.implied()),
        max(hops),
        sum(hops) / len(hops),
        *(effects[effect] for effect in EFFECTS),
        sum(node.kind == "relation" and node.explicit for node in graph.nodes),
        len(graph.prompt.split()),
        novelty,
        any(node.region is not None for node in graph.nodes),
    ]
    return torch.tensor([float(value) for value in values], dtype=torch.float32)


def _term(graph: CausalSceneGraph, node: Node) -> str:
    if node.value is None:
        return node.text.casefold()
    # A word says what it is about in free text; in a template, as a number, it needs its name.
    if graph.template is not None or not isinstance(node.value, str):
        return _slot_term(node.id, node.value)
    return node.value.casefold()


def _slot_term(name: str, value: str | float) -> str:
    return f"{name}={value}"


def _ordered(first: str, second: str) -> tuple[str, str]:
    return (first, second) if first <= second else (second, first)
