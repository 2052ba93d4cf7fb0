"""Images as people hand them over: what is read, and what is refused rather than guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.pipelines.images import to_tensor

SIZE = 6
RGB = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def expected(pixels: np.ndarray) -> torch.Tensor:
    """(1, C, S, S) in [-1, 1] from uint8 (S, S) or (S, S, C)."""
    flat = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(flat.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)


def with_alpha(pixels: np.ndarray, alpha: int) -> Image.Image:
    return Image.fromarray(np.concatenate([pixels, np.full((SIZE, SIZE, 1), alpha, np.uint8)], axis=2))


@pytest.mark.parametrize(
    ("image", "channels", "pixels"),
    [
        (Image.fromarray(RGB), 3, RGB),
        (Image.fromarray(GREY), 1, GREY),
        (Image.fromarray(GREY), 3, np.stack([GREY] * 3, axis=2)),
        (Image.fromarray(np.stack([GREY] * 3, axis=2)), 1, GREY),
        (with_alpha(RGB, 255), 3, RGB),
        (with_alpha(np.stack([GREY] * 3, axis=2), 255), 1, GREY),
        (Image.fromarray(GREY).convert("LA"), 1, GREY),
        (Image.fromarray(GREY > 127), 1, np.where(GREY > 127, 255, 0).astype(np.uint8)),
        (Image.fromarray(GREY > 127), 3, np.stack([np.where(GREY > 127, 255, 0)] * 3, axis=2).astype(np.uint8)),
        (Image.fromarray(RGB // 64 * 64).quantize(256), 3, RGB // 64 * 64),
        (Image.fromarray(GREY).convert("P"), 1, GREY),
    ],
    ids=["RGB", "L", "L as RGB", "grey RGB", "RGBA", "grey RGBA", "LA", "1", "1 as RGB", "P", "grey P"],
)
def test_pictures_of_all_modes(image: Image.Image, channels: int, pixels: np.ndarray):
    for form in (image, [image], (image,)):
        torch.testing.assert_close(to_tensor(form, channels, SIZE), expected(pixels), rtol=0, atol=1e-6)


def test_a_list_becomes_a_batch_in_order():
    images = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy()), Image.fromarray(GREY)]
    batch = to_tensor(images, 3, SIZE)
    assert batch.shape == (3, 3, SIZE, SIZE)
    torch.testing.assert_close(batch[1], expected(RGB)[0].flip(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("convert", [lambda batch: batch, lambda batch: batch.numpy()], ids=["tensor", "array"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floats_are_taken_as_they_are(convert: Any, dtype: torch.dtype):
    batch = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)
    batch[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    result = to_tensor(convert(batch), 3, SIZE)
    assert result.dtype == dtype and torch.equal(result, 2 * batch - 1)
    assert torch.equal(to_tensor(convert(batch[0]), 3, SIZE), result[:1]), "one image needs no batch axis"
    assert batch.min() >= 0, "the caller's memory is not written to"


def test_views_of_arrays_are_read():
    array = np.random.default_rng(1).random((1, 3, SIZE, SIZE))
    mirrored = to_tensor(array[..., ::-1], 3, SIZE)
    assert torch.equal(mirrored, to_tensor(array, 3, SIZE).flip(3))
    array.flags.writeable = False
    assert torch.equal(to_tensor(array, 3, SIZE).flip(3), mirrored)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 1, SIZE, SIZE), r"expected \(B,3,6,6\), got \(2,1,6,6\)"),
        (torch.zeros(2, 3, SIZE, SIZE + 1), r"expected \(B,3,6,6\), got \(2,3,6,7\)"),
        (torch.zeros(SIZE, SIZE, 3), r"expected \(B,3,6,6\), got \(1,6,6,3\)"),
        (torch.zeros(SIZE, SIZE), r"expected \(B,3,6,6\), got \(6,6\)"),
        (torch.zeros(1, 1, 3, SIZE, SIZE), r"expected \(B,3,6,6\), got \(1,1,3,6,6\)"),
        (torch.zeros(0, 3, SIZE, SIZE), r"expected \(B,3,6,6\), got \(0,3,6,6\)"),
        (torch.tensor(0.5), r"expected \(B,3,6,6\), got \(\)"),
        (torch.full((1, 3, SIZE, SIZE), 1.5), r"\[0, 1\], got values from 1.5 to 1.5"),
        (torch.linspace(-1, 1, 3 * SIZE**2).view(1, 3, SIZE, SIZE), r"\[0, 1\], got values from -1 to 1"),
        (torch.full((1, 3, SIZE, SIZE), float("nan")), r"\[0, 1\], got values from nan to nan"),
        (torch.full((1, 3, SIZE, SIZE), float("inf")), r"\[0, 1\], got values from inf to inf"),
        (torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), r"floats in \[0, 1\], got torch.uint8; divide uint8 by 255"),
        (RGB.transpose(2, 0, 1)[None], r"floats in \[0, 1\], got uint8; divide uint8 by 255"),
        (np.array([["a"]]), "floats in"),
        (Image.fromarray(RGB).resize((SIZE, 5)), r"expected \(B,3,6,6\), got \(1,3,5,6\)"),
        (
            [Image.fromarray(RGB), Image.fromarray(RGB).resize((5, 5))],
            r"images differ in shape: \[\(3, 5, 5\), \(3, 6, 6\)\]",
        ),
        (with_alpha(RGB, 254), "transparent pixels; flatten it onto a background first"),
        ([], "non-empty list of PIL images"),
        ([torch.zeros(3, SIZE, SIZE)], "non-empty list of PIL images"),
        ("cat.png", "got str"),
        (None, "got NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(image: Any, message: str):
    with pytest.raises(ValueError, match=message):
        to_tensor(image, 3, SIZE)


def test_one_nan_among_numbers_is_seen():
    batch = torch.full((1, 3, SIZE, SIZE), 0.5)
    batch[0, 1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match="got values from nan"):
        to_tensor(batch, 3, SIZE)


def test_colour_is_not_turned_into_grey():
    with pytest.raises(ValueError, match=r"expected \(B,1,6,6\), got \(1,3,6,6\)"):
        to_tensor(Image.fromarray(RGB), 1, SIZE)


def test_a_palette_with_transparency_is_refused():
    image = Image.fromarray(GREY).convert("P")
    image.info["transparency"] = int(np.asarray(image)[0, 0])
    with pytest.raises(ValueError, match="transparent pixels"):
        to_tensor(image, 1, SIZE)
