"""Words typed on the command line, turned into values."""

from __future__ import annotations

from collections.abc import Sequence


def parse_assignments(option: str, texts: Sequence[str]) -> dict[str, float]:
    """`["thickness=5", "intensity=120"]` as numbers by name.

    Raises:
        ValueError: not NAME=NUMBER, or a name given twice.
    """
    values: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{option} must be NAME=VALUE, got {text!r}.")
        if name in values:
            raise ValueError(f"{option} names {name!r} twice.")
        values[name] = _number(option, text, number)
    return values


def parse_sweep(text: str) -> tuple[str, list[float]]:
    """`"thickness=1:6:6"` as the name and 6 evenly spaced values from 1 to 6.

    Raises:
        ValueError: not NAME=START:STOP:COUNT, or COUNT is not a whole number from 2 to 64.
    """
    name, equals, span = text.partition("=")
    parts = span.split(":")
    if not equals or not name or len(parts) != 3:
        raise ValueError(f"--sweep must be NAME=START:STOP:COUNT, got {text!r}.")
    start, stop, count = (_number("--sweep", text, part) for part in parts)
    if count != int(count) or not 2 <= count <= 64:
        raise ValueError(f"--sweep needs a whole COUNT from 2 to 64, got {parts[2]!r}.")
    return name, [start + (stop - start) * i / (int(count) - 1) for i in range(int(count))]


def parse_numbers(option: str, text: str, words: str) -> list[float]:
    """`"1,1.5,2"` as numbers; `words` are what else the option takes, for the message.

    Raises:
        ValueError: not numbers with commas between them.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be one of {words}, or numbers as 1,1.5,2, got {text!r}.") from None


def _number(option: str, text: str, number: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise ValueError(f"{option} {text!r}: {number!r} is not a number.") from None
