"""The causal video transformer: what a cache may change (cost) and what it may not (anything else).

Every network here has its zero weights drawn anew: with closed gates all of this would hold for any bug.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gendiff.nn.frame_plan import history_plan, prefix_plan, teacher_forcing_plan
from gendiff.nn.kv_cache import RingKVCache
from gendiff.nn.rotary import rotary_table, rotate
from gendiff.nn.video_cache import VideoKVCache

MODES = ["frame_causal", "prefix_causal", "block_causal"]
every_layout = pytest.mark.parametrize("layout", ["factorized", "joint"])
every_pos = pytest.mark.parametrize("pos", ["rope", "cyclic"])
every_mode = pytest.mark.parametrize("mode", MODES)
LABELS = torch.tensor([2, 0])


@pytest.fixture
def make(tiny_video_transformer):
    def build(layout: str = "factorized", pos: str = "rope", mode: str = "frame_causal", **more: Any):
        model = tiny_video_transformer(attention_layout=layout, pos=pos, attention_mode=mode, **more)
        return model.double().requires_grad_(False)

    return build


def video(frames: int, batch: int = 2, seed: int = 0, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, frames, 16, 8, generator=generator, dtype=torch.float64)


def say(model: Any, frames: Tensor, times: Tensor | int, **arguments: Any) -> Tensor:
    times = torch.full((len(frames),), times) if isinstance(times, int) else times
    labels = arguments.pop("class_labels", LABELS[: len(frames)])
    return model(frames, times, class_labels=labels, **arguments).sample


def write(model: Any, cache: VideoKVCache, frames: Tensor, **arguments: Any) -> None:
    assert say(model, frames, 0, kv_cache=cache, cache_mode="write", **arguments) is None
    cache.commit()


def read(model: Any, cache: VideoKVCache, frames: Tensor, times: Tensor | int, **arguments: Any) -> Tensor:
    out = say(model, frames, times, kv_cache=cache, cache_mode="read", **arguments)
    cache.rollback()
    return out


def slots(cache: VideoKVCache) -> Tensor:
    """Copy of all rows over time, (layers, 2, N, h, rows, d)."""
    return torch.stack([torch.stack(cache.temporal.read(layer)) for layer in range(cache.temporal.num_layers)])


def content(cache: VideoKVCache) -> list[Tensor]:
    """Copies of all keys and values that a chunk reads."""
    held = torch.tensor(cache.temporal.columns() if cache.temporal.static else [0] * cache.temporal.length) >= 0
    layers = range(cache.temporal.num_layers)
    references = [part.clone() for layer in layers for part in cache.read_references(layer) or ()]
    return [slots(cache)[..., held, :], *references]


def assert_close(got: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-4)


# Who hears of whom


@every_layout
@every_pos
@every_mode
def test_no_frame_changes_with_what_comes_later(make, layout, pos, mode):
    """Bit for bit, and with later noise levels no more than with later pixels."""
    model, starts, total, noisy_from = make(layout, pos, mode), [0, 3, 5], 7, 5
    plan = history_plan(total, starts, 4, mode, model.config["prefix_references"], noisy_from=noisy_from)
    frames, times = video(total), torch.tensor([[0] * 5 + [700, 300]] * 2)
    before = say(model, frames, times, plan=plan)
    for last in range(total):
        mates = [*starts, total][sum(start <= last for start in starts)] - 1
        whole = mode == "block_causal" or (mode == "prefix_causal" and last >= noisy_from)
        horizon = mates if whole else last
        other, later = frames.clone(), times.clone()
        other[:, :, horizon + 1 :] += 1
        later[:, horizon + 1 :] += 50
        after = say(model, other, later, plan=plan)
        assert torch.equal(after[:, :, : last + 1], before[:, :, : last + 1])
        assert horizon == total - 1 or differ(after[:, :, horizon + 1], before[:, :, horizon + 1])
        if horizon > last:  # and what it may see it does see
            other = frames.clone()
            other[:, :, horizon] += 1
            assert differ(say(model, other, times, plan=plan)[:, :, last], before[:, :, last])


@every_layout
@every_pos
@every_mode
def test_cache_depends_on_the_grouping_of_writes_only_where_clean_chunks_see_ahead(make, layout, pos, mode):
    model, frames, contents = make(layout, pos, mode), video(7), []
    for sizes in ([7], [1] * 7, [2, 5]):
        cache = model.make_cache(7, 7)
        for group in frames.split(sizes, dim=2):
            write(model, cache, group)
        contents.append(content(cache))
    for other in contents[1:]:
        gaps = [float((a - b).abs().max()) for a, b in zip(other, contents[0], strict=True)]
        assert max(gaps) > 1e-3 if mode == "block_causal" else max(gaps) < 1e-10


# The cache against the whole history


@every_layout
@pytest.mark.parametrize(
    ("mode", "pos", "sinks"),
    [
        ("frame_causal", "rope", 2),
        ("frame_causal", "cyclic", 0),
        ("prefix_causal", "rope", 1),
        ("prefix_causal", "cyclic", 0),
        ("block_causal", "rope", 2),
        ("block_causal", "cyclic", 0),
    ],
)
@pytest.mark.parametrize(("storage", "groups"), [("dynamic", [1, 2, 2, 2, 1, 2]), ("static", [6, 2, 1, 2])])
@torch.no_grad()
def test_cached_equals_the_whole_history_with_eviction(make, layout, mode, pos, sinks, storage, groups):
    model = make(layout, pos, mode)
    references, total = model.config["prefix_references"], sum(groups)
    cache, frames, starts = model.make_cache(5, 2, sinks, layout=storage), video(total), [0]
    for number, group in enumerate(frames.split(groups, dim=2)):
        start, count = starts[-1], group.shape[2]
        if start:
            noisy, times = video(count, seed=9 + number), torch.tensor([900, 137])
            plan = history_plan(start + count, starts, 5, mode, references, sinks, noisy_from=start)
            both = torch.cat([frames[:, :, :start], noisy], dim=2)
            expected = say(model, both, times, plan=plan, num_prefix_frames=start)[:, :, start:]
            assert_close(read(model, cache, noisy, times), expected)
        write(model, cache, group)
        starts.append(start + count)
    assert cache.num_frames == 5


@every_layout
@torch.no_grad()
def test_eviction_and_references_matter(make, layout):
    """The tests above could not see a window or a reference that nobody used."""
    model, frames, noisy = make(layout), video(8), video(2, seed=1)
    outs = []
    for window, sinks in [(8, 0), (5, 0), (5, 2)]:
        cache = model.make_cache(window, 2, sinks)
        for group in frames.split(2, dim=2):
            write(model, cache, group)
        outs.append(read(model, cache, noisy, 500))
    assert differ(outs[0], outs[1]) and differ(outs[1], outs[2])
    plan = prefix_plan(6, 4, "frame_causal", 1)
    with_reference = say(model, frames[:, :, :6], 500, num_prefix_frames=4, plan=plan)[:, :, 4:]
    without = say(model, frames[:, :, :6], 500, num_prefix_frames=4, plan=replace(plan, references=plan.references[:0]))
    assert differ(with_reference, without[:, :, 4:]) == (layout == "factorized")


@every_layout
@every_pos
@torch.no_grad()
def test_the_default_plan_is_a_clean_prefix_and_one_noisy_chunk(make, layout, pos):
    model, frames, times = make(layout, pos), video(6), torch.tensor([811, 5])
    cache = model.make_cache(4, 2)
    write(model, cache, frames[:, :, :4])
    got = say(model, frames, times, num_prefix_frames=4)[:, :, 4:]
    assert_close(read(model, cache, frames[:, :, 4:], times), got)
    levels = torch.cat([torch.zeros(2, 4), times[:, None].expand(2, 2)], dim=1)
    assert torch.equal(say(model, frames, levels, num_prefix_frames=4)[:, :, 4:], got)
    assert differ(say(model, frames, levels, num_prefix_frames=0)[:, :, 4:], got) == (layout == "factorized")


@every_layout
@every_pos
@every_mode
@torch.no_grad()
def test_all_chunks_at_once_equal_each_one_after_its_prefix(make, layout, pos, mode):
    model, starts, total = make(layout, pos, mode, prefix_references=0 if layout == "joint" else 2), [0, 1, 3, 5], 7
    references = model.config["prefix_references"]
    clean, noisy, levels = video(total), video(total, seed=1), [900, 300, 30, 650]
    edges = [*starts, total]
    times = torch.tensor([level for level, a, b in zip(levels, edges, edges[1:], strict=False) for _ in range(a, b)])
    plan = teacher_forcing_plan(starts, total, mode, references)
    both = torch.cat([torch.zeros(total).long(), times]).expand(2, -1)
    forced = say(model, torch.cat([clean, noisy], dim=2), both, plan=plan)[:, :, total:]
    for number, level in enumerate(levels):
        first, stop = edges[number], edges[number + 1]
        one = history_plan(stop, starts[: number + 1], stop, mode, references, noisy_from=first)
        frames = torch.cat([clean[:, :, :first], noisy[:, :, first:stop]], dim=2)
        alone = say(model, frames, level, num_prefix_frames=first, plan=one)[:, :, first:]
        assert_close(forced[:, :, first:stop], alone)
        if mode != "block_causal":  # there a prefix of several chunks is not one chunk
            assert_close(say(model, frames, level, num_prefix_frames=first)[:, :, first:], alone)


# Positions


@torch.no_grad()
def test_keys_rotated_by_rank_after_the_ring_equal_keys_rotated_by_frame_before_it(make):
    attn, rings, frames = make().blocks[0].attn_time, (RingKVCache(1, 7), RingKVCache(1, 7)), torch.arange(13)
    x = torch.randn(3, 13, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def turn(rows: Tensor, positions: Tensor) -> Tensor:
        return rotate(rows, rotary_table(positions, 16, torch.float64))

    for group, index in zip(x.split([3, 2, 2, 2, 2, 2], dim=1), frames.split([3, 2, 2, 2, 2, 2]), strict=True):
        q, (k, v) = attn.queries(group), attn.keys_values(group)
        outs = []
        for ring, stored in zip(rings, (k, turn(k, index)), strict=True):
            keys, values = (t.transpose(1, 2) for t in ring.append(0, stored.transpose(1, 2), v.transpose(1, 2)))
            ranks = torch.arange(ring.length)
            keys, queries = (turn(keys, ranks), ranks[-len(index) :]) if ring is rings[0] else (keys, index)
            outs.append(attn.attend(turn(q, queries), keys, values))
            ring.commit()
            ring.evict(0, 5)
        assert_close(outs[1], outs[0])


@every_layout
@torch.no_grad()
def test_rope_sees_distances_alone(make, layout):
    model, frames = make(layout), video(5)
    plan = prefix_plan(5, 3, "frame_causal", 0)
    out = say(model, frames, 300, plan=plan)
    for factor, shift, same in ((1, 1_000_000, True), (2, 0, False)):
        moved = replace(
            plan,
            query_positions=plan.query_positions * factor + shift,
            key_positions=plan.key_positions * factor + shift,
        )
        assert differ(say(model, frames, 300, plan=moved), out) != same
    assert torch.equal(say(model, frames, 300, plan=plan, frame_index=torch.arange(5) + 3), out)


@every_layout
@torch.no_grad()
def test_cyclic_positions_repeat_after_the_period(make, layout):
    model, frames, index = make(layout, "cyclic"), video(5), torch.arange(5)
    assert model.time_period == 7 and make(layout).time_period is None
    out = say(model, frames, 300)
    assert torch.equal(say(model, frames, 300, frame_index=index), out)
    assert torch.equal(say(model, frames, 300, frame_index=index + 7 * 1_000_000), out)
    assert all(differ(say(model, frames, 300, frame_index=index + shift), out) for shift in range(1, 7))


# What a read and a write do to the cache


@every_layout
@every_pos
@torch.no_grad()
def test_reading_leaves_the_cache_and_writing_fills_the_next_slots(make, layout, pos):
    model, frames = make(layout, pos), video(12)
    cache = model.make_cache(5, 2, layout="static")
    for step, group in enumerate(frames.split(2, dim=2)):
        if step:
            held = torch.tensor(cache.temporal.columns()) >= 0
            before, references = slots(cache), content(cache)
            for level in (999, 1):
                read(model, cache, group + level, level)
            after = slots(cache)
            assert torch.equal(after[..., held, :], before[..., held, :])
            assert all(torch.equal(a, b) for a, b in zip(content(cache), references, strict=True))
            count = 2 * cache.tokens
            new = torch.tensor(cache.temporal.columns(count)) >= cache.temporal.next_position
            write(model, cache, group)
            changed = (slots(cache) != after).any(-1).flatten(0, -2).any(0)
            assert torch.equal(changed, new) and new.sum() == count
        else:
            write(model, cache, group)
