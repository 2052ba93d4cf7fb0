from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from gendiff.nn.kv_cache import AppendKVCache, KVCache, RingKVCache, ScatterKVCache

LAYERS, BATCH, HEADS, DIM = 2, 3, 2, 4
STORAGES = [AppendKVCache, RingKVCache, ScatterKVCache]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pairs(rows: int, seed: int = 0, layers: int = LAYERS, **layout: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer for one pass."""
    shape = (layout.get("batch", BATCH), layout.get("heads", HEADS), rows, layout.get("dim", DIM))
    return [(draw(*shape, seed=seed + 2 * layer), draw(*shape, seed=seed + 2 * layer + 1)) for layer in range(layers)]


def write(cache: KVCache, new: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [cache.append(layer, k, v) for layer, (k, v) in enumerate(new)]


def contents(cache: KVCache) -> list[Tensor]:
    """A copy of all that attention may read."""
    return [tensor.clone() for layer in range(cache.num_layers) for tensor in cache.read(layer)]


def assert_equal(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


class Reference:
    """The same contract by concatenation: every state is a new list of positions and new tensors."""

    def __init__(self, new: list[tuple[Tensor, Tensor]]):
        self.empty = ([], [t[:, :, :0] for pair in new for t in pair])
        self.now = self.committed = self.empty
        self.count = self.committed_count = 0

    def append(self, new: list[tuple[Tensor, Tensor]]) -> None:
        positions, tensors = self.now
        flat = [t for pair in new for t in pair]
        rows = flat[0].shape[2]
        tensors = [torch.cat((old, t), dim=2) for old, t in zip(tensors, flat, strict=True)]
        self.now = ([*positions, *range(self.count, self.count + rows)], tensors)
        self.count += rows

    def scatter(self, rows: Tensor, new: list[tuple[Tensor, Tensor]]) -> None:
        tensors = [tensor.clone() for tensor in self.now[1]]
        for tensor, t in zip(tensors, [t for pair in new for t in pair], strict=True):
            for b in range(rows.shape[0]):
                for i, row in enumerate(rows[b].tolist()):
                    if row >= 0:
                        tensor[b, :, row] = t[b, :, i]
        self.now = (self.now[0], tensors)

    def commit(self) -> None:
        self.committed, self.committed_count = self.now, self.count

    def rollback(self) -> None:
        self.now, self.count = self.committed, self.committed_count

    def reset(self) -> None:
        self.now = self.committed = self.empty
        self.count = self.committed_count = 0

    def evict(self, sinks: int, window: int) -> None:
        positions, tensors = self.now
        n = len(positions)
        if n > window:
            keep = [*range(sinks), *range(n - (window - sinks), n)]
            self.now = ([positions[i] for i in keep], [tensor[:, :, keep] for tensor in tensors])
            self.commit()

    def snapshot(self):
        return self.committed, self.committed_count

    def restore(self, snapshot) -> None:
        self.committed, self.committed_count = snapshot
        self.rollback()


def distinct_rows(length: int, width: int, seed: int) -> Tensor:
    """Distinct rows for each sample, about a third of them padding."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(length, generator=generator)[:width] for _ in range(BATCH)])
    return rows.masked_fill(torch.rand(rows.shape, generator=generator) < 0.3, -1)


def run(storage: type[KVCache], operations: list[tuple[str, int]], sinks: int) -> None:
    """Drive a cache and the reference through `operations`, compare everything after each."""
    capacity = 9
    cache, reference = storage(LAYERS, capacity), Reference(pairs(1))
    write(cache, pairs(1))
    cache.rollback()
    snapshots = [(cache.snapshot(), reference.snapshot())]
    for step, (operation, size) in enumerate(operations):
        seed = 100 * step
        if operation == "append" and cache.length + size > capacity:
            with pytest.raises(ValueError, match="capacity"):
                cache.append(0, *pairs(size)[0])
        elif operation == "append":
            reference.append(pairs(size, seed))
            returned = write(cache, pairs(size, seed))
            assert_equal([t for pair in returned for t in pair][-2:], reference.now[1][-2:])
        elif operation == "abandon" and cache.length < capacity:
            cache.append(0, *pairs(1, seed)[0])
            cache.rollback()
            reference.rollback()
        elif operation == "scatter" and cache.length and storage is ScatterKVCache:
            rows = distinct_rows(cache.length, min(size, cache.length), seed)
            new = pairs(rows.shape[1], seed)
            for layer, (k, v) in enumerate(new):
                cache.scatter(layer, rows, k, v)
            reference.scatter(rows, new)
        elif operation == "evict" and storage is RingKVCache:
            cache.commit()
            reference.commit()
            cache.evict(sinks, sinks + size)
            reference.evict(sinks, sinks + size)
        elif operation == "commit":
            cache.commit()
            reference.commit()
        elif operation == "rollback":
            cache.rollback()
            reference.rollback()
        elif operation == "reset":
            cache.reset()
            reference.reset()
        elif operation == "snapshot":
            cache.commit()
            reference.commit()
            snapshots.append((cache.snapshot(), reference.snapshot()))
        elif operation == "restore":
            mine, theirs = snapshots[size % len(snapshots)]
            cache.restore(mine)
            reference.restore(theirs)
        assert cache.positions == reference.now[0]
        assert cache.length == len(reference.now[0])
        assert cache.next_position == reference.count
        assert_equal(contents(cache), reference.now[1])


OPERATIONS = st.sampled_from(
    ["append", "append", "append", "abandon", "scatter", "evict", "commit", "rollback", "snapshot", "restore", "reset"]
)


@pytest.mark.parametrize("storage", STORAGES)
@given(operations=st.lists(st.tuples(OPERATIONS, st.integers(1, 5)), max_size=30), sinks=st.integers(0, 3))
@settings(derandomize=True, max_examples=80, deadline=None)
def test_equals_concatenation_under_random_operations(storage, operations, sinks):
    run(storage, operations, sinks)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_reset_forgets_all_rows_also_in_mid_pass_and_keeps_the_memory(storage):
    cache = storage(LAYERS, 9)
    write(cache, pairs(4))
    cache.commit()
    cache.append(0, *pairs(2, seed=20)[0])
    memory, held = cache.read(0)[0].untyped_storage().data_ptr(), cache.nbytes
    snapshot = storage(LAYERS, 9).snapshot()
    cache.reset()
    assert (cache.length, cache.positions, cache.next_position, cache.nbytes) == (0, [], 0, held)
    new = pairs(9, seed=40)
    assert_equal([t for pair in write(cache, new) for t in pair], [t for pair in new for t in pair])
    assert cache.read(0)[0].untyped_storage().data_ptr() == memory
    cache.rollback()
    assert cache.length == 0, "what was there before the reset does not come back"
    cache.restore(snapshot)
    assert cache.length == 0


@pytest.mark.parametrize("storage", STORAGES)
def test_a_snapshot_outlives_a_reset(storage):
    cache = storage(LAYERS, 9)
    write(cache, pairs(4))
    cache.commit()
    before, snapshot = contents(cache), cache.snapshot()
    cache.reset()
    write(cache, pairs(4, seed=20))
    cache.commit()
    cache.restore(snapshot)
    assert_equal(contents(cache), before)


def test_a_reset_frees_the_sinks():
    cache = RingKVCache(1, 6)
    for _ in range(3):
        write(cache, pairs(2, layers=1))
        cache.commit()
        cache.evict(1, 4)
    cache.reset()
    write(cache, pairs(6, layers=1))
    cache.commit()
    cache.evict(2, 3)
    assert cache.positions == [0, 1, 5]


@pytest.mark.parametrize("sinks", [0, 2])
def test_ring_equals_concatenation_over_many_laps(sinks):
    chunk = [("append", 2), ("rollback", 1), ("append", 3), ("rollback", 1), ("append", 2), ("evict", 5)]
    run(RingKVCache, [*chunk * 6, ("append", 1), ("rollback", 1), *chunk * 3], sinks)


# Attention


def rotate(x: Tensor, positions: list[int]) -> Tensor:
    """Rotary embedding of rows (B, H, R, d) at absolute `positions`."""
    half = x.shape[-1] // 2
    angle = torch.tensor(positions, dtype=x.dtype)[:, None] * 0.7 ** torch.arange(half, dtype=x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=-1)


class TinyTransformer:
    """Attention layers with residuals on (B, R, heads * dim); float64, no norm, weights drawn from a seed."""

    def __init__(self, heads: int, dim: int, layers: int):
        self.heads, self.width = heads, heads * dim
        self.weights = [draw(self.width, 4 * self.width, seed=50 + i) / self.width**0.5 for i in range(layers)]

    def project(self, layer: int, x: Tensor) -> list[Tensor]:
        q, k, v, _ = (x @ self.weights[layer]).chunk(4, dim=-1)
        return [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v)]

    def mix(self, layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return x + attended @ self.weights[layer][:, 3 * self.width :]

    def full(self, x: Tensor, mask: Tensor) -> Tensor:
        positions = list(range(x.shape[1]))
        for layer in range(len(self.weights)):
            q, k, v = self.project(layer, x)
            x = self.mix(layer, x, rotate(q, positions), rotate(k, positions), v, mask)
        return x

    def cached(self, x: Tensor, cache: KVCache, causal: bool, rotated: str) -> Tensor:
        """One pass over new rows `x`; keys are rotated before they are stored, or after by position or by rank."""
        new = list(range(cache.next_position, cache.next_position + x.shape[1]))
        for layer in range(len(self.weights)):
            q, k, v = self.project(layer, x)
            k, v = cache.append(layer, rotate(k, new) if rotated == "before" else k, v)
            ranks = list(range(cache.length))
            keys = {"before": new, "position": cache.positions, "rank": ranks}[rotated]
            k = k if rotated == "before" else rotate(k, keys)
            q = rotate(q, keys[-x.shape[1] :])
            key_rank, query_rank = torch.tensor(ranks), torch.tensor(ranks[-x.shape[1] :])
            mask = key_rank[None] <= query_rank[:, None] if causal else None
            x = self.mix(layer, x, q, k, v, mask)
        return x


def window_mask(chunks: list[int], sinks: int, window: int) -> Tensor:
    """A frame sees itself, earlier frames of its chunk, `window - sinks` frames before the chunk, and the sinks."""
    start = torch.tensor([sum(chunks[:c]) for c, size in enumerate(chunks) for _ in range(size)])[:, None]
    query, key = torch.arange(sum(chunks))[:, None], torch.arange(sum(chunks))[None]
    return (key <= query) & ((key >= start - (window - sinks)) | (key < sinks))


@pytest.mark.parametrize("rotated", ["before", "position"])
@pytest.mark.parametrize(("sinks", "window"), [(0, 4), (2, 5), (1, 7), (0, 40)])
@torch.no_grad()
def test_video_through_the_ring_equals_attention_over_the_full_sequence(sinks, window, rotated):
    chunks = [1, 3, 3, 2, 3, 3, 1, 3, 3]
    model, cache = TinyTransformer(heads=3, dim=4, layers=3), RingKVCache(3, window + max(chunks))
    frames = draw(2, sum(chunks), model.width)
    expected = model.full(frames, window_mask(chunks, sinks, window))
    for out, chunk in zip(expected.split(chunks, dim=1), frames.split(chunks, dim=1), strict=True):
        for seed in range(2):  # denoising: read the cache, leave it as it was
            model.cached(draw(*chunk.shape, seed=seed), cache, causal=True, rotated=rotated)
            cache.rollback()
        got = model.cached(chunk, cache, causal=True, rotated=rotated)
        cache.commit()
        cache.evict(sinks, window)
        torch.testing.assert_close(got, out, rtol=0, atol=1e-12)


@torch.no_grad()
def test_rank_equals_position_without_sinks():
    model = TinyTransformer(heads=2, dim=6, layers=2)
    results = []
    for rotated in ("position", "rank"):
        cache = RingKVCache(2, 7)
        for seed in range(5):
            results.append(model.cached(draw(1, 3, model.width, seed=seed), cache, causal=True, rotated=rotated))
            cache.commit()
            cache.evict(0, 4)
    for by_position, by_rank in zip(results[:5], results[5:], strict=True):
        torch.testing.assert_close(by_position, by_rank, rtol=0, atol=1e-12)


@torch.no_grad()
def test_stages_equal_one_block_causal_pass():
    stages = [1, 4, 9, 16]
    model, cache = TinyTransformer(heads=3, dim=2, layers=2), AppendKVCache(2, sum(stages))
    x = draw(2, sum(stages), model.width)
    stage = torch.tensor([k for k, size in enumerate(stages) for _ in range(size)])
    expected = model.full(x, stage[None] <= stage[:, None])
    for out, rows in zip(expected.split(stages, dim=1), x.split(stages, dim=1), strict=True):
        got = model.cached(rows, cache, causal=False, rotated="before")
        cache.commit()
        torch.testing.assert_close(got, out, rtol=0, atol=1e-12)


@torch.no_grad()
def test_light_step_equals_all_rows_with_stale_context():
    """ReCAP: keys and values outside the group stay those of the full step, at every layer."""
    model, cache = TinyTransformer(heads=2, dim=4, layers=3), ScatterKVCache(3, 10)
    tokens, revealed = draw(3, 10, model.width, seed=1), draw(3, 10, model.width, seed=2)
    group = torch.tensor([[0, 7, 3], [0, 2, 9], [0, 5, 4]])
    sample = torch.arange(3)[:, None]
    new = tokens.clone()
    new[sample, group] = revealed[sample, group]

    x, y, stale = tokens, new, []
    for layer in range(3):  # independent: all rows, with stale keys and values put back outside the group
        q, k, v = model.project(layer, x)
        x = model.mix(layer, x, q, k, v, None)
        q, fresh_k, fresh_v = model.project(layer, y)
        inside = torch.zeros(3, 10, dtype=torch.bool).scatter(1, group, True)[:, None, :, None]
        y = model.mix(layer, y, q, torch.where(inside, fresh_k, k), torch.where(inside, fresh_v, v), None)
        stale.append((k, v))
    write(cache, stale)
    cache.commit()

    z = new[sample, group]
    for layer in range(3):
        q, k, v = model.project(layer, z)
        z = model.mix(layer, z, q, *cache.scatter(layer, group, k, v), None)
    torch.testing.assert_close(z, y[sample, group], rtol=0, atol=1e-12)
    assert not torch.allclose(z, x[sample, group])


# What the storages promise


@pytest.mark.parametrize("storage", STORAGES)
def test_holds_for_other_layouts(storage):
    cache, new = storage(3, 6), pairs(4, layers=3, batch=1, heads=5, dim=7)
    write(cache, new)
    cache.commit()
    assert_equal(contents(cache), [t for pair in new for t in pair])
    assert cache.nbytes == 3 * 2 * 1 * 5 * 6 * 7 * 8


@pytest.mark.parametrize("storage", STORAGES)
def test_is_no_module(storage):
    assert not isinstance(storage(1, 3), nn.Module)


def test_interleaved_caches_do_not_disturb_each_other():
    seeds, caches = (0, 1000), (RingKVCache(LAYERS, 6), RingKVCache(LAYERS, 6))
    alone = []
    for seed in seeds:
        cache = RingKVCache(LAYERS, 6)
        for chunk in range(4):
            write(cache, pairs(2, seed + 10 * chunk))
            cache.commit()
            cache.evict(1, 4)
        alone.append(contents(cache))
    for chunk in range(4):
        for layer in range(LAYERS):
            for seed, cache in zip(seeds, caches, strict=True):
                cache.append(layer, *pairs(2, seed + 10 * chunk)[layer])
        for cache in caches:
            cache.commit()
            cache.evict(1, 4)
    for cache, expected in zip(caches, alone, strict=True):
        assert_equal(contents(cache), expected)


def test_ring_memory_is_bounded():
    cache = RingKVCache(LAYERS, 11)
    write(cache, pairs(1))
    cache.commit()
    nbytes = cache.nbytes
    assert nbytes == LAYERS * 2 * BATCH * HEADS * 11 * DIM * 8
    for chunk in range(100):
        write(cache, pairs(4, chunk))
        cache.commit()
        cache.evict(0, 7)
        assert cache.nbytes == nbytes
        assert cache.length <= 7
    assert cache.next_position == 401
    assert cache.positions == list(range(394, 401))


def test_stages_are_never_copied():
    cache = AppendKVCache(LAYERS, 14)
    addresses = set()
    for stage in (1, 4, 9):
        addresses.add(write(cache, pairs(stage))[0][0].data_ptr())
        cache.commit()
    assert len(addresses) == 1


def test_sinks_stay_for_ever():
    cache = RingKVCache(LAYERS, 7)
    first = pairs(2, seed=5)
    write(cache, first)
    cache.commit()
    for chunk in range(20):
        write(cache, pairs(2, 10 + chunk))
        cache.commit()
        cache.evict(2, 5)
    assert cache.positions == [0, 1, 39, 40, 41]
    assert_equal([t[:, :, :2] for t in contents(cache)], [t for pair in first for t in pair])


def test_evict_below_the_window_drops_nothing_and_leaves_sinks_open():
    cache = RingKVCache(LAYERS, 8)
    write(cache, pairs(4))
    cache.commit()
    cache.evict(3, 4)
    assert cache.positions == [0, 1, 2, 3]
    cache.evict(1, 3)
    assert cache.positions == [0, 2, 3]


def test_several_passes_go_into_one_commit_or_rollback():
    cache = AppendKVCache(LAYERS, 8)
    write(cache, pairs(2, 0))
    cache.commit()
    before = contents(cache)
    write(cache, pairs(1, 10))
    write(cache, pairs(3, 20))
    assert cache.length == 6
    cache.rollback()
    assert cache.length == 2
    assert_equal(contents(cache), before)


def test_scatter_leaves_other_rows_bit_identical_and_rolls_back():
    cache = ScatterKVCache(LAYERS, 6)
    write(cache, pairs(6))
    cache.commit()
    before, nbytes = contents(cache), cache.nbytes
    group = torch.tensor([[4, 1], [0, 5], [3, -1]])
    for seed in (10, 20):
        for layer, (k, v) in enumerate(pairs(2, seed)):
            cache.scatter(layer, group, k, v)
    assert cache.nbytes == nbytes + 2 * LAYERS * 2 * 5 * HEADS * DIM * 8  # 5 rows replaced, twice
    after = contents(cache)
    for b in range(BATCH):
        others = [row for row in range(6) if row not in group[b].tolist()]
        assert_equal([t[b, :, others] for t in after], [t[b, :, others] for t in before])
    assert not torch.equal(after[0], before[0])
    cache.rollback()
    assert cache.nbytes == nbytes
    assert_equal(contents(cache), before)


def test_a_pass_may_append_and_scatter():
    """MAR's encoder: tokens revealed since the full step are new rows, the buffers are computed anew."""
    cache = ScatterKVCache(LAYERS, 7)
    write(cache, pairs(5))
    cache.commit()
    before, buffers = contents(cache), torch.arange(2).expand(BATCH, 2)
    new, fresh = pairs(2, 10), pairs(2, 20)
    for layer in range(LAYERS):
        cache.append(layer, *new[layer])
        got = cache.scatter(layer, buffers, *fresh[layer])
        for which in range(2):
            old = before[2 * layer + which][:, :, 2:]
            assert torch.equal(got[which], torch.cat((fresh[layer][which], old, new[layer][which]), dim=2))
    cache.rollback()
    assert_equal(contents(cache), before)


@pytest.mark.parametrize("storage", STORAGES)
def test_snapshot_is_free_until_the_next_write_and_isolated_from_it(storage):
    cache = storage(LAYERS, 8)
    write(cache, pairs(4))
    cache.commit()
    before, address = contents(cache), cache.read(0)[0].data_ptr()
    snapshot = cache.snapshot()
    assert cache.read(0)[0].data_ptr() == address
    write(cache, pairs(2, 10))
    if storage is ScatterKVCache:
        rows = torch.tensor([[0], [1], [2]])
        for layer, (k, v) in enumerate(pairs(1, 20)):
            cache.scatter(layer, rows, k, v)
    cache.commit()
    assert cache.read(0)[0].data_ptr() != address
    cache.restore(snapshot)
    assert cache.read(0)[0].data_ptr() == address
    assert_equal(contents(cache), before)
    assert (cache.length, cache.next_position) == (4, 4)


@pytest.mark.parametrize("storage", [RingKVCache, ScatterKVCache])
def test_snapshot_can_be_restored_again_and_again(storage):
    cache = storage(LAYERS, 6)
    write(cache, pairs(5))
    cache.commit()
    snapshot, before = cache.snapshot(), contents(cache)
    for seed in (100, 200, 300):
        if storage is RingKVCache:
            cache.evict(1, 3)
            write(cache, pairs(3, seed))
        else:
            for layer, (k, v) in enumerate(pairs(5, seed)):
                cache.scatter(layer, torch.arange(5).expand(BATCH, 5), k, v)
        cache.commit()
        assert not any(torch.equal(a, b) for a, b in zip(contents(cache), before, strict=True))
        cache.restore(snapshot)
        assert_equal(contents(cache), before)


def test_fork_does_not_disturb_its_parent_and_continues_alike():
    parent, fork = RingKVCache(LAYERS, 7), RingKVCache(LAYERS, 7)
    for chunk in range(4):
        write(parent, pairs(2, 10 * chunk))
        parent.commit()
        parent.evict(1, 5)
    fork.restore(parent.snapshot())
    before = contents(parent)
    for cache, seed in ((fork, 200), (parent, 300)):
        write(cache, pairs(2, seed))
        cache.commit()
        cache.evict(1, 5)
        if cache is fork:
            assert_equal(contents(parent), before)
    again = RingKVCache(LAYERS, 7)
    for seed in (0, 10, 20, 30, 200):
        write(again, pairs(2, seed))
        again.commit()
        again.evict(1, 5)
    assert fork.positions == again.positions
    assert_equal(contents(fork), contents(again))


def test_restore_drops_what_was_not_committed():
    cache = ScatterKVCache(LAYERS, 6)
    write(cache, pairs(4))
    cache.commit()
    snapshot, before = cache.snapshot(), contents(cache)
    cache.append(0, *pairs(1, 10)[0])
    cache.scatter(0, torch.zeros(BATCH, 1, dtype=torch.int64), *pairs(1, 20)[0])
    cache.restore(snapshot)
    assert_equal(contents(cache), before)
    write(cache, pairs(2, 30))
    cache.commit()


def test_a_sample_does_not_depend_on_its_batch_mates():
    group, full, light = torch.tensor([[3, 0], [1, -1], [2, 3]]), pairs(4), pairs(2, 10)
    together = ScatterKVCache(LAYERS, 4)
    write(together, full)
    for layer, (k, v) in enumerate(light):
        together.scatter(layer, group, k, v)
    for b in range(BATCH):
        alone = ScatterKVCache(LAYERS, 4)
        write(alone, [(k[b : b + 1], v[b : b + 1]) for k, v in full])
        for layer, (k, v) in enumerate(light):
            alone.scatter(layer, group[b : b + 1], k[b : b + 1], v[b : b + 1])
        assert_equal(contents(alone), [t[b : b + 1] for t in contents(together)])


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("then", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_inference_mode_no_grad_and_plain_tensors_mix(first, then):
    cache, rows = ScatterKVCache(LAYERS, 6), torch.tensor([[0], [1], [2]])
    with first():
        old, fresh = pairs(3), pairs(1, 20)
        write(cache, old)
        cache.commit()
        for layer, (k, v) in enumerate(fresh):
            cache.scatter(layer, rows, k, v)
    with then():
        cache.rollback()
        snapshot = cache.snapshot()
        write(cache, pairs(2, 30))
        for layer, (k, v) in enumerate(fresh):
            cache.scatter(layer, rows, k, v)
        cache.commit()
    with first():
        cache.restore(snapshot)
        write(cache, pairs(1, 40))
        cache.rollback()
        assert_equal(contents(cache), [t for pair in old for t in pair])


def test_gradients_are_refused_not_lost():
    cache, (k, v) = AppendKVCache(1, 4), pairs(1)[0]
    k.requires_grad_()
    with pytest.raises(ValueError, match="k requires grad"):
        cache.append(0, k, v)
    with pytest.raises(ValueError, match="v requires grad"):
        cache.append(0, v, k)
    with torch.no_grad():
        cache.append(0, k, v)
    cache.append(0, k.detach(), v)
    assert not cache.read(0)[0].requires_grad


def test_backward_through_rows_written_again_fails_aloud():
    cache, query = AppendKVCache(1, 2), draw(BATCH, HEADS, 1, DIM, seed=9).requires_grad_()
    k, _ = cache.append(0, *pairs(2)[0])
    score = (query * k).sum()
    cache.rollback()
    cache.append(0, *pairs(2, 10)[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        score.backward()


# Columns, and the ring as it lies


@pytest.mark.parametrize("sinks", [0, 2])
def test_static_ring_holds_the_rows_of_the_other_where_columns_says(sinks):
    rings = RingKVCache(LAYERS, 9), RingKVCache(LAYERS, 9, static=True)
    for step, rows in enumerate([1, 3, 3, 2, 3, 3, 1, 3, 3, 3]):
        for keep in (False, True):
            positions, columns = (ring.columns(rows) for ring in rings)
            new = pairs(rows, 100 * step + keep)
            expected, got = (write(ring, new) for ring in rings)
            assert positions == rings[0].positions == rings[1].positions
            assert len(columns) == 9 and sorted(set(columns) - {-1}) == positions
            order = [columns.index(position) for position in positions]
            for pair, others in zip(got, expected, strict=True):
                for part, other in zip(pair, others, strict=True):
                    assert part.shape == (BATCH, HEADS, 9, DIM)
                    assert torch.equal(part[:, :, order], other)
            for ring in rings:
                if keep:
                    ring.commit()
                    ring.evict(sinks, 6)
                else:
                    ring.rollback()


def test_static_ring_reads_without_a_copy():
    cache = RingKVCache(1, 4, static=True)
    seen = []
    for _ in range(5):
        k, v = cache.append(0, *pairs(2)[0])
        seen.append((k.data_ptr(), v.data_ptr(), k.shape))
        cache.commit()
        cache.evict(0, 2)
    assert len(set(seen)) == 1


def test_columns_need_room():
    cache = filled(RingKVCache)
    assert cache.columns() == cache.positions == [0, 1, 2, 3]
    assert cache.columns(2) == [0, 1, 2, 3, 4, 5]
    assert cache.columns(2, group=2) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"new_rows got 3, expected an integer 0 .. 2"):
        cache.columns(3)


# Errors: each names what it got and what is allowed, and changes nothing


def filled(storage: type[KVCache] = ScatterKVCache, rows: int = 4) -> KVCache:
    cache = storage(LAYERS, 6)
    write(cache, pairs(rows))
    cache.commit()
    return cache


@pytest.mark.parametrize(("num_layers", "capacity"), [(0, 4), (2, 0), (2, 4.0), (True, 4)])
def test_sizes_must_be_positive_integers(num_layers, capacity):
    with pytest.raises(ValueError, match=r"(num_layers|capacity) got .*, expected an integer 1"):
        AppendKVCache(num_layers, capacity)


GOOD = (BATCH, HEADS, 1, DIM)


@pytest.mark.parametrize("operation", ["append", "scatter"])
@pytest.mark.parametrize(
    ("k", "v", "message"),
    [
        (torch.zeros(BATCH, 1, DIM), torch.zeros(GOOD), r"k must be \(batch, heads, rows, head dim\), got shape"),
        (torch.zeros(GOOD), torch.zeros(BATCH, 1, DIM), r"v must be \(batch, heads, rows, head dim\), got shape"),
        (torch.zeros(5, HEADS, 1, DIM), torch.zeros(5, HEADS, 1, DIM), "k has batch 5, expected 3 as in the cache"),
        (torch.zeros(BATCH, 1, 1, DIM), torch.zeros(BATCH, 1, 1, DIM), "k has heads 1, expected 2 as in the cache"),
        (torch.zeros(BATCH, HEADS, 1, 6), torch.zeros(BATCH, HEADS, 1, 6), "k has head dim 6, expected 4 as in the"),
        (torch.zeros(GOOD), torch.zeros(BATCH, HEADS, 1, 6), "v has head dim 6, expected 4 as in k"),
        (torch.zeros(GOOD), torch.zeros(BATCH, HEADS, 2, DIM), "v has rows 2, expected 1 as in k"),
        (torch.zeros(GOOD), torch.zeros(GOOD), r"k has dtype torch.float32, expected torch.float64 as in the cache"),
        (torch.zeros(GOOD), torch.zeros(GOOD).half(), r"v has dtype torch.float16, expected torch.float32 as in k"),
        (torch.zeros(GOOD, device="meta"), torch.zeros(GOOD), "v has device cpu, expected meta as in k"),
        (torch.zeros(BATCH, HEADS, 0, DIM), torch.zeros(BATCH, HEADS, 0, DIM), "k has 0 rows, expected at least 1"),
    ],
)
def test_keys_and_values_must_fit(operation, k, v, message):
    cache, rows = filled(), torch.zeros(BATCH, 1, dtype=torch.int64)
    if k.dtype == v.dtype == torch.float32 and "dtype" not in message:
        k, v = k.double(), v.double()
    before = contents(cache)
    with pytest.raises(ValueError, match=message):
        cache.append(0, k, v) if operation == "append" else cache.scatter(0, rows, k, v)
    assert_equal(contents(cache), before)
    cache.snapshot()  # nothing is left uncommitted


def test_device_must_be_the_caches():
    cache, (k, v) = filled(), pairs(1)[0]
    with pytest.raises(ValueError, match="k has device meta, expected cpu as in the cache"):
        cache.append(0, k.to("meta"), v.to("meta"))


@pytest.mark.parametrize("layer", [1, 2, -1])
def test_append_takes_layers_in_order(layer):
    cache = filled()
    with pytest.raises(ValueError, match=f"layer {layer} is out of order, expected layer 0"):
        cache.append(layer, *pairs(1)[0])
    cache.append(0, *pairs(1)[0])
    with pytest.raises(ValueError, match="layer 0 is out of order, expected layer 1"):
        cache.append(0, *pairs(1)[0])
    with pytest.raises(ValueError, match="k has 2 rows in layer 1, expected 1 as in layer 0"):
        cache.append(1, *pairs(2)[1])


@pytest.mark.parametrize("layer", [1, 2, -1])
def test_scatter_takes_layers_in_order(layer):
    cache, rows = filled(), torch.zeros(BATCH, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"layer {layer} is out of order, expected layer 0"):
        cache.scatter(layer, rows, *pairs(1)[0])
    cache.append(0, *pairs(1)[0])
    cache.scatter(0, rows, *pairs(1)[0])
    with pytest.raises(ValueError, match="layer 1 is out of order, expected an append"):
        cache.scatter(1, rows, *pairs(1)[0])


@pytest.mark.parametrize("storage", STORAGES)
def test_append_past_capacity(storage):
    cache = filled(storage)
    with pytest.raises(ValueError, match="k has 3 rows, expected at most 6 - 4"):
        cache.append(0, *pairs(3)[0])
    write(cache, pairs(2))
    cache.commit()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1], [2, 4], [0, 1]], r"rows has 0 .. 4, expected 0 .. length - 1 = 3"),
        ([[0, 1], [2, -2], [0, 1]], r"rows has -2 .. 2, expected 0 .. length - 1 = 3"),
        ([[0, 1], [2, 2], [0, 1]], "rows has a row twice in one sample"),
        ([[0], [1], [2]], r"rows has \(shape, dtype, device\) = \(\(3, 1\).*, expected \(\(3, 2\)"),
        ([0, 1], r"rows has \(shape, dtype, device\) = \(\(2,\).*, expected \(\(3, 2\)"),
        ([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]], r"torch.float32.*, expected .*torch.int64"),
    ],
)
def test_scatter_rows_must_be_held_and_distinct(rows, message):
    cache = filled()
    before = contents(cache)
    with pytest.raises(ValueError, match=message):
        cache.scatter(0, torch.tensor(rows), *pairs(2, 10)[0])
    assert_equal(contents(cache), before)
    cache.snapshot()


def test_scatter_checks_the_rows_of_a_later_layer_too():
    cache, rows = filled(), torch.zeros(BATCH, 1, dtype=torch.int64)
    cache.scatter(0, rows, *pairs(1)[0])
    with pytest.raises(ValueError, match=r"rows has 9 .. 9"):
        cache.scatter(1, rows + 9, *pairs(1)[1])
    with pytest.raises(ValueError, match=r"rows has \(shape"):
        cache.scatter(1, rows, *pairs(2)[1])
    cache.scatter(1, rows + 1, *pairs(1)[1])
    cache.commit()


def test_commit_needs_whole_passes():
    cache = filled()
    cache.append(0, *pairs(1)[0])
    with pytest.raises(ValueError, match="layer 1 of 2 comes next"):
        cache.commit()
    cache.rollback()
    cache.scatter(0, torch.zeros(BATCH, 1, dtype=torch.int64), *pairs(1)[0])
    with pytest.raises(ValueError, match="layer 1 of 2 comes next"):
        cache.commit()


def test_snapshot_and_evict_need_settled_rows():
    cache = filled(RingKVCache)
    write(cache, pairs(1))
    with pytest.raises(ValueError, match="snapshot got uncommitted rows"):
        cache.snapshot()
    with pytest.raises(ValueError, match="evict got uncommitted rows"):
        cache.evict(0, 3)
    cache = filled(ScatterKVCache)
    for layer, (k, v) in enumerate(pairs(1)):
        cache.scatter(layer, torch.zeros(BATCH, 1, dtype=torch.int64), k, v)
    with pytest.raises(ValueError, match="snapshot got uncommitted rows"):
        cache.snapshot()


@pytest.mark.parametrize(
    ("sinks", "window", "message"),
    [
        (0, 0, r"window got 0, expected an integer 1 .. 6"),
        (0, 7, r"window got 7, expected an integer 1 .. 6"),
        (-1, 3, r"sinks got -1, expected an integer 0 .. 2"),
        (3, 3, r"sinks got 3, expected an integer 0 .. 2"),
    ],
)
def test_sinks_and_window_must_fit(sinks, window, message):
    with pytest.raises(ValueError, match=message):
        filled(RingKVCache).evict(sinks, window)


@pytest.mark.parametrize(("sinks", "other"), [(1, 0), (0, 1), (1, 2)])
def test_sinks_are_fixed_by_the_first_eviction(sinks, other):
    cache = filled(RingKVCache)
    cache.evict(sinks, 3)
    with pytest.raises(ValueError, match=f"sinks got {other}, expected {sinks}"):
        cache.evict(other, 3)


def test_restore_needs_a_snapshot_of_a_cache_alike():
    snapshot = filled(RingKVCache).snapshot()
    for cache in (AppendKVCache(LAYERS, 6), RingKVCache(3, 6), RingKVCache(LAYERS, 8)):
        with pytest.raises(ValueError, match=r"snapshot is of .*\('RingKVCache', 2, 6\), expected"):
            cache.restore(snapshot)
    other = RingKVCache(LAYERS, 6)
    write(other, pairs(1, batch=1))
    with pytest.raises(ValueError, match="snapshot has batch 3, expected 1 as in the cache"):
        other.restore(snapshot)


def test_reading_needs_rows():
    with pytest.raises(ValueError, match="layer 0 has no rows to read yet"):
        AppendKVCache(LAYERS, 6).read(0)
    with pytest.raises(ValueError, match=r"layer got -1, expected an integer 0 .. 1"):
        filled().read(-1)


def test_operations_of_other_storages_are_refused_by_name():
    rows, (k, v) = torch.zeros(BATCH, 1, dtype=torch.int64), pairs(1)[0]
    for storage in (AppendKVCache, RingKVCache):
        with pytest.raises(ValueError, match=f"{storage.__name__} cannot scatter.*use ScatterKVCache"):
            filled(storage).scatter(0, rows, k, v)
    for storage in (AppendKVCache, ScatterKVCache):
        with pytest.raises(ValueError, match=f"{storage.__name__} cannot evict.*use RingKVCache"):
            filled(storage).evict(0, 2)
