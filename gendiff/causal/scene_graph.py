"""Causal scene graph: what a prompt states, what follows from it without being said, and what causes which.

LINA (Yu and Lu, arXiv 2512.13290) names such a graph as one of its tools; the fields, the hop rule and the parsers are
gendiff's realisation of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from .graph import CausalGraph, GraphError, Variable
from .scene_node import Edge, Node, check_keys, check_value
from .scene_text import located, state, template_slots

if TYPE_CHECKING:
    from torch import Tensor

    from .scene_features import CooccurrenceTable


class SceneParser(Protocol):
    """Whatever makes a graph of a prompt: `GrammarParser`, `TemplateGrammar`."""

    def parse(self, prompt: str) -> CausalSceneGraph:
        """The graph of `prompt`. Raises ValueError for one it cannot read."""
        ...


class CausalSceneGraph:
    """Nodes of a scene and the edges cause -> effect between them. Immutable; equal graphs hash alike.

    Topology, cycles and mutilation are those of `causal`, a `CausalGraph` on the same ids.

    Args:
        nodes: in any order; explicit ones need no cause, implied ones do.
        edges: direct causes only, each pair once.
        prompt: the text the nodes' spans point into.
        template: text with a slot {id} for each node the prompt names, if it is such a text filled in.

    Raises:
        GraphError: no nodes, an id used twice, an edge to an unknown id or given twice, a cycle (which the message
            names), an implied node without parents, a span outside the prompt, or a slot that is no node.
    """

    def __init__(
        self, nodes: Iterable[Node], edges: Iterable[Edge] = (), prompt: str = "", template: str | None = None
    ) -> None:
        self.nodes = tuple(nodes)
        edges = tuple(edges)
        self.prompt, self.template = prompt, template
        pairs = [(edge.src, edge.dst) for edge in edges]
        self.causal = CausalGraph([Variable(node.id) for node in self.nodes], pairs)
        if len(set(pairs)) < len(pairs):
            src, dst = next(pair for pair in pairs if pairs.count(pair) > 1)
            raise GraphError(f"edge {src} -> {dst} is given more than once.")
        self.edges = tuple(sorted(edges, key=lambda edge: self.causal.edges.index((edge.src, edge.dst))))
        for node in self.nodes:
            if not node.explicit and not self.causal.parents(node.id):
                raise GraphError(f"implied node {node.id!r} has no parents: implied nodes need a cause.")
            if node.span is not None and node.span[1] > len(prompt):
                raise GraphError(f"span {node.span} of node {node.id!r} leaves the prompt of {len(prompt)} letters.")
        for name in template_slots(template) if template is not None else ():
            if name not in self.causal.names:
                raise GraphError(f"slot {name!r} of the template is no node; known: {', '.join(self.causal.names)}.")

    def __getitem__(self, id: str) -> Node:
        return self.nodes[self.causal.index(id)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CausalSceneGraph) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        arrows = ", ".join(f"{edge.src} -> {edge.dst}" for edge in self.edges)
        hops = ", ".join(f"{name} {hop}" for name, hop in self.hops().items())
        return f"CausalSceneGraph({self.prompt!r}; hops: {hops}; {arrows or 'no edges'})"

    def validate(self) -> CausalSceneGraph:
        """The graph itself: one that does not hold together cannot be made, see the class's Raises."""
        return self

    def hops(self) -> dict[str, int]:
        """Hop of each node by its id, in the order of the nodes.

        0 = explicit, 1 = follows from explicit nodes alone, and in general 1 + the largest hop of its parents, since
        all causes must be settled first.
        """
        found: dict[str, int] = {}
        for name in self.topological():
            implied = 1 + max((found[parent] for parent in self.parents(name)), default=0)
            found[name] = 0 if self[name].explicit else implied
        return {node.id: found[node.id] for node in self.nodes}

    def implied(self) -> tuple[Node, ...]:
        """Nodes the prompt does not state, in the order of the nodes."""
        return tuple(node for node in self.nodes if not node.explicit)

    def parents(self, id: str) -> tuple[str, ...]:
        """Ids of the direct causes of `id`. Raises GraphError for an unknown id."""
        return self.causal.parents(id)

    def topological(self) -> tuple[str, ...]:
        """Ids with every cause before its effects; ties are broken by the order of the nodes."""
        return self.causal.topological_order

    def do(self, id: str, value: str | float) -> CausalSceneGraph:
        """The graph under do(id = value): the edges into `id` are gone, nothing else is.

        The node carries the value and counts as explicit, since it no longer follows from anything. The prompt stays
        what it was; `text` says what the graph now states. Values of several `do` add up.

        Raises:
            GraphError: an unknown id, a value that is no string or finite number, or a word the slot does not take.
        """
        node = self[id]
        if value is None:
            raise GraphError(f"do({id}) needs a value, got None.")
        check_value(id, value)
        slot = self.template is not None and id in template_slots(self.template)
        if slot and node.alternatives and value not in (node.value, *node.alternatives):
            allowed = ", ".join(map(str, dict.fromkeys((node.value, *node.alternatives))))
            raise GraphError(f"slot {id!r} of the template takes {allowed}, got {value!r}.")
        # The old value joins the alternatives, so that it can be set again.
        known = tuple(dict.fromkeys((*node.alternatives, node.value))) if slot else node.alternatives
        changed = replace(node, value=value, explicit=True, alternatives=tuple(w for w in known if w != value))
        nodes = [changed if other.id == id else other for other in self.nodes]
        kept = set(self.causal.mutilate([id]).edges)
        edges = [edge for edge in self.edges if (edge.src, edge.dst) in kept]
        return CausalSceneGraph(nodes, edges, self.prompt, self.template)

    def text(self) -> str:
        """What the graph states, in words: the prompt, with every value that `do` has set."""
        return state(self.prompt, self.template, self.nodes)

    def counterfactual_text(self, id: str, value: str | float | None = None) -> str:
        """The prompt under do(id = value).

        A template is filled with the other value; in free text the node's words are replaced, and what is said about an
        effect is appended: "..., without a reflection". For an effect, `value = node.text` or "present" states it.

        Args:
            id: the node to change.
            value: what to set; None = the first of the node's alternatives, for an effect "absent", or "present" if it
                is absent already.

        Raises:
            GraphError: as `do`; or no value is given and none is known, or the node has no words in the prompt.
        """
        node = self[id]
        if value is None and node.kind != "effect" and not node.alternatives:
            raise GraphError(f"node {id!r} has no known alternatives; give the value to put in its place.")
        if value is None:
            flipped = "present" if node.value in ("absent", 0) else "absent"
            value = flipped if node.kind == "effect" else node.alternatives[0]
        if node.kind != "effect" and node.span is None and id not in template_slots(self.template or ""):
            raise GraphError(f"node {id!r} has no words in the prompt to replace: it has no span.")
        return self.do(id, value).text()

    def features(self, table: CooccurrenceTable | None = None) -> Tensor:
        """Sixteen numbers that describe the graph, float32 (16,); see `scene_features`."""
        from .scene_features import scene_features

        return scene_features(self, table)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        template = {} if self.template is None else {"template": self.template}
        return {
            "prompt": self.prompt,
            **template,
            "nodes": [node.to_dict() for node in self.nodes],
            "edges": [edge.to_dict() for edge in self.edges],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CausalSceneGraph:
        """Inverse of `to_dict`. Raises GraphError as the class does, and for missing, unknown or ill-typed entries."""
        check_keys("scene graph", data, ("nodes",), ("prompt", "template", "nodes", "edges"))
        for name in ("nodes", "edges"):
            if not isinstance(data.get(name, []), list | tuple):
                raise GraphError(f"{name} of a scene graph must be a list, got {type(data[name]).__name__}.")
        prompt, template = data.get("prompt", ""), data.get("template")
        for name, text in (("prompt", prompt), ("template", template if template is not None else "")):
            if not isinstance(text, str):
                raise GraphError(f"{name} of a scene graph must be a string, got {text!r}.")
        nodes = [Node.from_dict(node) for node in data["nodes"]]
        return cls(nodes, [Edge.from_dict(edge) for edge in data.get("edges", [])], prompt, template)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> CausalSceneGraph:
        """Inverse of `to_json`. Raises GraphError as `from_dict`, ValueError for text that is not JSON."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_prompt(
        cls, prompt: str, parser: SceneParser | Callable[[str], Mapping[str, Any]] | None = None
    ) -> CausalSceneGraph:
        """The graph of a prompt.

        Args:
            prompt: non-empty text.
            parser: an object with `parse(prompt)`, or a callable str -> dict in the form of `to_dict` (a language
                model, say), whose answer is validated here, and whose spans are filled in where they are plain; None =
                `GrammarParser()`.

        Raises:
            ValueError: an empty prompt, one the parser cannot read, or an answer that is not a graph of this prompt.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompt must be a non-empty string, got {prompt!r}.")
        if parser is None:
            from .scene_lexicon import GrammarParser

            return GrammarParser().parse(prompt)
        if not callable(parser):
            return parser.parse(prompt)
        answer: Any = parser(prompt)
        try:
            check_keys("scene graph", answer, ("nodes",), ("prompt", "template", "nodes", "edges"))
            if answer.get("prompt", prompt) != prompt:
                raise GraphError(f"it is about another prompt, {answer['prompt']!r}.")
            graph = cls.from_dict({**answer, "prompt": prompt})
            return cls([located(node, prompt) for node in graph.nodes], graph.edges, prompt, graph.template)
        except GraphError as error:
            raise GraphError(f"the parser's answer is no scene graph: {error}") from error

    @property
    def _key(self) -> tuple[object, ...]:
        return self.nodes, self.edges, self.prompt, self.template
