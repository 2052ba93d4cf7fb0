from __future__ import annotations

import numpy as np
import pytest

from gendiff.data import cifar10, load_dataset
from gendiff.errors import InvalidInputError, UnsafeFileError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The six files with four records each: class k, then planes of 10 k + 0, 1, 2."""
    monkeypatch.setattr(cifar10, "RECORDS", 4)
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    for number, name in enumerate((*cifar10.FILES["train"], *cifar10.FILES["test"])):
        records = np.zeros((4, 1 + 3 * 1024), np.uint8)
        records[:, 0] = np.arange(4) + number
        records[:, 1:] = (10 * records[:, :1, None] + np.arange(3)[:, None]).repeat(1024, 2).reshape(4, -1)
        records[:, 1 + 31] = 255  # red, top right
        records.tofile(folder / name)
    return tmp_path


def test_records_become_images(root):
    train, test = (load_dataset("cifar10", split, root=root) for split in ("train", "test"))
    assert train.images.shape == (20, 3, 32, 32) and test.images.shape == (4, 3, 32, 32)
    assert train.labels.tolist() == [k + n for n in range(5) for k in range(4)]
    assert test.labels.tolist() == [5, 6, 7, 8] and test.classes[8] == "ship"
    assert test.images[1, :, 5, 7].tolist() == [60, 61, 62]
    assert test.images[1, :, 0, 31].tolist() == [255, 61, 62]
    assert test[1]["image"][0, 0, 31] == 1 and test[1]["label"] == 6
    assert len(load_dataset("cifar10", root=root, num_images=3)) == 3


def test_the_sizes_are_those_of_cifar10():
    assert cifar10.RECORDS * cifar10.RECORD == 30_730_000


def test_pickles_are_not_read(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UnsafeFileError, match=r"holds pickles.* binary version, cifar-10-binary\.tar\.gz"):
        load_dataset("cifar10", root=tmp_path)


def test_missing_and_damaged_files_are_named(root, tmp_path):
    with pytest.raises(InvalidInputError, match="split must be one of train, test, got 'validation'"):
        load_dataset("cifar10", "validation", root=root)
    path = root / cifar10.FOLDER / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        InvalidInputError, match=r"data_batch_3\.bin is not CIFAR-10: it has 12291 bytes, expected 12292"
    ):
        load_dataset("cifar10", root=root)
    path.write_bytes(whole[:3073] + b"\x0b" + whole[3074:])
    with pytest.raises(InvalidInputError, match=r"data_batch_3\.bin is not CIFAR-10: record 1 is of class 11"):
        load_dataset("cifar10", root=root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin does not exist. Get cifar-10-binary\.tar\.gz"):
        load_dataset("cifar10", root=root)
    assert len(load_dataset("cifar10", "test", root=root)) == 4
