from __future__ import annotations

import hashlib

import numpy as np
import pytest

from gendiff.data import fashion_mnist, load_dataset
from gendiff.data.arrays import load_arrays
from gendiff.data.idx import read_idx, write_idx
from gendiff.errors import InvalidInputError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Gzipped files in the place of Fashion-MNIST's, 30 for train and 20 for test, whose hashes are expected."""
    folder, rng, hashes = tmp_path / "package", np.random.default_rng(0), {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        arrays = {
            "images-idx3": rng.integers(0, 256, (count, 28, 28)).astype(np.uint8),
            "labels-idx1": rng.permutation(np.arange(count) % 10).astype(np.uint8),
        }
        for kind, array in arrays.items():
            name = f"{prefix}-{kind}-ubyte"
            write_idx(tmp_path / name, array)
            hashes[name] = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
            (tmp_path / name).unlink()
            write_idx(folder / f"{name}.gz", array)
    assert set(hashes) == set(fashion_mnist.SHA256)
    monkeypatch.setattr(fashion_mnist, "SHA256", hashes)
    return folder


def test_the_hashes_are_those_of_fashion_mnist():
    assert fashion_mnist.SHA256["train-images-idx3-ubyte"].startswith("c59f468a2f672dc8")
    assert fashion_mnist.SHA256["t10k-images-idx3-ubyte"].startswith("5b4141f0afbad91e")
    assert all(len(bytes.fromhex(value)) == 32 for value in fashion_mnist.SHA256.values())


@pytest.mark.parametrize(("split", "per_class"), [("train", 500), ("test", 100)])
def test_what_ships_is_balanced_and_so_is_its_beginning(split, per_class):
    data = load_dataset("fashion-mnist", split)
    assert data.images.shape == (10 * per_class, 1, 28, 28) and len(data) == 10 * per_class
    assert data.labels.bincount().tolist() == [per_class] * 10
    assert load_dataset("fashion-mnist", split, num_images=30).labels.bincount().tolist() == [3] * 10
    assert len(set(data.rows.tolist())) == len(data)
    assert len(data.images.flatten(1).unique(dim=0)) > 0.99 * len(data)
    item = data[3]
    assert item["image"].shape == (1, 28, 28) and item["label"] == 3 and data.classes[3] == "dress"
    assert item["image"].min() == -1 and 0.9 < item["image"].max() <= 1


def test_trousers_are_upright_and_boots_are_wide():
    # The pictures belong to their labels: of a trouser, few columns are lit; of a boot, nearly all.
    data = load_dataset("fashion-mnist", "test")
    lit = (data.images[:, 0] > 20).any(1).sum(1).float()
    assert lit[data.labels == 1].mean() < 16 < 24 < lit[data.labels == 9].mean()


def test_what_ships_is_in_the_original_files():
    if not fashion_mnist.DEBIAN_FOLDER.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    # The test file alone: it takes a tenth of the time of the other.
    folder = fashion_mnist.DEBIAN_FOLDER
    data = load_dataset("fashion-mnist", "test")
    labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    rows = fashion_mnist.draw_rows(labels, 100, [fashion_mnist.SEED, 1])
    np.testing.assert_array_equal(rows, data.rows)
    np.testing.assert_array_equal(labels[rows], data.labels)
    np.testing.assert_array_equal(read_idx(folder / "t10k-images-idx3-ubyte.gz")[rows], data.images[:, 0])


def test_import_lays_the_files_out_for_torchvision(files, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    raw = fashion_mnist.import_fashion_mnist(files, tmp_path / "root")
    assert raw == tmp_path / "root" / "FashionMNIST" / "raw"
    for split in ("train", "test"):
        theirs = datasets.FashionMNIST(tmp_path / "root", train=split == "train", download=False)
        ours = load_dataset("fashion-mnist-full", split, root=tmp_path / "root")
        assert theirs.data.equal(ours.images[:, 0]) and theirs.targets.equal(ours.labels)


def test_without_a_path_the_debian_package_is_meant(files, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", files)
    fashion_mnist.import_fashion_mnist(root=tmp_path / "root")
    assert len(load_dataset("fashion-mnist-full", root=tmp_path / "root")) == 30
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="install the Debian package dataset-fashion-mnist"):
        fashion_mnist.import_fashion_mnist(root=tmp_path / "root")


def test_a_changed_or_missing_file_is_named_and_nothing_written(files, tmp_path):
    path = files / "t10k-labels-idx1-ubyte.gz"
    labels = read_idx(path)
    write_idx(path, labels[::-1])
    with pytest.raises(InvalidInputError, match=r"t10k-labels-idx1-ubyte in .* is not the original: sha256"):
        fashion_mnist.import_fashion_mnist(files, tmp_path / "root")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        fashion_mnist.import_fashion_mnist(files, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_samples_are_made_again_byte_for_byte(files, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "PER_CLASS", {"train": 2, "test": 1})
    fashion_mnist.import_fashion_mnist(files, tmp_path)
    for name in ("a.npz", "b.npz"):
        fashion_mnist.write_samples(tmp_path, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    stored = load_arrays(tmp_path / "a.npz")
    assert stored["train_labels"].tolist() == [*range(10)] * 2 and stored["test_labels"].tolist() == [*range(10)]
    full = load_dataset("fashion-mnist-full", "train", root=tmp_path)
    np.testing.assert_array_equal(stored["train_images"], full.images[stored["train_rows"].astype(int), 0])
    monkeypatch.setattr(fashion_mnist, "PER_CLASS", {"train": 2, "test": 3})
    with pytest.raises(InvalidInputError, match="20 images hold 2 of class 0, need 3"):
        fashion_mnist.write_samples(tmp_path, tmp_path / "c.npz")


def test_bad_arguments(tmp_path):
    for name in ("fashion-mnist", "fashion-mnist-full"):
        with pytest.raises(InvalidInputError, match="split must be one of train, test, got 'validation'"):
            load_dataset(name, "validation")
    for count in (0, 5001, 2.0, True):
        with pytest.raises(InvalidInputError, match="num_images must be a whole number from 1 to 5000"):
            load_dataset("fashion-mnist", num_images=count)
    with pytest.raises(FileNotFoundError, match=f"gendiff data import fashion-mnist --root {tmp_path}"):
        load_dataset("fashion-mnist-full", root=tmp_path)


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "half.npz"
    path.write_bytes(fashion_mnist.SAMPLES.read_bytes()[:1000])
    with pytest.raises(InvalidInputError, match=r"half\.npz is damaged"):
        load_arrays(path)
