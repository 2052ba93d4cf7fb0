"""How a codebook begins and stays alive: k-means at the start, and new places for codes that nobody uses."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn.functional import adaptive_avg_pool2d

from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.nn.bands import lowpasses
from gendiff.nn.residual_quantizer import QuantizedStages, ResidualQuantizer

REVIVE_EVERY = 50
"""Steps between two looks for dead codes."""

DEAD_BELOW = 0.02
"""A code is dead if it is used less than this share of the mean."""

PIXELS_AT_ONCE = 2**19
"""Of images that are encoded together at the start."""

USE_DECAY = 0.99
"""Of the moving use of codes, from step to step."""


@torch.no_grad()
def start_codebook(model: FrequencyVQModel, images: Tensor, generator: torch.Generator, rounds: int = 10) -> None:
    """Place the codes by k-means (Lloyd) among what the untrained encoder says of `images`, at all stages.

    Uniform small codes, as is usual, all but collapse at coarse stages: the first to move takes all rows.

    Args:
        model: changed in place.
        images: (B, C, S, S) in [-1, 1].
        generator: CPU generator of the first choice.
        rounds: of Lloyd's algorithm.
    """
    quantizer = model.quantizer
    # Whole at 32 px; 512 large images at once would fill the memory.
    f = torch.cat([model.encode(part).f for part in images.split(max(1, PIXELS_AT_ONCE // images[0, 0].numel()))])
    targets = lowpasses(f, model.radii, len(model.stages))
    grids = [
        adaptive_avg_pool2d(target, side) if side < model.stages[-1] else target
        for target, side in zip(targets, model.stages, strict=True)
    ]
    # What a stage adds is what the one before has not said.
    rests = [grids[0]] + [
        grid - adaptive_avg_pool2d(before, side)
        for grid, before, side in zip(grids[1:], targets[:-1], model.stages[1:], strict=True)
    ]
    rows = torch.cat([_rows(grid) for grid in (*grids[:2], *rests)])
    weight = quantizer.codebook.weight
    weight.copy_(_draw(rows, len(weight), generator))
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, weight).argmin(dim=1) for part in rows.split(2**26 // len(weight))])
        sums = torch.zeros_like(weight).index_add_(0, nearest, rows)
        counts = nearest.bincount(minlength=len(weight))[:, None]
        weight.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), weight))


@torch.no_grad()
def tend_codebook(
    quantizer: ResidualQuantizer, quantized: QuantizedStages, generator: torch.Generator, revive_steps: int
) -> None:
    """Count which codes a step used, and every so often move dead ones to where rows are.

    Args:
        quantizer: changed in place; its buffers hold the counts, so that a resumed run goes on with them.
        quantized: of the step.
        generator: CPU generator of the draw.
        revive_steps: no revival after so many calls, so that the codes can settle.

    In several processes counts are summed and the rows of the first process are used, so codebooks stay equal.
    """
    size = quantizer.codebook.num_embeddings
    used = torch.cat([codes.flatten() for codes in quantized.tokens]).bincount(minlength=size).float()
    together = distributed.is_available() and distributed.is_initialized()
    if together:
        distributed.all_reduce(used)
    quantizer.code_use.mul_(USE_DECAY).add_(used, alpha=1 - USE_DECAY)
    quantizer.updates += 1
    step = int(quantizer.updates)
    # A frozen codebook, behind which a decoder alone is trained, stays what it is.
    if step % REVIVE_EVERY or step > revive_steps or not quantizer.codebook.weight.requires_grad:
        return
    dead = quantizer.code_use < DEAD_BELOW * quantizer.code_use.mean()
    rows = _draw(torch.cat([_rows(grid) for grid in quantized.grids]), size, generator)
    if together:
        distributed.broadcast(rows, 0)
    quantizer.codebook.weight[dead] = rows[dead]
    # As if of mean use, or a code would be dead again before its first row comes.
    quantizer.code_use[dead] = quantizer.code_use.mean()


def _rows(grid: Tensor) -> Tensor:
    """(B, C, p, p) as rows (B p p, C)."""
    return grid.movedim(1, -1).flatten(0, -2)


def _draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random rows, each at most once if there are as many."""
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    return rows[order.repeat(-(-count // len(order)))[:count]].contiguous()
