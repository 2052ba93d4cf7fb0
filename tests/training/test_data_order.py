from __future__ import annotations

from itertools import chain, islice

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from gendiff.training.data_order import DataOrder, step_seed


def test_every_epoch_holds_every_sample_once_and_in_its_own_order():
    order = DataOrder(length=12, batch_size=3, seed=0)
    epochs = [list(chain.from_iterable(order.batch(4 * epoch + m) for m in range(4))) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_batch_reaches_from_one_epoch_into_the_next():
    order = DataOrder(length=5, batch_size=7, seed=1)
    stream = list(chain.from_iterable(order.batch(m) for m in range(5)))
    assert len(stream) == 35
    for epoch in range(7):
        assert sorted(stream[5 * epoch : 5 * epoch + 5]) == list(range(5))


def test_two_processes_see_together_what_one_sees_with_twice_the_batch():
    one = DataOrder(length=10, batch_size=8, seed=4)
    ranks = [DataOrder(length=10, batch_size=4, seed=4, rank=rank, world=2) for rank in range(2)]
    for m in range(6):
        assert ranks[0].batch(m) + ranks[1].batch(m) == one.batch(m)


def test_starting_late_continues_the_same_order():
    whole = list(islice(DataOrder(length=7, batch_size=3, seed=5), 20))
    for start in (1, 6, 13):
        assert list(islice(DataOrder(length=7, batch_size=3, seed=5, start=start), 20 - start)) == whole[start:]


def test_the_seed_decides_the_order():
    assert DataOrder(50, 50, seed=0).batch(0) == DataOrder(50, 50, seed=0).batch(0)
    assert DataOrder(50, 50, seed=0).batch(0) != DataOrder(50, 50, seed=1).batch(0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_loader_reads_the_batches_in_order(num_workers):
    order = DataOrder(length=6, batch_size=4, seed=2, start=3)
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_sampler=order, num_workers=num_workers)
    batches = iter(loader)
    assert [next(batches)[0].tolist() for _ in range(5)] == [order.batch(m) for m in range(3, 8)]


def test_step_seeds_differ_in_every_argument_and_repeat():
    seeds = [step_seed(seed, m, rank) for seed in range(3) for m in range(40) for rank in range(3)]
    assert len(set(seeds)) == len(seeds)
    assert step_seed(1, 2, 0) == step_seed(1, 2, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0, "batch_size": 1}, "the training set is empty"),
        ({"length": 1, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"length": 1, "batch_size": 1, "rank": 2, "world": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"length": 1, "batch_size": 1, "start": -1}, "start must not be negative, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DataOrder(**arguments, seed=0)
