"""What follows from a scene without being said: the rules of `GrammarParser` for implied effects.

- reflection: a thing on, in, in front of or above a mirror (or a mirror behind or under it), then `reflection_extent`,
  how much of it the mirror's size lets one see;
- shadow: a light and a thing, and the ground if the prompt names it;
- buoyancy: a thing of known material in or on water, then `displacement` of the water;
- melting: something warm, and ice.

The rules are gendiff's own, a deliberately small share of physics.
"""

from __future__ import annotations

from dataclasses import replace

from .scene_node import Edge, Node
from .scene_reader import Link, Mention, Reading, Thing
from .scene_words import FLOATING_MATERIALS, SINKING_MATERIALS

BEFORE_MIRROR, MIRROR_BEYOND = ("on", "in", "in_front_of", "above"), ("behind", "under")
WET = ("in", "inside", "on", "under")
WARM = ("hot", "warm")


def implied_effects(reading: Reading) -> tuple[list[Node], list[Edge]]:
    """Effect nodes of a scene and the edges into them; those the prompt states by itself are explicit."""
    nodes: list[Node] = []
    edges: list[Edge] = []
    for name, carriers in (
        ("reflection", _mirrored(reading)),
        ("shadow", _shadowed(reading)),
        ("buoyancy", _wet(reading)),
        ("melting", _melting(reading)),
    ):
        for thing, causes in carriers:
            # One reflection is "reflection", of several each has its owner's name.
            owner = f"_{thing.id}" if len(carriers) > 1 else ""
            node = _effect(name, owner, thing, reading)
            nodes.append(node)
            edges += [Edge(cause, node.id) for cause in dict.fromkeys(causes)]
            for follower, more in _followers(name, owner, thing, causes, reading):
                nodes.append(follower)
                edges += [Edge(cause, follower.id) for cause in dict.fromkeys((node.id, *more))]
    for mention in reading.mentions:
        nodes, edges = _state_mention(mention, reading, nodes, edges)
    return nodes, edges


def _mirrored(reading: Reading) -> list[tuple[Thing, list[str]]]:
    found = []
    for link in reading.links:
        for thing, other in _pairs(link):
            if _is(other, "mirror") and not _is(thing, "mirror") and link.name in BEFORE_MIRROR:
                found.append((thing, [thing.id, other.id, link.id]))
            elif _is(thing, "mirror") and not _is(other, "mirror") and link.name in MIRROR_BEYOND:
                found.append((other, [other.id, thing.id, link.id]))
    return _once(found)


def _shadowed(reading: Reading) -> list[tuple[Thing, list[str]]]:
    lights = [thing.id for thing in reading.things if thing.noun.kind == "light"]
    ground = [thing.id for thing in reading.with_role("ground")]
    solid = [t for t in reading.things if t.noun.kind == "object" and not _is(t, "mirror") and not _is(t, "ground")]
    return [(thing, [thing.id, *lights, *ground]) for thing in solid] if lights else []


def _wet(reading: Reading) -> list[tuple[Thing, list[str]]]:
    found = []
    for link in reading.links:
        for thing, other in _pairs(link):
            water = [other] if _is(other, "water") else reading.with_role("water") if _is(other, "container") else []
            inside = link.name in WET and (_is(other, "water") or link.name != "under")
            if water and inside and thing.noun.kind == "object" and _floats(thing, reading) is not None:
                materials = thing.attributes.get("material", [])
                held = [other.id] if other is not water[0] else []
                found.append((thing, [thing.id, *materials, water[0].id, *held, link.id]))
    return _once(found)


def _melting(reading: Reading) -> list[tuple[Thing, list[str]]]:
    heat = [thing.id for thing in reading.with_role("heat")]
    for thing in reading.things:
        heat += [name for name in thing.attributes.get("temperature", []) if reading.node(name).text in WARM]
    found = []
    for thing in reading.things if heat else []:
        ice = [name for name in thing.attributes.get("material", []) if reading.node(name).text == "ice"]
        if ice or _is(thing, "ice"):
            found.append((thing, [thing.id, *ice, *heat]))
    return found


def _effect(name: str, owner: str, thing: Thing, reading: Reading) -> Node:
    of = f" of the {thing.word}" if owner else ""
    floats = _floats(thing, reading)
    text, absent = {
        "reflection": (f"the mirror shows the reflection of the {thing.word}", f"without a reflection{of}"),
        "shadow": (f"the {thing.word} casts a shadow away from the light", f"without a shadow{of}"),
        "buoyancy": (f"the {thing.word} floats", f"the {thing.word} sinks"),
        "melting": (f"the {thing.word} melts", f"the {thing.word} stays frozen"),
    }[name]
    if name == "buoyancy" and not floats:
        text, absent = absent, text
    return Node(reading.new_id(name + owner), "effect", text, False, effect=name, alternatives=(absent,))


def _followers(
    name: str, owner: str, thing: Thing, causes: list[str], reading: Reading
) -> list[tuple[Node, tuple[str, ...]]]:
    """Effects of an effect, each with its causes besides that effect."""
    if name == "reflection":
        mirror = next(other for other in reading.with_role("mirror") if other.id in causes)
        size = tuple(mirror.attributes.get("size", ())) or (mirror.id,)
        text = f"the reflection of the {thing.word} lies wholly inside the {mirror.word}"
        absent = f"the reflection of the {thing.word} reaches beyond the {mirror.word}"
        id = reading.new_id("reflection_extent" + owner)
        return [(Node(id, "effect", text, False, effect="reflection", alternatives=(absent,)), size)]
    if name == "buoyancy":
        text = f"the water rises by what the {thing.word} displaces"
        id = reading.new_id("displacement" + owner)
        node = Node(id, "effect", text, False, effect="buoyancy", alternatives=("the water does not rise",))
        return [(node, tuple(thing.attributes.get("size", ())))]
    return []


def _state_mention(
    mention: Mention, reading: Reading, nodes: list[Node], edges: list[Edge]
) -> tuple[list[Node], list[Edge]]:
    """The effects with one of them stated, or denied, by the prompt itself."""
    of_type = [node for node in nodes if node.effect == mention.effect and not node.explicit]
    # The word names the effect itself, not what follows from it.
    implied = next((node for node in of_type if not node.id.startswith(("reflection_extent", "displacement"))), None)
    if implied is None:
        name = reading.new_id(mention.effect)
        implied = Node(name, "effect", mention.affirmed, effect=mention.effect)
        nodes = [*nodes, implied]
    if mention.denied:
        # Somebody set it: as under do(), what else is there no longer causes it.
        stated = replace(implied, explicit=True, span=mention.span, value="absent", alternatives=(mention.words,))
        edges = [edge for edge in edges if edge.dst != implied.id]
    else:
        stated = replace(
            implied, explicit=True, span=mention.span, text=mention.words, alternatives=(mention.opposite,)
        )
    return [stated if node.id == implied.id else node for node in nodes], edges


def _floats(thing: Thing, reading: Reading) -> bool | None:
    """Whether a thing floats on water, None if nothing is known of it. What it is made of goes before what it is."""
    for name in thing.attributes.get("material", []):
        material = reading.node(name).text
        if material in FLOATING_MATERIALS + SINKING_MATERIALS:
            return material in FLOATING_MATERIALS
    return True if _is(thing, "floats") else False if _is(thing, "sinks") else None


def _is(thing: Thing, role: str) -> bool:
    return role in thing.noun.roles


def _pairs(link: Link) -> list[tuple[Thing, Thing]]:
    return [(subject, link.target) for subject in link.subjects] if link.target else []


def _once(found: list[tuple[Thing, list[str]]]) -> list[tuple[Thing, list[str]]]:
    """One entry for each thing, the first."""
    first: dict[str, tuple[Thing, list[str]]] = {}
    for thing, causes in found:
        first.setdefault(thing.id, (thing, causes))
    return list(first.values())
