"""Plans against a plain reading of their definitions, one pair of frames at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from gendiff.nn.frame_plan import (
    ATTENTION_MODES,
    FramePlan,
    history_plan,
    prefix_plan,
    teacher_forcing_plan,
    window_mask,
)

CAUSAL = [mode for mode in ATTENTION_MODES if mode != "full"]
# Ten frames; the window is no multiple of a chunk, nor one more.
STARTS = [[0], [0, 1, 4, 7], [0, 3, 6, 9], [0, 5, 7, 8]]


def start_of(frame: int, starts: Sequence[int]) -> int:
    return max(start for start in starts if start <= frame)


def may_see(q: int, k: int, starts: Sequence[int], window: int, mode: str, sinks: int, noisy_from: int) -> bool:
    if mode == "full":
        return True
    start = start_of(q, starts)
    mates = start_of(k, starts) == start
    whole = mode == "block_causal" or (mode == "prefix_causal" and q >= noisy_from)
    return (k <= q or (mates and whole)) and (k >= start - (window - sinks) or k < sinks)


@pytest.mark.parametrize("mode", ATTENTION_MODES)
@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize(("window", "sinks"), [(4, 0), (5, 2), (3, 1), (40, 0)])
@pytest.mark.parametrize("noisy_from", [None, 0, 7])
def test_window_mask_is_its_definition(mode, starts, window, sinks, noisy_from):
    queries, keys = [8, 0, 3, 9, 5, 7], list(range(10))
    got = window_mask(torch.tensor(queries), torch.tensor(keys), starts, window, mode, sinks, noisy_from)
    noisy = 10 if noisy_from is None else noisy_from
    assert got.dtype == torch.bool
    assert got.tolist() == [[may_see(q, k, starts, window, mode, sinks, noisy) for k in keys] for q in queries]


def seen(plan: FramePlan, query: int) -> dict[int, int]:
    """Frame -> how far behind `query` it stands; a frame must not be seen twice."""
    mask = torch.ones(len(plan.query_positions), len(plan.columns)).bool() if plan.mask is None else plan.mask
    columns = mask[query].nonzero()[:, 0].tolist()
    distances = {int(plan.columns[c]): int(plan.query_positions[query] - plan.key_positions[c]) for c in columns}
    assert len(distances) == len(columns)
    return distances


@pytest.mark.parametrize("mode", CAUSAL)
@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize(("window", "sinks"), [(4, 0), (5, 2), (3, 1), (40, 0)])
@pytest.mark.parametrize("noisy", [0, 2])
def test_history_plan_counts_positions_over_what_was_kept(mode, starts, window, sinks, noisy):
    frames, noisy_from = 10, 10 - noisy
    plan = history_plan(frames, starts, window, mode, 2, sinks, noisy_from)
    for q in range(frames):
        start = start_of(q, starts)
        held = [f for f in range(start) if f >= start - (window - sinks) or f < sinks]
        order = [*held, *range(start, frames)]  # sinks, window, chunk, without a gap
        visible = [k for k in range(frames) if may_see(q, k, starts, window, mode, sinks, noisy_from)]
        assert seen(plan, q) == {k: order.index(q) - order.index(k) for k in visible}
    assert plan.references.tolist() == [[noisy_from - 2, noisy_from - 1]] * noisy


@pytest.mark.parametrize("mode", ATTENTION_MODES)
@pytest.mark.parametrize(("frames", "prefix"), [(5, 0), (5, 1), (5, 3), (5, 5), (1, 0), (1, 1)])
@pytest.mark.parametrize("references", [0, 1, 3])
def test_prefix_plan(mode, frames, prefix, references):
    plan = prefix_plan(frames, prefix, mode, references)
    starts = sorted({0, prefix} - {frames})
    for q in range(frames):
        visible = [k for k in range(frames) if may_see(q, k, starts, frames, mode, 0, prefix)]
        assert seen(plan, q) == {k: q - k for k in visible}
    # A short prefix repeats its first frame; without one there is nothing to refer to.
    refers = [max(prefix - i, 0) for i in range(references, 0, -1)]
    assert plan.references.tolist() == ([refers] * (frames - prefix) if prefix and references else [])


def test_a_plan_in_which_all_see_all_has_no_mask():
    assert prefix_plan(4, 1, "full", 0).mask is None
    assert prefix_plan(4, 0, "block_causal", 0).mask is None
    assert prefix_plan(4, 1, "block_causal", 0).mask is not None


@pytest.mark.parametrize("mode", CAUSAL)
@pytest.mark.parametrize("starts", STARTS)
def test_teacher_forcing_plan(mode, starts):
    frames, references = 10, 3
    plan = teacher_forcing_plan(starts, frames, mode, references)
    assert len(plan.query_positions) == 2 * frames
    for q in range(frames):
        clean = [k for k in range(frames) if may_see(q, k, starts, frames, mode, 0, frames)]
        assert seen(plan, q) == {k: q - k for k in clean}
        start = start_of(q, starts)
        own = [k for k in range(start, frames) if start_of(k, starts) == start and (mode != "frame_causal" or k <= q)]
        expected = {k: q - k for k in range(start)} | {frames + k: q - k for k in own}
        assert seen(plan, frames + q) == expected
    rows = [[max(start_of(q, starts) - i, 0) for i in range(references, 0, -1)] for q in range(frames)]
    assert plan.references.tolist() == [row for q, row in enumerate(rows) if start_of(q, starts) > 0]


def test_moving_a_plan_moves_all_of_it():
    plan = history_plan(6, [0, 3], 4, "frame_causal", 1, sinks=1, noisy_from=3)
    moved = plan.to("meta")
    for name, value in vars(plan).items():
        assert getattr(moved, name).device.type == "meta" and getattr(moved, name).shape == value.shape
    assert prefix_plan(2, 0, "full", 0).to("meta").mask is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: history_plan(4, [0], 4, "causal", 0), "mode must be one of frame_causal, .*, got 'causal'"),
        (lambda: history_plan(4, [1, 2], 4, "frame_causal", 0), r"starts must ascend from 0, got \[1, 2\]"),
        (lambda: history_plan(4, [0, 2, 2], 4, "frame_causal", 0), r"starts must ascend from 0, got \[0, 2, 2\]"),
        (lambda: history_plan(4, [], 4, "frame_causal", 0), r"starts must ascend from 0, got \[\]"),
        (lambda: history_plan(4, [0], 2, "frame_causal", 0, sinks=2), r"sinks must be 0 .. window - 1 = 1, got 2"),
        (lambda: prefix_plan(4, 5, "frame_causal", 0), r"num_prefix must be 0 .. 4, got 5"),
        (lambda: prefix_plan(4, -1, "frame_causal", 0), r"num_prefix must be 0 .. 4, got -1"),
        (lambda: teacher_forcing_plan([0], 4, "full", 0), 'got "full", expected a causal mode'),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_modes_differ_where_they_say():
    masks = [
        window_mask(torch.arange(6), torch.arange(6), [0, 2, 4], 6, mode, noisy_from=4) for mode in ATTENTION_MODES
    ]
    for a, b in itertools.pairwise(masks):
        assert (a & ~b).sum() == 0 and (b & ~a).sum() > 0  # each sees all that the one before it does, and more
