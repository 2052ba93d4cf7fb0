"""The classifier: what its output depends on, what its file holds, and that a shipped one can tell clothes apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import gendiff
from gendiff.data import load_dataset
from gendiff.errors import InvalidInputError
from gendiff.models.image_classifier import ImageClassifier

CHECKPOINTS = Path(gendiff.__file__).parent / "checkpoints"
SHIPPED = ("digit-cnn", "emoji-cnn", "fmnist-cnn")


def make(**arguments) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(**{"in_channels": 3, "sample_size": 16, "num_classes": 4, "widths": (8, 16), **arguments})


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_shapes():
    model = make(feature_dim=12)
    assert model(images(5, 3, 16, 16)).shape == (5, 4)
    features = model.features(images(5, 3, 16, 16))
    assert features.shape == (5, 12) and features.dtype == torch.float32 and features.min() >= 0
    assert model(images(0, 3, 16, 16)).shape == (0, 4)


def test_logits_are_a_linear_map_of_the_features():
    model = make()
    batch = images(6, 3, 16, 16)
    expected = model.features(batch) @ model.classify.weight.T + model.classify.bias
    torch.testing.assert_close(model(batch), expected)


@pytest.mark.parametrize("size", [6, 9, 16, 28, 33])
def test_any_side_that_can_halve_will_do(size):
    model, batch = make(sample_size=size), images(2, 3, size, size).requires_grad_()
    model(batch).sum().backward()
    # An odd side loses its last row to pooling, as any network of strides does; every other pixel counts.
    seen = batch.grad.abs().sum(dim=(0, 1)) > 0
    assert seen[: size // 2 * 2 - 2, : size // 2 * 2 - 2].float().mean() > 0.9


def test_a_row_is_what_it_is_alone_in_training_too():
    model, batch = make().double().train(), images(4, 3, 16, 16).double()
    together = model(batch)
    for i in range(4):
        torch.testing.assert_close(model(batch[i : i + 1])[0], together[i], rtol=0, atol=1e-12)
    assert not list(model.buffers()), "an average of weights must be the whole network"


def test_save_and_load(tmp_path):
    model = make(classes=("a", "b", "c", "d"), feature_dim=12)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    again = ImageClassifier.from_pretrained(tmp_path)
    assert tuple(again.config["classes"]) == ("a", "b", "c", "d") and again.config["feature_dim"] == 12
    batch = images(3, 3, 16, 16)
    assert torch.equal(again(batch), model(batch))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"feature_dim": -1}, "feature_dim must be at least 1, got -1"),
        ({"widths": ()}, r"widths must be multiples of 8, at least one, got \(\)"),
        ({"widths": (8, 12)}, r"widths must be multiples of 8, at least one, got \(8, 12\)"),
        ({"sample_size": 5}, "sample_size must be at least 6 with these widths, got 5"),
        ({"classes": ("a", "b")}, "classes must be 4 names, one a class, got 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    "wrong", [images(3, 16, 16), images(2, 1, 16, 16), images(2, 3, 16, 15), images(2, 3, 16, 16).to(torch.uint8)]
)
def test_bad_images(wrong):
    with pytest.raises(InvalidInputError, match=r"images must be floating point \(B, 3, 16, 16\) in \[-1, 1\], got"):
        make()(wrong)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files(name):
    folder = CHECKPOINTS / name
    weights = folder / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 500_000
    with safe_open(weights, framework="pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F32"}  # noqa: SIM118 - not a mapping
    config = json.loads((folder / "config.json").read_text())
    assert len(config["classes"]) == config["num_classes"] and config["feature_dim"] == 128
    assert "/" not in config.get("_name_or_path", "")
    assert f"--extractor {name}" in (folder / "README.md").read_text()


def test_the_shipped_classifier_of_clothes_tells_them_apart():
    model = ImageClassifier.from_pretrained(CHECKPOINTS / "fmnist-cnn").eval()
    data = load_dataset("fashion-mnist", "test")
    assert len(data) == 1000 and tuple(model.config["classes"]) == tuple(data.classes)
    with torch.inference_mode():
        answers = model(data.images.float() / 127.5 - 1).argmax(dim=1)
    assert (answers == data.labels).float().mean() > 0.85
