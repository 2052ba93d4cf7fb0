"""The cache of rows that light passes read: whose rows they write, what they read, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gendiff.nn.row_cache import RowCache

LAYERS, B, H, ROWS, D = 2, 3, 2, 7, 4
PREFIX = 2
GROUPS = torch.tensor([[4, 0, 2], [1, -1, -1], [3, 2, -1]])
EVEN = torch.tensor([[4, 0, 2], [1, 3, 0], [3, 2, 4]])


def draw(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Keys and values (B, H, rows, d)."""
    k, v = torch.randn(2, B, H, rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return k, v


def filled(recompute_prefix: bool = True, layout: Any = "in_place", dtype: torch.dtype | None = None) -> RowCache:
    cache = RowCache(LAYERS, ROWS, PREFIX, recompute_prefix, layout, dtype)
    for layer in range(LAYERS):
        cache.update(layer, *draw(ROWS, layer), None)
    cache.commit()
    return cache


def by_hand(old: Tensor, new: Tensor, rows: Tensor) -> Tensor:
    old = old.clone()
    for sample in range(B):
        for entry, row in enumerate(rows[sample].tolist()):
            if row >= 0:
                old[sample, :, row] = new[sample, :, entry]
    return old


def in_order(part: Tensor) -> Tensor:
    """Rows (B, H, R, d) sorted by their first number: attention does not mind their order."""
    return part.gather(2, part[..., :1].argsort(dim=2).expand_as(part))


def test_positions_become_rows_behind_the_prefix():
    assert filled().key_rows(GROUPS).tolist() == [[0, 1, 6, 2, 4], [0, 1, 3, -1, -1], [0, 1, 5, 4, -1]]
    assert filled(recompute_prefix=False).key_rows(GROUPS).tolist() == [[6, 2, 4], [3, -1, -1], [5, 4, -1]]
    assert RowCache(LAYERS, ROWS).key_rows(GROUPS).tolist() == GROUPS.tolist()


@pytest.mark.parametrize("recompute_prefix", [True, False])
@pytest.mark.parametrize("layout", ["in_place", "concat"])
def test_a_light_pass_reads_its_rows_anew_and_the_others_as_they_were(layout: Any, recompute_prefix: bool):
    group = EVEN if layout == "concat" else GROUPS
    cache = filled(recompute_prefix, layout)
    expected = [draw(ROWS, layer) for layer in range(LAYERS)]
    for turn in (10, 20, 30):
        rows = cache.key_rows(group)
        for layer in range(LAYERS):
            new = draw(rows.shape[1], turn + layer)
            got = cache.update(layer, *new, rows)
            for index in range(2):
                wanted = by_hand(expected[layer][index], new[index], rows)
                assert got[index].shape == (B, H, ROWS, D)
                assert torch.equal(in_order(got[index]), in_order(wanted))
                if layout == "in_place":
                    assert torch.equal(got[index], wanted)
                else:  # fresh ones last, and nothing is written
                    assert torch.equal(got[index][:, :, -rows.shape[1] :], new[index])
                    assert torch.equal(cache.keys_values.read(layer)[index], expected[layer][index])
        cache.commit()


def test_keys_stay_beside_their_values():
    """Attention over rows in another order says the same only if both are moved alike."""
    caches = [filled(layout=layout) for layout in ("in_place", "concat")]
    q = draw(1, 99)[0]
    rows = [cache.key_rows(EVEN) for cache in caches]
    heard = []
    for cache, wanted in zip(caches, rows, strict=True):
        k, v = cache.update(0, *draw(wanted.shape[1], 5), wanted)
        heard.append((q @ k.mT).softmax(dim=-1) @ v)
    assert (heard[0] - heard[1]).abs().max() <= 1e-12


def test_a_group_may_differ_from_pass_to_pass():
    in_place, concat = filled(), filled(layout="concat")
    for turn, group in enumerate([EVEN, EVEN[:, :2], EVEN.flip(1)]):
        if turn:  # a concat layout is that of one group: the next full pass takes another
            for cache in (in_place, concat):
                cache.begin()
                for layer in range(LAYERS):
                    cache.update(layer, *draw(ROWS, layer), None)
                cache.commit()
        for layer in range(LAYERS):
            parts = []
            for cache in (in_place, concat):
                rows = cache.key_rows(group)
                parts.append((cache, rows, draw(rows.shape[1], 40 + layer)))
            first, second = (cache.update(layer, *new, rows) for cache, rows, new in parts)
            assert all(torch.equal(in_order(a), in_order(b)) for a, b in zip(first, second, strict=True))
        for cache in (in_place, concat):
            cache.commit()


def test_memory_is_taken_once_and_told():
    cache = RowCache(LAYERS, ROWS, PREFIX)
    assert cache.nbytes == 0 and cache.cost_key == (0, True)
    whole = LAYERS * 2 * B * H * ROWS * D * 8
    for _ in range(2):
        cache.begin()
        for layer in range(LAYERS):
            cache.update(layer, *draw(ROWS, layer), None)
        cache.commit()
        assert cache.nbytes == whole and cache.cost_key == (ROWS, True)
    assert filled(recompute_prefix=False).cost_key == (ROWS, False)


@pytest.mark.parametrize("layout", ["in_place", "concat"])
def test_rows_are_kept_in_the_dtype_asked_for_and_read_in_their_own(layout: Any):
    cache = filled(layout=layout, dtype=torch.bfloat16)
    assert cache.nbytes == LAYERS * 2 * B * H * ROWS * D * 2
    rows, new = cache.key_rows(EVEN), draw(PREFIX + 3, 8)
    k, v = cache.update(0, *new, rows)
    assert k.dtype == v.dtype == torch.float64
    expected = [by_hand(a, b, rows).to(torch.bfloat16).double() for a, b in zip(draw(ROWS, 0), new, strict=True)]
    assert torch.equal(in_order(k), in_order(expected[0])) and torch.equal(in_order(v), in_order(expected[1]))


def test_a_failed_pass_can_be_rolled_back():
    cache = filled()
    before = [torch.stack(cache.keys_values.read(layer)).clone() for layer in range(LAYERS)]
    rows = cache.key_rows(GROUPS)
    cache.update(0, *draw(rows.shape[1], 7), rows)
    with pytest.raises(ValueError, match="mid-pass"):
        cache.commit()
    cache.rollback()
    assert all(torch.equal(torch.stack(cache.keys_values.read(i)), old) for i, old in enumerate(before))
    cache.begin()
    cache.update(0, *draw(ROWS, 3), None)
    assert torch.equal(cache.keys_values.read(0)[0], draw(ROWS, 3)[0])


@pytest.mark.parametrize("layout", ["in_place", "concat"])
def test_rows_must_be_there_and_distinct(layout: Any):
    new = draw(PREFIX + 3, 7)
    empty = RowCache(LAYERS, ROWS, PREFIX, layout=layout)
    with pytest.raises(ValueError, match=r"expected 0 \.\. length - 1 = -1"):
        empty.update(0, *new, empty.key_rows(EVEN))
    cache = filled(layout=layout)
    for bad, message in [(5, r"expected 0 \.\. length - 1 = 6"), (int(EVEN[0, 1]), "a row twice")]:
        group = EVEN.clone()
        group[0, 0] = bad
        with pytest.raises(ValueError, match=message):
            cache.update(0, *new, cache.key_rows(group))
    if layout == "concat":
        with pytest.raises(ValueError, match="'concat' needs groups of one size in the whole batch; use 'in_place'"):
            cache.update(0, *new, cache.key_rows(GROUPS))
