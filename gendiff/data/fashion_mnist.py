"""Fashion-MNIST (Zalando, MIT licence): clothes in grey, 28x28; a balanced part ships, the rest is imported.

Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms,
arXiv:1708.07747. The Debian package `dataset-fashion-mnist` has all 60,000 + 10,000 images. Its files are compressed
anew, so torchvision's md5 of the `.gz` do not fit; the sha256 below are of the uncompressed files. They are laid out as
torchvision expects them: `ROOT/FashionMNIST/raw`, uncompressed.

`python -m gendiff.data.fashion_mnist --root data` writes the part that ships with the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from gendiff.data.arrays import load_arrays, save_arrays
from gendiff.data.idx_release import PREFIXES, import_release, read_release
from gendiff.data.labelled import LabelledImages, check_choice
from gendiff.errors import InvalidInputError

SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""The four files and the sha256 of each, uncompressed."""

FOLDERS = ("", "raw", "FashionMNIST/raw", "data/fashion")
"""Where the files may lie inside the folder a user names; the last is their place in Zalando's repository."""

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package `dataset-fashion-mnist` keeps its files."""

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SAMPLES = Path(__file__).parent / "samples" / "fashion-mnist.npz"
PER_CLASS = {"train": 500, "test": 100}
"""Images of each class that ship."""
SEED = 0
"""Of the choice of the images that ship."""


def import_fashion_mnist(source: str | Path | None = None, root: str | Path = "data") -> Path:
    """Check the four files and lay them out under `root/FashionMNIST/raw`.

    Nothing is written unless all four are right, and each file appears whole or not at all.

    Args:
        source: a folder with the IDX files, plain or `.gz`, or a tarball of them; without it, the folder of the
            Debian package `dataset-fashion-mnist`.
        root: folder of all datasets.

    Returns:
        The folder the files are in.

    Raises:
        FileNotFoundError: `source` or one of its files is missing, or it is None and the package is not installed.
        InvalidInputError: `source` is not a tarball, or a file is not the original.
    """
    if source is None and not DEBIAN_FOLDER.is_dir():
        raise FileNotFoundError(
            f"{DEBIAN_FOLDER} does not exist: install the Debian package dataset-fashion-mnist, or name a folder with"
            " the four files."
        )
    raw = Path(root, "FashionMNIST", "raw")
    return import_release(DEBIAN_FOLDER if source is None else source, raw, "Fashion-MNIST", SHA256, FOLDERS)


def fashion_mnist_arrays(root: str | Path = "data", split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and classes (N,), both uint8: 60,000 for `train`, 10,000 for `test`.

    Raises:
        FileNotFoundError: Fashion-MNIST has not been imported under `root`.
        InvalidInputError: unknown split, or files that are not Fashion-MNIST.
    """
    how_to_get = (
        "Get it with `apt install dataset-fashion-mnist` (Debian), then"
        f" `gendiff data import fashion-mnist --root {root}`."
    )
    return read_release(Path(root, "FashionMNIST", "raw"), "Fashion-MNIST", how_to_get, split)


class FashionMNIST(LabelledImages):
    """The images that ship: (1, 28, 28), 500 of each class for training and 100 of each for test.

    They come in the order of classes 0 1 .. 9 0 1 .., so that the first 10 n are balanced as well.

    Args:
        split: train or test; its images are from the file of that split.
        num_images: keep only the first so many.

    Attributes:
        rows: (N,) int64, position of each image in the original file.

    Raises:
        InvalidInputError: unknown split or a bad count.
    """

    def __init__(self, split: str = "train", num_images: int | None = None):
        check_choice("split", split, PREFIXES)
        stored = load_arrays(SAMPLES)
        super().__init__(stored[f"{split}_images"][:, None], stored[f"{split}_labels"], CLASSES, num_images)
        self.rows = stored[f"{split}_rows"][:num_images].astype(np.int64)


class FashionMNISTFull(LabelledImages):
    """The imported images: (1, 28, 28), 60,000 for training and 10,000 for test.

    Args:
        split: train or test.
        root: folder Fashion-MNIST was imported into.
        num_images: keep only the first so many.

    Raises:
        FileNotFoundError: Fashion-MNIST has not been imported under `root`.
        InvalidInputError: unknown split or a bad count.
    """

    def __init__(self, split: str = "train", root: str | Path = "data", num_images: int | None = None):
        images, labels = fashion_mnist_arrays(root, split)
        super().__init__(images[:, None], labels, CLASSES, num_images)


def draw_rows(labels: np.ndarray, per_class: int, seed: list[int]) -> np.ndarray:
    """Rows of a balanced choice, (10 * per_class,) int32, in the order of classes 0 1 .. 9 0 1 ..

    Args:
        labels: (N,) 0 .. 9.
        per_class: rows of each class.
        seed: of the choice.

    Raises:
        InvalidInputError: fewer than `per_class` of a class.
    """
    counts = np.bincount(labels, minlength=len(CLASSES))
    if counts.min() < per_class:
        raise InvalidInputError(
            f"{len(labels)} images hold {counts.min()} of class {counts.argmin()}, need {per_class}"
        )
    # A row's place is a plain uniform number: that stream of NumPy's generator does not change between versions.
    order = np.argsort(np.random.default_rng(seed).random(len(labels)), kind="stable")
    chosen = [order[labels[order] == kind][:per_class] for kind in range(len(CLASSES))]
    return np.stack(chosen, 1).ravel().astype(np.int32)


def write_samples(root: str | Path = "data", path: str | Path = SAMPLES) -> None:
    """Write the images that ship, drawn from the files under `root`; equal files give equal bytes.

    Args:
        root: folder Fashion-MNIST was imported into.
        path: the file to write.
    """
    stored = {}
    for position, (split, per_class) in enumerate(PER_CLASS.items()):
        images, labels = fashion_mnist_arrays(root, split)
        rows = draw_rows(labels, per_class, [SEED, position])
        stored |= {f"{split}_images": images[rows], f"{split}_labels": labels[rows], f"{split}_rows": rows}
    save_arrays(path, stored)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the part of Fashion-MNIST that ships with the package.")
    parser.add_argument("--root", default="data", help="folder Fashion-MNIST was imported into (default: %(default)s)")
    write_samples(parser.parse_args().root)
