"""What a result file of schema gendiff-bench/1 must hold, checked field by field.

A case is a row of a table of metrics (`cells`), something timed (`timings_s`), or a score (`quality` without times).
Fields that this version does not know are let through, so that a later one may add some.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from gendiff.errors import InvalidInputError

SCHEMA = "gendiff-bench/1"


class Rule:
    """What a value must be: `text` for the message, `holds` for the check."""

    def __init__(self, text: str, holds: Callable[[Any], bool], optional: bool = False):
        self.text, self.holds, self.optional = text, holds, optional

    def __or__(self, other: None) -> Rule:
        """The same, or null, or left out."""
        return Rule(f"{self.text} or null", lambda value: value is None or self.holds(value), optional=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]


TEXT = Rule("a non-empty string", lambda value: isinstance(value, str) and bool(value))
ANY_TEXT = Rule("a string", lambda value: isinstance(value, str))
FLAG = Rule("true or false", lambda value: isinstance(value, bool))
NUMBER = Rule("a finite number", _is_number)
POSITIVE = Rule("a number above 0", lambda value: _is_number(value) and value > 0)
NOT_NEGATIVE = Rule("a number of at least 0", lambda value: _is_number(value) and value >= 0)
WHOLE = Rule("a whole number of at least 0", lambda value: _is_whole(value) and value >= 0)
COUNT = Rule("a whole number of at least 1", lambda value: _is_whole(value) and value >= 1)
BYTES = Rule("a whole number", _is_whole)
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
LIST = Rule("a list", lambda value: isinstance(value, list))
INTERVAL = Rule("two numbers in order", _is_interval)
SHAPE = Rule("a list of whole numbers", lambda value: isinstance(value, list) and all(map(_is_whole, value)))
TIMES = Rule(
    "a non-empty list of numbers above 0",
    lambda value: isinstance(value, list) and bool(value) and all(_is_number(t) and t > 0 for t in value),
)
SHARES = Rule("a list of numbers", lambda value: isinstance(value, list) and all(map(_is_number, value)))
HASH = Rule(
    "64 hexadecimal digits",
    lambda value: isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef"),
)

RESULT = {"created": TEXT, "gendiff": TEXT, "git": OBJECT, "command": TEXT, "env": OBJECT, "cases": LIST}
GIT = {"commit": TEXT | None, "dirty": FLAG | None}
ENV = {
    **dict.fromkeys(("python", "torch", "diffusers", "accelerate", "numpy", "os"), TEXT),
    "cpu_model": ANY_TEXT,
    "cores": COUNT | None,
    "threads": COUNT,
    "device": TEXT,
    "dtype": TEXT,
    "simd": TEXT | None,
    "ram_gib": POSITIVE | None,
    "gpu": TEXT | None,
    "driver": TEXT | None,
    "tf32": FLAG | None,
    "compile": TEXT | None,
    "sdpa_backend": TEXT | None,
    "load_before": OBJECT | None,
    "load_after": OBJECT | None,
}
CALIBRATION = {"gemm_fp32_gflops": POSITIVE, "copy_gbs": POSITIVE}
ROW_CASE = {"row": TEXT, "seed": WHOLE, "cells": LIST}
CELL = {"metric": TEXT, "value": Rule("a number", lambda v: isinstance(v, int | float)), "n": COUNT}
TIMED_CASE = {
    "id": TEXT,
    "pipeline": TEXT,
    "checkpoint_sha256": HASH | None,
    "params": WHOLE | None,
    "shape": SHAPE | None,
    "frames": COUNT | None,
    "batch": COUNT,
    "steps": COUNT | None,
    "nfe": WHOLE | None,
    "guidance": NOT_NEGATIVE | None,
    "scheduler": TEXT | None,
    "seed": WHOLE | None,
    "warmup": WHOLE,
    "repeats": COUNT,
    "timings_s": TIMES,
    "p50": POSITIVE,
    "p90": POSITIVE,
    "min": POSITIVE,
    "iqr": NOT_NEGATIVE,
    "ci95": INTERVAL | None,
    "precise": FLAG | None,
    "images_per_s": POSITIVE,
    "s_per_image": POSITIVE,
    "ms_per_nfe": POSITIVE | None,
    "network_s": POSITIVE | None,
    "load_s": NOT_NEGATIVE | None,
    "compile_s": NOT_NEGATIVE | None,
    "flops_per_sample": POSITIVE | None,
    "achieved_gflops": POSITIVE | None,
    "utilisation": POSITIVE | None,
    "peak_mem_bytes": BYTES | None,
    "peak_mem_reserved_bytes": BYTES | None,
    "mem_kind": TEXT | None,
    "cpu_share": NOT_NEGATIVE | None,
    "cpu_shares": SHARES | None,
    "noisy": FLAG,
    "load_before": OBJECT | None,
    "load_after": OBJECT | None,
    "output_sha256": HASH | None,
    "quality": OBJECT | None,
    "peer": OBJECT | None,
}
QUALITY_CASE = {
    "id": TEXT,
    "pipeline": TEXT,
    "checkpoint_sha256": HASH | None,
    "steps": COUNT | None,
    "nfe": NOT_NEGATIVE | None,
    "scheduler": TEXT | None,
    "seed": WHOLE | None,
    "quality": OBJECT,
}
QUALITY = {"metric": TEXT, "value": NUMBER, "n": COUNT, "extractor": TEXT | None, "ref": TEXT}
PEER = {
    "name": TEXT,
    "version": TEXT,
    "p50": POSITIVE,
    "ratio_p50": POSITIVE,
    "ratio_ci95": INTERVAL,
    "max_abs_diff": NOT_NEGATIVE,
}


def validate(result: Any) -> None:
    """Check a whole result.

    Raises:
        InvalidInputError: names the first field that is missing or wrong, e.g. `cases[2].p50`.
    """
    if not isinstance(result, Mapping):
        raise InvalidInputError(f"a result must be an object, got {type(result).__name__}.")
    if result.get("schema") != SCHEMA:
        raise InvalidInputError(f"schema: expected {SCHEMA!r}, got {result.get('schema')!r}.")
    _check(result, RESULT, "")
    _check(result["git"], GIT, "git.")
    _check(result["env"], ENV, "env.")
    if result.get("calibration") is not None:
        _check(result["calibration"], CALIBRATION, "calibration.")
    for index, case in enumerate(result["cases"]):
        check_case(case, f"cases[{index}]")


def check_case(case: Any, where: str = "case") -> None:
    """Check one case of any kind.

    Raises:
        InvalidInputError: names the first field that is missing or wrong.
    """
    if not isinstance(case, Mapping):
        raise InvalidInputError(f"{where}: expected an object, got {type(case).__name__}.")
    if "cells" in case:
        _check(case, ROW_CASE, f"{where}.")
        for index, cell in enumerate(case["cells"]):
            _check(cell, CELL, f"{where}.cells[{index}].")
        return
    if "quality" in case and "timings_s" not in case:
        _check(case, QUALITY_CASE, f"{where}.")
    else:
        _check(case, TIMED_CASE, f"{where}.")
        _check_times(case, where)
    if case.get("quality") is not None:
        _check(case["quality"], QUALITY, f"{where}.quality.")
    if case.get("peer") is not None:
        _check(case["peer"], PEER, f"{where}.peer.")


def _check(values: Any, rules: Mapping[str, Rule], prefix: str) -> None:
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"{prefix.rstrip('.')}: expected an object, got {type(values).__name__}.")
    for name, rule in rules.items():
        if name not in values:
            if not rule.optional:
                raise InvalidInputError(f"{prefix}{name} is missing; expected {rule.text}.")
        elif not rule.holds(values[name]):
            raise InvalidInputError(f"{prefix}{name}: expected {rule.text}, got {values[name]!r}.")


def _check_times(case: Mapping[str, Any], where: str) -> None:
    """Figures that follow from the timings must agree with them."""
    times = case["timings_s"]
    median = statistics.median(times)
    follows = {
        "repeats": len(times),
        "p50": median,
        "min": min(times),
        "images_per_s": case["batch"] / median,
        "s_per_image": median / case["batch"],
    }
    for name, value in follows.items():
        if not math.isclose(case[name], value, rel_tol=1e-6):
            raise InvalidInputError(f"{where}.{name}: expected {value:g}, as timings_s has it, got {case[name]!r}.")
