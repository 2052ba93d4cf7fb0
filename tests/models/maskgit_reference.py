"""MaskGIT written by hand, all rows at every layer with the keys and values of some kept, and tiny inputs for it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gendiff.models.masked.maskgit import MaskGITTransformer2DModel
from gendiff.nn.row_cache import RowCache

N, V, CLASSES, LAYERS = 16, 12, 3, 5
SHAPES = [{"norm": norm, "long_skips": skips} for norm in ("pre", "post") for skips in (False, True)]
NAMES = [f"{shape['norm']}-skips={shape['long_skips']}" for shape in SHAPES]
VARIANTS = [*SHAPES, {"norm": "pre", "class_norm": True, "embed_norm_eps": 1e-2, "gelu": "tanh", "qkv_bias": False}]
GROUPS = torch.tensor([[9, 2, 14, 5, 7], [0, 15, 3, -1, -1], [11, -1, -1, -1, -1]])
EVEN = torch.tensor([[9, 2, 14, 5], [0, 15, 3, 8], [11, 4, 6, 1]])
KeysValues = list[tuple[Tensor, Tensor]]


def make(dtype: torch.dtype = torch.float64, **options: Any) -> MaskGITTransformer2DModel:
    """No weight near zero, no norm near the identity."""
    model = MaskGITTransformer2DModel(
        4, V, CLASSES, LAYERS, num_attention_heads=2, attention_head_dim=8, mlp_ratio=2.0, **options
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        noise = 0.3 * torch.randn(weight.shape, generator=generator)
        weight.data = noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return torch.nn.Module.to(model.eval(), dtype)


def draw(batch: int = 3, hidden: float = 0.7) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, which are hidden, and labels with one for "no class" among them."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V, (batch, N), generator=generator)
    mask = torch.rand(batch, N, generator=generator) < hidden
    mask.scatter_(1, GROUPS.clamp(min=0), True)
    mask.scatter_(1, EVEN, True)
    return tokens, mask, torch.tensor([1, CLASSES, 0])[:batch]


def reveal(tokens: Tensor, hidden: Tensor, group: Tensor, first: int, stop: int) -> tuple[Tensor, Tensor]:
    """Entries `first .. stop - 1` of each group get tokens and are no longer hidden."""
    tokens, hidden = tokens.clone(), hidden.clone()
    for sample, rows in enumerate(group[:, first:stop].tolist()):
        for row in filter(lambda row: row >= 0, rows):
            tokens[sample, row] = (3 * row + sample) % V
            hidden[sample, row] = False
    return tokens, hidden


def said(model: MaskGITTransformer2DModel, *inputs: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(*inputs, return_dict=False, **options)[0]


def rows_of(logits: Tensor, group: Tensor) -> Tensor:
    return logits.gather(1, group.clamp(min=0)[..., None].expand(-1, -1, V))


def off(got: Tensor, expected: Tensor, group: Tensor) -> float:
    """Largest difference at rows that are no padding."""
    assert got.shape == expected.shape == (*group.shape, V)
    return float((got - expected)[group >= 0].abs().max())


def contents(cache: RowCache) -> list[Tensor]:
    """(2, B, H, P + N, d) of each layer."""
    return [torch.stack(cache.keys_values.read(layer)).clone() for layer in range(LAYERS)]


@torch.no_grad()
def by_hand(
    model: MaskGITTransformer2DModel,
    tokens: Tensor,
    hidden: Tensor,
    labels: Tensor,
    kept: KeysValues | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, KeysValues]:
    """The equations, from the weights alone, over all rows; logits (B, N, V), and keys and values of each layer.

    Args:
        kept: keys and values that stand where `fresh` (B, P + N) is False, at every layer.
    """
    w, config = dict(model.named_parameters()), model.config

    def norm(x: Tensor, name: str, eps: float = config["norm_eps"]) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def gelu(x: Tensor) -> Tensor:
        if config["gelu"] == "tanh":
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def attention(x: Tensor, layer: int) -> Tensor:
        q, k, v = linear(x, f"blocks.{layer}.attn.to_qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (q, k, v))
        if kept is not None and fresh is not None:
            k, v = (
                torch.where(fresh[:, None, :, None], new, old) for new, old in zip((k, v), kept[layer], strict=True)
            )
        written.append((k, v))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(8)
        heard = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(dim=-1), v)
        return linear(heard.transpose(1, 2).flatten(2), f"blocks.{layer}.attn.to_out")

    written: KeysValues = []
    eps = config["norm_eps"] if config["embed_norm_eps"] is None else config["embed_norm_eps"]
    words = w["word_embed.weight"][torch.where(hidden, torch.full_like(tokens, V), tokens)]
    image = norm(words + w["pos_embed"][:, 1:], "embed_norm", eps)
    prefix = w["class_embed.weight"][labels][:, None] + w["pos_embed"][:, :1]
    h = torch.cat([norm(prefix, "class_embed_norm" if config["class_norm"] else "embed_norm", eps), image], dim=1)
    before: list[Tensor] = []
    for layer in range(LAYERS):
        name = f"blocks.{layer}"
        if config["long_skips"] and layer >= LAYERS - LAYERS // 2:
            h = linear(torch.cat([h, before[LAYERS - 1 - layer]], dim=-1), f"skips.{layer - LAYERS + LAYERS // 2}")
        if config["norm"] == "pre":
            h = h + attention(norm(h, f"{name}.norm1"), layer)
            h = h + linear(gelu(linear(norm(h, f"{name}.norm2"), f"{name}.fc1")), f"{name}.fc2")
        else:
            h = norm(h + attention(h, layer), f"{name}.norm1")
            h = norm(h + linear(gelu(linear(h, f"{name}.fc1")), f"{name}.fc2"), f"{name}.norm2")
        before.append(h)
    h = h[:, 1:]
    if config["norm"] == "pre":
        h = norm(h, "norm_out")
    h = norm(gelu(linear(h, "head_dense")), "head_norm")
    return h @ w["word_embed.weight"][:V].T + w["head_bias"], written


def fresh_rows(group: Tensor, recompute_prefix: bool) -> Tensor:
    fresh = torch.zeros(len(group), 1 + N, dtype=torch.bool)
    fresh[:, 0] = recompute_prefix
    for sample, rows in enumerate(group.tolist()):
        fresh[sample, [1 + row for row in rows if row >= 0]] = True
    return fresh
