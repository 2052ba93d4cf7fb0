"""Schedules of masked generation: their ends and values by hand, and counts that always add up."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

from gendiff.samplers.mask_schedules import (
    check_guidance,
    check_steps,
    confidence_temperature_at,
    guidance_at,
    halton_order,
    mask_ratio,
    power_of,
    reveal_counts,
    sampling_temperature_at,
)

NAMES = ["cosine", "arccos", "linear", "root", "log", "exp", "pow1.5", "pow2.5", "pow3"]
GUARDS = ["clamp", "ceil", "borrow_last"]

# Shares hidden


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [2, 64, 1024])
def test_all_is_hidden_at_first_and_nothing_at_last_and_it_never_rises(name: str, count: int):
    shares = [mask_ratio(i / 200, name, count) for i in range(201)]
    assert shares[0] == 1 and shares[-1] == 0
    assert all(1 >= a >= b >= 0 for a, b in pairwise(shares))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cosine", math.sqrt(3) / 2),
        ("arccos", 0.7836531040612146),
        ("linear", 2 / 3),
        ("root", 1 - 1 / math.sqrt(3)),
        ("pow2", 8 / 9),
        ("pow2.5", 1 - 3**-2.5),
        ("log", math.log(3) / math.log(81)),
        ("exp", 1 - 81 ** (-2 / 3)),
    ],
)
def test_a_third_of_the_way_by_hand(name: str, value: float):
    assert mask_ratio(1 / 3, name, 81) == pytest.approx(value, abs=1e-12)


def test_arccos_is_cosine_with_its_axes_swapped():
    for i in range(11):
        assert mask_ratio(mask_ratio(i / 10, "cosine"), "arccos") == pytest.approx(i / 10, abs=1e-12)


@pytest.mark.parametrize("name", ["cosin", "pow", "pow-1", "pow0", "pow0.0", "powx", "pow<p>", "", "Cosine", None, 2])
def test_unknown_schedules_are_refused_and_the_known_ones_listed(name: Any):
    for use in (power_of, lambda name: mask_ratio(0.5, name), lambda name: reveal_counts(4, 16, name)):
        with pytest.raises(ValueError, match=r"schedule must be one of cosine, arccos, .*, pow<p>, got "):
            use(name)


@pytest.mark.parametrize("ratio", [-0.1, 1.0001, math.nan])
def test_a_ratio_outside_of_its_range_is_refused(ratio: float):
    with pytest.raises(ValueError, match="ratio must be from 0 to 1, got"):
        mask_ratio(ratio, "cosine")


# Counts


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cosine", [5, 15, 24, 31, 39, 45, 48, 49]),
        ("arccos", [21, 21, 21, 23, 25, 28, 35, 82]),
        ("linear", [32] * 8),
        ("pow2.5", [2, 6, 15, 23, 34, 45, 59, 72]),
    ],
)
def test_256_tokens_in_8_steps(name: str, counts: list[int]):
    assert reveal_counts(8, 256, name) == counts


def test_the_guards_differ_where_a_step_would_reveal_nothing():
    borrowed, clamped = (reveal_counts(32, 256, "pow2.5", guard) for guard in ("borrow_last", "clamp"))
    assert borrowed[:11] == [1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4] and borrowed[-2:] == [19, 17]
    assert clamped[:10] == [1] * 8 + [3, 3] and clamped[-2:] == [19, 19]


def test_borrowing_goes_on_where_the_last_step_has_nothing_left():
    """8 tokens by 1 - r^2.5: rounded down, 7, 7, 5, 3 and 0 are left of them; in 7 steps 7, 7, 7, 6, 4, 2 and 0."""
    assert reveal_counts(5, 8, "pow2.5", "borrow_last") == [1, 1, 2, 2, 2]
    assert reveal_counts(7, 8, "pow2.5", "borrow_last") == [1, 1, 1, 1, 2, 1, 1]


def test_rounding_up_is_the_count_that_halton_maskgit_reveals():
    """R_t = max(t + 1, floor(N (1 - acos(r) / (pi / 2))))."""
    for steps, tokens in ((8, 256), (32, 256), (64, 1024), (12, 16)):
        shares = [1 - math.acos((t + 1) / steps) / (math.pi / 2) for t in range(steps)]
        revealed = [max(t + 1, math.floor(tokens * share)) for t, share in enumerate(shares)]
        counts = reveal_counts(steps, tokens, "arccos", "ceil")
        assert [sum(counts[: t + 1]) for t in range(steps)] == revealed


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_step_reveals_something_and_all_of_them_everything(name: str, guard: str):
    for steps in (1, 2, 5, 12, 32):
        for unknown in (0, 1, 2, 3, 5, 8, 13, 31, 33, 64, 257):
            counts = reveal_counts(steps, unknown, name, guard)
            assert len(counts) == min(steps, unknown)
            assert sum(counts) == unknown
            assert all(count >= 1 for count in counts)


@pytest.mark.parametrize("name", ["cosine", "arccos", "linear", "pow2.5"])
def test_what_stays_hidden_is_the_schedules_share_but_for_rounding_where_no_guard_is_needed(name: str):
    for guard, off in (("clamp", -1), ("ceil", 1)):
        counts, left = reveal_counts(8, 4096, name, guard), 4096
        for t, count in enumerate(counts):
            left -= count
            exact = 4096 * mask_ratio((t + 1) / 8, name)
            assert min(0, off) <= left - exact <= max(0, off)


def test_more_steps_than_tokens_are_as_many_steps_as_tokens():
    assert reveal_counts(12, 5) == [1] * 5
    assert reveal_counts(3, 0) == []


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "4", None])
def test_bad_numbers_of_steps_are_refused(steps: Any):
    for use in (check_steps, lambda steps: reveal_counts(steps, 16)):
        with pytest.raises(ValueError, match="num_inference_steps must be a whole number of at least 1, got"):
            use(steps)


def test_an_unknown_guard_is_refused():
    with pytest.raises(ValueError, match="guard must be one of clamp, ceil, borrow_last, got 'clip'"):
        reveal_counts(4, 16, guard="clip")


# Guidance


@pytest.mark.parametrize(
    ("name", "first", "second", "last"),
    [
        # s = 4, T = 5, and a fifth of all tokens revealed at each step.
        ("constant", 4.0, 4.0, 4.0),
        ("linear_step", 1.0, 1 + 3 / 4, 4.0),
        ("linear_open", 1.0, 1 + 3 / 5, 1 + 3 * 4 / 5),
        ("linear_revealed", 1 + 3 / 5, 1 + 3 * 2 / 5, 4.0),
        (
            "power_cosine",
            1.0,
            1 + 3 * (1 - math.cos(math.pi * 0.2**2.5)) / 2,
            1 + 3 * (1 - math.cos(math.pi * 0.8**2.5)) / 2,
        ),
    ],
)
def test_guidance_by_hand(name: str, first: float, second: float, last: float):
    found = [guidance_at(name, 4.0, t, 5, 1 - (t + 1) / 5) for t in range(5)]
    assert found[0] == pytest.approx(first, abs=1e-12)
    assert found[1] == pytest.approx(second, abs=1e-12)
    assert found[-1] == pytest.approx(last, abs=1e-12)


@pytest.mark.parametrize("name", ["constant", "linear_step", "linear_open", "linear_revealed", "power_cosine"])
def test_a_scale_of_one_is_off_at_every_step_to_the_bit(name: str):
    assert all(guidance_at(name, 1.0, t, 7, 0.3) == 1 for t in range(7))


@pytest.mark.parametrize("strength", [0.0, 0.5, 3.0])
def test_a_strength_that_is_zero_when_off_is_a_scale_of_one_more(strength: float):
    """(1 + w) c - w u = u + s (c - u) with s = 1 + w, at every step."""
    wanted, other = 1.7, -0.4
    for t in range(6):
        weight = strength * t / 5
        ours = guidance_at("linear_step", 1 + strength, t, 6, 0.0)
        assert other + ours * (wanted - other) == pytest.approx((1 + weight) * wanted - weight * other, abs=1e-12)


def test_one_step_is_the_last_one():
    assert guidance_at("linear_step", 3.0, 0, 1, 0.0) == 3
    assert guidance_at("linear_revealed", 3.0, 0, 1, 0.0) == 3


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf, "2", True, None])
def test_bad_scales_are_refused(scale: Any):
    for use in (lambda scale: check_guidance("constant", scale), lambda scale: guidance_at("constant", scale, 0, 1, 0)):
        with pytest.raises(ValueError, match="guidance_scale must be finite and at least 0, got"):
            use(scale)


def test_an_unknown_guidance_schedule_is_refused():
    with pytest.raises(ValueError, match=r"guidance_schedule must be one of constant, linear_step, .* got 'cosine'"):
        guidance_at("cosine", 2.0, 0, 1, 0.0)


# Temperatures


def test_the_weight_of_noise_falls_to_zero_or_from_one_value_to_another():
    assert [confidence_temperature_at(4.5, (t + 1) / 3, t / 2) for t in range(3)] == pytest.approx([3.0, 1.5, 0.0])
    assert [confidence_temperature_at((2.0, 0.5), 0.0, t / 3) for t in range(4)] == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_sampling_temperatures_by_hand():
    """theta + (1 - sqrt(t / (T - 1))) (1 - theta), and 0.5 + 0.8 (1 - r)."""
    assert sampling_temperature_at("constant", 0.7, 0.25, 0.0) == 0.7
    sqrt = [sampling_temperature_at("sqrt", 0.75, (t + 1) / 5, t / 4) for t in range(5)]
    assert sqrt == pytest.approx([1.0, 0.875, 1 - 0.25 * math.sqrt(0.5), 1 - 0.25 * math.sqrt(0.75), 0.75])
    annealed = [sampling_temperature_at("annealed", 2.0, (t + 1) / 4, t / 3) for t in range(4)]
    assert annealed == pytest.approx([2.2, 1.8, 1.4, 1.0])


# Halton's order


def exact_point(index: int, base: int) -> Fraction:
    digits, rest = [], index
    while rest:
        rest, digit = divmod(rest, base)
        digits.append(digit)
    return sum((Fraction(digit, base ** (i + 1)) for i, digit in enumerate(digits)), Fraction(0))


@pytest.mark.parametrize(("side", "points"), [(3, None), (9, None), (16, 685), (32, 2292)])
def test_cells_come_in_the_order_of_exact_points_and_so_many_points_cover_them(side: int, points: int | None):
    seen: dict[int, int] = {}
    index = 0
    while len(seen) < side * side:
        index += 1
        row, column = (math.floor(exact_point(index, base) * side) for base in (2, 3))
        seen.setdefault(row * side + column, index)
    assert halton_order(side, side) == list(seen)
    if points is not None:
        assert index == points


def test_a_grid_of_64_needs_more_than_ten_thousand_points():
    order = halton_order(64, 64)
    assert sorted(order) == list(range(4096))
    row, column = (math.floor(exact_point(10363, base) * 64) for base in (2, 3))
    assert order[-1] == row * 64 + column


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 4), (3, 7), (16, 8)])
def test_the_order_is_a_permutation_of_the_grid(height: int, width: int):
    assert sorted(halton_order(height, width)) == list(range(height * width))


def test_the_first_points_by_hand():
    """(1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9), (3/8, 2/9) on a grid of 4."""
    assert halton_order(4, 4)[:6] == [2 * 4 + 1, 1 * 4 + 2, 3 * 4 + 0, 0 * 4 + 1, 2 * 4 + 3, 1 * 4 + 0]


def test_any_first_part_of_the_order_is_spread_over_the_picture():
    """Of 64 of 256 cells each quarter has about 16; row by row it would be 32, 32, 0 and 0."""
    quarters = [0] * 4
    for cell in halton_order(16, 16)[:64]:
        quarters[2 * (cell // 16 >= 8) + (cell % 16 >= 8)] += 1
    assert all(14 <= count <= 18 for count in quarters)
