"""CIFAR-10 (Krizhevsky 2009) from the *binary* version of its files, 32x32 in colour; nothing is downloaded.

`cifar-10-binary.tar.gz` unpacks to `cifar-10-batches-bin`: records of one class byte and 3,072 bytes of pixels, red,
green and blue plane, row by row. The Python version, which torchvision reads, is made of pickles; a pickle can run any
code when it is opened, so it is not read here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gendiff.data.labelled import LabelledImages, check_choice
from gendiff.errors import InvalidInputError, UnsafeFileError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-bin"
FILES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
RECORDS = 10_000
"""Records of each file."""
RECORD = 1 + 3 * 32 * 32


class CIFAR10(LabelledImages):
    """Photographs of ten kinds of things: (3, 32, 32), 50,000 for training and 10,000 for test.

    Args:
        split: train or test.
        root: folder that holds `cifar-10-batches-bin`.
        num_images: keep only the first so many.

    Raises:
        FileNotFoundError: a file is missing.
        UnsafeFileError: only the Python version, which is pickles, is there.
        InvalidInputError: unknown split, a bad count, or a file that is not CIFAR-10.
    """

    def __init__(self, split: str = "train", root: str | Path = "data", num_images: int | None = None):
        check_choice("split", split, FILES)
        folder = Path(root, FOLDER)
        if not folder.is_dir() and Path(root, "cifar-10-batches-py").is_dir():
            raise UnsafeFileError(
                f"{Path(root, 'cifar-10-batches-py')} holds pickles, which can run code when they are read; unpack the"
                f" binary version, cifar-10-binary.tar.gz, so that {folder} is there."
            )
        records = np.concatenate([_records(folder / name) for name in FILES[split]])
        images = records[:, 1:].reshape(-1, 3, 32, 32)
        super().__init__(images, records[:, 0], CLASSES, num_images)


def _records(path: Path) -> np.ndarray:
    """Records (10000, 3073) uint8 of one file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, then"
            f" `tar -xf cifar-10-binary.tar.gz -C {path.parent.parent}`."
        )
    data = np.fromfile(path, np.uint8)
    if len(data) != RECORDS * RECORD:
        raise InvalidInputError(f"{path} is not CIFAR-10: it has {len(data)} bytes, expected {RECORDS * RECORD}.")
    records = data.reshape(RECORDS, RECORD)
    if (wrong := records[:, 0] >= len(CLASSES)).any():
        index = int(wrong.argmax())
        raise InvalidInputError(f"{path} is not CIFAR-10: record {index} is of class {records[index, 0]}, not 0 to 9.")
    return records
