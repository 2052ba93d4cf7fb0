"""Stages: which lists are allowed, how many tokens they have, and which of them see which."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gendiff.nn.stages import check_stages, stage_mask, stage_numbers, token_counts

TEN = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
LARGE = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SHIPPED = [(1, 2, 3, 4), (1, 2, 3, 4, 5, 7), (1, 2, 3, 4, 6, 8), TEN, (2, 2, 3), (5,)]


def test_token_counts_of_known_lists():
    totals = [sum(token_counts(TEN[: k + 1])) for k in range(10)]
    assert totals == [1, 5, 14, 30, 55, 91, 155, 255, 424, 680]
    assert sum(token_counts(LARGE)) == 2240
    assert sum(token_counts((1, 2, 3, 4, 6, 8))) == 130 and sum(token_counts((1, 2, 3, 4, 5, 7))) == 104


@pytest.mark.parametrize("stages", SHIPPED)
def test_a_token_sees_its_own_stage_and_all_before(stages: tuple[int, ...]):
    numbers = [stage for stage, side in enumerate(stages) for _ in range(side * side)]
    assert stage_numbers(stages).tolist() == numbers
    mask = stage_mask(stages)
    assert mask.dtype == torch.bool and mask.shape == (len(numbers), len(numbers))
    rows, start = mask.tolist(), 0
    for side in stages:
        stop = start + side * side
        expected = [True] * stop + [False] * (len(numbers) - stop)
        assert all(row == expected for row in rows[start:stop])
        start = stop


def test_no_memory_is_needed_to_know_the_stage_of_a_token():
    with torch.device("meta"):
        assert stage_numbers((1, 2)).tolist() == [0, 1, 1, 1, 1]


def test_good_lists_come_back_as_tuples():
    assert check_stages([1, 2, 2, 4], 4) == (1, 2, 2, 4)
    assert check_stages((3,)) == (3,)


BAD: list[tuple[Any, int | None, str]] = [
    ([], 4, r"stages must be positive whole numbers that never decrease, got \[\]"),
    ([0, 1, 4], 4, r"got \[0, 1, 4\]"),
    ([-1, 4], 4, r"got \[-1, 4\]"),
    ([1, 3, 2, 4], 4, r"never decrease, got \[1, 3, 2, 4\]"),
    ([1.0, 4.0], 4, r"whole numbers"),
    ([True, 4], 4, r"whole numbers"),
    ("124", 4, r"whole numbers"),
    ([1, 2, 3], 4, r"stages must end with the side of the latent map, 4, got \[1, 2, 3\]"),
    ([1, 2, 5], 4, r"latent map, 4, got \[1, 2, 5\]"),
]


@pytest.mark.parametrize(("stages", "size", "message"), BAD)
def test_bad_lists_are_named(stages: Any, size: int | None, message: str):
    with pytest.raises(ValueError, match=message):
        check_stages(stages, size)
