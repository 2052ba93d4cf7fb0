"""Which variable causes which: an immutable directed acyclic graph of named variables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import networkx as nx

KINDS = ("continuous", "binary", "categorical")


class GraphError(ValueError):
    """The variables or edges do not form a causal graph."""


@dataclass(frozen=True)
class Variable:
    """One cause or effect, with the units people use for it.

    Attributes:
        name: its name, unique in the graph.
        kind: "continuous", "binary" (values -1 and 1) or "categorical" (values 0 .. num_classes - 1).
        loc, scale: a continuous value y enters the model as (y - loc) / scale; the only place where it is normalised.
        low, high: training range in raw units, None = unbounded.
        num_classes: number of classes, categorical only.
        dim: width d of its latent block; a categorical variable has one latent for each class.
    """

    name: str
    kind: str = "continuous"
    loc: float = 0.0
    scale: float = 1.0
    low: float | None = None
    high: float | None = None
    num_classes: int | None = None
    dim: int = 4

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise GraphError(f"a variable's name must be a non-empty string, got {self.name!r}.")
        if self.kind not in KINDS:
            raise GraphError(f"kind of {self.name!r} must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        if self.kind == "categorical":
            if self.num_classes is None or self.num_classes < 2:
                raise GraphError(f"categorical {self.name!r} needs num_classes >= 2, got {self.num_classes}.")
            object.__setattr__(self, "dim", self.num_classes)
        elif self.num_classes is not None:
            raise GraphError(f"num_classes is for categorical variables only, {self.name!r} is {self.kind}.")
        if self.dim < 1:
            raise GraphError(f"dim of {self.name!r} must be at least 1, got {self.dim}.")
        if not (math.isfinite(self.loc) and math.isfinite(self.scale) and self.scale > 0):
            raise GraphError(f"{self.name!r} needs a finite loc and a scale > 0, got {self.loc} and {self.scale}.")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise GraphError(f"{self.name!r} needs low < high, got [{self.low}, {self.high}].")


class CausalGraph:
    """Variables and the edges cause -> effect between them.

    Two graphs with the same variables and the same edges are equal and hash alike, whatever the order of the edges.
    Latents of all variables lie side by side in one flat (B, D) tensor, in declaration order (`slices`).

    Args:
        variables: in the order of the columns of a label tensor (B, n).
        edges: pairs (cause, effect).

    Raises:
        GraphError: no variables, a duplicate name, an edge to an unknown variable or to itself, or a cycle.
    """

    def __init__(self, variables: Iterable[Variable], edges: Iterable[Sequence[str]] = ()) -> None:
        self.variables = tuple(variables)
        self.names = tuple(variable.name for variable in self.variables)
        if not self.names:
            raise GraphError("a causal graph needs at least one variable.")
        duplicates = sorted({name for name in self.names if self.names.count(name) > 1})
        if duplicates:
            raise GraphError(f"variable names must be unique; used more than once: {', '.join(duplicates)}.")
        pairs: list[tuple[str, ...]] = [tuple(edge) for edge in edges]
        for pair in pairs:
            if len(pair) != 2:
                raise GraphError(f"an edge is a pair (cause, effect), got {pair}.")
            unknown = [name for name in pair if name not in self.names]
            if unknown:
                raise GraphError(
                    f"edge {pair[0]} -> {pair[1]} names unknown {unknown}; known: {', '.join(self.names)}."
                )
            if pair[0] == pair[1]:
                raise GraphError(f"{pair[0]!r} cannot cause itself.")
        self.edges = tuple(sorted(set(pairs), key=lambda pair: (self.index(pair[0]), self.index(pair[1]))))
        graph = self.to_networkx()
        if not nx.is_directed_acyclic_graph(graph):
            cycle = [edge[0] for edge in nx.find_cycle(graph)]
            raise GraphError(f"graph has a cycle: {' -> '.join([*cycle, cycle[0]])}")

    def __getitem__(self, name: str) -> Variable:
        return self.variables[self.index(name)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CausalGraph) and (self.variables, self.edges) == (other.variables, other.edges)

    def __hash__(self) -> int:
        return hash((self.variables, self.edges))

    def __repr__(self) -> str:
        arrows = ", ".join(f"{cause} -> {effect}" for cause, effect in self.edges)
        return f"CausalGraph({', '.join(self.names)}; {arrows or 'no edges'})"

    def index(self, name: str) -> int:
        """Column of `name` in a label tensor (B, n). Raises GraphError for an unknown name."""
        if name not in self.names:
            raise GraphError(f"unknown variable {name!r}; known: {', '.join(self.names)}.")
        return self.names.index(name)

    def parents(self, name: str) -> tuple[str, ...]:
        """Direct causes of `name`, in declaration order: the order in which a mechanism reads them."""
        self.index(name)
        return tuple(cause for cause in self.names if (cause, name) in self.edges)

    def children(self, name: str) -> tuple[str, ...]:
        """Direct effects of `name`, in declaration order."""
        self.index(name)
        return tuple(effect for effect in self.names if (name, effect) in self.edges)

    def ancestors(self, *names: str) -> tuple[str, ...]:
        """All causes of any of `names`, direct or not, causes first; the names themselves are left out."""
        found = set().union(*(nx.ancestors(self._digraph, self.names[self.index(name)]) for name in names))
        return tuple(name for name in self.topological_order if name in found - set(names))

    def descendants(self, *names: str) -> tuple[str, ...]:
        """All effects of any of `names`, direct or not, causes first; the names themselves are left out."""
        found = set().union(*(nx.descendants(self._digraph, self.names[self.index(name)]) for name in names))
        return tuple(name for name in self.topological_order if name in found - set(names))

    @property
    def roots(self) -> tuple[str, ...]:
        """Variables without causes in the graph."""
        return tuple(name for name in self.names if not self.parents(name))

    @cached_property
    def topological_order(self) -> tuple[str, ...]:
        """Names with every cause before its effects; ties are broken by declaration order."""
        return tuple(nx.lexicographical_topological_sort(self._digraph, key=self.index))

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Place of each variable's block in the flat latents (B, D)."""
        stops = [sum(variable.dim for variable in self.variables[: i + 1]) for i in range(len(self.variables))]
        return {v.name: slice(stop - v.dim, stop) for v, stop in zip(self.variables, stops, strict=True)}

    @property
    def dim(self) -> int:
        """D, the width of all latent blocks together."""
        return sum(variable.dim for variable in self.variables)

    def adjacency(self) -> list[list[int]]:
        """Matrix A (n, n) with A[cause][effect] = 1: rows are causes, columns effects."""
        return [[int((cause, effect) in self.edges) for effect in self.names] for cause in self.names]

    def mutilate(self, names: Iterable[str]) -> CausalGraph:
        """The graph under do(names): edges into `names` are gone."""
        cut = {self[name].name for name in names}
        return CausalGraph(self.variables, [edge for edge in self.edges if edge[1] not in cut])

    def to_networkx(self) -> nx.DiGraph:
        """A new networkx graph with one node for each name."""
        graph = nx.DiGraph()
        graph.add_nodes_from(self.names)
        graph.add_edges_from((cause, effect) for cause, effect in self.edges)
        return graph

    def to_dict(self) -> dict[str, Any]:
        """JSON form: {"variables": [...], "edges": [[cause, effect], ...]}."""
        return {"variables": [asdict(v) for v in self.variables], "edges": [list(edge) for edge in self.edges]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CausalGraph:
        """Inverse of `to_dict`, also after a round trip through a saved config."""
        return cls([Variable(**variable) for variable in data["variables"]], data["edges"])

    @classmethod
    def from_adjacency(cls, names: Sequence[str], adjacency: Sequence[Sequence[float]]) -> CausalGraph:
        """Graph of continuous variables with default units from a matrix, rows = causes, columns = effects."""
        if len(adjacency) != len(names) or any(len(row) != len(names) for row in adjacency):
            raise GraphError(f"adjacency must be {len(names)} x {len(names)} for {len(names)} names.")
        edges = [(names[p], names[c]) for p, row in enumerate(adjacency) for c, value in enumerate(row) if value]
        return cls([Variable(name) for name in names], edges)

    @cached_property
    def _digraph(self) -> nx.DiGraph:
        return self.to_networkx()
