"""What a micro-batch holds: a pure function of its number, so that there is nothing to save and restore."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler


def step_seed(seed: int, micro_step: int, rank: int) -> int:
    """Seed, in [0, 2**63), of everything random in one micro-batch on one process."""
    return int(np.random.SeedSequence([seed, micro_step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class DataOrder(Sampler[list[int]]):
    """Endless batches of indices, for the `batch_sampler` of a DataLoader.

    The training set is read as one endless stream, epoch after epoch, each epoch in its own order. Micro-batch m of
    all processes together is the next `batch_size * world` of it. So together two processes of batch 4 see what one of
    batch 8 sees, no sample is left out, and a batch may reach from one epoch into the next.

    Args:
        length: number of samples.
        batch_size: samples in a micro-batch of one process.
        seed: of the shuffling.
        rank: this process, 0 .. world - 1.
        world: number of processes.
        start: micro-batches already done.

    Raises:
        ValueError: an empty dataset, or a number out of its range.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0):
        if length < 1:
            raise ValueError("the training set is empty.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, {world}), got {rank}.")
        if start < 0:
            raise ValueError(f"start must not be negative, got {start}.")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.start = rank, world, start
        # Only a cache: two, because a batch may lie across the end of an epoch.
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.length)

    def batch(self, micro_step: int) -> list[int]:
        """Indices of one micro-batch."""
        first = (micro_step * self.world + self.rank) * self.batch_size
        positions = range(first, first + self.batch_size)
        return [int(self._order(position // self.length)[position % self.length]) for position in positions]

    def __iter__(self) -> Iterator[list[int]]:
        micro_step = self.start
        while True:
            yield self.batch(micro_step)
            micro_step += 1
