"""What a prompt names or implies, and which of it causes which: nodes and edges of a causal scene graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .graph import GraphError

if TYPE_CHECKING:
    from torch import Tensor

NODE_KINDS = ("object", "attribute", "environment", "light", "relation", "effect")
# Their order is that of the counts among the features of a graph: part of the file format of a trained predictor.
EFFECTS = ("shadow", "reflection", "refraction", "buoyancy", "melting", "contact", "deformation", "other")


@dataclass(frozen=True)
class Node:
    """One thing a prompt speaks of, or one that follows from it. Two nodes with equal fields are equal.

    Attributes:
        id: its name, unique in the graph.
        kind: one of `NODE_KINDS`.
        text: what it is in words; of an effect, a statement that it is as physics wants it ("the ball casts a shadow").
        explicit: True if the prompt states it or someone set it, False if it only follows from its causes.
        span: (start, stop) of its words in the prompt, in letters.
        region: mask of where it is in the picture, (H, W) with values in [0, 1]; kept as float32.
        value: the word it takes in the prompt, or a number. Of an effect: "present" or a number other than 0 (its
            text), "absent" or 0, or a statement of its own; None while nobody has set it.
        effect: one of `EFFECTS`, for kind "effect" only; None there means "other".
        alternatives: other values a counterfactual may give it, the nearest first; of an effect, the statements of
            its absence.

    Raises:
        GraphError: a field is of the wrong type or outside its range; the message names node and field.
    """

    id: str
    kind: str
    text: str
    explicit: bool = True
    span: tuple[int, int] | None = None
    region: Tensor | None = field(default=None, compare=False)
    value: str | float | None = None
    effect: str | None = None
    alternatives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise GraphError(f"a node's id must be a non-empty string, got {self.id!r}.")
        if self.kind not in NODE_KINDS:
            raise GraphError(f"kind of node {self.id!r} must be one of {', '.join(NODE_KINDS)}, got {self.kind!r}.")
        if not isinstance(self.text, str) or not self.text:
            raise GraphError(f"text of node {self.id!r} must be a non-empty string, got {self.text!r}.")
        if not isinstance(self.explicit, bool):
            raise GraphError(f"explicit of node {self.id!r} must be True or False, got {self.explicit!r}.")
        if self.kind == "effect" and self.effect is None:
            object.__setattr__(self, "effect", "other")
        if self.kind == "effect" and self.effect not in EFFECTS:
            raise GraphError(f"effect of node {self.id!r} must be one of {', '.join(EFFECTS)}, got {self.effect!r}.")
        if self.kind != "effect" and self.effect is not None:
            raise GraphError(f"effect is for nodes of kind 'effect' only, {self.id!r} is of kind {self.kind!r}.")
        if self.span is not None:
            object.__setattr__(self, "span", _span(self.id, self.span))
        if isinstance(self.alternatives, str) or not all(isinstance(word, str) and word for word in self.alternatives):
            raise GraphError(f"alternatives of node {self.id!r} must be non-empty strings, got {self.alternatives!r}.")
        object.__setattr__(self, "alternatives", tuple(self.alternatives))
        check_value(self.id, self.value)
        if self.region is not None:
            object.__setattr__(self, "region", _region(self.id, self.region))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Node):
            return NotImplemented
        names = [entry.name for entry in fields(self) if entry.compare]
        if any(getattr(self, name) != getattr(other, name) for name in names):
            return False
        if self.region is None or other.region is None:
            return self.region is other.region
        return self.region.shape == other.region.shape and bool((self.region == other.region).all())

    def to_dict(self) -> dict[str, Any]:
        """JSON form; the region as nested lists, exact in float32. Fields that say nothing are left out."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        for name in ("span", "alternatives"):
            values[name] = list(values[name]) if values[name] else None
        values["region"] = None if self.region is None else self.region.tolist()
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Node:
        """Inverse of `to_dict`. Raises GraphError as the class does, and for a missing or an unknown key."""
        check_keys("node", data, ("id", "kind", "text"), tuple(entry.name for entry in fields(cls)))
        return cls(**{**data, "alternatives": data.get("alternatives") or ()})


@dataclass(frozen=True)
class Edge:
    """One direct cause.

    Attributes:
        src, dst: ids of the cause and of its effect.
        mechanism: how; "spatial" from a thing to its relation, "attribute" from a property to what has it, "physics"
            to an effect, or any word of the user's.
        strength: how much, any finite number; 1 unless somebody knows better.

    Raises:
        GraphError: a field is of the wrong type or not finite.
    """

    src: str
    dst: str
    mechanism: str = "physics"
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.src, str) or not isinstance(self.dst, str):
            raise GraphError(f"src and dst of an edge must be ids of nodes, got {self.src!r} and {self.dst!r}.")
        if not isinstance(self.mechanism, str) or not self.mechanism:
            raise GraphError(f"mechanism of {self.src} -> {self.dst} must be a word, got {self.mechanism!r}.")
        number = isinstance(self.strength, int | float) and not isinstance(self.strength, bool)
        if not number or not math.isfinite(self.strength):
            raise GraphError(f"strength of {self.src} -> {self.dst} must be a finite number, got {self.strength!r}.")
        object.__setattr__(self, "strength", float(self.strength))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Edge:
        """Inverse of `to_dict`. Raises GraphError as the class does, and for a missing or an unknown key."""
        check_keys("edge", data, ("src", "dst"), tuple(entry.name for entry in fields(cls)))
        return cls(**data)


def check_value(name: str, value: object) -> None:
    """Raise GraphError unless `value` is a non-empty string, a finite number or None."""
    word = isinstance(value, str) and bool(value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not word and not number:
        raise GraphError(f"value of node {name!r} must be a non-empty string, a finite number or None, got {value!r}.")


def check_keys(what: str, data: object, needed: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise GraphError unless `data` is a mapping that has all keys of `needed` and none outside `known`."""
    if not isinstance(data, Mapping):
        raise GraphError(f"{what} must be a mapping, got {type(data).__name__}.")
    if missing := [name for name in needed if name not in data]:
        raise GraphError(f"{what} {dict(data)!r} lacks {missing[0]!r}; needed: {', '.join(needed)}.")
    if unknown := [name for name in data if name not in known]:
        raise GraphError(f"{what} has no entry {unknown[0]!r}; known: {', '.join(known)}.")


def _span(name: str, span: Any) -> tuple[int, int]:
    ends = list(span) if isinstance(span, tuple | list) else []
    whole = len(ends) == 2 and all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
    if not whole or not 0 <= ends[0] < ends[1]:
        raise GraphError(f"span of node {name!r} must be (start, stop) with 0 <= start < stop, got {span!r}.")
    return ends[0], ends[1]


def _region(name: str, region: Any) -> Tensor:
    import torch

    try:
        mask = torch.as_tensor(region).to(torch.float32)
    except (TypeError, ValueError) as error:
        raise GraphError(f"region of node {name!r} must be a mask (H, W), got {type(region).__name__}.") from error
    if mask.ndim != 2 or mask.numel() == 0 or not bool(((mask >= 0) & (mask <= 1)).all()):
        raise GraphError(f"region of node {name!r} must be (H, W) with values in [0, 1], got {tuple(mask.shape)}.")
    return mask
