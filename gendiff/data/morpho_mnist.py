"""Morpho-MNIST files (Castro et al., JMLR 2019) that the user has, as a dataset with measured labels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.data.handwriting import read_strokes
from gendiff.data.idx import find_idx, read_idx
from gendiff.data.rendered import check_count, check_images, check_split, from_bytes

PREFIXES = {"train": "train", "validation": "t10k", "test": "t10k"}
VALIDATION_SHARE = 5
"""One part in so many of the test file, the first, is for validation."""


def morpho_mnist_graph(with_intensity: bool) -> CausalGraph:
    """Thickness and digit; with an intensity, thickness causes it."""
    variables = [Variable("thickness", loc=2.5, scale=2.0, low=0.5, high=7.0)]
    if with_intensity:
        variables.append(Variable("intensity", loc=159.5, scale=95.5, low=64.0, high=255.0))
    variables.append(Variable("digit", kind="categorical", num_classes=10))
    return CausalGraph(variables, [("thickness", "intensity")] if with_intensity else [])


class MorphoMNIST(Dataset):
    """Digits, their classes and the measures of their strokes.

    For each of `train` and `t10k` the folder holds `-images-idx3-ubyte`, `-labels-idx1-ubyte` (each plain or `.gz`) and
    `-morpho.csv` with a column `thickness`. A column `intensity`, as in the synthetic set of Pawlowski et al.
    (NeurIPS 2020), adds that variable. An empty cell is a label that is not known (NaN). `validation` is the first
    fifth of `t10k`, `test` the rest.

    Args:
        split: train, validation or test.
        root: folder with the files.
        num_images: keep only the first so many.

    Attributes:
        graph: thickness, digit, and intensity if the table has it.
        images: (N, 1, S, S) uint8.
        labels: (N, n) float32 in the order of `graph.names`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: unknown split, a damaged file, or files that do not belong together.
    """

    def __init__(self, split: str = "train", root: str | Path = "data", num_images: int | None = None):
        check_split(split)
        if num_images is not None:
            check_count("num_images", num_images)
        root, prefix = Path(root), PREFIXES[split]
        images = read_idx(find_idx(root, f"{prefix}-images-idx3-ubyte"))
        classes = read_idx(find_idx(root, f"{prefix}-labels-idx1-ubyte"))
        table = root / f"{prefix}-morpho.csv"
        columns = _read_columns(table, ("thickness", "intensity"))
        if "thickness" not in columns:
            raise ValueError(f"{table} has no column 'thickness'.")
        if images.ndim != 3 or images.dtype != np.uint8 or images.shape[1] != images.shape[2]:
            raise ValueError(f"images in {root} must be (N, S, S) uint8, got {images.shape} {images.dtype}.")
        counts = {len(images), len(classes), *(len(column) for column in columns.values())}
        if len(counts) > 1 or classes.ndim != 1:
            raise ValueError(
                f"files in {root} do not belong together: {len(images)} images, {len(classes)} classes,"
                f" {len(columns['thickness'])} rows in {table.name}."
            )
        self.graph = morpho_mnist_graph("intensity" in columns)
        labels = np.stack([*columns.values(), classes.astype(np.float32)], 1)
        border = len(images) // VALIDATION_SHARE
        rows = {"train": slice(None), "validation": slice(None, border), "test": slice(border, None)}[split]
        self.images = torch.from_numpy(images[rows][:num_images])[:, None]
        self.labels = torch.from_numpy(labels[rows][:num_images])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": from_bytes(self.images[index]), "labels": self.labels[index]}

    def counterfactual(self, index: int, interventions: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Always a ValueError: these are pictures from files, and nothing knows what they would have been."""
        raise ValueError("Morpho-MNIST files have no ground truth for counterfactuals; Handwriting and Glyphs do.")

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """Thickness and intensity (if the graph has it) read from the pixels of (B, 1, S, S) images in [-1, 1].

        Raises:
            ValueError: wrong shape.
            ImportError: scipy or scikit-image is missing.
        """
        check_images(images, 1, self.images.shape[-1])
        return {name: values for name, values in read_strokes(images).items() if name in self.graph.names}


def _read_columns(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the columns `names` that the table has, float32; an empty cell is NaN."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        present = [name for name in names if name in (reader.fieldnames or ())]
        cells = {name: [] for name in present}
        for line, row in enumerate(reader, start=2):
            for name in present:
                cells[name].append(_number(row[name], f"{path}, line {line}, column {name!r}"))
    return {name: np.array(column, np.float32) for name, column in cells.items()}


def _number(cell: str | None, place: str) -> float:
    if not (cell or "").strip():
        return float("nan")
    try:
        return float(cell or "")
    except ValueError as error:
        raise ValueError(f"{place}: expected a number, got {cell!r}.") from error
