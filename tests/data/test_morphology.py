from __future__ import annotations

import builtins
import itertools

import numpy as np
import pytest
from scipy import ndimage

from gendiff.data import morphology
from gendiff.data.handwriting import Handwriting
from gendiff.data.morphology import binarise, brightness, draw, measure_thickness, set_thickness, trace

DIGITS = Handwriting("samples").digits


def bar(width: float, angle: float = 0.3, length: float = 18, size: int = 28) -> np.ndarray:
    """Antialiased stroke with round ends, drawn from its own distance function."""
    axis = (np.arange(size * 8) + 0.5) / 8 - size / 2
    x, y = np.meshgrid(axis, axis)
    along = np.clip(x * np.sin(angle) + y * np.cos(angle), -length / 2, length / 2)
    distance = np.hypot(x - along * np.sin(angle), y - along * np.cos(angle))
    return (distance < width / 2).reshape(size, 8, size, 8).mean((1, 3))


def components(image: np.ndarray) -> tuple[int, int]:
    """Number of strokes and of holes."""
    ink = binarise(image)
    return ndimage.label(ink, np.ones((3, 3)))[1], ndimage.label(~np.pad(ink, 1))[1] - 1


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("angle", [0.3, 0.8, 1.3])
def test_the_measure_is_the_width_of_a_bar(width, angle):
    # Distances between pixel centres are up to half a fine pixel off on each side: 0.25 px of 28.
    assert measure_thickness(bar(width, angle)) == pytest.approx(width, abs=0.25)


def test_the_measure_does_not_see_brightness_or_a_stray_pixel():
    image = bar(4)
    assert measure_thickness(0.3 * image) == measure_thickness(image)
    assert measure_thickness(255 * image) == measure_thickness(image)
    stray = 0.5 * image
    stray[2, 2] = 1.0
    assert measure_thickness(stray) == pytest.approx(measure_thickness(image), abs=0.3)


def test_blank_images():
    for image in (np.zeros((28, 28)), np.full((28, 28), -1.0)):
        assert measure_thickness(image) == 0
        with pytest.raises(ValueError, match="blank"):
            trace(image)
        with pytest.raises(ValueError, match="blank"):
            set_thickness(image, 3)


def test_images_of_other_shapes():
    image = bar(4)
    padded = np.pad(image, ((6, 2), (0, 12)))
    assert measure_thickness(padded) == pytest.approx(measure_thickness(image), abs=1e-6)
    assert set_thickness(padded, 3).shape == padded.shape


def test_brightness_is_the_mean_of_the_twelve_brightest():
    image = np.arange(100.0).reshape(10, 10)
    assert brightness(image) == np.arange(88, 100).mean()


@pytest.mark.parametrize("thickness", [1.0, 2.5, 4.0, 6.0])
def test_digits_reach_the_wanted_thickness(thickness):
    found = np.array([measure_thickness(set_thickness(digit, thickness)) for digit in DIGITS[:40]])
    error = np.abs(found - thickness)
    assert np.median(error) <= morphology.TOLERANCE
    assert np.quantile(error, 0.9) < 0.15


def test_redrawn_strokes_are_full_ink_on_an_empty_ground():
    for digit in DIGITS[:20]:
        image = set_thickness(digit, 3.0)
        assert image.min() == 0 and image.max() == 1
        assert image.shape == digit.shape


def test_a_thicker_digit_contains_the_thinner_one():
    strokes = trace(DIGITS[5])
    images = [draw(strokes, radius, spine=0.3) for radius in np.linspace(-1.5, 2, 15)]
    assert all((thicker >= thinner).all() for thinner, thicker in itertools.pairwise(images))
    assert (images[-1] > images[0]).any()


def test_the_outline_left_alone_gives_the_binarised_digit():
    for digit in DIGITS[:10]:
        drawn = draw(trace(digit), 0.0, spine=0.3)
        np.testing.assert_allclose(drawn, binarise(digit).reshape(28, 4, 28, 4).mean((1, 3)))


def test_thinning_does_not_break_strokes():
    for digit in DIGITS[:40]:
        strokes = trace(digit)
        eroded = np.where(strokes.outline > 8, 1, 0)  # an erosion by 2 px alone leaves little of a digit
        kept = np.maximum(strokes.outline - 8, 4 - strokes.spine) > 0
        assert ndimage.label(kept, np.ones((3, 3)))[1] <= components(digit)[0]
        assert eroded.sum() < kept.sum()
        thin = draw(strokes, -2.0, spine=0.5)
        assert ndimage.label(thin > 0, np.ones((3, 3)))[1] <= components(digit)[0]


def test_thickening_keeps_loops_open():
    zeros = [digit for digit in DIGITS[0::10] if components(digit)[1] == 1]
    assert len(zeros) > 10
    for digit in zeros:
        strokes = trace(digit)
        assert components(draw(strokes, 3.0, spine=1.0))[1] == 1
        filled = np.clip(strokes.outline + 40, 0, 1)
        assert components(filled.reshape(28, 4, 28, 4).mean((1, 3)))[1] == 0


@pytest.mark.parametrize("thickness", [0.0, -1.0, float("nan"), float("inf")])
def test_thickness_must_be_positive(thickness):
    with pytest.raises(ValueError, match="thickness must be a positive number"):
        set_thickness(DIGITS[0], thickness)


def test_a_missing_library_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without_skimage(name, *args, **kwargs):
        if name.startswith("skimage"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_skimage)
    morphology._libraries.cache_clear()
    with pytest.raises(ImportError, match=r"gendiff\[eval\]"):
        measure_thickness(bar(3))
