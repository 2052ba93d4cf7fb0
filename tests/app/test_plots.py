from __future__ import annotations

import csv
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.app.picture_plots import nearest_training_images, sample_grid
from gendiff.app.plots import against_frame, fd_against_n, fd_against_nfe, pareto, throughput
from gendiff.errors import InvalidInputError


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


PLOTS = {
    "fd-n": lambda stem: fd_against_n(stem, [100, 200, 400], [9.0, 7.0, 6.0], 5.0, 1.0, "FD[lite0-112]"),
    "fd-nfe": lambda stem: fd_against_nfe(stem, {"ddim": ([5, 10], [9.0, 6.0]), "dpm": ([5], [7.0])}, floor=1.5),
    "pareto": lambda stem: pareto(
        stem, {"quick": (0.1, 9.0), "good": (1.0, 3.0), "bad": (2.0, 4.0)}, levels={"real": 1.0}
    ),
    "throughput": lambda stem: throughput(
        stem, [1, 2, 4], [3.0, 5.0, 8.0], [2.5, 4.5, 7.0], [3.5, 6.0, 9.0], [False, True, False]
    ),
    "frames": lambda stem: against_frame(stem, {"length": [40.0, 35.0, 30.0], "copy": [30.0, 25.0, 24.0]}),
    "grid": lambda stem: sample_grid(stem, noise(5, 1, 12, 12), [3, 1, 4, 15, 9], columns=2),
    "nearest": lambda stem: nearest_training_images(stem, noise(3, 3, 8, 8), noise(7, 3, 8, 8, seed=1), [5, 6, 7]),
}


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_writes_a_picture_a_drawing_and_its_numbers_alike_each_time(name, tmp_path):
    png, svg, table = PLOTS[name](tmp_path / "new" / "sigma-0.5")
    assert [path.name for path in (png, svg, table)] == ["sigma-0.5.png", "sigma-0.5.svg", "sigma-0.5.csv"]
    assert sorted(tmp_path.rglob("*.*")) == sorted([png, svg, table])
    with Image.open(png) as picture:
        assert min(picture.size) > 100
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 20
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert read(table)
    again = PLOTS[name](str(tmp_path / "again"))
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in (png, svg, table)]


def words(svg):
    return {"".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter() if node.tag.endswith("text")}


def test_fd_against_n_has_the_line_that_fd_infinity_fitted(tmp_path):
    sizes = [100, 150, 300, 900]
    exact = [4 + 600 / n for n in sizes]
    _, svg, table = fd_against_n(tmp_path / "fd", sizes, exact, 4.0, 1.0, "FD[lite0-112]", "title")
    rows = read(table)
    assert [float(row["fitted"]) for row in rows] == pytest.approx(exact)
    assert [int(row["n"]) for row in rows] == sizes
    assert {float(row["fd_infinity"]) for row in rows} == {4.0}
    assert {"FD[lite0-112]", "images N", "title", "N → ∞: 4", "fit a + b/N, R² = 1.000"} <= words(svg)


def test_fd_against_calls_keeps_the_curves_apart(tmp_path):
    _, svg, table = PLOTS["fd-nfe"](tmp_path / "fd")
    assert [(row["name"], float(row["nfe"]), float(row["fd"]), float(row["floor"])) for row in read(table)] == [
        ("ddim", 5, 9, 1.5),
        ("ddim", 10, 6, 1.5),
        ("dpm", 5, 7, 1.5),
    ]
    assert {"ddim", "dpm", "real against real", "5", "10"} <= words(svg)


def test_the_front_holds_what_nothing_beats_in_both(tmp_path):
    points = {"a": (1.0, 9.0), "b": (2.0, 5.0), "c": (3.0, 5.0), "d": (4.0, 1.0), "e": (0.5, 20.0), "b2": (2.0, 5.0)}
    _, _, table = pareto(tmp_path / "pareto", points)
    front = {row["name"]: row["on_front"] == "True" for row in read(table)}
    assert front == {"a": True, "b": True, "c": False, "d": True, "e": True, "b2": True}


def test_throughput_and_drift_tables(tmp_path):
    rows = read(PLOTS["throughput"](tmp_path / "rate")[2])
    assert rows[1] == {"batch": "2", "images_per_s": "5.0", "low": "4.5", "high": "6.0", "noisy": "True"}
    rows = read(PLOTS["frames"](tmp_path / "drift")[2])
    assert rows[2] == {"frame": "2", "length": "30.0", "copy": "24.0"}


def test_the_grid_shows_the_bytes_of_the_images_and_their_seeds(tmp_path):
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    images[0, 0], images[1, 1], images[2, 2] = 251, 252, 253
    png, svg, table = sample_grid(tmp_path / "grid", images, [70, 71, 72], columns=2)
    with Image.open(png) as picture:
        colours = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    assert {(251, 0, 0), (0, 252, 0), (0, 0, 253)} <= colours
    assert {"70", "71", "72"} <= words(svg)
    assert [(row["row"], row["column"], row["seed"]) for row in read(table)] == [
        ("0", "0", "70"),
        ("0", "1", "71"),
        ("1", "0", "72"),
    ]


def test_the_nearest_training_image_is_found_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("gendiff.app.picture_plots.BLOCK", 4)
    training = noise(11, 1, 8, 8)
    samples = training[[9, 2, 5]].clone()
    samples[1, 0, 0, 0] ^= 8
    samples[2] = samples[2].clamp(10, 240)
    rows = read(nearest_training_images(tmp_path / "nearest", samples, training)[2])
    assert [int(row["training_index"]) for row in rows] == [9, 2, 5]
    expected = (samples.double() - training[[9, 2, 5]].double()).square().mean((1, 2, 3)).sqrt()
    assert [float(row["rms_grey_levels"]) for row in rows] == pytest.approx(expected.tolist())
    assert float(rows[0]["rms_grey_levels"]) == 0 and [row["seed"] for row in rows] == ["0", "1", "2"]


def test_the_nearest_by_features(tmp_path):
    samples, training = noise(2, 1, 8, 8), noise(3, 1, 8, 8, seed=1)
    features = torch.tensor([[0.0, 0], [5, 5]]), torch.tensor([[5.0, 6], [9, 9], [0, 2]])
    rows = read(nearest_training_images(tmp_path / "nearest", samples, training, features=features)[2])
    assert [(row["training_index"], float(row["feature_distance"])) for row in rows] == [("2", 2.0), ("0", 1.0)]
    with pytest.raises(InvalidInputError, match=r"features must be \(2, d\) and \(3, d\), got \(2, 2\) and \(2, 2\)"):
        nearest_training_images(tmp_path / "x", samples, training, features=(features[0], features[0]))


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        (lambda p: fd_against_n(p, [], [], 1.0), "n must not be empty"),
        (lambda p: fd_against_n(p, [10, 20], [1.0], 1.0), "n has 2, fd has 1"),
        (lambda p: fd_against_n(p, [0, 20], [1.0, 2.0], 1.0), "sizes must be above 0, got 0"),
        (lambda p: fd_against_n(p, [10], [float("nan")], 1.0), "fd must be finite, got nan"),
        (lambda p: fd_against_n(p, [10], [1.0], float("inf")), "infinity must be finite"),
        (lambda p: fd_against_nfe(p, {}), "curves must not be empty"),
        (lambda p: fd_against_nfe(p, {"a": ([1], [])}), "distances of a must not be empty"),
        (lambda p: fd_against_nfe(p, {"a": ([1], [2.0])}, floor=float("nan")), "floor must be finite"),
        (lambda p: pareto(p, {}), "points must not be empty"),
        (lambda p: pareto(p, {"a": (0.0, 1.0)}), "seconds must be above 0"),
        (lambda p: throughput(p, [1], [2.0], low=[1.0]), "low and high must be given together, only low is"),
        (lambda p: throughput(p, [1], [2.0], [1.0, 2.0], [1.0, 2.0]), "must have 1 values each: low has 2"),
        (lambda p: against_frame(p, {"a": [1.0], "b": [1.0, 2.0]}), "a has 1, b has 2"),
        (lambda p: against_frame(p, {"a": [float("inf")]}), "a must be finite, got inf"),
        (lambda p: against_frame(p, {"frame": [1.0]}), "must not be named 'frame'"),
        (lambda p: sample_grid(p, noise(2, 1, 4, 4).float(), [1, 2]), "images must be a uint8 tensor, got torch.float"),
        (lambda p: sample_grid(p, noise(2, 2, 4, 4), [1, 2]), r"with C = 1 or 3 and not empty, got \(2, 2, 4, 4\)"),
        (lambda p: sample_grid(p, noise(2, 1, 4, 4), [1]), "seeds must be as many as the 2 images, got 1"),
        (lambda p: sample_grid(p, noise(2, 1, 4, 4), [1, 2], columns=0), "columns must be .* got 0"),
        (lambda p: nearest_training_images(p, noise(1, 1, 4, 4), noise(1, 3, 4, 4)), "images of one shape"),
        (lambda p: nearest_training_images(p, noise(1, 1, 4, 4), noise(0, 1, 4, 4)), "training must be .* not empty"),
    ],
)
def test_bad_numbers_write_nothing(plot, message, tmp_path):
    with pytest.raises(InvalidInputError, match=message):
        plot(tmp_path / "plot")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "gendiff\[plots\]"'):
        PLOTS["frames"](tmp_path / "plot")
    assert not list(tmp_path.iterdir())


def test_the_state_of_matplotlib_is_left_alone(tmp_path):
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    first = PLOTS["pareto"](tmp_path / "a")
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "black"}):
        second = PLOTS["pareto"](tmp_path / "b")
    assert first[1].read_bytes() == second[1].read_bytes()
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == backend
