"""MaskGIT: its equations, and that light passes compute what full ones would with the other rows' keys kept (ReCAP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from maskgit_reference import (
    EVEN,
    GROUPS,
    LAYERS,
    NAMES,
    SHAPES,
    VARIANTS,
    N,
    V,
    by_hand,
    contents,
    draw,
    fresh_rows,
    make,
    off,
    reveal,
    rows_of,
    said,
)
from torch import Tensor
from torch.nn import functional as F

from gendiff.models.masked.maskgit import MaskGITTransformer2DModel


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_it_is_the_equations_written_by_hand(variant: dict):
    model = make(**variant)
    inputs = draw()
    expected, keys_values = by_hand(model, *inputs)
    cache = model.make_cache()
    plain, cached = said(model, *inputs), said(model, *inputs, cache=cache)
    assert expected.std() > 0.5 and plain.dtype == torch.float64 and plain.shape == (3, N, V)
    assert (plain - expected).abs().max() <= 1e-10 and torch.equal(plain, cached)
    for got, pair in zip(contents(cache), keys_values, strict=True):
        assert (got - torch.stack(pair)).abs().max() <= 1e-10


@pytest.mark.parametrize("recompute_prefix", [True, False])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_light_steps_are_all_rows_with_the_other_keys_kept(variant: dict, recompute_prefix: bool):
    """Two in a row, for groups of different sizes: the second one's context is still that of the full step."""
    model = make(**variant)
    tokens, hidden, labels = draw()
    cache = model.make_cache(recompute_prefix)
    said(model, tokens, hidden, labels, cache=cache)
    kept = by_hand(model, tokens, hidden, labels)[1]
    fresh = fresh_rows(GROUPS, recompute_prefix)
    answers = []
    for first, stop in [(0, 1), (1, 3)]:
        tokens, hidden = reveal(tokens, hidden, GROUPS, first, stop)
        light = said(model, tokens, hidden, labels, cache=cache, rows=GROUPS)
        expected, written = by_hand(model, tokens, hidden, labels, kept, fresh)
        assert off(light, rows_of(expected, GROUPS), GROUPS) <= 1e-10
        for got, pair in zip(contents(cache), written, strict=True):
            assert (got - torch.stack(pair)).abs().max() <= 1e-10
        answers.append(light)
    assert off(*answers, GROUPS) > 1e-2  # type: ignore[call-arg]


@pytest.mark.parametrize("recompute_prefix", [True, False])
@pytest.mark.parametrize("layout", ["in_place", "concat"])
@pytest.mark.parametrize("variant", SHAPES, ids=NAMES)
def test_with_nothing_new_a_light_step_repeats_the_full_one(variant: dict, layout: Any, recompute_prefix: bool):
    group = EVEN if layout == "concat" else GROUPS
    for dtype, bound in [(torch.float64, 1e-10), (torch.float32, 1e-5)]:
        model, inputs = make(dtype, **variant), draw()
        cache = model.make_cache(recompute_prefix, layout)
        full = said(model, *inputs, cache=cache)
        for _ in range(2):
            light = said(model, *inputs, cache=cache, rows=group)
            assert off(light, rows_of(full, group), group) <= bound * max(1.0, float(full.abs().max()))


@pytest.mark.parametrize("layout", ["in_place", "concat"])
@pytest.mark.parametrize("variant", SHAPES, ids=NAMES)
def test_with_all_tokens_in_the_group_nothing_is_stale(variant: dict, layout: Any):
    model = make(**variant)
    tokens, hidden, labels = draw(hidden=1.0)
    everything = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(s)) for s in range(3)])
    cache = model.make_cache(layout=layout)
    said(model, tokens, hidden, labels, cache=cache)
    for first, stop in [(0, 3), (3, 4), (4, 10)]:
        tokens, hidden = reveal(tokens, hidden, everything, first, stop)
        light = said(model, tokens, hidden, labels, cache=cache, rows=everything)
        full = said(model, tokens, hidden, labels)
        assert off(light, rows_of(full, everything), everything) <= 1e-10


@pytest.mark.parametrize("recompute_prefix", [True, False])
@pytest.mark.parametrize("variant", SHAPES, ids=NAMES)
def test_layouts_agree_and_a_group_has_no_order(variant: dict, recompute_prefix: bool):
    model = make(**variant)
    tokens, hidden, labels = draw()
    caches = [model.make_cache(recompute_prefix, layout) for layout in ("in_place", "concat", "in_place")]
    for cache in caches:
        said(model, tokens, hidden, labels, cache=cache)
    order = torch.tensor([2, 0, 3, 1])
    for first, stop in [(0, 1), (1, 3)]:
        tokens, hidden = reveal(tokens, hidden, EVEN, first, stop)
        inputs = (tokens, hidden, labels)
        in_place = said(model, *inputs, cache=caches[0], rows=EVEN)
        assert off(said(model, *inputs, cache=caches[1], rows=EVEN), in_place, EVEN) <= 1e-10
        permuted = said(model, *inputs, cache=caches[2], rows=EVEN[:, order])
        assert off(permuted, in_place[:, order], EVEN) <= 1e-10


@pytest.mark.parametrize("variant", SHAPES, ids=NAMES)
def test_new_tokens_make_light_and_full_answers_differ(variant: dict):
    model = make(**variant)
    tokens, hidden, labels = draw()
    cache = model.make_cache()
    said(model, tokens, hidden, labels, cache=cache)
    tokens, hidden = reveal(tokens, hidden, GROUPS, 0, 2)
    light = said(model, tokens, hidden, labels, cache=cache, rows=GROUPS)
    full = rows_of(said(model, tokens, hidden, labels), GROUPS)
    for sample in range(3):
        assert off(light[sample : sample + 1], full[sample : sample + 1], GROUPS[sample : sample + 1]) > 1e-3


@pytest.mark.parametrize("recompute_prefix", [True, False])
@pytest.mark.parametrize("layout", ["in_place", "concat"])
def test_rows_outside_the_group_stay_bit_for_bit(layout: Any, recompute_prefix: bool):
    model, group = make(), EVEN if layout == "concat" else GROUPS
    tokens, hidden, labels = draw()
    conditional, other = (model.make_cache(recompute_prefix, layout) for _ in range(2))
    said(model, tokens, hidden, labels, cache=conditional)
    said(model, tokens, hidden, torch.full_like(labels, model.null_class), cache=other)
    before, before_other = contents(conditional), contents(other)
    for stop in (1, 2, 3, 4):
        tokens, hidden = reveal(tokens, hidden, group, stop - 1, stop)
        said(model, tokens, hidden, labels, cache=conditional, rows=group)
    fresh = fresh_rows(group, recompute_prefix)
    for layer, (old, new) in enumerate(zip(before, contents(conditional), strict=True)):
        rest = ~fresh[None, :, None, :, None].expand_as(old)
        assert torch.equal(old[rest], new[rest])
        if layer and layout == "in_place":  # in the first, rows that are still hidden are what they were
            assert not ((old == new).all(dim=-1).all(dim=2).all(dim=0) & fresh).any()
    for old, new in zip(before_other, contents(other), strict=True):
        assert torch.equal(old, new)  # one condition's pass leaves the other's cache alone
        assert not torch.equal(old, before[0])


@pytest.mark.parametrize("recompute_prefix", [True, False])
def test_a_light_pass_computes_its_rows_only(recompute_prefix: bool):
    model, inputs = make(), draw()
    seen: list[tuple[int, ...]] = []
    watched = [block.attn.to_qkv for block in model.blocks] + [block.fc1 for block in model.blocks]  # type: ignore
    for module in [*watched, model.head_dense]:
        module.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[:2])))
    cache = model.make_cache(recompute_prefix)
    said(model, *inputs, cache=cache)
    assert seen == [(3, 1 + N)] * 2 * LAYERS + [(3, N)]
    seen.clear()
    said(model, *inputs, cache=cache, rows=GROUPS)
    assert seen == [(3, 5 + recompute_prefix)] * 2 * LAYERS + [(3, 5)]


def test_padding_changes_nothing():
    model = make()
    tokens, hidden, labels = draw()
    answers: list[Tensor] = []
    for sample in range(3):  # each image alone with its own group, without padding
        cache = model.make_cache()
        rows = GROUPS[sample][GROUPS[sample] >= 0][None]
        one = [part[sample : sample + 1] for part in (tokens, hidden, labels)]
        said(model, *one, cache=cache)
        one[:2] = reveal(one[0], one[1], rows, 0, 1)
        answers.append(said(model, *one, cache=cache, rows=rows)[0])
    cache = model.make_cache()
    said(model, tokens, hidden, labels, cache=cache)
    for sample in range(3):
        for row in GROUPS[sample, :1].tolist():
            tokens[sample, row], hidden[sample, row] = (3 * row) % V, False
    light = said(model, tokens, hidden, labels, cache=cache, rows=GROUPS)
    for sample, expected in enumerate(answers):
        assert (light[sample, : len(expected)] - expected).abs().max() <= 1e-10
    none = torch.full_like(GROUPS, -1)
    before = contents(cache)
    with_one_done = torch.where(torch.tensor([[False], [True], [True]]), GROUPS, none)
    assert said(model, tokens, hidden, labels, cache=cache, rows=with_one_done).isfinite().all()
    for old, new in zip(before, contents(cache), strict=True):
        assert torch.equal(old[:, 0, :, 1:], new[:, 0, :, 1:])  # only its prefix row was computed


def test_a_full_pass_fills_the_cache_anew():
    model = make()
    tokens, hidden, labels = draw()
    used, new = model.make_cache(), model.make_cache()
    said(model, tokens, hidden, labels, cache=used)
    assert used.nbytes == LAYERS * 2 * 3 * (1 + N) * 16 * 8 and used.cost_key == (1 + N, True)
    said(model, *reveal(tokens, hidden, GROUPS, 0, 2), labels, cache=used, rows=GROUPS)
    tokens, hidden = reveal(tokens, hidden, GROUPS, 0, 5)
    again = said(model, tokens, hidden, labels, cache=used)
    assert torch.equal(again, said(model, tokens, hidden, labels, cache=new))
    assert torch.equal(again, said(model, tokens, hidden, labels))
    assert all(torch.equal(a, b) for a, b in zip(contents(used), contents(new), strict=True))
    assert used.nbytes == LAYERS * 2 * 3 * (1 + N) * 16 * 8


def test_after_a_pass_that_failed_a_full_one_puts_all_right():
    model = make()
    tokens, hidden, labels = draw()
    cache, expected = model.make_cache(), said(model, tokens, hidden, labels)
    for rows in (None, GROUPS):
        said(model, tokens, hidden, labels, cache=cache)
        failing = model.blocks[3].register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            said(model, *reveal(tokens, hidden, GROUPS, 0, 2), labels, cache=cache, rows=rows)
        failing.remove()
        with pytest.raises(ValueError, match=r"out of order|length - 1"):
            said(model, tokens, hidden, labels, cache=cache, rows=GROUPS)
        assert torch.equal(said(model, tokens, hidden, labels, cache=cache), expected)


@pytest.mark.parametrize("layout", ["in_place", "concat"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
def test_a_cache_in_another_dtype_rounds_and_no_more(dtype: torch.dtype, bound: float, layout: Any):
    model = make()
    tokens, hidden, labels = draw()
    exact, rounded = model.make_cache(layout=layout), model.make_cache(layout=layout, dtype=dtype)
    for cache in (exact, rounded):
        said(model, tokens, hidden, labels, cache=cache)
    assert all(part.dtype == dtype for part in contents(rounded))
    assert rounded.nbytes * 8 == exact.nbytes * dtype.itemsize
    inputs = (*reveal(tokens, hidden, EVEN, 0, 2), labels)
    expected = said(model, *inputs, cache=exact, rows=EVEN)
    got = said(model, *inputs, cache=rounded, rows=EVEN)
    assert got.dtype == torch.float64 and 0 < off(got, expected, EVEN) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_of_codes_only_and_in_float32(dtype: torch.dtype):
    model, inputs = make(dtype), draw()
    cache = model.make_cache()
    for logits in (said(model, *inputs, cache=cache), said(model, *inputs, cache=cache, rows=GROUPS)):
        assert logits.shape[2] == V and logits.dtype == torch.float32 and logits.isfinite().all()
    exact = said(make(), *inputs)
    assert (said(model, *inputs) - exact).abs().max() <= (1e-4 if dtype == torch.float32 else 0.5)


def test_what_is_hidden_does_not_matter_and_what_is_seen_does():
    model = make()
    tokens, hidden, labels = draw()
    expected = said(model, tokens, hidden, labels)
    others = torch.where(hidden, (tokens + 5) % V, tokens)
    assert torch.equal(said(model, others, hidden, labels), expected)
    assert not torch.equal(said(model, torch.where(hidden, tokens, (tokens + 5) % V), hidden, labels), expected)
    assert not torch.equal(said(model, tokens, hidden, labels.roll(1)), expected)


def test_a_saved_one_comes_back(tmp_path):
    model = make(torch.float32, norm="post", long_skips=True, class_norm=True)
    model.save_pretrained(tmp_path)
    loaded = MaskGITTransformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(said(loaded, *draw()), said(model, *draw()))
    output = loaded(*draw())
    assert torch.equal(output.sample, said(model, *draw()))


def test_it_can_be_trained():
    model = make(torch.float32, long_skips=True).train()
    tokens, hidden, labels = draw()
    logits = model(tokens, hidden, labels).sample
    F.cross_entropy(logits[hidden], tokens[hidden]).backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in model.parameters())


def refused(message: str, inputs: Sequence[Any], **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        said(make(), *inputs, **options)


def test_what_does_not_fit_is_refused():
    model = make()
    tokens, hidden, labels = draw()
    refused(r"tokens must be \(B, 16, ...\), got \(3, 15\)", (tokens[:, 1:], hidden[:, 1:], labels))
    refused(r"hidden must be \(3, 16\) bool, got \(3, 16\) torch.int64", (tokens, hidden.long(), labels))
    refused(r"class_labels must be \(3,\), got \(2,\)", (tokens, hidden, labels[:2]))
    refused("rows need a cache", (tokens, hidden, labels), rows=GROUPS)
    refused(r"rows must be \(3, m\), got \(2, 5\)", (tokens, hidden, labels), rows=GROUPS[:2], cache=model.make_cache())
    filled, twice = model.make_cache(layout="concat"), GROUPS.clone()
    said(model, tokens, hidden, labels, cache=filled)
    refused("layout 'concat' needs groups of one size", (tokens, hidden, labels), rows=GROUPS, cache=filled)
    filled = model.make_cache()
    said(model, tokens, hidden, labels, cache=filled)
    twice[0, 1] = twice[0, 0]
    refused("a row twice", (tokens, hidden, labels), rows=twice, cache=filled)
    for layout in ("in_place", "concat"):
        empty = model.make_cache(layout=layout)  # type: ignore[arg-type]
        refused("expected 0 .. length - 1 = -1", (tokens, hidden, labels), rows=EVEN, cache=empty)
    for options, message in [
        ({"norm": "both"}, "norm must be pre or post, got 'both'"),
        ({"gelu": "exact"}, "gelu must be none or tanh, got 'exact'"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
        ({"codebook_size": 2.5}, "codebook_size must be a whole number of at least 1, got 2.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            MaskGITTransformer2DModel(**options)
