"""What a chunk of video costs by formula, and how cost grows: against these the measured figures are read.

Per block and token of width d: 8 d^2 for queries, keys, values and results of each of two attentions, 16 d^2 for the
MLP, and 4 K d for attention to K keys; 1 multiply-add = 2. Embeddings, modulation and the head are left out, so counted
operations lie a few per cent above. After Gao et al., Ca2-VDM (arXiv 2411.16375).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["cached", "recompute", "fixed", "unbounded"]


@dataclass(frozen=True)
class Sizes:
    """What the cost of a rollout depends on.

    Attributes:
        blocks: D.
        width: d.
        sites: S, tokens of a frame.
        references: P', clean frames whose tokens a noisy frame reads too.
        chunk: l, frames denoised together.
        window: W, most clean frames that a chunk sees.
        steps: N, denoising steps of a chunk.
        batch: B, videos side by side.
    """

    blocks: int
    width: int
    sites: int
    references: int
    chunk: int
    window: int
    steps: int
    batch: int = 1

    @classmethod
    def of(cls, config: Any, window: int, steps: int, batch: int = 1) -> Sizes:
        """Those of a `CausalVideoTransformer3DModel` with this config, factorised in space and time."""
        size = config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return cls(
            blocks=config["num_layers"],
            width=config["num_attention_heads"] * config["attention_head_dim"],
            sites=(height // config["patch_size"]) * (width // config["patch_size"]),
            references=config["prefix_references"],
            chunk=config["chunk_size"],
            window=window,
            steps=steps,
            batch=batch,
        )


def forward_flops(sizes: Sizes, frames: int, space_keys: int, time_keys: int) -> int:
    """F(T, K_s, K_t) = D T S (32 d^2 + 4 K_s d + 4 K_t d): one forward over `frames` frames of each video."""
    tokens, width = sizes.batch * frames * sizes.sites, sizes.width
    return sizes.blocks * tokens * (32 * width**2 + 4 * width * (space_keys + time_keys))


def chunk_flops(sizes: Sizes, kind: Kind, past: int) -> int:
    """One chunk after `past` clean frames: N steps and, with a cache, the write.

    Args:
        kind: "cached" reads the past; all others compute it anew in each step, and differ in how long it is.
    """
    chunk, space, refs = sizes.chunk, sizes.sites, sizes.references if past else 0
    if kind == "cached":
        read = forward_flops(sizes, chunk, space * (1 + refs), past + chunk)
        return sizes.steps * read + forward_flops(sizes, chunk, space, past + chunk)
    # Only noisy frames read the references, and they are a part of the frames of the forward.
    referring = 4 * sizes.blocks * sizes.batch * chunk * space * refs * space * sizes.width
    return sizes.steps * (forward_flops(sizes, past + chunk, space, past + chunk) + referring)


def pasts(sizes: Sizes, kind: Kind, chunks: int, given: int = 1) -> list[int]:
    """Clean frames that each chunk sees: all so far up to the window, of which "fixed" keeps l and "unbounded" all."""
    most = {"fixed": sizes.chunk, "unbounded": given + chunks * sizes.chunk}.get(kind, sizes.window)
    return [min(given + k * sizes.chunk, most) for k in range(chunks)]


def rollout_flops(sizes: Sizes, kind: Kind, chunks: int, given: int = 1) -> list[int]:
    """Of each chunk of a rollout that starts from `given` frames."""
    return [chunk_flops(sizes, kind, past) for past in pasts(sizes, kind, chunks, given)]


def slope(costs: Sequence[float], first: int = 8) -> float | None:
    """Exponent of the growth of cumulative cost: least squares of its logarithm against that of n, from n = `first`.

    Args:
        costs: of chunk 1, 2, ...
        first: smallest n that counts.

    Returns: None with fewer than three points.
    """
    if len(costs) < first + 2:
        return None
    sums = [math.fsum(costs[:n]) for n in range(first, len(costs) + 1)]
    xs, ys = [math.log(first + k) for k in range(len(sums))], [math.log(total) for total in sums]
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    rise = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return rise / math.fsum((x - mean_x) ** 2 for x in xs)
