"""The cache of a video: frames in, frames out, whatever the layout, the ring and the sinks do in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gendiff.nn.video_cache import CacheView, VideoKVCache

LAYERS, BATCH, HEADS, DIM, SITES = 2, 2, 3, 4, 5
SIZES = [(5, 2, 0), (5, 2, 2), (4, 3, 1), (3, 1, 0)]  # W, l, sinks: W mod l is neither 0 nor 1 in all but one


def rows(first: int, count: int, tokens: int, layer: int, value: float = 0.0) -> Tensor:
    """Keys (B, h, count * tokens, d) that say which frame, token and layer they are of."""
    number = torch.arange(first * tokens, (first + count) * tokens).double() + 1000 * layer + value
    return number[None, None, :, None].expand(BATCH, HEADS, -1, DIM)


def write(cache: VideoKVCache, count: int, keep: bool = True) -> tuple[CacheView, list[tuple[Tensor, Tensor]]]:
    """One pass over the next `count` frames."""
    first, view, read = cache.total_written, cache.view(count, False), []
    for layer in range(LAYERS):
        k = rows(first, count, cache.tokens, layer)
        read.append(tuple(part.clone() for part in cache.append(layer, k, -k)))
        if cache.references and keep:
            space = rows(first, count, SITES, layer).transpose(1, 2).unflatten(1, (count, SITES))
            cache.keep_references(layer, space, -space)
    if keep:
        cache.commit()
    else:
        cache.rollback()
    return view, read


def kept(total: int, window: int, sinks: int) -> list[int]:
    return list(range(total)) if total <= window else [*range(sinks), *range(total - window + sinks, total)]


@pytest.mark.parametrize(("window", "chunk", "sinks"), SIZES)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("layout", ["dynamic", "static"])
def test_view_says_what_is_in_each_column(window, chunk, sinks, tokens, layout):
    cache = VideoKVCache(LAYERS, window, chunk, sinks, tokens=tokens, layout=layout)
    history: list[int] = []  # what a chunk can see, in order
    for step, count in enumerate([window + chunk - 1, *[1, chunk] * 7]):
        total = cache.total_written
        assert cache.num_frames == len(history)
        for keep in (False, True):
            view, read = write(cache, count, keep)
            order = [*history, *range(total, total + count)]
            mask = torch.ones(count, len(view.key_positions)).bool() if view.mask is None else view.mask
            assert view.query_positions.tolist() == list(range(len(history), len(order)))
            for query in range(count):
                columns = mask[query].nonzero()[:, 0]
                behind = sorted(view.key_positions[columns].tolist())
                assert behind == list(range(len(history) + query + 1))
                for layer, (k, v) in enumerate(read):
                    assert k.shape[2] == len(view.key_positions) * tokens
                    frames = k[0, 0, :, 0].unflatten(0, (-1, tokens))[columns]
                    at = torch.tensor(order)[view.key_positions[columns]] * tokens
                    assert torch.equal(frames, at[:, None] + torch.arange(tokens).double() + 1000 * layer)
                    assert torch.equal(v, -k)
        history = kept(total + count, window, sinks) if step or total + count > window else order
    assert cache.total_written == window + chunk - 1 + 7 * (1 + chunk)


@pytest.mark.parametrize(("window", "chunk", "sinks"), SIZES)
def test_static_rows_are_those_of_dynamic(window, chunk, sinks):
    caches = [VideoKVCache(LAYERS, window, chunk, sinks, layout=layout) for layout in ("dynamic", "static")]
    for _ in range(12):
        (_, dynamic), (view, static) = (write(cache, chunk) for cache in caches)
        assert view.mask is not None and view.mask.shape == (chunk, window + chunk)  # one shape, and always there
        columns = view.mask[-1].nonzero()[:, 0]
        columns = columns[view.key_positions[columns].argsort()]
        for pair, expected in zip(static, dynamic, strict=True):
            for part, other in zip(pair, expected, strict=True):
                assert torch.equal(part[:, :, columns], other)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("layout", ["dynamic", "static"])
def test_view_changes_nothing_and_lets_a_chunk_see_itself(whole, layout):
    cache = VideoKVCache(LAYERS, 4, 3, 1, layout=layout)
    write(cache, 6)
    first, second = cache.view(3, whole), cache.view(3, whole)
    for name in ("mask", "query_positions", "key_positions"):
        a, b = getattr(first, name), getattr(second, name)
        assert a is b is None or torch.equal(a, b)
    counts = [4 + 3] * 3 if whole else [5, 6, 7]
    assert (first.mask is None) == (whole and layout == "dynamic")
    assert first.mask is None or first.mask.sum(1).tolist() == counts
    assert cache.total_written == 6 and cache.num_frames == 4


def test_empty_slots_hold_no_nan(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)  # memory that nobody initialised reads as NaN
    try:
        cache = VideoKVCache(LAYERS, 5, 2, layout="static")
        _, read = write(cache, 1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert read[0][0].shape[2] == 7
    assert all(part.isfinite().all() for pair in read for part in pair)


@pytest.mark.parametrize("writes", [[1, 1, 1, 1, 1], [3, 1, 2], [1, 4], [5, 2, 1, 1], [2, 2, 2]])
@pytest.mark.parametrize("references", [1, 3])
def test_references_are_the_last_frames_however_they_were_written(writes, references):
    cache, total = VideoKVCache(LAYERS, 5, 2, references=references, sites=SITES), 0
    assert cache.read_references(0) is None
    for count in writes:
        write(cache, count)
        total += count
        frames = [max(total - i, 0) for i in range(references, 0, -1)]
        expected = torch.cat([torch.arange(f * SITES, (f + 1) * SITES) for f in frames]).double()
        for layer in range(LAYERS):
            k, v = cache.read_references(layer)
            assert k.shape == (BATCH, references * SITES, HEADS, DIM)
            # A short past repeats its first frame.
            assert torch.equal(k[0, :, 0, 0], expected + 1000 * layer)
            assert torch.equal(v, -k)


@pytest.mark.parametrize("layout", ["dynamic", "static"])
@pytest.mark.parametrize("references", [0, 2])
def test_nbytes_is_its_formula_and_stays(layout, references):
    window, chunk, tokens = 5, 2, 3
    cache = VideoKVCache(LAYERS, window, chunk, 1, tokens, references, SITES, layout)
    assert cache.nbytes == 0
    sizes = []
    for _ in range(30):
        write(cache, chunk)
        sizes.append(cache.nbytes)
    rows = (window + chunk) * tokens + 2 * references * SITES
    assert set(sizes) == {2 * LAYERS * BATCH * HEADS * DIM * rows * 8}


def content(cache: VideoKVCache) -> list[Tensor]:
    """All that the next frame would read, and where it finds it."""
    view = cache.view(1, False)
    tensors = [view.query_positions, view.key_positions, *([] if view.mask is None else [view.mask])]
    for layer in range(LAYERS):
        tensors += [part.clone() for part in cache.temporal.read(layer)]
        tensors += [part.clone() for part in cache.read_references(layer) or ()]
    return tensors


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def make(layout: str = "dynamic", **changes: int) -> VideoKVCache:
    sizes = {"num_layers": LAYERS, "window": 5, "chunk": 2, "sinks": 1, "references": 2, "sites": SITES}
    return VideoKVCache(**{**sizes, **changes}, layout=layout)


@pytest.mark.parametrize("frames", [1, 4, 11])
def test_rollback_is_exact_also_in_mid_pass(frames):
    cache = make()
    for count in [2] * (frames // 2) + [1] * (frames % 2):
        write(cache, count)
    before = content(cache)
    write(cache, 2, keep=False)
    assert_same(content(cache), before)
    cache.append(0, rows(90, 2, 1, 0), rows(90, 2, 1, 0))
    cache.keep_references(0, *[torch.zeros(BATCH, 2, SITES, HEADS, DIM).double()] * 2)
    cache.rollback()
    assert_same(content(cache), before)
    assert cache.total_written == frames


@pytest.mark.parametrize("layout", ["dynamic", "static"])
def test_snapshot_restore_and_fork(layout):
    cache = make(layout)
    for _ in range(3):
        write(cache, 2)
    snapshot, before = cache.snapshot(), content(cache)
    for _ in range(2):
        write(cache, 2)
    after = content(cache)
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    fork = make(layout)
    fork.restore(snapshot)
    assert_same(content(fork), before)
    write(fork, 1)
    assert_same(content(cache), after)  # the parent feels nothing
    for _ in range(2):  # as often as wanted
        cache.restore(snapshot)
        assert_same(content(cache), before)
        assert (cache.total_written, cache.num_frames) == (6, 5)
        for _ in range(2):
            write(cache, 2)
        assert_same(content(cache), after)


@pytest.mark.parametrize("change", ["num_layers", "window", "chunk", "sinks", "references", "tokens"])
def test_restore_refuses_a_cache_of_another_make_and_leaves_it_alone(change):
    cache = make()
    write(cache, 2)
    before = content(cache)
    other = make(
        **{change: {"num_layers": 3, "window": 4, "chunk": 3, "sinks": 0, "references": 1, "tokens": 2}[change]}
    )
    with pytest.raises(ValueError, match=r"snapshot is of a cache of \(num_layers, window, .*expected \(2, 5, 2, 1"):
        cache.restore(other.snapshot())
    assert_same(content(cache), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "ring"}, "layout must be dynamic or static, got 'ring'"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"sites": 0}, "sites must be at least 1, got 0"),
        ({"sinks": 5}, "sinks must be 0 .. window - 1 = 4, got 5"),
        ({"sinks": -1}, "sinks must be 0 .. window - 1 = 4, got -1"),
        ({"references": -1}, "references must be at least 0, got -1"),
    ],
)
def test_sizes_must_fit(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_a_chunk_must_find_room():
    cache = make()
    write(cache, 7)
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"num_new must be 1 .. 2, behind 5 frames kept, got {count}"):
            cache.view(count, False)
