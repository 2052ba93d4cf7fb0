"""The Halton-MaskGIT network: its equations, and that light passes reuse exactly what a full pass left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gendiff.models.masked.halton import HaltonTransformer2DModel

N, V, C = 16, 11, 3
LABELS = torch.tensor([0, C, 2])
# Groups of different sizes and orders, -1 = padding.
ROWS = torch.tensor([[5, 2, 9, 14], [0, 15, -1, -1], [7, 3, 8, -1]])


def make(dtype: torch.dtype = torch.float64, **settings: Any) -> HaltonTransformer2DModel:
    """Two blocks of 36 with 4 heads of 7, two registers; every parameter random, gates and norms too."""
    defaults = {"sample_size": 4, "codebook_size": V, "num_classes": C, "num_layers": 2, "num_attention_heads": 4}
    defaults |= {"attention_head_dim": 7, "hidden_size": 36, "mlp_dim": 40, "num_registers": 2}
    model = HaltonTransformer2DModel(**{**defaults, **settings}).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(dtype)
            middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(middle + noise * (0.3 if parameter.ndim < 2 else 1.5 * parameter.shape[-1] ** -0.5))
    return model


def draw(batch: int = 3) -> tuple[Tensor, Tensor]:
    """Tokens, and which of them are hidden: about two thirds."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, V, (batch, N), generator=generator)
    return tokens, torch.rand(batch, N, generator=generator) < 0.7


def revealed(tokens: Tensor, hidden: Tensor, rows: Tensor = ROWS, count: int = 2) -> tuple[Tensor, Tensor]:
    """The first of each group's rows known, all with another token than before."""
    tokens, hidden = tokens.clone(), hidden.clone()
    for image, group in enumerate(rows[:, :count].tolist()):
        for row in group:
            if row >= 0:
                tokens[image, row] = (tokens[image, row] + 1) % V
                hidden[image, row] = False
    return tokens, hidden


@torch.no_grad()
def logits_of(model: HaltonTransformer2DModel, *args: Any, **options: Any) -> Tensor:
    return model(*args, return_dict=False, **options)[0]


def stored(cache: Any) -> list[Tensor]:
    """Keys and values of each layer, (2, B, H, P + N, d)."""
    return [torch.stack(cache.keys_values.read(layer)).clone() for layer in range(2)]


def at(logits: Tensor, rows: Tensor = ROWS) -> Tensor:
    return logits.gather(1, rows.clamp(min=0)[..., None].expand(-1, -1, logits.shape[2]))


def close(ours: Tensor, other: Tensor, most: float = 1e-10) -> None:
    torch.testing.assert_close(ours, other, atol=most, rtol=0)


def by_hand(
    model: HaltonTransformer2DModel,
    tokens: Tensor,
    hidden: Tensor,
    labels: Tensor,
    frozen: list[Tensor] | None = None,
    fresh: Tensor | None = None,
) -> Tensor:
    """The equations over all rows, from the weights alone.

    Args:
        model: in float64.
        tokens: (B, N).
        hidden: (B, N).
        labels: (B,).
        frozen: keys and values of a full pass, in the place of those of all rows that are not in `fresh`.
        fresh: (B, P + N) bool.
    """
    w, config = dict(model.named_parameters()), model.config
    heads, registers = config["num_attention_heads"], config["num_registers"]
    h = w["word_embed.weight"][torch.where(hidden, V, tokens)] + w["pos_embed"]
    h = torch.cat([w["registers"].expand(len(h), -1, -1), h], dim=1) if registers else h
    c = w["class_embed.weight"][labels]
    c = c * c.sigmoid()

    def rms(x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()

    for layer in range(config["num_layers"]):
        name = f"blocks.{layer}."
        six = (c @ w[f"{name}adaln.weight"].T + w[f"{name}adaln.bias"])[:, None].chunk(6, dim=-1)
        x = rms(h) * w[f"{name}norm1.weight"] * (1 + six[1]) + six[0]
        q, k, v = (x @ w[f"{name}attn.to_qkv.weight"].T).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (rms(q), rms(k), v))
        if frozen is not None and fresh is not None:
            pairs = zip((k, v), frozen[layer], strict=True)
            k, v = (torch.where(fresh[:, None, :, None], new, old) for new, old in pairs)
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
        h = h + six[2] * ((weights @ v).transpose(1, 2).flatten(2) @ w[f"{name}attn.to_out.weight"].T)
        x = rms(h) * w[f"{name}norm2.weight"] * (1 + six[4]) + six[3]
        gate, up = (x @ w[f"{name}gate_up.weight"].T).chunk(2, dim=-1)
        h = h + six[5] * ((gate * gate.sigmoid() * up) @ w[f"{name}down.weight"].T)
    shift, scale = (c @ w["adaln_out.weight"].T + w["adaln_out.bias"])[:, None].chunk(2, dim=-1)
    h = (rms(h[:, registers:]) * w["norm_out.weight"] + w["norm_out.bias"]) * (1 + scale) + shift
    return h @ w["word_embed.weight"][:V].T + w["head_bias"]


@pytest.mark.parametrize("registers", [0, 2])
def test_it_is_the_published_equations(registers):
    model, (tokens, hidden) = make(num_registers=registers), draw()
    logits = logits_of(model, tokens, hidden, LABELS)
    assert logits.shape == (3, N, V)  # no logit for the hidden token
    close(logits, by_hand(model, tokens, hidden, LABELS))
    close(logits_of(model, tokens, hidden, LABELS, cache=model.make_cache()), logits)


def test_what_is_hidden_is_not_read():
    model, (tokens, hidden) = make(), draw()
    other = torch.where(hidden, (tokens + 5) % V, tokens)
    assert torch.equal(logits_of(model, tokens, hidden, LABELS), logits_of(model, other, hidden, LABELS))


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_nothing_new_a_light_pass_gives_the_full_ones_logits(recompute, dtype):
    model, (tokens, hidden) = make(dtype), draw()
    cache = model.make_cache(recompute_prefix=recompute)
    full = logits_of(model, tokens, hidden, LABELS, cache=cache)
    light = logits_of(model, tokens, hidden, LABELS, cache=cache, rows=ROWS)
    kept = (ROWS >= 0)[..., None]
    assert light.shape == (3, 4, V)
    close(light * kept, at(full) * kept, 1e-10 if dtype is torch.float64 else 1e-5)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("registers", [0, 2])
def test_a_light_pass_attends_to_cached_rows_of_all_others(recompute, registers):
    model, (tokens, hidden) = make(num_registers=registers), draw()
    cache = model.make_cache(recompute_prefix=recompute)
    full = logits_of(model, tokens, hidden, LABELS, cache=cache)
    frozen = stored(cache)
    tokens, hidden = revealed(tokens, hidden)
    light = logits_of(model, tokens, hidden, LABELS, cache=cache, rows=ROWS)
    fresh = torch.zeros(3, registers + N + 1, dtype=torch.bool)
    fresh.scatter_(1, torch.where(ROWS >= 0, ROWS + registers, registers + N), True)
    fresh[:, :registers] = recompute
    expected = by_hand(model, tokens, hidden, LABELS, frozen, fresh[:, :-1])
    kept = (ROWS >= 0)[..., None]
    close(light * kept, at(expected) * kept)
    # Neither the stale logits, nor those of a full pass over what is known now.
    now = logits_of(model, tokens, hidden, LABELS)
    assert ((light - at(full)) * kept).abs().max() > 1e-2 and ((light - at(now)) * kept).abs().max() > 1e-3


@pytest.mark.parametrize("recompute", [True, False])
def test_rows_outside_the_group_stay_as_they_are_bit_for_bit(recompute):
    model, (tokens, hidden) = make(torch.float32), draw()
    cache = model.make_cache(recompute_prefix=recompute)
    logits_of(model, tokens, hidden, LABELS, cache=cache)
    before = stored(cache)
    for count in (1, 2, 3):
        logits_of(model, *revealed(tokens, hidden, count=count), LABELS, cache=cache, rows=ROWS)
    for old, new in zip(before, stored(cache), strict=True):
        changed = (old != new).any(dim=4).any(dim=2).any(dim=0)  # (B, P + N)
        for image, group in enumerate(ROWS.tolist()):
            inside = {row + 2 for row in group if row >= 0} | ({0, 1} if recompute else set())
            assert set(changed[image].nonzero()[:, 0].tolist()) <= inside
            assert changed[image, group[0] + 2]


def test_a_group_of_all_tokens_is_a_full_pass():
    model, (tokens, hidden) = make(), draw()
    cache, everything = model.make_cache(), torch.arange(N).flip(0).expand(3, -1)
    logits_of(model, tokens, hidden, LABELS, cache=cache)
    tokens, hidden = revealed(tokens, hidden)
    light = logits_of(model, tokens, hidden, LABELS, cache=cache, rows=everything)
    close(light, logits_of(model, tokens, hidden, LABELS).flip(1))


@pytest.mark.parametrize("recompute", [True, False])
def test_layouts_agree_and_the_order_of_a_group_only_orders_its_logits(recompute):
    model, (tokens, hidden), rows = make(), draw(), ROWS[:, :2]
    results = []
    for layout, group in (("in_place", rows), ("concat", rows), ("in_place", rows.flip(1))):
        cache = model.make_cache(recompute_prefix=recompute, layout=layout)
        logits_of(model, tokens, hidden, LABELS, cache=cache)
        for count in (1, 2):
            light = logits_of(model, *revealed(tokens, hidden, rows, count), LABELS, cache=cache, rows=group)
        results.append(light)
    close(results[1], results[0])
    close(results[2].flip(1), results[0])


def test_an_image_does_not_depend_on_others_in_its_batch():
    model, (tokens, hidden) = make(), draw()
    together, alone = model.make_cache(), model.make_cache()
    logits_of(model, tokens, hidden, LABELS, cache=together)
    logits_of(model, tokens[1:2], hidden[1:2], LABELS[1:2], cache=alone)
    new_tokens, new_hidden = revealed(tokens, hidden)
    light = logits_of(model, new_tokens, new_hidden, LABELS, cache=together, rows=ROWS)
    own = logits_of(model, new_tokens[1:2], new_hidden[1:2], LABELS[1:2], cache=alone, rows=ROWS[1:2, :2])
    close(light[1:2, :2], own)


def test_modulations_are_made_once_for_a_cache_and_anew_for_other_labels(monkeypatch):
    model, (tokens, hidden) = make(), draw()
    calls = []
    make_modulations = model._modulations
    monkeypatch.setattr(model, "_modulations", lambda labels: calls.append(1) or make_modulations(labels))
    cache = model.make_cache()
    for _ in range(2):
        logits_of(model, tokens, hidden, LABELS, cache=cache)
        logits_of(model, tokens, hidden, LABELS.clone(), cache=cache, rows=ROWS)
    assert len(calls) == 1
    keys = sum(part.nbytes for part in stored(cache))
    assert cache.nbytes == keys + 8 * 3 * 36 * (2 * 6 + 2)
    other = torch.tensor([1, 1, C])
    close(logits_of(model, tokens, hidden, other, cache=cache), logits_of(model, tokens, hidden, other))
    assert len(calls) == 3


def test_a_new_network_passes_its_input_on_whatever_the_class():
    model = HaltonTransformer2DModel(sample_size=4, codebook_size=V, num_classes=C).eval()
    tokens, hidden = draw()
    embedded = model.word_embed(tokens.masked_fill(hidden, V)) + model.pos_embed
    h = embedded
    for block in model.blocks:
        h = block(h, block.modulation(model.class_embed(LABELS)))
    assert torch.equal(h, embedded)


def test_sizes_are_those_of_the_published_networks():
    """23, 69, 142 and 480 million parameters, as its authors count them; ours lack one bias, of the hidden token."""
    counts = []
    for dim, layers, heads in ((384, 6, 6), (512, 12, 6), (768, 12, 12), (1024, 24, 16)):
        with torch.device("meta"):
            config = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": dim // heads}
            model = HaltonTransformer2DModel(16, 16384, 1000, **config, hidden_size=dim)
        counts.append(round(model.num_parameters() / 1e6))
    assert counts == [23, 69, 142, 480]


def test_save_and_load_give_the_same_logits(tmp_path):
    model, (tokens, hidden) = make(torch.float32), draw()
    model.save_pretrained(tmp_path)
    loaded = HaltonTransformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, tokens, hidden, LABELS), logits_of(model, tokens, hidden, LABELS))
    assert (loaded.null_class, loaded.num_prefix_rows, loaded.num_tokens) == (C, 2, N)


def test_all_parameters_learn_and_half_precision_stays_finite():
    model, (tokens, hidden) = make(torch.float32), draw()
    model.train()
    loss = F.cross_entropy(model(tokens, hidden, LABELS).sample[hidden], tokens[hidden])
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    half = make(torch.bfloat16)
    logits = logits_of(half, tokens, hidden, LABELS)
    assert logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
        ({"num_attention_heads": 0, "hidden_size": None}, "num_attention_heads must be"),
        ({"num_registers": -1}, "num_registers must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_bad_calls_are_named():
    model, (tokens, hidden) = make(), draw()
    with pytest.raises(ValueError, match="rows need a cache"):
        model(tokens, hidden, LABELS, rows=ROWS)
    with pytest.raises(ValueError, match=r"class_labels must be \(3,\), got \(2,\)"):
        model(tokens, hidden, LABELS[:2])
    with pytest.raises(ValueError, match="hidden must be"):
        model(tokens, hidden.int(), LABELS)
