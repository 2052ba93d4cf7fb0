from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_extractor import TinyExtractor

from gendiff.data.source_arrays import ArraySource
from gendiff.data.sources import open_source
from gendiff.errors import InvalidInputError
from gendiff.metrics.features import aligned_batches, extract, extract_features, read_digests

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
N = 21


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)


class Blocks(ArraySource):
    """Images that are made in blocks of 8."""

    block = 8


def expected(pixels):
    """Means of both halves by plain NumPy, (N, 6)."""
    halves = [pixels[:, :, :4].mean((1, 2)) / 255, pixels[:, :, 4:].mean((1, 2)) / 255]
    return np.stack(halves, axis=2).reshape(len(pixels), 6)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_rows_are_features_in_the_order_of_images(pixels, batch_size):
    rows = extract_features(open_source(pixels), TinyExtractor(), batch_size, progress=False)
    assert rows.shape == (N, 6) and rows.dtype == np.float64
    np.testing.assert_allclose(rows, expected(pixels), atol=1e-6)
    fewer = extract_features(open_source(pixels), TinyExtractor(), batch_size, num=5, progress=False)
    np.testing.assert_allclose(fewer, expected(pixels)[:5], atol=1e-6)


def test_logits_come_from_the_same_reading(pixels):
    source = open_source(pixels)
    reads = []
    load = source.load
    source.load = lambda indices: reads.extend(indices) or load(indices)
    found = extract(source, TinyExtractor(), 4, progress=False, with_logits=True)
    assert reads == list(range(N))
    assert found.logits is not None and found.logits.shape == (N, 3)
    assert (found.logits.argmax(1) == 1).all()  # noise is grey
    assert extract(source, TinyExtractor(), progress=False).logits is None


def test_batches_hold_whole_blocks(pixels):
    assert aligned_batches(Blocks(pixels), 3) == [range(0, 8), range(8, 16), range(16, 21)]
    assert aligned_batches(Blocks(pixels), 9, num=17) == [range(0, 16), range(16, 17)]
    assert aligned_batches(open_source(pixels), 10) == [range(0, 10), range(10, 20), range(20, 21)]


def test_the_network_runs_in_evaluation_mode(pixels):
    network = TinyExtractor()
    network.linear = torch.nn.Sequential(network.linear, torch.nn.Dropout(0.9))
    np.testing.assert_allclose(
        extract_features(open_source(pixels), network, progress=False), expected(pixels), atol=1e-6
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_files_are_read_ahead_by_threads_and_stay_in_order(pixels, tmp_path, workers):
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index:02d}.png")
    source = open_source(tmp_path)
    readers = set()
    load = source.load
    source.load = lambda indices: readers.add(threading.get_ident()) or load(indices)
    rows = extract_features(source, TinyExtractor(), 2, workers=workers, progress=False)
    assert np.array_equal(rows, extract_features(open_source(tmp_path), TinyExtractor(), 2, progress=False))
    assert threading.get_ident() not in readers and 1 <= len(readers) <= workers


def test_an_image_that_a_thread_cannot_read_is_named(pixels, tmp_path):
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index:02d}.png")
    whole = (tmp_path / "13.png").read_bytes()
    (tmp_path / "13.png").write_bytes(whole[:150])
    threads = threading.active_count()
    with pytest.raises(InvalidInputError, match=r"/13\.png cannot be read"):
        extract_features(open_source(tmp_path), TinyExtractor(), 2, workers=2, progress=False)
    assert threading.active_count() == threads


def test_features_that_are_not_finite_name_the_first_image(pixels):
    class Broken(TinyExtractor):
        def extract(self, images):
            rows = super().extract(images)
            return rows.masked_fill((images[:, 0, 0, 0] == int(pixels[10, 0, 0, 0]))[:, None], torch.nan)

    first = int(np.argmax(pixels[:, 0, 0, 0] == pixels[10, 0, 0, 0]))
    with pytest.raises(InvalidInputError, match=rf"features of image {first} of array 21x8x8x3 are NaN or infinite"):
        extract_features(open_source(pixels), Broken(), 4, progress=False)


def test_features_of_another_shape_are_refused(pixels):
    network = TinyExtractor()
    network.dim = 7
    with pytest.raises(InvalidInputError, match=r"the extractor returned \(4, 6\) for 4 images, not \(4, 7\)"):
        extract_features(open_source(pixels), network, 4, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 22}, "num=22 images are asked for, but array 21x8x8x3 holds 21"),
        ({"num": 0}, "num must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"workers": -1}, "workers must be a whole number of at least 0, got -1"),
    ],
)
def test_arguments_are_checked(pixels, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        extract_features(open_source(pixels), TinyExtractor(), progress=False, **arguments)


def test_progress_is_shown_only_when_asked_for(pixels, capsys):
    extract_features(open_source(pixels), TinyExtractor(), progress=False)
    assert capsys.readouterr().err == ""
    extract_features(open_source(pixels), TinyExtractor())
    assert "tiny-6: 100%" in capsys.readouterr().err


def test_digests_are_those_of_the_source(pixels):
    assert read_digests(open_source(pixels), 4) == open_source(pixels).digests()
    assert read_digests(open_source(pixels), num=3) == open_source(pixels).digests(range(3))


# One process imports, its forks are the ranks; each reads from the pipeline what falls to it and writes what it has.
TWO_PROCESSES = """
import os, sys
import numpy as np
import torch
torch.set_num_threads(1)
from two_processes import compute

for rank in range(2):
    if os.fork() == 0:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        np.savez(f"{sys.argv[1]}/{rank}.npz", **compute())
        os._exit(0)
for _ in range(2):
    assert os.wait()[1] == 0
"""


def test_two_processes_return_the_same_bits_as_one(tmp_path):
    from two_processes import compute

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT), os.environ.get("PYTHONPATH", ""))),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    command = (sys.executable, "-c", TWO_PROCESSES, str(tmp_path))
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    alone = compute()
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert int(found["world"]) == 2 and int(alone["world"]) == 1
            for name in ("pipeline", "array", "one batch", "bytes", "hash", "scores"):
                assert np.array_equal(found[name], alone[name]), name
            # each process made only its own blocks: of 5 blocks of 4 images, 3 and 2
            assert int(found["made"]) == (12, 8)[rank] and int(alone["made"]) == 20
            assert int(found["cost"]) == int(alone["cost"])
            assert str(found["error"]) in ("InvalidInputError", "GendiffError")
