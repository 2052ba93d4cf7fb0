"""A map as a sum of quantised stages, coarse to fine: tokens of a grid, resized to the map and smoothed.

The recursion of NFIG (Huang et al. 2025, equation 4) unrolls to one target for each stage: what stages 0 .. k are to
say, less what stages 0 .. k - 1 have said. With the whole map as every stage's target it is the multi-scale quantiser
of VAR (Tian et al. 2024, algorithm 1); with low-passes of it, next-frequency prediction. Decoding is the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendiff.nn.wide import wide


def smoother_of_stages(num_stages: int, num_smoothers: int) -> tuple[int, ...]:
    """Which of the shared convolutions smooths each stage: the one whose tick is nearest to k / (K - 1).

    For ten stages and four convolutions two stages lie exactly between ticks; float64 rounding decides, and published
    weights need that choice. So it is made once, here, in numpy, and stored in the config.

    Source: Tian et al. 2024 (VAR), "partially shared" convolutions; ticks as in their code.
    """
    if num_smoothers >= num_stages:
        return tuple(range(num_stages))
    edge = 1 / 3 / num_smoothers if num_smoothers == 4 else 1 / 2 / num_smoothers
    ticks = np.linspace(edge, 1 - edge, num_smoothers)
    return tuple(int(np.argmin(np.abs(ticks - k / (num_stages - 1)))) for k in range(num_stages))


@dataclass(frozen=True)
class QuantizedStages:
    """A map after quantisation.

    Attributes:
        tokens: K tensors (B, n_k) int64, row-major.
        sums: K tensors (B, C, N, N) float32: the sum of decoded stages 0 .. k.
        grids: K tensors (B, C, p_k, p_k): what was quantised, without gradients.
    """

    tokens: list[Tensor]
    sums: list[Tensor]
    grids: list[Tensor]


class ResidualQuantizer(nn.Module):
    """One codebook for all stages, and the convolutions that smooth what it says.

    Sums are float32 (float64 in a float64 module) and autocast is off: in half precision a sum of stages would drift,
    and other codes would be nearest.

    Args:
        stages: side of each token grid; the last is N, the side of the map.
        channels: C.
        codebook_size: V.
        smoother_index: for each stage, which convolution; as many convolutions as the largest number says. Unused if
            `smooth_ratio` is 0.
        smooth_ratio: rho; a stage u becomes (1 - rho) u + rho conv(u).
        cosine: nearest code by angle instead of by distance.
    """

    code_use: Tensor
    updates: Tensor

    def __init__(
        self,
        stages: Sequence[int],
        channels: int,
        codebook_size: int,
        smoother_index: Sequence[int],
        smooth_ratio: float = 0.5,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        self.stages, self.channels, self.size = tuple(stages), channels, stages[-1]
        self.smooth_ratio, self.cosine = smooth_ratio, cosine
        self.smoother_index = tuple(smoother_index)
        self.codebook = nn.Embedding(codebook_size, channels)
        count = max(smoother_index) + 1 if smooth_ratio else 0
        self.phi = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count))
        # Of training alone, but a run that goes on must go on with them.
        self.register_buffer("code_use", torch.zeros(codebook_size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def nearest(self, grid: Tensor) -> Tensor:
        """(B, C, p, p) to the number of the nearest code at each site, (B, p^2) int64."""
        rows, codes = grid.flatten(2).transpose(1, 2), self.codebook.weight.to(grid.dtype)
        with self._no_autocast():
            if self.cosine:
                return (F.normalize(rows, dim=-1) @ F.normalize(codes, dim=-1).T).argmax(dim=-1)
            # Without the squared norm of the row, which is the same for all codes.
            return (codes.square().sum(dim=1) - 2 * rows @ codes.T).argmin(dim=-1)

    def lookup(self, codes: Tensor, stage: int) -> Tensor:
        """Embeddings (B, C, p_k, p_k) of tokens (B, n_k), or of weights over all codes (B, n_k, V)."""
        table = self.codebook.weight
        rows = codes.to(table.dtype) @ table if codes.is_floating_point() else self.codebook(codes)
        return rows.transpose(1, 2).unflatten(2, (self.stages[stage], -1))

    def contribution(self, codes: Tensor, stage: int) -> Tensor:
        """What a stage adds to the sum, (B, C, N, N), from its tokens (B, n_k) or weights (B, n_k, V)."""
        with self._no_autocast():
            return self._spread(self.lookup(codes, stage), stage)

    def nothing(self, batch: int) -> Tensor:
        """The sum of no stages, zeros (B, C, N, N)."""
        weight = self.codebook.weight
        shape = (batch, self.channels, self.size, self.size)
        return torch.zeros(shape, dtype=wide(weight.dtype), device=weight.device)

    def next_input(self, total: Tensor, stage: int) -> Tensor:
        """What the transformer reads for stage k >= 1: the sum of the stages before it, (B, n_k, C)."""
        return F.adaptive_avg_pool2d(total, self.stages[stage]).flatten(2).transpose(1, 2)

    def quantize(self, targets: Sequence[Tensor]) -> QuantizedStages:
        """Choose the codes of all stages.

        Args:
            targets: what stages 0 .. k are to say together, for each k, (B, C, N, N); see `lowpasses`.

        Gradients reach codebook and convolutions through `sums`, never the targets.
        """
        tokens, sums, grids = [], [], []
        total = self.nothing(len(targets[0]))
        for stage, target in enumerate(targets):
            missing = (target - total).detach()
            last = stage == len(self.stages) - 1
            grid = missing if last else F.adaptive_avg_pool2d(missing, self.stages[stage])
            chosen = self.nearest(grid)
            total = total + self.contribution(chosen, stage)
            tokens.append(chosen)
            sums.append(total)
            grids.append(grid)
        return QuantizedStages(tokens, sums, grids)

    def sums(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The sum of decoded stages 0 .. k, (B, C, N, N), for each k that there are tokens for."""
        total = self.nothing(len(tokens[0]))
        sums = []
        for stage, codes in enumerate(tokens):
            total = total + self.contribution(codes, stage)
            sums.append(total)
        return sums

    def _no_autocast(self) -> AbstractContextManager:
        device = self.codebook.weight.device.type
        return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()

    def _spread(self, embeddings: Tensor, stage: int) -> Tensor:
        if stage < len(self.stages) - 1:
            embeddings = F.interpolate(embeddings, size=(self.size, self.size), mode="bicubic")
        if not self.smooth_ratio:
            return embeddings
        smoothed = self.phi[self.smoother_index[stage]](embeddings)
        return embeddings * (1 - self.smooth_ratio) + smoothed * self.smooth_ratio
