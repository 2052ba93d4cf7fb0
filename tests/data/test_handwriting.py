from __future__ import annotations

import numpy as np
import pytest
import torch

from gendiff.data import handwriting, load_dataset
from gendiff.data.handwriting import Handwriting, brighten, intensity_of, noise_of, prepare, write_samples
from gendiff.data.idx import write_idx
from gendiff.data.morphology import measure_thickness, set_thickness

SAMPLES = Handwriting("samples")


@pytest.fixture
def root(tmp_path):
    """A root with twelve digits as MNIST's training file."""
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw / "train-images-idx3-ubyte", SAMPLES.digits[:12])
    write_idx(raw / "train-labels-idx1-ubyte", SAMPLES.labels[:12, 2].numpy().astype(np.uint8))
    return tmp_path


def test_samples_are_twenty_of_each_digit():
    assert len(SAMPLES) == 200
    assert torch.bincount(SAMPLES.labels[:, 2].long()).tolist() == [20] * 10
    assert SAMPLES.images.shape == (200, 1, 28, 28) and SAMPLES.images.dtype == torch.uint8
    item = SAMPLES[3]
    assert item["image"].shape == (1, 28, 28) and item["image"].dtype == torch.float32
    assert item["image"].min() == -1 and item["image"].max() <= 1
    assert item["labels"].tolist() == SAMPLES.labels[3].tolist()
    assert SAMPLES.graph.names == ("thickness", "intensity", "digit")
    assert SAMPLES.graph.parents("intensity") == ("thickness",)


def test_samples_can_be_drawn_again_from_their_digits():
    for k in range(10):
        image = brighten(set_thickness(SAMPLES.digits[k], SAMPLES.targets[k].item()), SAMPLES.labels[k, 1].item())
        # Another processor may round a last bit the other way: a grey level, or a measure on the fine grid.
        assert np.abs(image.astype(int) - SAMPLES.images[k, 0].numpy()).max() <= 1
        assert measure_thickness(image) == pytest.approx(SAMPLES.labels[k, 0].item(), abs=0.02)


def test_labels_are_inside_the_training_range():
    for column, name in enumerate(("thickness", "intensity")):
        values = SAMPLES.labels[:, column]
        assert SAMPLES.graph[name].low <= values.min() and values.max() <= SAMPLES.graph[name].high
    # 200 uniform draws: the mean is 3.5 with a standard error of 0.1.
    assert SAMPLES.labels[:, 0].mean().item() == pytest.approx(3.5, abs=0.4)
    assert (SAMPLES.labels[:, 0] - SAMPLES.targets).abs().max() <= handwriting.MISS + 1e-6


def test_the_read_out_reads_the_labels():
    images = torch.stack([SAMPLES[k]["image"] for k in range(60)])
    read = SAMPLES.read(images)
    assert set(read) == {"thickness", "intensity"}
    # Labels are this measure of this image; only the rounding of x -> [-1, 1] -> x may move a pixel of the outline.
    assert (read["thickness"] - SAMPLES.labels[:60, 0]).abs().max() < 0.02
    # Half a grey level of rounding to bytes.
    assert (read["intensity"] - SAMPLES.labels[:60, 1]).abs().max() <= 0.51


def test_the_read_out_of_odd_images():
    images = torch.stack([torch.full((1, 28, 28), -1.0), torch.full((1, 28, 28), 1.0)])
    read = SAMPLES.read(images)
    assert read["thickness"][0] == 0 and read["intensity"].tolist() == [0, 255]
    assert read["thickness"][1].isfinite()
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 28, 28\)"):
        SAMPLES.read(torch.zeros(1, 3, 28, 28))


def test_structural_equation_and_its_inverse():
    assert intensity_of(2.5, 0.0) == 64 + 191 / 2
    for thickness, noise in [(1.0, -2.0), (3.0, 0.4), (6.0, 3.0)]:
        assert noise_of(thickness, intensity_of(thickness, noise)) == pytest.approx(noise, abs=1e-6)
    thickness, intensity, _ = SAMPLES.labels.double().T
    for k in range(20):
        assert intensity_of(thickness[k].item(), SAMPLES.noise[k].item()) == pytest.approx(intensity[k].item())
    # 200 draws of a standard normal, moved by at most 4 MISS.
    assert abs(SAMPLES.noise.mean()) < 0.25 and SAMPLES.noise.std().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("intensity", [0, 64, 150.3, 254, 255])
def test_brighten_sets_the_twelve_brightest(intensity):
    coverage = np.random.default_rng(0).uniform(0, 0.7, (28, 28))
    image = brighten(coverage, intensity)
    assert image.dtype == np.uint8
    assert np.sort(image, axis=None)[-12:].mean() == pytest.approx(intensity, abs=0.5)
    steep = np.zeros((28, 28))
    steep[0, :20] = np.linspace(1, 0.1, 20)
    assert np.sort(brighten(steep, intensity), axis=None)[-12:].mean() == pytest.approx(intensity, abs=0.5)


def test_nothing_done_gives_the_item():
    image, values = SAMPLES.counterfactual(7, {})
    assert torch.equal(image, SAMPLES[7]["image"])
    assert list(values.values()) == SAMPLES.labels[7].tolist()


def test_thickness_moves_intensity_by_the_structural_equation():
    for target in (1.5, 3.0, 5.5):
        image, values = SAMPLES.counterfactual(12, {"thickness": target})
        assert values["thickness"] == target and values["digit"] == SAMPLES.labels[12, 2]
        assert values["intensity"] == pytest.approx(intensity_of(target, SAMPLES.noise[12].item()), abs=1e-3)
        read = SAMPLES.read(image[None])
        assert read["thickness"].item() == pytest.approx(target, abs=0.1)
        assert read["intensity"].item() == pytest.approx(values["intensity"], abs=0.51)


def test_intensity_moves_nothing_else():
    for k in (0, 21, 33):
        thickness, intensity, _ = SAMPLES.labels[k].tolist()
        image, values = SAMPLES.counterfactual(k, {"intensity": 100.0})
        assert values["thickness"] == thickness and values["intensity"] == 100
        assert SAMPLES.read(image[None])["thickness"].item() == pytest.approx(thickness, abs=0.1)
        same, _ = SAMPLES.counterfactual(k, {"intensity": intensity})
        # The strokes are searched for again from the stored target: the same to a grey level of rounding.
        assert (same - SAMPLES[k]["image"]).abs().max() <= 1.01 * 2 / 255


def test_both_at_once():
    image, values = SAMPLES.counterfactual(4, {"thickness": 2.0, "intensity": 200.0})
    assert (values["thickness"], values["intensity"]) == (2, 200)
    read = SAMPLES.read(image[None])
    assert read["thickness"].item() == pytest.approx(2, abs=0.1)
    assert read["intensity"].item() == pytest.approx(200, abs=0.51)


@pytest.mark.parametrize(
    ("interventions", "message"),
    [
        ({"digit": 3}, "no ground truth"),
        ({"width": 3}, "thickness"),
        ({"thickness": 9.0}, "outside the training range"),
        ({"intensity": float("nan")}, "intensity"),
    ],
)
def test_bad_interventions(interventions, message):
    with pytest.raises(ValueError, match=message):
        SAMPLES.counterfactual(0, interventions)


def test_preparing_from_mnist_files_and_keeping_the_result(root, monkeypatch):
    first = load_dataset("handwriting", "train", root=root)
    assert len(first) == 12
    assert first.labels[:, 2].tolist() == SAMPLES.labels[:12, 2].tolist()
    stored = list((root / "handwriting").iterdir())
    assert len(stored) == 1

    monkeypatch.setattr(handwriting, "prepare", None)
    again = Handwriting("train", root=root)
    for name in ("images", "labels", "noise", "targets"):
        assert torch.equal(getattr(first, name), getattr(again, name))


@pytest.mark.parametrize("damage", [lambda data: data[:-200], lambda data: b"not an archive", lambda data: b""])
def test_a_damaged_cache_is_made_again(root, damage):
    first = Handwriting("train", root=root, num_images=3)
    (path,) = (root / "handwriting").iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert torch.equal(Handwriting("train", root=root, num_images=3).images, first.images)
    assert path.read_bytes() == whole


def test_seeds_and_prefixes(root):
    whole = Handwriting("train", root=root)
    part = Handwriting("train", root=root, num_images=4)
    assert torch.equal(part.images, whole.images[:4]) and torch.equal(part.noise, whole.noise[:4])
    other = Handwriting("train", root=root, num_images=4, seed=5)
    assert not torch.equal(other.labels[:, :2], part.labels[:, :2])
    assert torch.equal(other.labels[:, 2], part.labels[:, 2])


def test_test_and_validation_share_no_digit(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    digits = np.concatenate([np.repeat(SAMPLES.digits[:1], 2000, 0), SAMPLES.digits[1:4]])
    write_idx(raw / "t10k-images-idx3-ubyte", digits)
    write_idx(raw / "t10k-labels-idx1-ubyte", np.repeat(np.uint8([0, 5]), [2000, 3]))
    assert Handwriting("test", root=tmp_path).labels[:, 2].tolist() == [5, 5, 5]
    validation = Handwriting("validation", root=tmp_path, num_images=2)
    assert validation.labels[:, 2].tolist() == [0, 0]
    with pytest.raises(ValueError, match="at most 2000"):
        Handwriting("validation", root=tmp_path, num_images=2001)


def test_write_samples_takes_digits_in_turn(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    classes = np.tile(np.arange(10), 4)
    filler = np.zeros((2000, 28, 28), np.uint8)
    write_idx(raw / "t10k-images-idx3-ubyte", np.concatenate([filler, SAMPLES.digits[:40]]))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.concatenate([np.zeros(2000), classes]).astype(np.uint8))
    for name in ("a.npz", "b.npz"):
        write_samples(tmp_path, tmp_path / name, per_class=2, candidates=40)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["labels"][:, 2].tolist() == [*range(10), *range(10)]
        np.testing.assert_array_equal(archive["digits"], SAMPLES.digits[:20])


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="split must be one of train, validation, test, samples, got 'dev'"):
        Handwriting("dev")
    with pytest.raises(ValueError, match="num_images"):
        Handwriting("samples", num_images=0)
    with pytest.raises(ValueError, match="num_images must be at most 200"):
        Handwriting("samples", num_images=201)
    with pytest.raises(ValueError, match="seed"):
        Handwriting("samples", seed=1)
    with pytest.raises(FileNotFoundError, match="gendiff data import mnist"):
        Handwriting("train", root=tmp_path)
    with pytest.raises(ValueError, match="blank"):
        prepare(np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.uint8), seed=0)


def test_experiments_set_the_intensity_in_the_training_split_only(root):
    observed = Handwriting("train", root=root)
    data = Handwriting("train", root=root, experiments=1.0)
    assert data.intervened[:, 1].all() and not data.intervened[:, [0, 2]].any()
    assert not observed.intervened.any() and not Handwriting("samples", experiments=1.0).intervened.any()
    assert torch.equal(data.labels[:, [0, 2]], observed.labels[:, [0, 2]])
    read = data.read(torch.stack([data[k]["image"] for k in range(12)]))
    assert (read["intensity"] - data.labels[:, 1]).abs().max() < 0.51
    # Brightness is divided out of the measure; a clipped pixel may move an outline a little.
    assert (read["thickness"] - data.labels[:, 0]).abs().max() < 0.25
    assert data.counterfactual(0, {"thickness": 3.0})[1]["intensity"] == data.labels[0, 1].item()
