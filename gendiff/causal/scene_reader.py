"""Free English to things, their properties and where they stand: the part of `GrammarParser` that reads words."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

from .scene_node import Edge, Node
from .scene_words import (
    ACTIONS,
    ATTRIBUTES,
    BREAKS,
    DETERMINERS,
    MENTIONS,
    NOUNS,
    PASSED_OVER,
    PLACES,
    RELATIONS,
    SIDES,
    Noun,
)

LONGEST_PHRASE = 5


@dataclass
class Thing:
    """A noun of the prompt. `attributes` maps a category ("size", "other", ...) to the ids of its attribute nodes."""

    id: str
    word: str
    noun: Noun
    attributes: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Link:
    """A relation of the prompt between `subjects` and `target`; `name` is that of `RELATIONS`, or the action."""

    id: str
    name: str
    subjects: list[Thing]
    target: Thing | None = None


@dataclass(frozen=True)
class Mention:
    """An effect the prompt states by itself, or denies; `affirmed` says in words that it is there."""

    effect: str
    words: str
    span: tuple[int, int]
    opposite: str
    affirmed: str
    denied: bool


@dataclass(frozen=True)
class Word:
    """A token in lower case and its place in the prompt."""

    text: str
    start: int
    stop: int


class Reading:
    """All that a prompt states: `things`, `links`, `mentions`, and the explicit `nodes` and `edges` they make.

    A noun phrase runs up to a relation, an action, a break word or a punctuation mark. Its last noun is the thing; the
    words before it are its attributes. A relation joins the things just before it ("a and b" are two) to the next one;
    after "and" or a comma it has the subjects of the relation before. So modifiers belong to the nearest thing.
    """

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.things: list[Thing] = []
        self.links: list[Link] = []
        self.mentions: list[Mention] = []
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self._used: set[str] = set()
        self._phrase: list[Word] = []
        self._group: list[Thing] = []
        self._joined = False
        self._read()

    def new_id(self, name: str) -> str:
        """`name` as an id: the first time plain, then name_2, name_3."""
        name = re.sub(r"\W+", "_", name)
        numbers = itertools.count(2)
        free = name
        while free in self._used:
            free = f"{name}_{next(numbers)}"
        self._used.add(free)
        return free

    def with_role(self, role: str) -> list[Thing]:
        """Things that play a role of `Noun.roles`."""
        return [thing for thing in self.things if role in thing.noun.roles]

    def node(self, id: str) -> Node:
        """The explicit node of this id."""
        return next(node for node in self.nodes if node.id == id)

    def _read(self) -> None:
        words = [Word(m[0].lower(), *m.span()) for m in re.finditer(r"[\w'-]+|[^\w\s]", self.prompt)]
        place = 0
        while place < len(words):
            length = self._phrase_length(words, place)
            run = words[place : place + length]
            text = " ".join(word.text for word in run)
            if text in RELATIONS or text in ACTIONS:
                self._close()
                self._link(text, (run[0].start, run[-1].stop))
            elif text in PLACES:
                self._close()
                word = next(word for word in run if word.text in SIDES)
                if self.things:
                    self._attribute(self.things[-1], word, "side", SIDES[word.text])
            elif text in MENTIONS:
                self._mention(words, place)
            elif text in BREAKS or text in DETERMINERS or not text[0].isalnum():
                self._close()
                self._joined = self._joined or text in ("and", ",")
            elif text not in PASSED_OVER and not text[0].isdigit():
                self._phrase.append(run[0])
            place += length
        self._close()

    @staticmethod
    def _phrase_length(words: list[Word], place: int) -> int:
        """Number of words from `place` on that make the longest known phrase, at least 1."""
        for length in range(min(LONGEST_PHRASE, len(words) - place), 1, -1):
            text = " ".join(word.text for word in words[place : place + length])
            if text in RELATIONS or text in PLACES:
                return length
        return 1

    def _close(self) -> None:
        """End the running noun phrase: its last noun becomes a thing, what is before it its attributes."""
        phrase, self._phrase = self._phrase, []
        if not phrase:
            return
        heads = [i for i, word in enumerate(phrase) if _noun(word.text) is not None]
        if not heads and self.things and all(_category(word.text) for word in phrase):
            # "the ball is red": said of the thing before.
            for word in phrase:
                self._attribute(self.things[-1], word)
            return
        heads = heads or [i for i, word in enumerate(phrase) if _may_be_noun(word.text)]
        if not heads:
            return
        head = phrase[heads[-1]]
        noun = _noun(head.text) or Noun()
        alternatives = noun.alternatives if head.text in NOUNS else ()
        thing = Thing(self.new_id(head.text), head.text, noun)
        self.nodes.append(self._node(thing.id, noun.kind, head, alternatives))
        for word in phrase[: heads[-1]]:
            self._attribute(thing, word)
        waiting = [link for link in self.links if not link.subjects]
        if self.links and self.links[-1].target is None:
            self.links[-1].target = thing
            self.edges.append(Edge(thing.id, self.links[-1].id, f"{_mechanism(self.links[-1].name)}:target"))
            self._group = [thing]
        else:
            for link in waiting:
                # "on a table, a ball": the subject comes late.
                self._subject(link, thing)
            self._group = [*self._group, thing] if self._joined else [thing]
        self._joined = False
        self.things.append(thing)

    def _link(self, text: str, span: tuple[int, int]) -> None:
        name, opposite = RELATIONS.get(text, (text, None))
        again = self._joined and bool(self.links)
        subjects = self.links[-1].subjects if again else self._group
        link = Link(self.new_id(name), name, [])
        words = Word(text, *span)
        self.nodes.append(self._node(link.id, "relation", words, (opposite,) if opposite else ()))
        self.links.append(link)
        for thing in subjects:
            self._subject(link, thing)
        self._joined = False

    def _subject(self, link: Link, thing: Thing) -> None:
        link.subjects.append(thing)
        self.edges.append(Edge(thing.id, link.id, _mechanism(link.name)))

    def _attribute(
        self, thing: Thing, word: Word, category: str | None = None, alternatives: tuple[str, ...] | None = None
    ) -> None:
        category = category or _category(word.text) or "other"
        others = ATTRIBUTES.get(category, {}).get(word.text, ()) if alternatives is None else alternatives
        name = self.new_id(word.text)
        thing.attributes.setdefault(category, []).append(name)
        self.nodes.append(self._node(name, "attribute", word, others))
        self.edges.append(Edge(name, thing.id, "attribute"))

    def _mention(self, words: list[Word], place: int) -> None:
        self._close()
        first = place
        if first > 0 and words[first - 1].text in ("a", "an", "its", "the", "any"):
            first -= 1
        denied = first > 0 and words[first - 1].text in ("without", "no", "not")
        first -= denied
        effect, opposite = MENTIONS[words[place].text]
        span = (words[first].start, words[place].stop)
        said = self.prompt[span[0] : span[1]].lower()
        word = words[place].text
        affirmed = f"with a {word}" if word in ("shadow", "reflection") else word
        self.mentions.append(Mention(effect, said, span, opposite, affirmed if denied else said, denied))
        self._joined = False

    def _node(self, name: str, kind: str, word: Word, alternatives: tuple[str, ...]) -> Node:
        span = (word.start, word.stop)
        return Node(name, kind, word.text, span=span, value=word.text, alternatives=alternatives)


def _mechanism(relation: str) -> str:
    return "action" if relation in ACTIONS else "spatial"


def _noun(word: str) -> Noun | None:
    """The lexicon's entry for a noun or for what may be its plural."""
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in NOUNS:
            return NOUNS[form]
    return None


def _may_be_noun(word: str) -> bool:
    """Whether a word outside the lexicon may be a thing: it looks like no verb form and no adverb."""
    return not _category(word) and not word.endswith(("ing", "ly"))


def _category(word: str) -> str | None:
    return next((category for category, words in ATTRIBUTES.items() if word in words), None)
