"""What the component must reach, read off measured cases; a bar that is missed says so, a tie is called a tie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lina_statistics import verdict_words

GAIN, CHANGE, LOSS = 0.4, 0.01, 0.02
"""Target rate over base* that ModeWorld must gain; how far its right prompts may move; how much of pap_all prompts of
the training set may lose."""
OUT, IN = "out of distribution", "in distribution"


def gate_cases(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The case `gate`: a cell for each bar whose figures were measured; none without any."""
    cells = [*_mode_bars(cases), *_shadow_bars(cases)]
    return [{"row": "gate", "seed": 0, "cells": cells, "verdicts": verdicts(cases)}] if cells else []


def verdicts(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the intervals say of LINA adaptive, in sentences."""
    said = []
    for name in dict.fromkeys(case["row"].partition("/")[0] for case in cases if case["row"].startswith("shadows-")):
        pooled = name == "shadows-pooled"
        place = "both directions" if pooled else f"tested on {name.removeprefix('shadows-')}"
        for split, words in ((OUT, place), (IN, f"{place}, training prompts"))[: 1 + pooled]:
            steered = cell_of(cases, f"{name}/adaptive", "steered", split=split)
            if steered is not None:
                words += f" ({round(steered['value'] * steered['n'])} of {steered['n']} prompts steered)"
            for against, other in (("base", "base*"), ("all", "the best fixed setting")):
                cell = cell_of(cases, f"{name}/adaptive", "difference", split=split, against=against)
                if cell is not None:
                    said.append(f"{words}: {verdict_words(cell, 'LINA adaptive', other)}")
            said += _repairs(cases, name, split, words)
    return said


def _repairs(cases: Sequence[Mapping[str, Any]], name: str, split: str, words: str) -> list[str]:
    """What became of single images; nothing to say of directions by themselves, or where all was one way before."""
    repaired, broken = (cell_of(cases, f"{name}/adaptive", metric, split=split) for metric in ("repaired", "broken"))
    if name != "shadows-pooled" or repaired is None or broken is None:
        return []
    wrong = f"of {repaired['n']} images that base* gets wrong LINA adaptive makes {repaired['value']:.0%} right"
    return [f"{words}: {wrong}, of {broken['n']} that it gets right {broken['value']:.0%} wrong"]


def cell_of(cases: Sequence[Mapping[str, Any]], row: str, metric: str, **fields: Any) -> dict[str, Any] | None:
    """The cell of a row with these fields, None if it was not measured."""
    cells = [cell for case in cases if case["row"] == row for cell in case["cells"] if cell["metric"] == metric]
    fitting = [cell for cell in cells if all(cell.get(name) == value for name, value in fields.items())]
    return fitting[0] if fitting else None


def _mode_bars(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    gain = cell_of(cases, "modes/adaptive", "difference", prior="wrong")
    change = cell_of(cases, "modes/adaptive", "largest_change", prior="right")
    if gain is None or change is None:
        return []
    return [
        _bar("ModeWorld, wrong prior: target rate over base*", gain, f"at least {GAIN:+g}", gain["value"] >= GAIN),
        _bar(
            "ModeWorld, right prior: largest change of a prompt's target rate",
            change,
            f"at most {CHANGE:g}",
            change["value"] <= CHANGE,
        ),
    ]


def _shadow_bars(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    pooled = cell_of(cases, "shadows-pooled/adaptive", "difference", split=OUT, against="base")
    known = cell_of(cases, "shadows-pooled/adaptive", "difference", split=IN, against="base")
    if pooled is None or known is None:
        return []
    bars = [
        _bar("ShadowWorld, held-out prompts, both directions: pap_all over base*", pooled, "interval above 0")
        | {"met": pooled["ci95"][0] > 0}
    ]
    names = {case["row"].partition("/")[0] for case in cases if case["row"].startswith("shadows-ood")}
    for name in sorted(names):
        cell = cell_of(cases, f"{name}/adaptive", "difference", split=OUT, against="base")
        if cell is not None:
            words = f"ShadowWorld, tested on {name.removeprefix('shadows-')}: pap_all over base*"
            bars.append(_bar(words, cell, "interval not below 0", cell["verdict"] != "below"))
    words = "ShadowWorld, prompts of the training set: pap_all over base*"
    return [*bars, _bar(words, known, f"at least {-LOSS:+g}", known["value"] >= -LOSS)]


def _bar(words: str, cell: Mapping[str, Any], bar: str, met: bool = False) -> dict[str, Any]:
    found = {"metric": "gate", "words": words, "value": cell["value"], "n": cell["n"], "bar": bar, "met": met}
    return found | ({"ci95": cell["ci95"]} if "ci95" in cell else {})
