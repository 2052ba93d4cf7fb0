"""Multiply-adds of a transformer over stages, by formula: with a cache, without, and as VAR's authors run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

TEN_STAGES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""Of 256 px at stride 16: 680 tokens, the list that NFIG and VAR share."""
PUBLISHED = {16: (150.2, 0.4), 20: (287.6, 0.5), 24: (490.9, 0.6), 30: (947.5, 1.0)}
"""Depth of a network of width 64 depth at ten stages -> 10^9 multiply-adds, adaptive norms anew at each stage, and the
relative time that VAR's authors list."""


@dataclass(frozen=True)
class Sizes:
    """What the cost of an image depends on.

    Attributes:
        stages: side of each token grid.
        width: D.
        depth: blocks, with an MLP of 4 D and their own adaptive norms.
        codes: V.
        channels: C, width of a code.
    """

    stages: tuple[int, ...]
    width: int
    depth: int
    codes: int = 4096
    channels: int = 32

    @property
    def counts(self) -> list[int]:
        """n_k."""
        return [side**2 for side in self.stages]

    @property
    def ends(self) -> list[int]:
        """L_k = n_0 + .. + n_k."""
        return list(accumulate(self.counts))


def cached_macs(sizes: Sizes) -> list[int]:
    """Multiply-adds of each stage with a cache, for one image and one condition.

    Stage k computes its own n_k tokens, whose queries meet L_k keys. What the condition makes of the norms, 6 D^2 a
    block and 2 D^2 for the head, is computed at the first stage and kept.
    """
    read = [0, *sizes.counts[1:]]  # stage 0 is made of the condition, not of codes
    stages = zip(sizes.counts, read, sizes.ends, strict=True)
    parts = [_stage(sizes, tokens, codes, keys) for tokens, codes, keys in stages]
    return [parts[0] + _modulations(sizes), *parts[1:]]


def recomputed_macs(sizes: Sizes) -> list[int]:
    """The same without a cache: stage k computes all L_k tokens and their norms anew.

    The mask saves nothing: kernels multiply what it hides.
    """
    first, once = sizes.counts[0], _modulations(sizes)
    return [_stage(sizes, end, end - first, end) + once for end in sizes.ends]


def every_stage_macs(sizes: Sizes) -> int:
    """With a cache, but adaptive norms anew at every stage, as VAR's authors run it: the figures of PUBLISHED."""
    return sum(cached_macs(sizes)) + (len(sizes.stages) - 1) * _modulations(sizes)


def var_sizes(depth: int, stages: Sequence[int] = TEN_STAGES) -> Sizes:
    """VAR's and NFIG's network of a depth: width 64 depth."""
    return Sizes(tuple(stages), 64 * depth, depth)


def _stage(sizes: Sizes, tokens: int, read: int, keys: int) -> int:
    """`tokens` positions through all blocks and the head, of which `read` come from codes, against `keys` keys."""
    block = 12 * sizes.width**2 * tokens + 2 * sizes.width * tokens * keys
    ends = tokens * sizes.width * sizes.codes + read * sizes.channels * sizes.width
    return sizes.depth * block + ends


def _modulations(sizes: Sizes) -> int:
    return (6 * sizes.depth + 2) * sizes.width**2
