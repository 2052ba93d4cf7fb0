"""The lexicon of `GrammarParser`: words and phrases of English prompts, and what each one is. Plain data.

Small on purpose: it names what the rules of `scene_effects` speak of. A noun that is not here is an object without
special powers, an unknown word before a noun an attribute of it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """What a noun is.

    Attributes:
        kind: of its node: "object", "environment" or "light".
        roles: what the rules ask for: "mirror", "water", "container", "ground", "heat", "ice", "floats", "sinks".
        alternatives: what may stand in its place, the nearest first.
    """

    kind: str = "object"
    roles: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()


def _ring(words: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Each word with all others, from the next one on and round again."""
    return {word: words[i + 1 :] + words[:i] for i, word in enumerate(words)}


def _both_ways(pairs: dict[str, str]) -> dict[str, tuple[str, ...]]:
    backwards = {second: (first,) for first, second in reversed(list(pairs.items()))}
    return backwards | {first: (second,) for first, second in pairs.items()}


_SHAPES = _ring(("ball", "cube", "cone", "cylinder", "pyramid", "box"))
_FLOATING = ("cork", "log", "boat", "leaf", "duck", "apple", "buoy", "raft")
_SINKING = ("stone", "rock", "brick", "coin", "key", "anchor", "nail", "hammer")

NOUNS: dict[str, Noun] = {
    **{word: Noun(alternatives=others) for word, others in _SHAPES.items()},
    "sphere": Noun(alternatives=("cube",)),
    "block": Noun(alternatives=("ball",)),
    **{word: Noun(roles=("floats",)) for word in _FLOATING},
    **{word: Noun(roles=("sinks",)) for word in _SINKING},
    "mirror": Noun(roles=("mirror",), alternatives=("board",)),
    "ice": Noun(roles=("ice", "floats"), alternatives=("glass",)),
    "icicle": Noun(roles=("ice", "floats")),
    "iceberg": Noun(roles=("ice", "floats")),
    "snowman": Noun(roles=("ice",)),
    "snowball": Noun(roles=("ice", "floats")),
    "popsicle": Noun(roles=("ice", "floats")),
    "water": Noun("environment", ("water",), ("sand",)),
    **{word: Noun("environment", ("water",)) for word in ("lake", "pond", "pool", "sea", "river", "ocean")},
    "jar": Noun("environment", ("container",), ("box",)),
    **{word: Noun("environment", ("container",)) for word in ("tank", "bowl", "bucket", "aquarium", "bathtub")},
    "glass": Noun("object", ("container", "sinks"), ("cup",)),
    "cup": Noun("object", ("container",), ("glass",)),
    **{
        word: Noun("environment", ("ground",)) for word in ("ground", "floor", "grass", "sand", "snow", "beach", "road")
    },
    "table": Noun("object", ("ground",), ("floor",)),
    "sun": Noun("light", ("heat",), ("moon",)),
    "sunlight": Noun("light", ("heat",), ("moonlight",)),
    "fire": Noun("light", ("heat",)),
    "candle": Noun("light", ("heat",), ("lamp",)),
    "lamp": Noun("light", (), ("candle",)),
    **{word: Noun("light") for word in ("moon", "moonlight", "spotlight", "lantern", "flashlight", "streetlight")},
    "stove": Noun(roles=("heat",)),
    "oven": Noun(roles=("heat",)),
    "heater": Noun(roles=("heat",)),
}

COLOURS = _ring(("red", "green", "blue", "yellow", "orange", "purple", "white", "black", "brown", "pink", "grey"))
COLOURS["gray"] = ("red",)
SIZES = _both_ways(
    {
        "small": "large",
        "tiny": "huge",
        "little": "big",
        "tall": "short",
        "long": "short",
        "wide": "narrow",
        "thick": "thin",
        "low": "high",
        "empty": "full",
    }
)
TEMPERATURES = _both_ways({"hot": "cold", "warm": "cool"})
SIDES = {"left": ("right",), "right": ("left",)}
# Materials by what they do in water; the first alternative is one that does the other thing.
FLOATING_MATERIALS = ("wooden", "wood", "cork", "plastic", "foam", "ice", "paper", "styrofoam")
SINKING_MATERIALS = ("stone", "metal", "iron", "steel", "glass", "lead", "gold", "copper", "brass", "concrete")
MATERIALS = {word: ("stone", "metal") for word in FLOATING_MATERIALS} | {
    word: ("wooden", "plastic") for word in SINKING_MATERIALS
}
# Category of attribute -> word -> alternatives. Where a word is a noun too, its place in the phrase decides.
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": COLOURS,
    "size": SIZES,
    "material": MATERIALS,
    "temperature": TEMPERATURES,
}

# Phrase -> (name of the relation, phrase of its counterfactual).
RELATIONS: dict[str, tuple[str, str]] = {
    "on": ("on", "under"),
    "on top of": ("on", "under"),
    "onto": ("on", "under"),
    "in": ("in", "outside"),
    "into": ("in", "out of"),
    "inside": ("inside", "outside"),
    "outside": ("outside", "inside"),
    "outside of": ("outside", "inside"),
    "within": ("inside", "outside"),
    "under": ("under", "on"),
    "underneath": ("under", "on top of"),
    "beneath": ("under", "on top of"),
    "below": ("under", "above"),
    "above": ("above", "below"),
    "over": ("above", "under"),
    "left of": ("left_of", "right of"),
    "right of": ("right_of", "left of"),
    "near": ("near", "far from"),
    "next to": ("near", "far from"),
    "close to": ("near", "far from"),
    "beside": ("near", "far from"),
    "by": ("near", "far from"),
    "far from": ("far_from", "near"),
    "behind": ("behind", "in front of"),
    "in front of": ("in_front_of", "behind"),
}
for _side, _other in (("left", "right"), ("right", "left")):
    for _phrase in ("to the {} of", "on the {} of", "on the {} side of"):
        RELATIONS[_phrase.format(_side)] = (f"{_side}_of", _phrase.format(_other))
# Phrases that place a thing by itself: an attribute, and which of the words it is.
PLACES: dict[str, str] = {
    phrase.format(side): side for side in SIDES for phrase in ("on the {}", "to the {}", "on the {} side", "at the {}")
}
ACTIONS = ("eats", "chases", "holds", "carries", "pushes", "pulls", "kicks", "touches", "watches", "hits", "throws")
ACTIONS += ("catches", "follows", "bites", "eating", "chasing", "holding", "carrying", "pushing", "pulling", "kicking")

DETERMINERS = ("a", "an", "the", "one", "two", "three", "some", "its", "his", "her", "their", "this", "that", "no")
# Words that end a noun phrase and mean nothing here.
BREAKS = ("is", "are", "was", "were", "be", "being", "there", "which", "who", "where", "of", "with", "without", "and")
BREAKS += ("or", "but", "than", "as", "at", "from", "for", "to", "has", "have", "lit", "sits", "sitting", "stands")
BREAKS += ("standing", "lies", "lying", "rests", "resting", "placed", "hangs", "hanging", "shining", "shines", "filled")
BREAKS += ("casts", "casting", "showing", "shows", "seen", "stays", "up", "down", "not")
# Words about the picture, not about the scene, and words that only colour others.
PASSED_OVER = ("photo", "photograph", "picture", "image", "painting", "drawing", "rendering", "render", "view", "scene")
PASSED_OVER += ("very", "more", "less", "realistic")

# Word of the prompt that states an effect -> (type of effect, the word for its opposite).
MENTIONS: dict[str, tuple[str, str]] = {
    "shadow": ("shadow", "no shadow"),
    "shadows": ("shadow", "no shadows"),
    "reflection": ("reflection", "no reflection"),
    "reflections": ("reflection", "no reflections"),
    "floats": ("buoyancy", "sinks"),
    "floating": ("buoyancy", "sinking"),
    "sinks": ("buoyancy", "floats"),
    "sinking": ("buoyancy", "floating"),
    "melts": ("melting", "stays frozen"),
    "melting": ("melting", "frozen"),
}
