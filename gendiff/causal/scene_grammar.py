"""A language of prompts as plain data: one template, the words its slots take, and what follows from them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .graph import GraphError
from .scene_graph import CausalSceneGraph
from .scene_node import NODE_KINDS, Edge, Node, check_keys
from .scene_regions import affected_region, check_regions
from .scene_template import misfit, template_pattern
from .scene_text import template_slots

if TYPE_CHECKING:
    from torch import Tensor

KEYS = ("template", "slots", "implied", "contrast", "swap", "distinct", "regions")
# Above so many prompts the check that all of them differ would take longer than whatever it protects.
MOST_CHECKED = 10_000


class TemplateGrammar:
    """Prompts of one template. A slot's node id is the slot's name, its value the word.

    The data is JSON, so it can live in a pipeline's config:

        {"template": "a {colour} ball on a {size} mirror",
         "slots": {"colour": {"values": ["red", "blue"], "kind": "attribute"}, "size": {"values": ["small", "big"]}},
         "implied": [{"id": "image", "effect": "reflection", "parents": ["size"], "text": "the mirror shows it"}],
         "contrast": "colour"}

    Args:
        data: template; slots: for each one its values (the next one is its counterfactual) and, optionally, its kind of
            node (default "attribute"); implied (optional): effect nodes with id, effect, parents (slots or other
            implied nodes), text, and optionally `absent`, the words that deny it; contrast (optional): the slot that
            `counterfactual` changes by default; swap (optional): two slots whose values it exchanges instead; distinct
            (optional): pairs of slots that never take the same value, by default the swapped pair. Hops are
            never given, they follow.

    Raises:
        ValueError: an entry is missing, unknown, of the wrong type or contradicts another; the message names it. The
            implied nodes are checked as a graph is (`GraphError`).
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        _check_data(data)
        self.template: str = data["template"]
        self.names = template_slots(self.template)
        slots = data["slots"]
        if set(slots) != set(self.names):
            raise ValueError(f"slots must be those of the template ({', '.join(self.names)}), got {', '.join(slots)}.")
        self.slots: dict[str, tuple[str, ...]] = {name: _slot_values(name, slots[name]) for name in self.names}
        self.kinds: dict[str, str] = {name: slots[name].get("kind", "attribute") for name in self.names}
        self.implied = tuple(_implied_node(entry) for entry in data.get("implied") or ())
        self.edges = tuple(
            Edge(parent, entry["id"], "physics") for entry in data.get("implied") or () for parent in entry["parents"]
        )
        self.contrast: str | None = data.get("contrast")
        if self.contrast is not None:
            self._known(self.contrast, "contrast")
        self.swap = self._pair(data["swap"], "swap") if data.get("swap") is not None else None
        if self.swap and set(self.slots[self.swap[0]]) != set(self.slots[self.swap[1]]):
            raise ValueError(f"swap needs two slots with the same values, {self.swap[0]} and {self.swap[1]} differ.")
        # A swap of equal words would change nothing, so such prompts are out unless the data lets them in.
        distinct = data.get("distinct")
        pairs = distinct if distinct is not None else [self.swap] if self.swap else []
        self.distinct = tuple(self._pair(pair, "distinct") for pair in pairs)
        nodes = [*self.names, *(node.id for node in self.implied)]
        self.regions = check_regions(data.get("regions") or {}, nodes)
        self._pattern = template_pattern(self.template, self.slots)
        self._check_prompts()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TemplateGrammar) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.template, self.edges))

    def parse(self, prompt: str) -> CausalSceneGraph:
        """Graph of a prompt: an explicit node for each slot, in the order of the template, then the implied nodes.

        Case, runs of spaces and a full stop at the end do not matter.

        Raises:
            ValueError: the prompt is not of the template; the message names the slot, the word it got and the words it
                takes, or the words of the template that are missing.
        """
        match = self._match(prompt)
        values = self._read(match)
        return CausalSceneGraph(self._nodes(values, match), self.edges, prompt, self.template)

    def values(self, prompt: str) -> dict[str, str]:
        """Word of each slot. Raises ValueError as `parse`."""
        return self._read(self._match(prompt))

    def fill(self, values: Mapping[str, str]) -> str:
        """The prompt with these words.

        Raises:
            ValueError: a slot is missing or unknown, or gets a word it does not take.
        """
        for name in values:
            self._known(name, "values")
        if missing := [name for name in self.names if name not in values]:
            raise ValueError(f"slot {missing[0]!r} has no value; slots: {', '.join(self.names)}.")
        for name, word in values.items():
            if word not in self.slots[name]:
                raise ValueError(f"{word!r} does not fit slot {name!r}; allowed: {', '.join(self.slots[name])}.")
        if wrong := self._equal(values):
            raise ValueError(f"slots {wrong[0]!r} and {wrong[1]!r} must differ, both are {values[wrong[0]]!r}.")
        return self.template.format(**values)

    def prompts(self) -> list[str]:
        """All prompts, the last slot varying fastest; those with equal words in `distinct` slots left out."""
        return [self.fill(values) for values in self._combinations()]

    def counterfactual(self, prompt: str, slot: str | None = None) -> str:
        """The prompt with one cause changed.

        Args:
            prompt: of the template.
            slot: takes the next value in its list, after the last one the first; None = the values of the two `swap`
                slots are exchanged or, without them, the `contrast` slot changes.

        Raises:
            ValueError: as `parse`; an unknown slot; no slot is given and the grammar has no default; a slot without
                another value; or a swap of equal values, which would change nothing.
        """
        values = self.values(prompt)
        if slot is None and self.swap is not None:
            first, second = self.swap
            if values[first] == values[second]:
                raise ValueError(f"swapping {first!r} and {second!r} changes nothing in {prompt!r}: both are equal.")
            return self.fill({**values, first: values[second], second: values[first]})
        slot = self.contrast if slot is None else slot
        if slot is None:
            raise ValueError(f"slot must be given, this grammar has no contrast; slots: {', '.join(self.names)}.")
        self._known(slot, "slot")
        others = self._others(values, slot)
        if not others:
            raise ValueError(f"slot {slot!r} takes no other word than {values[slot]!r} in {prompt!r}.")
        return self.fill({**values, slot: others[0]})

    def contrast_mask(self, height: int, width: int) -> Tensor | None:
        """Where the default contrast acts, (1, 1, height, width) of 0 and 1: the regions of its cause and its effects;
        None, which is everywhere, where the grammar knows none or swaps two slots."""
        if self.contrast is None or self.swap is not None:
            return None
        graph = CausalSceneGraph([*self._nodes_alone(), *self.implied], self.edges).causal
        return affected_region(graph, self.regions, self.contrast, height, width)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with every optional entry stated."""
        parents = {node.id: [edge.src for edge in self.edges if edge.dst == node.id] for node in self.implied}
        implied = [
            {"id": node.id, "kind": "effect", "effect": node.effect, "parents": parents[node.id], "text": node.text}
            | ({"absent": node.alternatives[0]} if node.alternatives else {})
            for node in self.implied
        ]
        return {
            "template": self.template,
            "slots": {name: {"values": list(self.slots[name]), "kind": self.kinds[name]} for name in self.names},
            "implied": implied,
            "contrast": self.contrast,
            "swap": list(self.swap) if self.swap else None,
            "distinct": [list(pair) for pair in self.distinct],
            "regions": {name: [list(box) for box in boxes] for name, boxes in self.regions.items()},
        }

    def _match(self, prompt: str) -> re.Match[str]:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompt must be a non-empty string, got {prompt!r}.")
        match = self._pattern.fullmatch(prompt)
        if match is None:
            raise ValueError(misfit(prompt, self.template, self.slots))
        return match

    def _read(self, match: re.Match[str]) -> dict[str, str]:
        values = {}
        for name in self.names:
            said = " ".join(match[name].split()).casefold()
            values[name] = next(word for word in self.slots[name] if word.casefold() == said)
        if wrong := self._equal(values):
            raise ValueError(
                f"slots {wrong[0]!r} and {wrong[1]!r} must differ, both are {values[wrong[0]]!r} in {match.string!r}."
            )
        return values

    def _nodes(self, values: Mapping[str, str], match: re.Match[str]) -> list[Node]:
        slots = [
            Node(name, self.kinds[name], word, True, match.span(name), None, word, None, self._others(values, name))
            for name, word in values.items()
        ]
        return [*slots, *self.implied]

    def _others(self, values: Mapping[str, str], slot: str) -> tuple[str, ...]:
        """Other words that fit a slot beside `values`, from the next one on and round again."""
        words = self.slots[slot]
        place = words.index(values[slot])
        others = words[place + 1 :] + words[:place]
        return tuple(word for word in others if not self._equal({**values, slot: word}))

    def _equal(self, values: Mapping[str, str]) -> tuple[str, str] | None:
        return next((pair for pair in self.distinct if values[pair[0]] == values[pair[1]]), None)

    def _combinations(self) -> list[dict[str, str]]:
        rows = itertools.product(*(self.slots[name] for name in self.names))
        combined = (dict(zip(self.names, row, strict=True)) for row in rows)
        return [values for values in combined if not self._equal(values)]

    def _known(self, slot: str, argument: str) -> None:
        if slot not in self.names:
            raise ValueError(f"{argument} names unknown slot {slot!r}; slots: {', '.join(self.names)}.")

    def _pair(self, pair: Any, argument: str) -> tuple[str, str]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"{argument} must name two different slots, got {pair!r}.")
        for name in pair:
            self._known(name, argument)
        return pair[0], pair[1]

    def _nodes_alone(self) -> list[Node]:
        return [Node(name, self.kinds[name], words[0]) for name, words in self.slots.items()]

    def _check_prompts(self) -> None:
        # A graph of any prompt says whether the implied nodes hold together.
        CausalSceneGraph([*self._nodes_alone(), *self.implied], self.edges)
        if math.prod(len(words) for words in self.slots.values()) > MOST_CHECKED:
            return
        prompts = [prompt.casefold() for prompt in self.prompts()]
        if len(set(prompts)) < len(prompts):
            twice = next(prompt for prompt in prompts if prompts.count(prompt) > 1)
            raise ValueError(f"template {self.template!r} is ambiguous: {twice!r} comes of more than one set of words.")


def _check_data(data: Mapping[str, Any]) -> None:
    check_keys("grammar", data, ("template", "slots"), KEYS)
    if not isinstance(data["template"], str) or not template_slots(data["template"]):
        raise ValueError(f"template must be a string with at least one {{slot}}, got {data['template']!r}.")
    if not isinstance(data["slots"], Mapping):
        raise ValueError(f"slots must be a mapping, got {type(data['slots']).__name__}.")
    for name in ("implied", "distinct"):
        if not isinstance(data.get(name) or [], list | tuple):
            raise ValueError(f"{name} must be a list, got {type(data[name]).__name__}.")


def _slot_values(name: str, slot: Any) -> tuple[str, ...]:
    check_keys(f"slot {name!r}", slot, ("values",), ("values", "kind"))
    words = slot["values"]
    if not isinstance(words, list | tuple) or not words or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"values of slot {name!r} must be a list of non-empty strings, got {words!r}.")
    if len({word.casefold() for word in words}) < len(words):
        raise ValueError(f"values of slot {name!r} must differ, got {words!r}.")
    kinds = [kind for kind in NODE_KINDS if kind != "effect"]
    if slot.get("kind", "attribute") not in kinds:
        raise ValueError(f"kind of slot {name!r} must be one of {', '.join(kinds)}, got {slot['kind']!r}.")
    return tuple(words)


def _implied_node(entry: Any) -> Node:
    check_keys("implied node", entry, ("id", "parents", "text"), ("id", "kind", "effect", "parents", "text", "absent"))
    if entry.get("kind", "effect") != "effect":
        raise GraphError(f"implied node {entry['id']!r} must be of kind 'effect', got {entry['kind']!r}.")
    parents = entry["parents"]
    if not isinstance(parents, list | tuple) or not all(isinstance(parent, str) for parent in parents):
        raise GraphError(f"parents of implied node {entry['id']!r} must be a list of ids, got {parents!r}.")
    absent = (entry["absent"],) if entry.get("absent") else ()
    return Node(entry["id"], "effect", entry["text"], False, effect=entry.get("effect"), alternatives=absent)
