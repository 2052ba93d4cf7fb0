"""MAGE: its equations, what is dropped in training, and that light passes are those equations with a frozen context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gendiff.models.masked.mage import MAGETransformer2DModel

B, N, V, C = 3, 16, 12, 3
GROUP = 6
KINDS = [
    {"num_classes": C},
    {"num_classes": 0, "decoder_num_attention_heads": 2, "decoder_attention_head_dim": 12},
]
KIND = pytest.mark.parametrize("kind", KINDS, ids=["classes", "no classes, another decoder"])
PREFIX = pytest.mark.parametrize("recompute_prefix", [True, False], ids=["prefix anew", "prefix kept"])


def make(kind: dict[str, Any] | None = None, dtype: torch.dtype = torch.float64) -> MAGETransformer2DModel:
    """Encoder of three blocks of width 32, decoder of two, on 4 x 4 tokens, no weight at its start."""
    torch.manual_seed(0)
    sizes = {"num_encoder_layers": 3, "num_decoder_layers": 2, "num_attention_heads": 4, "attention_head_dim": 8}
    model = MAGETransformer2DModel(sample_size=4, codebook_size=V, mlp_ratio=2.0, **{**sizes, **(kind or KINDS[0])})
    for name, parameter in model.named_parameters():
        parameter.data += (0.5 if "embed" in name else 0.2) * torch.randn(parameter.shape)
    return torch.nn.Module.to(model.eval(), dtype)  # diffusers' own warns of nothing


def draw(model: MAGETransformer2DModel, seed: int = 1) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, what is hidden, and labels with "no class" among them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, V, (B, N), generator=generator)
    hidden = torch.rand(B, N, generator=generator).argsort(dim=1) < 10
    return tokens, hidden, torch.tensor([1, 0, C]) if model.config["num_classes"] else None


def groups(hidden: Tensor, ragged: bool = True) -> Tensor:
    """(B, 6): hidden places, others for each image; the second image has two fewer, the third none at all."""
    noise = torch.rand(hidden.shape, generator=torch.Generator().manual_seed(2))
    rows = (noise - hidden.double()).argsort(dim=1)[:, :GROUP]
    if ragged:
        rows[1, -2:] = -1
        rows[2] = -1
    return rows


def reveal(tokens: Tensor, hidden: Tensor, rows: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """The first tokens of each group become known."""
    tokens, hidden = tokens.clone(), hidden.clone()
    for b, group in enumerate(rows):
        for place in group[:count].tolist():
            if place >= 0:
                hidden[b, place], tokens[b, place] = False, (5 * place + b) % V
    return tokens, hidden


def picked(whole: Tensor, rows: Tensor) -> Tensor:
    return whole.gather(1, rows.clamp(min=0)[..., None].expand(-1, -1, whole.shape[2]))


def bound(logits: Tensor, dtype: torch.dtype = torch.float64) -> float:
    return (1e-10 if dtype == torch.float64 else 1e-5) * max(1.0, float(logits.abs().max()))


class ByHand:
    """The equations, one after another, from the weights alone; all P + N rows at every layer.

    Called a second time with `fresh` (B, 1 + N), rows that are False keep the keys and values of the first call.
    """

    def __init__(self, model: MAGETransformer2DModel) -> None:
        self.w, self.settings = dict(model.named_parameters()), model.config
        self.kept: dict[str, tuple[Tensor, Tensor]] = {}
        self.class_row = torch.empty(0)

    def __call__(self, tokens: Tensor, hidden: Tensor, labels: Tensor | None, fresh: Tensor | None = None) -> Tensor:
        w, ids = self.w, torch.where(hidden, V, tokens)
        classes = torch.full((B,), self.settings["num_classes"]) if labels is None else labels
        h = torch.cat([w["class_embed.weight"][classes][:, None], w["word_embed.weight"][ids]], dim=1)
        h = self.norm(h + w["pos_embed"], "embed_norm")
        for i in range(3):
            h = self.block(h, f"encoder_blocks.{i}", self.settings["num_attention_heads"], fresh)
        h = self.linear(self.norm(h, "encoder_norm"), "decoder_embed")
        if fresh is None or bool(fresh[0, 0]):
            self.class_row = h[:, :1]
        h = torch.cat([h[:, :1], torch.where(hidden[..., None], self.class_row, h[:, 1:])], dim=1)
        h = h + w["decoder_pos_embed"]
        heads = self.settings["decoder_num_attention_heads"] or self.settings["num_attention_heads"]
        for i in range(2):
            h = self.block(h, f"decoder_blocks.{i}", heads, fresh)
        h = self.linear(self.norm(h, "decoder_norm")[:, 1:], "head_dense")
        h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
        return self.norm(h, "head_norm", 1e-5) @ w["word_embed.weight"][:V].T + w["head_bias"]

    def block(self, h: Tensor, name: str, heads: int, fresh: Tensor | None) -> Tensor:
        q, k, v = self.linear(self.norm(h, f"{name}.norm1"), f"{name}.attn.to_qkv").chunk(3, dim=-1)
        if fresh is None:
            self.kept[name] = (k, v)
        else:
            old = self.kept[name]
            k, v = (torch.where(fresh[..., None], new, kept) for new, kept in zip((k, v), old, strict=True))
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
        h = h + self.linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.attn.to_out")
        x = self.linear(self.norm(h, f"{name}.norm2"), f"{name}.fc1")
        return h + self.linear(0.5 * x * (1 + torch.erf(x / 2**0.5)), f"{name}.fc2")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: Tensor, name: str, eps: float = 1e-6) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


@KIND
@torch.no_grad()
def test_it_is_the_equations_written_by_hand(kind: dict):
    model = make(kind)
    inputs = draw(model)
    expected, got = ByHand(model)(*inputs), model(*inputs, return_dict=False)[0]
    assert expected.std() > 0.5 and got.shape == (B, N, V) and got.dtype == torch.float64
    assert (got - expected).abs().max() <= bound(expected)
    tokens, hidden, labels = inputs
    assert torch.equal(model(torch.where(hidden, (tokens + 1) % V, tokens), hidden, labels).sample, got)


@torch.no_grad()
def test_classes_matter_and_none_stands_for_no_class():
    model = make()
    tokens, hidden, labels = draw(model)
    logits = model(tokens, hidden, labels).sample
    assert (model(tokens, hidden, labels.roll(1)).sample - logits).abs().amax(dim=(1, 2)).min() > 1e-3
    assert model.null_class == C
    none = model(tokens, hidden, torch.full((B,), C)).sample
    assert torch.equal(model(tokens, hidden).sample, none) and make(KINDS[1]).null_class == 0


@KIND
@PREFIX
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_nothing_new_nothing_changes(kind: dict, recompute_prefix: bool, dtype: torch.dtype):
    model = make(kind, dtype)
    inputs, cache = draw(model), model.make_cache(recompute_prefix)
    rows = groups(inputs[1])
    full = model(*inputs, cache).sample
    assert full.dtype == dtype and (full - model(*inputs).sample).abs().max() <= bound(full, dtype)
    for _ in range(2):
        light = model(*inputs, cache, rows).sample
        assert light.shape == (B, GROUP, V)
        assert ((light - picked(full, rows))[rows >= 0]).abs().max() <= bound(full, dtype)


@KIND
@PREFIX
@torch.no_grad()
def test_a_light_pass_is_the_equations_with_a_frozen_context(kind: dict, recompute_prefix: bool):
    model = make(kind)
    tokens, hidden, labels = draw(model)
    rows, cache, by_hand = groups(hidden), model.make_cache(recompute_prefix), ByHand(model)
    model(tokens, hidden, labels, cache)
    by_hand(tokens, hidden, labels)
    fresh = torch.zeros(B, 1 + N, dtype=torch.bool)
    fresh[:, 0] = recompute_prefix
    for b, group in enumerate(rows.tolist()):
        fresh[b, [1 + place for place in group if place >= 0]] = True
    for count in (2, 4):
        now = (*reveal(tokens, hidden, rows, count), labels)
        light, expected = model(*now, cache, rows).sample, picked(by_hand(*now, fresh), rows)
        assert ((light - expected)[rows >= 0]).abs().max() <= bound(expected)
        assert (light - picked(model(*now).sample, rows))[0].abs().max() > 1e-4, "stale, or the pass was a full one"


@torch.no_grad()
def test_a_group_of_everything_is_a_full_pass():
    model = make()
    tokens, hidden, labels = draw(model)
    cache, rows = model.make_cache(), torch.rand(B, N, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    model(tokens, hidden, labels, cache)
    now = (*reveal(tokens, hidden, rows, 8), labels)
    full = model(*now).sample
    assert (model(*now, cache, rows).sample - picked(full, rows)).abs().max() <= bound(full)


@KIND
@PREFIX
@torch.no_grad()
def test_rows_outside_the_group_stay_as_they_are(kind: dict, recompute_prefix: bool):
    model = make(kind)
    tokens, hidden, labels = draw(model)
    rows, cache = groups(hidden), model.make_cache(recompute_prefix)
    model(tokens, hidden, labels, cache)
    stacks = [(cache.encoder, 3), (cache.decoder, 2)]
    before = [torch.stack(part.keys_values.read(layer)).clone() for part, count in stacks for layer in range(count)]
    model(*reveal(tokens, hidden, rows), labels, cache, rows)
    after = [torch.stack(part.keys_values.read(layer)) for part, count in stacks for layer in range(count)]
    differ = torch.stack(
        [(old != new).any(dim=4).any(dim=2).any(dim=0) for old, new in zip(before, after, strict=True)]
    )
    for b, group in enumerate(rows.tolist()):
        changed = {int(row) for row in differ[:, b].any(dim=0).nonzero()}
        written = {1 + place for place in group if place >= 0} | ({0} if recompute_prefix else set())
        # The third image has no group: its class row is computed again, of what it was computed of before.
        assert changed <= written and (b == 2 or changed >= written - {0})


@PREFIX
@torch.no_grad()
def test_light_passes_compute_rows_of_the_group_alone(recompute_prefix: bool):
    model = make()
    inputs, cache = draw(model), model.make_cache(recompute_prefix)
    rows, counts = groups(inputs[1]), []
    for module in (model.encoder_blocks[0].fc1, model.decoder_blocks[1].fc1, model.head_dense):
        module.register_forward_hook(lambda module, args, result: counts.append(result.shape[1]))
    model(*inputs, cache)
    model(*inputs, cache, rows)
    light = GROUP + recompute_prefix
    assert counts == [1 + N, 1 + N, N, light, light, GROUP]


@torch.no_grad()
def test_the_order_of_a_group_is_the_order_of_its_logits_and_both_layouts_agree():
    model = make()
    tokens, hidden, labels = draw(model)
    rows = groups(hidden, ragged=False)
    now, order = reveal(tokens, hidden, rows), torch.tensor([3, 0, 5, 1, 4, 2])

    def light(rows: Tensor, layout: Any = "in_place") -> Tensor:
        cache = model.make_cache(layout=layout)
        model(tokens, hidden, labels, cache)
        return model(*now, labels, cache, rows).sample

    first = light(rows)
    assert (light(rows[:, order]) - first[:, order]).abs().max() <= bound(first)
    assert (light(rows, "concat") - first).abs().max() <= bound(first)


@torch.no_grad()
def test_a_cache_is_filled_again_and_says_its_size():
    model = make(dtype=torch.float32)
    first, second = draw(model), draw(model, seed=7)
    cache, half = model.make_cache(), model.make_cache(dtype=torch.float16)
    assert cache.nbytes == 0 and cache.cost_key == (0, True)
    for given in (first, second):
        model(*given, cache)
        model(*given, half)
    rows = groups(second[1])
    light = model(*second, cache, rows).sample
    assert ((light - picked(model(*second).sample, rows))[rows >= 0]).abs().max() <= 1e-4
    rows_bytes = 2 * (3 + 2) * B * (1 + N) * 32 * 4
    assert cache.nbytes == rows_bytes + B * 32 * 4 and half.nbytes == rows_bytes // 2 + B * 32 * 4
    assert cache.cost_key == (1 + N, True) and model.make_cache(False).cost_key == (0, False)


@torch.no_grad()
def test_what_is_dropped_leaves_the_encoder_and_all_is_predicted():
    model = make()
    tokens, hidden, labels = draw(model)
    dropped = torch.zeros_like(hidden)
    for b in range(B):
        dropped[b, hidden[b].nonzero()[b : b + 4, 0]] = True
    counts: list[int] = []
    handle = model.encoder_blocks[0].register_forward_hook(lambda module, args, result: counts.append(result.shape[1]))
    logits = model(tokens, hidden, labels, dropped=dropped).sample
    handle.remove()
    assert counts == [1 + N - 4] and logits.shape == (B, N, V)
    # By hand: the rows that stay, each with its own position, and the class row in the place of all hidden ones.
    w, kept = dict(model.named_parameters()), [(~dropped[b]).nonzero()[:, 0].tolist() for b in range(B)]
    for b in range(B):
        ids = torch.where(hidden[b], V, tokens[b])[kept[b]]
        h = torch.cat([w["class_embed.weight"][labels[b]][None], w["word_embed.weight"][ids]])
        h = model.embed_norm(h + w["pos_embed"][0][[0, *(1 + place for place in kept[b])]])[None]
        for block in model.encoder_blocks:
            h = block(h)
        h = model.decoder_embed(model.encoder_norm(h))[0]
        whole = h[:1].repeat(1 + N, 1)
        for place, row in zip(kept[b], h[1:], strict=True):
            if not hidden[b, place]:
                whole[1 + place] = row
        h = (whole + w["decoder_pos_embed"][0])[None]
        for block in model.decoder_blocks:
            h = block(h)
        h = model.head_norm(F.gelu(model.head_dense(model.decoder_norm(h)[0, 1:])))
        expected = h @ w["word_embed.weight"][:V].T + w["head_bias"]
        assert (logits[b] - expected).abs().max() <= bound(expected)
    nothing = model(tokens, hidden, labels, dropped=torch.zeros_like(hidden)).sample
    assert (nothing - model(tokens, hidden, labels).sample).abs().max() <= bound(nothing)


def test_gradients_reach_all_weights_and_the_head_trains_no_embedding():
    model = make()
    tokens, hidden, labels = draw(model)
    F.cross_entropy(model(tokens, hidden, labels).sample[hidden], tokens[hidden]).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    model.zero_grad()
    F.cross_entropy(model(tokens % 6, hidden, labels).sample[hidden], tokens[hidden]).backward()
    assert model.word_embed.weight.grad[:6].any() and not model.word_embed.weight.grad[6:V].any()


def test_it_is_saved_and_loaded(tmp_path):
    model = make(KINDS[1], torch.float32)
    inputs = draw(model)
    model.save_pretrained(tmp_path)
    again = MAGETransformer2DModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(*inputs).sample, model(*inputs).sample)


def refused() -> dict[str, Callable[[], Any]]:
    model = make()
    tokens, hidden, labels = draw(model)
    dropped, some = torch.zeros_like(hidden), hidden & (torch.arange(N) < 8)
    visible = dropped.clone()
    visible[0, int((~hidden[0]).nonzero()[0])] = True
    return {
        r"tokens must be \(B, 16, ...\)": lambda: model(tokens[:, 1:], hidden, labels),
        r"class_labels must be \(3,\)": lambda: model(tokens, hidden, labels[:2]),
        "rows need a cache that a full pass": lambda: model(tokens, hidden, labels, model.make_cache(), groups(hidden)),
        "dropped is for training": lambda: model(tokens, hidden, labels, model.make_cache(), dropped=dropped),
        r"dropped must be \(3, 16\) bool": lambda: model(tokens, hidden, labels, dropped=dropped.long()),
        r"dropped must be hidden tokens.*\[1, 0, 0\]": lambda: model(tokens, hidden, labels, dropped=visible),
        "as many of each image": lambda: model(tokens, hidden, labels, dropped=some & (torch.arange(B) < 1)[:, None]),
        "num_classes must be a whole number of at least 0": lambda: make({"num_classes": -1}),
        "num_decoder_layers must be": lambda: make({"num_decoder_layers": 0}),
    }


@pytest.mark.parametrize("message", list(refused()))
def test_what_does_not_fit_is_refused(message: str):
    with pytest.raises(ValueError, match=message), torch.no_grad():
        refused()[message]()
