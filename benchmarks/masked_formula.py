"""Floating-point operations of MaskGIT's transformer by formula: a full pass, and a light one of some rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from flops import count_flops
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gendiff.models.masked.maskgit import MaskGITTransformer2DModel
from gendiff.pipelines.stats import Meter

PREFIX = 1
"""P: the row of the class."""


@dataclass(frozen=True)
class Sizes:
    """What the cost of a pass depends on.

    Attributes:
        side: of the token grid; N is its square.
        width: d.
        heads: of attention; the cost does not depend on them.
        depth: L, blocks.
        codes: V.
        mlp_ratio: r_m.
    """

    side: int = 16
    width: int = 256
    heads: int = 8
    depth: int = 8
    codes: int = 1024
    mlp_ratio: int = 4

    @property
    def tokens(self) -> int:
        """N."""
        return self.side**2


def pass_flops(sizes: Sizes, image_rows: int) -> int:
    """Of one image and one condition: `image_rows` rows and the prefix, whose queries meet all P + N keys.

    A block costs (8 + 4 r_m) d^2 a row for projections and MLP, and 4 d for each pair of query and key; the head
    2 d^2 + 2 d V for each row of the image. 1 multiply-add = 2.
    """
    rows, keys, d = PREFIX + image_rows, PREFIX + sizes.tokens, sizes.width
    block = (8 + 4 * sizes.mlp_ratio) * d**2 * rows + 4 * d * rows * keys
    return sizes.depth * block + image_rows * (2 * d**2 + 2 * d * sizes.codes)


def make_network(sizes: Sizes, seed: int) -> MaskGITTransformer2DModel:
    """The transformer with random weights, for no training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MaskGITTransformer2DModel(
            sizes.side,
            sizes.codes,
            num_classes=10,
            num_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            attention_head_dim=sizes.width // sizes.heads,
            mlp_ratio=sizes.mlp_ratio,
        )
    return network.eval()


def make_inputs(sizes: Sizes, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens (B, N), half of them hidden (B, N), and classes (B,)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, sizes.tokens)
    tokens = torch.randint(sizes.codes, shape, generator=generator)
    return tokens, torch.rand(shape, generator=generator) < 0.5, torch.arange(batch) % 10


def make_rows(sizes: Sizes, batch: int, group: int, seed: int) -> Tensor:
    """(B, n): another random group of each image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(sizes.tokens, generator=generator)[:group] for _ in range(batch)])


@torch.no_grad()
def counted_flops(network: MaskGITTransformer2DModel, sizes: Sizes, group: int | None) -> dict[str, int]:
    """Of one image: by torch's counter with attention as plain products, and by what the pipelines count with.

    Args:
        group: rows of a light pass; None for a full one.
    """
    inputs, found = make_inputs(sizes, 1, 0), {}
    for name in ("torch's counter", "the pipeline's stats"):
        cache = network.make_cache()
        rows = None
        if group is not None:
            network(*inputs, cache=cache)
            rows = make_rows(sizes, 1, group, 0)
        if name == "torch's counter":
            with sdpa_kernel(SDPBackend.MATH):
                found[name] = count_flops(lambda c=cache, r=rows: network(*inputs, cache=c, rows=r))
        else:
            meter = Meter()
            meter(network, *inputs, cache=cache, rows=rows)
            found[name] = meter.flops
    return found
