"""The digit classifier on the real digits that ship with the package."""

import pytest
import torch

from gendiff.data.handwriting import Handwriting
from gendiff.data.rendered import from_bytes
from gendiff.metrics.classifier import DigitClassifier, digit_classifier, train_classifier


@pytest.fixture(scope="module")
def digits():
    return Handwriting("samples", num_images=60)


def test_it_learns_the_digits_it_is_shown(digits):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    classifier = train_classifier(digits.images, digits.labels[:, 2], epochs=30)
    assert torch.equal(before, torch.get_rng_state())
    assert (classifier.read(from_bytes(digits.images)) == digits.labels[:, 2]).float().mean() > 0.95


def test_brightness_does_not_matter(digits):
    classifier = train_classifier(digits.images, digits.labels[:, 2])
    bright = from_bytes(digits.images)
    dim = (bright + 1) / 3 - 1
    torch.testing.assert_close(classifier(dim), classifier(bright), rtol=1e-4, atol=1e-4)


def test_equal_data_give_equal_weights_and_are_trained_on_once(digits, tmp_path, monkeypatch):
    first = digit_classifier(digits, tmp_path, epochs=1)
    (path,) = (tmp_path / "classifier").iterdir()
    assert path.name.startswith("60-")
    monkeypatch.setattr("gendiff.metrics.classifier.train_classifier", None)
    again = digit_classifier(digits, tmp_path, epochs=1)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:100])
    repaired = digit_classifier(digits, tmp_path, epochs=1)
    for one, other in zip(first.parameters(), repaired.parameters(), strict=True):
        assert torch.equal(one, other)


def test_other_data_are_another_file(digits, tmp_path):
    digit_classifier(digits, tmp_path, epochs=1)
    digit_classifier(Handwriting("samples", num_images=30), tmp_path, epochs=1)
    assert len(list((tmp_path / "classifier").iterdir())) == 2


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="images must be"):
        DigitClassifier().read(torch.zeros(2, 3, 28, 28))
