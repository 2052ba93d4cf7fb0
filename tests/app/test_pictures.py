"""Pictures put together: every pixel where it belongs, and files whole or not there."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.app.pictures import grid, png_bytes, strip, to_pil


def solid(shade: int, size: tuple[int, int] = (10, 10)) -> Image.Image:
    return Image.new("L", size, shade)


def test_to_pil_enlarges_each_pixel_to_a_square():
    image = torch.tensor([[[0.0, 1.0], [0.5, 0.2]]])
    picture = to_pil(image, scale=3)
    assert picture.mode == "L" and picture.size == (6, 6)
    assert np.array_equal(np.asarray(picture), np.kron([[0, 255], [128, 51]], np.ones((3, 3))))


def test_to_pil_keeps_every_byte_and_clips():
    bytes_in = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(3, 16, 16)
    assert np.array_equal(np.asarray(to_pil(bytes_in.float() / 255)), bytes_in.permute(1, 2, 0).numpy())
    assert to_pil(torch.tensor([[[-0.2, 1.7]]])).tobytes() == bytes([0, 255])


@pytest.mark.parametrize(
    ("image", "scale", "message"),
    [
        (torch.zeros(2, 4, 4), 1, r"image must be \(1 or 3, H, W\), got \(2, 4, 4\)"),
        (torch.zeros(4, 4), 1, r"got \(4, 4\)"),
        (torch.full((1, 2, 2), torch.nan), 1, "not numbers"),
        (torch.zeros(1, 4, 4), 0, "scale must be a whole number of at least 1, got 0"),
        (torch.zeros(1, 4, 4), 1.5, r"got 1\.5"),
    ],
)
def test_to_pil_refuses(image, scale, message):
    with pytest.raises(ValueError, match=message):
        to_pil(image, scale)


def test_grid_places_pictures_and_centres_small_ones():
    sheet = np.asarray(grid([[solid(10), solid(20)], [solid(30, (4, 4))]], gap=2))
    assert sheet.shape == (26, 26, 3)
    assert (sheet[2:12, 2:12] == 10).all() and (sheet[2:12, 14:24] == 20).all()
    assert (sheet[17:21, 5:9] == 30).all()
    covered = 2 * 12**2 + 6**2  # each with its frame
    assert (sheet == 255).all(axis=2).sum() == sheet[..., 0].size - covered


def test_grid_writes_labels_beside_the_pictures_only():
    rows = [[solid(255, (30, 30))] * 2] * 2
    bare = np.asarray(grid(rows))
    sheet = np.asarray(grid(rows, ["model", "the\ntruth"], ["1.5", "a caption wider than its picture"]))
    assert sheet.shape[0] > bare.shape[0] and sheet.shape[1] > bare.shape[1]
    dark = (sheet < 128).all(axis=2)
    assert dark[:, :40].any() and dark[:20].any()
    cells = grid([[solid(0, (30, 30))] * 2] * 2, ["model", "the\ntruth"], ["1.5", "a caption wider than its picture"])
    assert (np.asarray(cells) == 0).all(axis=2).sum() == 4 * 900


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "rows must hold at least one picture"),
        (([[]],), "rows must hold at least one picture"),
        (([[solid(0)]], ["a", "b"]), "row_labels must be 1, one for each row, got 2"),
        (([[solid(0)] * 3], None, ["a"]), "column_labels must be 3, one for each column, got 1"),
    ],
)
def test_grid_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        grid(*arguments)


def test_strip_is_a_grid_of_one_row():
    pictures = [solid(shade) for shade in (0, 100, 200)]
    assert strip(pictures, ["a", "b", "c"]).tobytes() == grid([pictures], column_labels=["a", "b", "c"]).tobytes()


def test_png_comes_back_as_it_was():
    picture = to_pil(torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)))
    with Image.open(io.BytesIO(png_bytes(picture))) as loaded:
        assert loaded.format == "PNG" and loaded.tobytes() == picture.tobytes()
