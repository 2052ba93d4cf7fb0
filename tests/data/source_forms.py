"""The same five images in every form a source takes."""

from __future__ import annotations

import zipfile

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from gendiff.data.rendered import from_bytes

N, H, W = 5, 6, 4


def make_pixels():
    """(N, H, W, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (N, H, W, 3), dtype=np.uint8)


def nchw(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def write_pngs(folder, pixels, names="{:02d}.png"):
    for index, image in enumerate(pixels):
        path = folder / names.format(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*"), reverse=True):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


class Column:
    """Of the names that Hugging Face's `datasets` gives its column types, only these two matter."""


class HuggingFace:
    """As much of `datasets.Dataset` as is used: `features`, items by row, a column by name."""

    def __init__(self, pictures, labels):
        self.features = {"id": Column(), "photo": type("Image", (), {})(), "kind": type("ClassLabel", (), {})()}
        self.rows = [{"id": 0, "photo": a, "kind": b} for a, b in zip(pictures, labels, strict=True)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def every_kind(pixels, tmp_path):
    """The same images in every form a source takes."""
    folder = write_pngs(tmp_path / "folder", pixels)
    np.save(tmp_path / "images.npy", pixels)
    np.savez(tmp_path / "images.npz", pixels, np.arange(N))
    pictures, labels = [Image.fromarray(image) for image in pixels], list(range(N))
    signed = [{"image": from_bytes(image), "label": torch.tensor(k)} for k, image in enumerate(nchw(pixels))]
    return {
        "folder": str(folder),
        "path": folder,
        "zip": zipped(folder, tmp_path / "images.zip"),
        "npy": tmp_path / "images.npy",
        "npz": tmp_path / "images.npz",
        "array": pixels,
        "tensor": nchw(pixels),
        "float array": (pixels / 255).astype(np.float32),
        "pictures": pictures,
        "dicts": Items(signed),
        "subset": Subset(Items(signed), range(N)),
        "picture tuples": Items(list(zip(pictures, labels, strict=True))),
        "tensor tuples": TensorDataset(nchw(pixels), torch.arange(N)),
        "float tuples": TensorDataset(nchw(pixels).double() / 255, torch.arange(N)),
        "hugging face": HuggingFace(pictures, labels),
    }
