"""Reading a prompt with a template: the pattern it must fit, and the first part of it that does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter


def template_pattern(template: str, slots: Mapping[str, tuple[str, ...]]) -> re.Pattern[str]:
    """Pattern with a named group for each slot, to be matched with the whole prompt.

    Case, runs of spaces and a full stop at the end do not matter. A slot that stands twice must say the same twice.
    """
    seen: set[str] = set()
    pattern = r"\s*"
    for literal, name, _, _ in Formatter().parse(template):
        pattern += _literal(literal)
        if name is not None:
            pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{_either(slots[name])})"
            seen.add(name)
    pattern += r"\s*" if template.rstrip().endswith(".") else r"\s*\.?\s*"
    return re.compile(pattern, flags=re.IGNORECASE)


def misfit(prompt: str, template: str, slots: Mapping[str, tuple[str, ...]]) -> str:
    """One line that says which part of `prompt` does not fit, and what would: the first such part from the left."""
    text, place = prompt.strip(), 0
    said: dict[str, str] = {}
    parts = [(literal, name) for literal, name, _, _ in Formatter().parse(template)]
    for i, (literal, name) in enumerate(parts):
        found = re.compile(_literal(literal), re.IGNORECASE).match(text, place)
        if found is None:
            got = repr(text[place:]) if text[place:] else "the end"
            return f"prompt {prompt!r} is not of the template {template!r}: {literal!r} expected, got {got}."
        place = found.end()
        if name is None:
            continue
        allowed = (said[name],) if name in said else slots[name]
        word = re.compile(f"(?:{_either(allowed)})(?!\\w)", re.IGNORECASE).match(text, place)
        if word is None:
            following = parts[i + 1][0] if i + 1 < len(parts) else ""
            stop = re.compile(_literal(following), re.IGNORECASE).search(text, place) if following else None
            wrong = text[place : stop.start() if stop else len(text)].rstrip(". ")
            got = repr(wrong) if wrong else "nothing"
            return f"{got} in prompt {prompt!r} does not fit slot {name!r}; allowed: {', '.join(allowed)}."
        said[name], place = word[0], word.end()
    return f"prompt {prompt!r} goes on after the template {template!r} ends: {text[place:]!r}."


def _literal(text: str) -> str:
    """Pattern of a template's own words, with any run of spaces for one."""
    return re.sub(r"(\\? )+", lambda _: r"\s+", re.escape(text))


def _either(words: tuple[str, ...]) -> str:
    """Pattern of any of `words`, the longest first so that "left" cannot hide "left side"."""
    return "|".join(_literal(word) for word in sorted(words, key=len, reverse=True))
