"""Unicode's list of emoji, `emoji-test.txt`: sequences, names, groups and subgroups.

Format and terms: Unicode Technical Standard #51. The Debian package `unicode-data` has the file; newer ones are at
unicode.org/Public/emoji.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from gendiff.data.idx import read_bytes
from gendiff.errors import InvalidInputError

DEBIAN_TABLE = Path("/usr/share/unicode/emoji/emoji-test.txt")
"""Where the Debian package `unicode-data` keeps the table."""

WANTED = ("fully-qualified", "component")
"""The other forms of the table lack a variation selector and show the same picture."""

MODIFIERS = dict.fromkeys([0xFE0E, 0xFE0F, *range(0x1F3FB, 0x1F400)])
"""Variation selectors and skin tones, to be taken out of a sequence."""

_LINE = re.compile(r"(?P<codes>[0-9A-F]+(?: [0-9A-F]+)*) *; (?P<status>[a-z-]+) *# \S+ E[0-9.]+ (?P<name>.+)")


class Emoji(NamedTuple):
    """One line of the table."""

    sequence: str
    name: str
    group: str
    subgroup: str


def read_table(path: str | Path = DEBIAN_TABLE) -> list[Emoji]:
    """Emoji in the order of the table, which puts like beside like.

    Args:
        path: `emoji-test.txt`, plain or `.gz`.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: not such a table; the first line that does not fit is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"the table of emoji {path} does not exist: install the Debian package unicode-data, or give the path of"
            " an emoji-test.txt (unicode.org/Public/emoji) with --table."
        )
    try:
        lines = read_bytes(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not an emoji-test.txt: it is not UTF-8 text.") from error
    found, group, subgroup = [], "", ""
    for number, line in enumerate(lines, start=1):
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif line.strip() and not line.startswith("#"):
            match = _LINE.fullmatch(line.strip())
            if match is None or not group or not subgroup:
                raise InvalidInputError(f"{path} is not an emoji-test.txt: line {number} is {line[:60]!r}.")
            if match["status"] in WANTED:
                sequence = "".join(chr(int(code, 16)) for code in match["codes"].split())
                found.append(Emoji(sequence, match["name"], group, subgroup))
    if not found:
        raise InvalidInputError(f"{path} is not an emoji-test.txt: it lists no emoji.")
    return found


def without_modifiers(sequence: str) -> str:
    """The sequence without skin tones and variation selectors; all variants of a picture share it.

    A skin tone by itself, which is also in the table, stays as it is.
    """
    return sequence.translate(MODIFIERS) or sequence
