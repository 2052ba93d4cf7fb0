from __future__ import annotations

import numpy as np
import pytest
import torch

from gendiff.data import load_dataset
from gendiff.data.handwriting import Handwriting
from gendiff.data.idx import write_idx
from gendiff.data.morpho_mnist import MorphoMNIST

DIGITS = Handwriting("samples").digits[:10]
HEADER = "index,area,thickness,intensity"


def write_table(path, header=HEADER, rows=10):
    names = header.split(",")
    values = {"index": "{k}", "area": "50.0", "thickness": "{k}.5", "intensity": "10{k}.25"}
    lines = [",".join(values[name].format(k=k) for name in names) for k in range(rows)]
    path.write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture
def root(tmp_path):
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", DIGITS)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(10, dtype=np.uint8))
        write_table(tmp_path / f"{prefix}-morpho.csv")
    return tmp_path


def test_items_are_the_files(root):
    data = load_dataset("morpho-mnist", "train", root=root)
    assert len(data) == 10
    assert data.graph.names == ("thickness", "intensity", "digit")
    assert data.graph.edges == (("thickness", "intensity"),)
    assert data[3]["labels"].tolist() == [3.5, 103.25, 3]
    np.testing.assert_array_equal(data.images[:, 0].numpy(), DIGITS)
    np.testing.assert_allclose((data[3]["image"][0].numpy() + 1) * 127.5, DIGITS[3], atol=1e-4)


def test_splits_share_no_digit(root):
    validation, test = (MorphoMNIST(split, root=root) for split in ("validation", "test"))
    assert validation.labels[:, -1].tolist() == [0, 1]
    assert test.labels[:, -1].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert len(MorphoMNIST("test", root=root, num_images=3)) == 3


def test_a_table_without_intensity_has_a_smaller_graph(root):
    write_table(root / "train-morpho.csv", "index,area,thickness")
    data = MorphoMNIST("train", root=root)
    assert data.graph.names == ("thickness", "digit") and data.graph.edges == ()
    assert data.labels.shape == (10, 2)
    assert set(data.read(data[0]["image"][None])) == {"thickness"}


def test_an_empty_cell_is_an_unknown_label(root):
    table = root / "train-morpho.csv"
    table.write_text(table.read_text().replace("3,50.0,3.5,", "3,50.0,,"))
    labels = MorphoMNIST("train", root=root).labels
    assert labels.isnan().sum() == 1 and labels[3, 0].isnan()


def test_the_read_out_is_that_of_the_strokes(root):
    data = MorphoMNIST("train", root=root)
    images = torch.stack([data[k]["image"] for k in range(3)])
    read = data.read(images)
    assert read["intensity"].tolist() == pytest.approx([np.sort(d, axis=None)[-12:].mean() for d in DIGITS[:3]])
    assert ((read["thickness"] > 1) & (read["thickness"] < 6)).all()
    with pytest.raises(ValueError, match="images must be"):
        data.read(torch.zeros(1, 1, 32, 32))


def test_there_is_no_ground_truth(root):
    with pytest.raises(ValueError, match="no ground truth"):
        MorphoMNIST("train", root=root).counterfactual(0, {"thickness": 2.0})


def test_damaged_files(root):
    table = root / "train-morpho.csv"
    write_table(table, rows=9)
    with pytest.raises(ValueError, match="do not belong together: 10 images, 10 classes, 9 rows"):
        MorphoMNIST("train", root=root)
    write_table(table, "index,area")
    with pytest.raises(ValueError, match="no column 'thickness'"):
        MorphoMNIST("train", root=root)
    table.write_text("thickness\n" + "1.0\n" * 9 + "thin\n")
    with pytest.raises(ValueError, match="line 11, column 'thickness': expected a number, got 'thin'"):
        MorphoMNIST("train", root=root)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-morpho\.csv"):
        MorphoMNIST("train", root=root)
    with pytest.raises(ValueError, match="split must be one of"):
        MorphoMNIST("dev", root=root)
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        MorphoMNIST("train", root=root / "elsewhere")
