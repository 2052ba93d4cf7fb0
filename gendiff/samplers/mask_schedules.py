"""How many tokens stay hidden, how strong guidance is, how warm the dice are: numbers in, numbers out.

Sources: Chang et al. 2022 (MaskGIT) and its code for cosine, linear, pow, log and exp; Besnier et al. 2025
(Halton-MaskGIT), Weber et al. 2024 (MaskBit), Yu et al. 2024 (TiTok) for arccos and root; Li et al. 2024 (MAR).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

SCHEDULES = ("cosine", "arccos", "linear", "root", "log", "exp", "pow<p>")
GUARDS = ("clamp", "ceil", "borrow_last")
GUIDANCE_SCHEDULES = ("constant", "linear_step", "linear_open", "linear_revealed", "power_cosine")
SAMPLING_SCHEDULES = ("constant", "sqrt", "annealed")

POWER = 2.5
"""Exponent of `power_cosine`, as in MaskBit's recipes of 64 steps and more."""


def mask_ratio(ratio: float, schedule: str, num_tokens: int = 256) -> float:
    """Share of tokens that is hidden after a share `ratio` of the steps: 1 at 0, 0 at 1, falling.

    Args:
        ratio: r, from 0 to 1.
        schedule: one of `SCHEDULES`; "pow2.5" is 1 - r^2.5.
        num_tokens: N, which "log" and "exp" need.

    Raises:
        ValueError: an unknown schedule, or a ratio outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be from 0 to 1, got {ratio!r}.")
    power = power_of(schedule)
    if ratio in (0, 1):
        return 1.0 - ratio
    if power is not None:
        return 1 - ratio**power
    if schedule == "cosine":
        return math.cos(math.pi * ratio / 2)
    if schedule == "arccos":
        return math.acos(ratio) / (math.pi / 2)
    if schedule == "root":
        return 1 - math.sqrt(ratio)
    whole = math.log(max(num_tokens, 2))
    if schedule == "log":
        return min(1.0, -math.log(ratio) / whole)
    return 1 - math.exp(-whole * (1 - ratio))


def power_of(schedule: str) -> float | None:
    """Exponent of a schedule 1 - r^p, None for another one.

    Raises:
        ValueError: it is unknown.
    """
    if schedule == "linear":
        return 1.0
    if schedule in SCHEDULES[:-1]:
        return None
    found = re.fullmatch(r"pow(\d+(?:\.\d+)?)", str(schedule))
    if found is None or float(found[1]) == 0:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    return float(found[1])


def reveal_counts(num_steps: int, unknown: int, schedule: str = "cosine", guard: str = "clamp") -> list[int]:
    """Tokens revealed at each step, at least one each; they add up to `unknown`.

    Args:
        num_steps: T; with fewer tokens than that, as many steps as tokens.
        unknown: tokens hidden at the start; 0 gives no step.
        schedule: see `mask_ratio`.
        guard: what keeps a step from revealing nothing. "clamp": hidden counts are rounded down and fall by at least
            one a step; "ceil": the same, rounded up (Halton-MaskGIT); "borrow_last": they are rounded down, and what a
            step lacks is taken from the last one (AutoNAT, ReCAP's recipe), or the last that has any to spare.

    Raises:
        ValueError: an argument out of range.
    """
    check_steps(num_steps)
    if guard not in GUARDS:
        raise ValueError(f"guard must be one of {', '.join(GUARDS)}, got {guard!r}.")
    count = min(num_steps, unknown)
    ratios = [mask_ratio((t + 1) / count, schedule, unknown) for t in range(count)]
    if guard == "borrow_last":
        return _borrowed([math.floor(unknown * ratio) for ratio in ratios], unknown)
    rounded, left, revealed = math.ceil if guard == "ceil" else math.floor, unknown, []
    for t, ratio in enumerate(ratios):
        # As many must be left as there are steps to come, and one fewer at least than before.
        hidden = max(count - 1 - t, min(left - 1, rounded(unknown * ratio)))
        revealed.append(left - hidden)
        left = hidden
    return revealed


def _borrowed(hidden: Sequence[int], unknown: int) -> list[int]:
    revealed = [before - after for before, after in zip([unknown, *hidden], hidden, strict=False)]
    for t, count in enumerate(revealed):
        if count == 0:
            # There is one, as there are no more steps than tokens.
            lender = max(other for other, number in enumerate(revealed) if number > 1)
            revealed[t] = 1
            revealed[lender] -= 1
    return revealed


def guidance_at(schedule: str, scale: float, step: int, num_steps: int, hidden_share: float) -> float:
    """Strength of guidance at a step, in diffusers' convention: 1 = off.

    Args:
        schedule: "constant"; "linear_step" from 1 to `scale` at the last step (Halton-MaskGIT by confidence);
            "linear_open", the same with t / T, which never arrives (MaskBit, TiTok); "linear_revealed" by the share
            revealed after the step (MAR, after Muse); "power_cosine" (MaskBit).
        scale: s. A strength w that is 0 when off, as most of these write it, is s - 1.
        step: t, from 0.
        num_steps: T.
        hidden_share: M_t / N, what is hidden after the step.

    Raises:
        ValueError: an unknown schedule, or a scale that is negative or not finite.
    """
    check_guidance(schedule, scale)
    if schedule == "constant":
        return scale
    shares = {
        "linear_step": step / (num_steps - 1) if num_steps > 1 else 1.0,
        "linear_open": step / num_steps,
        "linear_revealed": 1 - hidden_share,
        "power_cosine": (1 - math.cos(math.pi * (step / num_steps) ** POWER)) / 2,
    }
    return 1 + (scale - 1) * shares[schedule]


def confidence_temperature_at(temperature: float | Sequence[float], ratio: float, share: float) -> float:
    """Weight of the noise in a confidence.

    Args:
        temperature: tau, which falls linearly to 0 at the end: tau (1 - ratio); or (first, last), for evenly spaced
            values (aMUSEd).
        ratio: r = (t + 1) / T.
        share: t / (T - 1).
    """
    if isinstance(temperature, int | float):
        return temperature * (1 - ratio)
    first, last = temperature
    return first + (last - first) * share


def sampling_temperature_at(schedule: str, temperature: float, ratio: float, share: float) -> float:
    """What logits are divided by before a token is drawn.

    Args:
        schedule: "constant"; "sqrt", from 1 to `temperature` (ReCAP's recipe); "annealed", 0.5 + 0.8 (1 - r) times
            `temperature` (MaskBit, TiTok).
        temperature: theta.
        ratio: r = (t + 1) / T.
        share: t / (T - 1).
    """
    if schedule == "sqrt":
        return temperature + (1 - math.sqrt(share)) * (1 - temperature)
    if schedule == "annealed":
        return temperature * (0.5 + 0.8 * (1 - ratio))
    return temperature


def halton_order(height: int, width: int) -> list[int]:
    """Positions of a grid, row by row, in the order in which Halton's points of bases 2 and 3 first fall on them.

    The first point is (1/2, 1/3). Points are made until the grid is covered.

    Source: Besnier et al. 2025 (Halton-MaskGIT, arXiv 2503.17076), section 3.
    """
    seen: dict[int, None] = {}
    index = 1
    while len(seen) < height * width:
        seen.setdefault(_halton_cell(index, 2, height) * width + _halton_cell(index, 3, width))
        index += 1
    return list(seen)


def _halton_cell(index: int, base: int, cells: int) -> int:
    """Which of `cells` equal parts of [0, 1) holds the digits of `index` mirrored at the point."""
    # In whole numbers: a grid whose side the base divides has points on the very edges of cells.
    value, whole = 0, 1
    while index:
        index, digit = divmod(index, base)
        value, whole = value * base + digit, whole * base
    return value * cells // whole


def check_steps(num_steps: Any) -> None:
    """Raise ValueError unless it is a whole number of at least 1."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_inference_steps must be a whole number of at least 1, got {num_steps!r}.")


def check_guidance(schedule: str, scale: Any) -> None:
    """Raise ValueError unless guidance can be scheduled so."""
    if schedule not in GUIDANCE_SCHEDULES:
        raise ValueError(f"guidance_schedule must be one of {', '.join(GUIDANCE_SCHEDULES)}, got {schedule!r}.")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
        raise ValueError(f"guidance_scale must be finite and at least 0, got {scale!r}.")
