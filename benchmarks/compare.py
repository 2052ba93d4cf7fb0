"""Two results of the same benchmark: what became slower or faster, and what only looks so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from report import markdown_table

from gendiff.errors import InvalidInputError

CHANGES_BETWEEN_RUNS = ("load_before", "load_after")
"""Fields of `env` that do not make two results incomparable."""
MUST_AGREE = ("batch", "steps", "nfe", "shape", "frames", "guidance", "scheduler")
"""Fields of two cases with one id that say how much work was timed."""
LEAST_CHANGE = 0.05
"""A smaller change is not flagged, whatever the intervals: code layout alone may move a median that far."""


def compare_results(old: Mapping[str, Any], new: Mapping[str, Any], force: bool = False) -> tuple[str, bool]:
    """Compare timed cases by id.

    A change is flagged when the 95 % intervals of the medians do not overlap and the median moved by more than 5 %.
    Noisy cases are shown and never flagged.

    Args:
        old, new: valid results.
        force: compare though the environments differ.

    Returns: Markdown, and whether something became slower.

    Raises:
        InvalidInputError: the environments differ, or no timed case has the same id in both.
    """
    different = different_environment(old["env"], new["env"])
    if different and not force:
        raise InvalidInputError(f"the environments differ: {'; '.join(different)}. --force compares all the same.")
    before, after = _timed(old), _timed(new)
    shared = [name for name in before if name in after]
    if not shared:
        raise InvalidInputError(f"no timed case is in both; old: {_names(before)}; new: {_names(after)}.")
    judged = {name: judge(before[name], after[name]) for name in shared}
    rows = [[name, *_moved(before[name]["p50"], after[name]["p50"]), word] for name, word in judged.items()]
    lines = [markdown_table(["case", "old p50, ms", "new p50, ms", "change", "verdict"], rows), *_remarks(old, new)]
    if different:
        lines.append(f"Environments differ: {'; '.join(different)}.")
    lines += [f"Only in {which}: {name}" for which, name in _alone(before, after)]
    return "\n\n".join(lines), "slower" in judged.values()


def judge(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """ "slower", "faster", "no difference", or why none of these can be said."""
    changed = [field for field in MUST_AGREE if old.get(field) != new.get(field)]
    if changed:
        return f"not the same work: {', '.join(changed)}"
    if old["noisy"] or new["noisy"]:
        return "noisy"
    if old.get("ci95") is None or new.get("ci95") is None:
        return "too few runs"
    change = new["p50"] / old["p50"] - 1
    if change > LEAST_CHANGE and new["ci95"][0] > old["ci95"][1]:
        return "slower"
    # The same factor the other way round, so that swapping old and new swaps the verdict.
    if old["p50"] / new["p50"] - 1 > LEAST_CHANGE and new["ci95"][1] < old["ci95"][0]:
        return "faster"
    return "no difference"


def different_environment(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Fields of `env` that differ, as "name: old -> new"; a field that one file lacks counts."""
    names = [name for name in {**old, **new} if name not in CHANGES_BETWEEN_RUNS]
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]


def _timed(result: Mapping[str, Any]) -> dict[str, Any]:
    return {case["id"]: case for case in result["cases"] if "timings_s" in case}


def _names(cases: Mapping[str, Any]) -> str:
    return ", ".join(cases) or "none"


def _moved(old: float, new: float) -> tuple[str, str, str]:
    return f"{1e3 * old:.2f}", f"{1e3 * new:.2f}", f"{100 * (new / old - 1):+.1f} %"


def _remarks(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The machine's own speed in both runs, so that a slow hour is not taken for slow code."""
    first, second = old.get("calibration"), new.get("calibration")
    if not first or not second:
        return ["One of the results has no calibration: the machine itself may have been slower."]
    names = {"gemm_fp32_gflops": "GEMM, GFLOP/s", "copy_gbs": "copy, GB/s"}
    rates = ", ".join(f"{text} {first[key]:.1f} -> {second[key]:.1f}" for key, text in names.items())
    return [f"Calibration: {rates}."]


def _alone(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str]]:
    gone = [("old", name) for name in before if name not in after]
    return gone + [("new", name) for name in after if name not in before]
