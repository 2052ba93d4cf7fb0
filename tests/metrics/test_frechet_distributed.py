"""Statistics of several processes, one of which sees nothing, against those of one."""

import os

import numpy as np
import pytest
import torch
from torch import multiprocessing

from gendiff.metrics.frechet import FrechetStats, frechet_distance

DIM = 12
WORLDS = {1: [(0, 30)], 2: [(0, 11), (11, 30)], 3: [(0, 0), (0, 19), (19, 30)]}
"""Processes -> which rows each sees."""


def rows_of(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((30, DIM)) @ rng.standard_normal((DIM, DIM)) + 1e3


def work(rank, folder):
    """One process, in all worlds that have its rank; in each its own part in two batches, then the whole."""
    import accelerate
    from torch import distributed

    torch.set_num_threads(1)
    for world, bounds in WORLDS.items():
        if rank >= world:
            continue
        if world > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="localhost")
            meeting = f"file://{folder}/meeting-{world}"
            distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
        state = accelerate.PartialState(cpu=True)
        assert state.num_processes == world
        start, stop = bounds[rank]
        for name, rows in (("kept", DIM * 30), ("dropped", DIM * 30 - 1)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("gendiff.metrics.frechet_stats.KEPT_NUMBERS", rows)
                stats = FrechetStats(DIM)
                if stop > start:
                    stats.update(rows_of(0)[start : start + 1]).update(rows_of(0)[start + 1 : stop])
                stats.all_reduce(state)
                again = FrechetStats(DIM).all_reduce(state)
                assert again.n == 0
            found = {"mean": stats.mean, "cov": stats.cov, "n": stats.n, "features": np.zeros((0, DIM))}
            if stats.features is not None:
                found["features"] = stats.features
            np.savez(f"{folder}/{world}-{rank}-{name}.npz", **found)
        if world > 1:
            distributed.barrier()
            distributed.destroy_process_group()
        accelerate.PartialState._reset_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, (folder,), nprocs=max(WORLDS))
    return folder


@pytest.mark.parametrize("world", WORLDS)
def test_processes_together_have_the_statistics_of_one(folder, world):
    rows, other = rows_of(0), rows_of(1)
    expected = frechet_distance(rows, other, warn=False).value
    for rank in range(world):
        found = np.load(folder / f"{world}-{rank}-kept.npz")
        assert found["n"] == 30
        np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-13)
        np.testing.assert_allclose(found["cov"], np.cov(rows, rowvar=False), rtol=0, atol=1e-10)
        np.testing.assert_array_equal(found["features"], rows)
        stats = FrechetStats.from_moments(found["mean"], found["cov"], 30)
        assert frechet_distance(stats, other, warn=False).value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("world", WORLDS)
def test_features_too_many_for_one_process_are_dropped_by_all(folder, world):
    for rank in range(world):
        found = np.load(folder / f"{world}-{rank}-dropped.npz")
        assert found["n"] == 30
        assert len(found["features"]) == 0
        np.testing.assert_allclose(found["cov"], np.cov(rows_of(0), rowvar=False), rtol=0, atol=1e-10)
