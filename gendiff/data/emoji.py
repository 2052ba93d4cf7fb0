"""Emoji in colour, 32x32 or 64x64, with names and groups: rendered once from the font Noto Color Emoji."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import __version__ as pillow_version
from torch import Tensor

from gendiff.data.arrays import load_arrays, save_arrays
from gendiff.data.emoji_render import draw, on_white, open_font
from gendiff.data.emoji_table import DEBIAN_TABLE, read_table, without_modifiers
from gendiff.data.labelled import LabelledImages, check_choice
from gendiff.files import written_whole

SIZES = (32, 64)
SPLITS = ("train", "test")
TEST_SHARE = 10
"""One emoji in so many is for test."""


class Emoji(LabelledImages):
    """Pictures (3, S, S) on white, each different from all others, labelled with their group.

    Skin tones of one emoji are nearly the same picture and are all on one side of the split.

    Args:
        split: train or test, fixed by a hash of the sequence.
        root: folder the emoji were imported into.
        size: 32 or 64.
        num_images: keep only the first so many, which then follow the order of Unicode's table.

    Attributes:
        names: short name of each emoji as Unicode has it, "grinning face" for one; a caption.
        sequences: the characters of each.
        subgroups: (N,) int64 tensor, positions in `subgroup_names`.
        subgroup_names: "face-smiling" and so on.
        provenance: sha256 of font and table, number of glyphs, version of Pillow.

    Raises:
        FileNotFoundError: emoji have not been imported under `root`.
        InvalidInputError: unknown split or size, a bad count, or a damaged file.
    """

    names: tuple[str, ...]
    sequences: tuple[str, ...]
    subgroups: Tensor
    subgroup_names: tuple[str, ...]
    provenance: dict[str, Any]

    def __init__(self, split: str = "train", root: str | Path = "data", size: int = 32, num_images: int | None = None):
        check_choice("split", split, SPLITS)
        check_choice("size", size, SIZES)
        path = Path(root, "emoji", f"{size}.npz")
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist. Make it with `apt install fonts-noto-color-emoji unicode-data` (Debian), then"
                f" `gendiff data import emoji --root {root}`."
            )
        stored = load_arrays(path)
        rows = np.flatnonzero(stored["test"] == (split == "test"))
        images = stored["images"][rows].transpose(0, 3, 1, 2)
        super().__init__(images, stored["groups"][rows], tuple(stored["group_names"].tolist()), num_images)
        rows = rows[:num_images]
        self.names = tuple(stored["names"][rows].tolist())
        self.sequences = tuple(stored["sequences"][rows].tolist())
        self.subgroups = torch.from_numpy(stored["subgroups"][rows])
        self.subgroup_names = tuple(stored["subgroup_names"].tolist())
        self.provenance = json.loads(stored["provenance"].item())

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {**super().__getitem__(index), "subgroup": self.subgroups[index]}


def import_emoji(source: str | Path | None = None, root: str | Path = "data", table: str | Path = DEBIAN_TABLE) -> Path:
    """Render all emoji into `root/emoji/32.npz` and `64.npz`; the folder appears whole or not at all.

    Sequences the font has no single glyph for are left out, and of equal pictures only the first in the table stays.

    Args:
        source: the font Noto Color Emoji, or a folder with it; without it, the file of the Debian package
            `fonts-noto-color-emoji`.
        root: folder of all datasets.
        table: Unicode's `emoji-test.txt`; by default the file of the Debian package `unicode-data`.

    Returns:
        The folder of the two files.

    Raises:
        FileNotFoundError: no font or no table there.
        InvalidInputError: `source` is not such a font, or `table` not such a table.
        ImportError: Pillow was built without raqm.
    """
    font_path, font = open_font(source)
    listed = read_table(table)
    kept, seen, missing = [], set(), 0
    images: dict[int, list[np.ndarray]] = {size: [] for size in SIZES}
    for emoji in listed:
        glyph = draw(font, emoji.sequence)
        if glyph is None or glyph.getbbox() is None:
            missing += 1
            continue
        if (pixels := glyph.tobytes()) in seen:
            continue
        seen.add(pixels)
        kept.append(emoji)
        for size, drawn in images.items():
            drawn.append(on_white(glyph, size))
    groups, group_names = _numbered(emoji.group for emoji in kept)
    subgroups, subgroup_names = _numbered(emoji.subgroup for emoji in kept)
    provenance = {
        "font_sha256": _sha256(font_path),
        "table_sha256": _sha256(Path(table)),
        "listed": len(listed),
        "without_glyph": missing,
        "distinct": len(kept),
        "pillow": pillow_version,
    }
    common = {
        "names": np.array([emoji.name for emoji in kept]),
        "sequences": np.array([emoji.sequence for emoji in kept]),
        "groups": groups,
        "group_names": group_names,
        "subgroups": subgroups,
        "subgroup_names": subgroup_names,
        "test": np.array([is_test(emoji.sequence) for emoji in kept]),
        "provenance": np.array(json.dumps(provenance)),
    }
    folder = Path(root, "emoji")
    with written_whole(folder) as partial:
        for size, drawn in images.items():
            save_arrays(partial / f"{size}.npz", {"images": np.stack(drawn), **common})
    return folder


def is_test(sequence: str) -> bool:
    """Whether an emoji belongs to the split `test`: decided by the sha256 of its sequence without skin tones."""
    digest = hashlib.sha256(without_modifiers(sequence).encode()).digest()
    return int.from_bytes(digest[:8], "big") % TEST_SHARE == 0


def _numbered(values: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Position of each value among the different ones, (N,) int64, and those in the order they come."""
    values = list(values)
    names = {name: position for position, name in enumerate(dict.fromkeys(values))}
    return np.array([names[value] for value in values]), np.array(list(names))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
