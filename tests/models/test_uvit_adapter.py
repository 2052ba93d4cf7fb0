"""ReCAP on diffusers' U-ViT: it is the stock network, and a light pass is that network with a frozen context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import UVit2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

from gendiff.models.masked.text_condition import TextCondition
from gendiff.models.masked.uvit_adapter import UVitAdapter

B, SIDE, N, V = 3, 8, 64, 32
GROUP = 9
MODES = pytest.mark.parametrize("downsample", [False, True], ids=["same grid", "half grid"])


def make(downsample: bool = False, dtype: torch.dtype = torch.float64, **settings: Any) -> UVitAdapter:
    """Two layers of width 64 on 8 x 8 tokens, no weight at its start."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "cond_embed_dim": 12,
        "micro_cond_encode_dim": 8,
        "micro_cond_embed_dim": 40,
        "encoder_hidden_size": 16,
        "vocab_size": 40,
        "codebook_size": V,
        "in_channels": 32,
        "block_out_channels": 32,
        "num_res_blocks": 1,
        "block_num_heads": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "sample_size": SIDE,
        "downsample": downsample,
        "upsample": downsample,
    }
    model = UVit2DModel(**{**sizes, **settings})
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    torch.nn.Module.to(model.eval(), dtype)  # diffusers' own warns of nothing
    return UVitAdapter(model)


def draw(seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, TextCondition]:
    """Tokens, what is hidden, and a different text for each image."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, V, (B, N), generator=generator)
    hidden = torch.rand(B, N, generator=generator) < 0.6
    text, pooled = torch.randn(B, 7, 16, generator=generator), torch.randn(B, 12, generator=generator)
    micro = torch.tensor([[256, 256, 0, 0, 6], [128, 256, 9, 0, 5], [64, 64, 0, 3, 4]])
    return tokens, hidden, TextCondition(text.to(dtype), pooled.to(dtype), micro.to(dtype))


def groups(hidden: Tensor, ragged: bool = True, seed: int = 2) -> Tensor:
    """(B, 9): hidden places, others for each image; the second image has two fewer, the third none at all."""
    noise = torch.rand(hidden.shape, generator=torch.Generator().manual_seed(seed))
    rows = (noise - hidden.float()).argsort(dim=1)[:, :GROUP]
    if ragged:
        rows[1, -2:] = -1
        rows[2] = -1
    return rows


def reveal(tokens: Tensor, hidden: Tensor, rows: Tensor, count: int = 4) -> tuple[Tensor, Tensor]:
    """The first tokens of each group become known."""
    tokens, hidden = tokens.clone(), hidden.clone()
    for b, group in enumerate(rows):
        for place in group[:count].tolist():
            if place >= 0:
                hidden[b, place], tokens[b, place] = False, (7 * place + b) % V
    return tokens, hidden


def picked(whole: Tensor, rows: Tensor) -> Tensor:
    return whole.gather(1, rows.clamp(min=0)[..., None].expand(-1, -1, whole.shape[2]))


def stock(adapter: UVitAdapter, tokens: Tensor, hidden: Tensor, condition: TextCondition) -> Tensor:
    ids = tokens.masked_fill(hidden, 39).view(B, *adapter.grid)
    args = (condition.encoder_hidden_states, condition.pooled_text_emb, condition.micro_conds)
    return adapter.transformer(ids, *args).flatten(2).transpose(1, 2)


def bound(logits: Tensor, dtype: torch.dtype = torch.float64) -> float:
    return (1e-10 if dtype == torch.float64 else 1e-5) * max(1.0, float(logits.abs().max()))


class Recorder:
    """An attention processor of the stock network that keeps keys and values, or puts kept ones in their place."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None
        self.fresh: Tensor | None = None

    def __call__(self, attn: Any, hidden_states: Tensor, **unused: Any) -> Tensor:
        k, v = attn.to_k(hidden_states), attn.to_v(hidden_states)
        if self.fresh is None:
            self.kept = (k, v)
        else:
            k, v = (torch.where(self.fresh[..., None], new, old) for new, old in zip((k, v), self.kept, strict=True))
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(hidden_states), k, v))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


def reference(adapter: UVitAdapter, before: tuple, after: tuple, rows: Tensor) -> Tensor:
    """Logits of `after` by the stock network over all cells, where those outside the group stay as `before` had them:
    their keys and values in every layer, and their output."""
    model, stride = adapter.transformer, 2 if adapter.transformer.config["downsample"] else 1
    across = SIDE // stride
    fresh = torch.zeros(B, across**2, dtype=torch.bool)
    for b, group in enumerate(rows.tolist()):
        for place in group:
            if place >= 0:
                fresh[b, place // SIDE // stride * across + place % SIDE // stride] = True
    recorders = [Recorder() for _ in model.transformer_layers]
    for layer, recorder in zip(model.transformer_layers, recorders, strict=True):
        layer.attn1.set_processor(recorder)
    outputs: list[Tensor] = []

    def output(module: Any, args: Any, result: Tensor) -> Tensor:
        outputs.append(result)
        return torch.where(fresh[..., None], result, outputs[0])

    handle = model.project_from_hidden.register_forward_hook(output)
    stock(adapter, *before)
    for recorder in recorders:
        recorder.fresh = fresh
    logits = stock(adapter, *after)
    handle.remove()
    model.set_attn_processor(AttnProcessor2_0())
    return logits


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@torch.no_grad()
def test_a_full_pass_is_the_stock_network_bit_for_bit(downsample: bool, dtype: torch.dtype):
    adapter, (tokens, hidden, condition) = make(downsample, dtype), draw(dtype=dtype)
    expected = stock(adapter, tokens, hidden, condition)
    got = adapter(tokens, hidden, condition, return_dict=False)[0]
    assert expected.std() > 0.5 and got.shape == (B, N, V)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(got, expected.to(got.dtype))
    assert torch.equal(adapter(tokens, hidden, condition, adapter.make_cache()).sample, got)


@torch.no_grad()
def test_what_lies_at_a_hidden_place_does_not_matter_and_the_text_does():
    adapter, (tokens, hidden, condition) = make(), draw()
    logits = adapter(tokens, hidden, condition).sample
    assert torch.equal(adapter(torch.where(hidden, (tokens + 1) % V, tokens), hidden, condition).sample, logits)
    for name in vars(condition):
        parts = dict(vars(condition))
        parts[name] = parts[name].roll(1, dims=0)
        assert (adapter(tokens, hidden, TextCondition(**parts)).sample - logits).abs().max() > 1e-3, name


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("recompute_prefix", [True, False])
@torch.no_grad()
def test_nothing_new_nothing_changes(downsample: bool, dtype: torch.dtype, recompute_prefix: bool):
    adapter, (tokens, hidden, condition) = make(downsample, dtype), draw(dtype=dtype)
    rows, cache = groups(hidden), adapter.make_cache(recompute_prefix)
    full = adapter(tokens, hidden, condition, cache).sample
    for _ in range(2):
        light = adapter(tokens, hidden, condition, cache, rows).sample
        assert light.shape == (B, GROUP, V)
        assert ((light - picked(full, rows))[rows >= 0]).abs().max() <= bound(full, dtype)


@MODES
@torch.no_grad()
def test_a_light_pass_is_the_stock_network_with_a_frozen_context(downsample: bool):
    adapter, (tokens, hidden, condition) = make(downsample), draw()
    rows, cache = groups(hidden), adapter.make_cache()
    adapter(tokens, hidden, condition, cache)
    for count in (3, 6):
        now = reveal(tokens, hidden, rows, count)
        light = adapter(*now, condition, cache, rows).sample
        expected = reference(adapter, (tokens, hidden, condition), (*now, condition), rows)
        assert ((light - picked(expected, rows))[rows >= 0]).abs().max() <= bound(expected)
        whole = picked(adapter(*now, condition).sample, rows)
        assert ((light - whole)[0]).abs().max() > 1e-4, "the context must be stale, or the pass was a full one"


@MODES
@torch.no_grad()
def test_a_group_of_everything_is_a_full_pass(downsample: bool):
    adapter, (tokens, hidden, condition) = make(downsample), draw()
    cache, rows = adapter.make_cache(), torch.rand(B, N, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    adapter(tokens, hidden, condition, cache)
    now = reveal(tokens, hidden, rows, 20)
    full = adapter(*now, condition).sample
    assert (adapter(*now, condition, cache, rows).sample - picked(full, rows)).abs().max() <= bound(full)


@MODES
@torch.no_grad()
def test_cells_outside_the_group_stay_as_they_are(downsample: bool):
    adapter, (tokens, hidden, condition) = make(downsample), draw()
    rows, cache = groups(hidden), adapter.make_cache()
    adapter(tokens, hidden, condition, cache)
    before = [torch.stack(cache.keys_values.read(layer)).clone() for layer in range(2)]
    adapter(*reveal(tokens, hidden, rows), condition, cache, rows)
    stride, across = (2, 4) if downsample else (1, 8)
    for layer, old in enumerate(before):
        changed = (torch.stack(cache.keys_values.read(layer)) != old).any(dim=(0, 2, 4))
        for b, group in enumerate(rows.tolist()):
            cells = {place // 8 // stride * across + place % 8 // stride for place in group if place >= 0}
            assert set(changed[b].nonzero()[:, 0].tolist()) == cells


@MODES
@torch.no_grad()
def test_light_passes_compute_cells_of_the_group_alone(downsample: bool):
    adapter, (tokens, hidden, condition) = make(downsample), draw()
    counts: list[int] = []
    model: Any = adapter.transformer
    model.transformer_layers[1].ff.register_forward_hook(lambda module, args, result: counts.append(result.shape[1]))
    model.mlm_layer.conv2.register_forward_hook(lambda module, args, result: counts.append(result[0, 0].numel()))
    rows, cache = groups(hidden), adapter.make_cache()
    adapter(tokens, hidden, condition, cache)
    adapter(tokens, hidden, condition, cache, rows)
    pairs = {(place // 16, place % 8 // 2) for place in rows[0].tolist()}
    assert counts == ([16, N, len(pairs), GROUP] if downsample else [N, N, GROUP, GROUP])
    assert [adapter.cost_key(hidden), adapter.cost_key(hidden, rows)] == counts[::2]


@MODES
@torch.no_grad()
def test_the_order_of_a_group_is_the_order_of_its_logits(downsample: bool):
    adapter, (tokens, hidden, condition) = make(downsample), draw()
    rows = groups(hidden, ragged=False)
    now, order = reveal(tokens, hidden, rows), torch.randperm(GROUP, generator=torch.Generator().manual_seed(4))

    def light(rows: Tensor) -> Tensor:
        cache = adapter.make_cache()
        adapter(tokens, hidden, condition, cache)
        return adapter(*now, condition, cache, rows).sample

    first = light(rows)
    assert (light(rows[:, order]) - first[:, order]).abs().max() <= bound(first)


@torch.no_grad()
def test_both_layouts_say_the_same():
    adapter, (tokens, hidden, condition) = make(), draw()
    rows = groups(hidden, ragged=False)
    lights = []
    for layout in ("in_place", "concat"):
        cache = adapter.make_cache(layout=layout)
        adapter(tokens, hidden, condition, cache)
        steps = [adapter(*reveal(tokens, hidden, rows, n), condition, cache, rows).sample for n in (2, 5)]
        lights.append(torch.cat(steps))
    assert (lights[0] - lights[1]).abs().max() <= bound(lights[0])


@torch.no_grad()
def test_concat_refuses_different_numbers_of_cells():
    adapter, (tokens, hidden, condition) = make(True), draw()
    cache = adapter.make_cache(layout="concat")
    adapter(tokens, hidden, condition, cache)
    rows = torch.tensor([[0, 1], [0, 2], [0, 8]])  # one cell, two cells, one cell
    with pytest.raises(ValueError, match="layout 'concat' needs groups of one size"):
        adapter(tokens, hidden, condition, cache, rows)


@torch.no_grad()
def test_what_the_text_gives_is_computed_once_for_a_cache():
    adapter, (tokens, hidden, condition) = make(), draw()
    calls: list[int] = []
    model: Any = adapter.transformer
    for module in (model.encoder_proj, model.transformer_layers[1].attn2.to_k, model.up_block.attention_blocks[0]):
        module = getattr(module, "kv_mapper", module)
        module.register_forward_hook(lambda *unused: calls.append(1))
    cache, rows = adapter.make_cache(), groups(hidden)
    keys = [cache.cost_key]
    assert cache.nbytes == 0
    for given in (None, rows, None, rows):
        adapter(tokens, hidden, condition, cache, given)
        keys.append(cache.cost_key)
    assert len(calls) == 3 and keys == [(0, True, False)] + [(N, True, True)] * 4
    text = 7 * (2 * 2 * 64 + 4 * 2 * 32) + 2 * 3 * 2 * 64 + 2 * 2 * 32  # keys and values, modulations
    assert cache.nbytes == 8 * B * (2 * 2 * N * 64 + N * 32 + text)
    other = draw(seed=5)[2]
    expected = adapter(tokens, hidden, other).sample
    assert torch.equal(adapter(tokens, hidden, other, cache).sample, expected), "another text is read anew"
    assert cache.cost_key == (N, True, True)


@torch.no_grad()
def test_keys_may_be_kept_in_half_precision():
    adapter, (tokens, hidden, condition) = make(dtype=torch.float32), draw(dtype=torch.float32)
    rows, cache, whole = groups(hidden), adapter.make_cache(dtype=torch.bfloat16), adapter.make_cache()
    full = adapter(tokens, hidden, condition, cache).sample
    exact = adapter(tokens, hidden, condition, whole).sample
    light = adapter(tokens, hidden, condition, cache, rows).sample
    assert ((light - picked(full, rows))[rows >= 0]).abs().max() <= bound(full, torch.float32)
    assert 0 < (full - exact).abs().max() < 0.05
    assert whole.nbytes - cache.nbytes == 2 * 2 * B * N * 64 * 2


@torch.no_grad()
def test_a_grid_need_not_be_square_nor_as_in_training():
    adapter = UVitAdapter(make(True).transformer, grid=(4, 6))
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randint(0, V, (B, 24), generator=generator)
    hidden, condition = torch.rand(B, 24, generator=generator) < 0.5, draw()[2]
    rows, cache = torch.tensor([[0, 23, 9], [5, 6, 7], [17, 16, -1]]), adapter.make_cache()
    full = adapter(tokens, hidden, condition, cache).sample
    assert torch.equal(full, stock(adapter, tokens, hidden, condition)) and adapter.num_tokens == 24
    light = adapter(tokens, hidden, condition, cache, rows).sample
    assert ((light - picked(full, rows))[rows >= 0]).abs().max() <= bound(full)


@torch.no_grad()
def test_offloaded_weights_are_fetched():
    adapter, (tokens, hidden, condition) = make(), draw()
    calls: list[Any] = []

    class Fetch(ModelHook):
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(module)
            return args, kwargs

    add_hook_to_module(adapter.transformer, Fetch())
    adapter(tokens, hidden, condition)
    assert calls == [adapter.transformer]


def test_gradients_reach_all_weights_without_a_cache():
    adapter, (tokens, hidden, condition) = make(True), draw()
    logits = adapter(tokens, hidden, condition).sample
    F.cross_entropy(logits[hidden], tokens[hidden]).backward()
    silent = [name for name, p in adapter.transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def refused() -> dict[str, tuple[Callable[[], Any], str]]:
    adapter, (tokens, hidden, condition) = make(), draw()
    other = TextCondition(*(part[:2] for part in vars(condition).values()))
    rows = groups(hidden)
    return {
        "odd grid": (lambda: UVitAdapter(make(True).transformer, grid=(4, 5)), "grid must be positive multiples of 2"),
        "mask": (lambda: UVitAdapter(adapter.transformer, mask_id=40), "mask_id must be from 0 to 39, got 40"),
        "one way": (lambda: make(True, upsample=False), "must give as many tokens as it gets"),
        "tokens": (lambda: adapter(tokens[:, 1:], hidden, condition), r"tokens must be \(B, 64, ...\)"),
        "labels": (lambda: adapter(tokens, hidden, torch.tensor([1, 2, 3])), "condition must be a TextCondition of 3"),
        "batch": (lambda: adapter(tokens, hidden, other), "condition must be a TextCondition of 3 texts"),
        "empty": (lambda: adapter(tokens, hidden, condition, adapter.make_cache(), rows), "rows need a cache that"),
        "shapes": (
            lambda: TextCondition(condition.pooled_text_emb, condition.pooled_text_emb, rows),
            "a text condition",
        ),
    }


@pytest.mark.parametrize("case", ["odd grid", "mask", "one way", "tokens", "labels", "batch", "empty", "shapes"])
@torch.no_grad()
def test_what_does_not_fit_is_refused(case: str):
    call, message = refused()[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_condition_repeats_each_text():
    condition = draw()[2].repeat(2)
    assert len(condition) == 6
    assert condition.micro_conds[:, 0].tolist() == [256, 256, 128, 128, 64, 64]
