"""What a causal scene graph says in words: the prompt with every value that was set, and statements of its effects."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import replace
from string import Formatter

from .graph import GraphError
from .scene_node import Node

# Rules of sound that letters do not show, for the few words where they matter.
_AN, _A = ("hour", "honest"), ("uni", "use", "one", "euro")


def effect_statement(node: Node, value: str | float) -> str:
    """Words for an effect under do(effect = value).

    "present" and numbers other than 0 give its text, "absent" and 0 the first of its alternatives (without one,
    "without a shadow" or the like), and any other string is a statement already.
    """
    if value == "absent" or value == 0:
        return node.alternatives[0] if node.alternatives else _without(node)
    return value if isinstance(value, str) and value != "present" else node.text


def state(prompt: str, template: str | None, nodes: Iterable[Node]) -> str:
    """The prompt that states the values of all `nodes`.

    A template is filled with the values of its slots. Without one, the words of each node are replaced where its value
    differs from them, with "a" and "an" set right. Effects that were set and have no words of their own in the prompt
    are appended.

    Raises:
        GraphError: the words of two nodes to be replaced overlap.
    """
    nodes = tuple(nodes)
    if template is not None:
        slots = template_slots(template)
        prompt = template.format(**{node.id: _word(node, node.value) for node in nodes if node.id in slots})
        rest = [node for node in nodes if node.id not in slots]
    else:
        prompt = _replace(prompt, [node for node in nodes if node.span is not None])
        rest = [node for node in nodes if node.span is None]
    stated = [effect_statement(node, node.value) for node in rest if _is_set(node) and node.value is not None]
    if not stated:
        return prompt
    body = prompt.rstrip()
    end = body[-1:] if body[-1:] in (".", "!") else ""
    return ", ".join([body.removesuffix(end).rstrip(" ,"), *stated]) + end


def located(node: Node, prompt: str) -> Node:
    """The node with its span, if it is explicit, has none, and its value or text stands in the prompt exactly once."""
    if not node.explicit or node.span is not None:
        return node
    for words in (node.value, node.text):
        if isinstance(words, str):
            found = list(re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", prompt, flags=re.IGNORECASE))
            if len(found) == 1:
                return replace(node, span=found[0].span())
    return node


def template_slots(template: str) -> tuple[str, ...]:
    """Names of the slots of a template such as "a {colour} ball", each once, in the order of their first place.

    Raises:
        ValueError: the braces do not pair, or a slot has no name, or one with a format or an attribute.
    """
    names: dict[str, None] = {}
    for _, name, layout, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier() or layout or conversion:
            raise ValueError(f"a template's slot must be a plain name in braces, got {name!r} in {template!r}.")
        names[name] = None
    return tuple(names)


def _is_set(node: Node) -> bool:
    return node.kind == "effect" and node.explicit and node.value is not None


def _word(node: Node, value: str | float | None) -> str:
    if value is None:
        return node.text
    if node.kind == "effect":
        return effect_statement(node, value)
    return value if isinstance(value, str) else f"{value:g}"


def _replace(prompt: str, nodes: list[Node]) -> str:
    changes = []
    for node in nodes:
        start, stop = node.span or (0, 0)
        word = _word(node, node.value)
        if node.value is not None and word.casefold() != prompt[start:stop].casefold():
            changes.append((start, stop, node.id, word))
    changes.sort()
    for (_, stop, first, _), (start, _, second, _) in itertools.pairwise(changes):
        if start < stop:
            raise GraphError(f"cannot replace the words of {first!r} and of {second!r}: they overlap in {prompt!r}.")
    # From the back, so that the spans before a change stay where they are.
    for start, stop, _, word in reversed(changes):
        if prompt[start].isupper():
            word = word[0].upper() + word[1:]
        prompt = _with_article(prompt[:start], word) + prompt[stop:]
    return prompt


def _with_article(before: str, word: str) -> str:
    """`before` + `word`, with an indefinite article at the end of `before` made to fit."""
    found = re.search(r"\b(a)n?(\s+)$", before, flags=re.IGNORECASE)
    if not found:
        return before + word
    low = word.lower()
    vowel = low.startswith(_AN) or (low[0] in "aeiou" and not low.startswith(_A))
    return before[: found.start()] + found[1] + ("n" if vowel else "") + found[2] + word


def _without(node: Node) -> str:
    kind = node.effect if node.effect not in (None, "other") else node.id.replace("_", " ")
    return f"without {'a ' if kind in ('shadow', 'reflection') else ''}{kind}"
