"""The memory of a walk over stages counts what it holds."""

from __future__ import annotations

import torch

from gendiff.nn.stage_cache import StageCache


def append(cache: StageCache, rows: int) -> None:
    for layer in range(2):
        part = torch.ones(3, 2, rows, 4)
        cache.keys_values.append(layer, part, part)
    cache.keys_values.commit()


def test_it_counts_tokens_and_bytes():
    cache = StageCache(num_layers=2, num_tokens=5)
    assert cache.length == cache.cost_key == cache.nbytes == 0 and cache.modulations is None
    append(cache, 1)
    whole = 2 * 2 * 3 * 2 * 5 * 4 * 4  # layers, keys and values, batch, heads, all tokens at once, width, bytes
    assert cache.length == cache.cost_key == 1 and cache.nbytes == whole
    cache.modulations = [torch.zeros(3, 1, 6, 8), torch.zeros(3, 1, 2, 8)]
    append(cache, 4)
    assert cache.length == cache.cost_key == 5
    assert cache.nbytes == whole + 4 * 3 * 8 * 8
