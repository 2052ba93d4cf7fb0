"""A deterministic parser of free English prompts: "a red ball on a small mirror" to a causal scene graph."""

from __future__ import annotations

from .scene_effects import implied_effects
from .scene_graph import CausalSceneGraph
from .scene_reader import Reading


class GrammarParser:
    """Rules and a small lexicon, no learning. Equal prompts give equal graphs.

    It knows objects with colours, sizes and materials, relations of place (on, in, inside, under, above, left of, right
    of, near, behind, in front of), environments (water, jar, ground), lights (sun, lamp) and warm things; the words are
    in `scene_words`, the reading rules with `Reading`, and what follows from a scene in `scene_effects`.

    The graph has a node for every noun, attribute and relation. Edges lead from an attribute to its thing (mechanism
    "attribute") and from things to their relation: "spatial" from its subject and "spatial:target" from what it refers
    to, "action" and "action:target" for a verb. They carry no hop, since all of these nodes are explicit. An effect
    that the prompt states ("its shadow") is explicit too; one it denies ("without a shadow") has no causes left.

    What it does not do: grammar beyond noun phrases, pronouns, a second mention of the same thing (it counts as another
    one), numbers of things, or negation of anything but effects.
    For more, hand `CausalSceneGraph.from_prompt` a callable of your own.
    """

    def parse(self, prompt: str) -> CausalSceneGraph:
        """The graph of `prompt`.

        Raises:
            ValueError: an empty prompt, or one in which no thing, attribute or effect was found.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompt must be a non-empty string, got {prompt!r}.")
        reading = Reading(prompt)
        effects, causes = implied_effects(reading)
        if not reading.things and not effects:
            raise ValueError(f"prompt {prompt!r} names no thing: GrammarParser needs a noun, such as 'a red ball'.")
        return CausalSceneGraph([*reading.nodes, *effects], [*reading.edges, *causes], prompt)
