from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from source_forms import H, Items, N, W, every_kind, make_pixels, nchw, write_pngs

from gendiff.data import load_dataset
from gendiff.data.source_arrays import ArraySource
from gendiff.data.sources import ImageSource, open_source
from gendiff.errors import InvalidInputError


@pytest.fixture
def pixels():
    return make_pixels()


def test_every_kind_gives_the_same_bytes_and_hash(pixels, tmp_path):
    hashes = set()
    for kind, samples in every_kind(pixels, tmp_path).items():
        source = open_source(samples)
        assert isinstance(source, ImageSource) and len(source) == N, kind
        assert torch.equal(source.read([3, 0, 0]), nchw(pixels)[[3, 0, 0]]), kind
        assert torch.equal(torch.stack(list(source)), nchw(pixels)), kind
        described = source.describe()
        assert described["count"] == N and described["size"] == [H, W], kind
        hashes.add(described["sha256"])
    assert len(hashes) == 1


def test_the_hash_is_of_sizes_and_pixels_in_order(pixels):
    digests = [hashlib.sha256(b"6x4:" + image.numpy().tobytes()).digest() for image in nchw(pixels)]
    source = open_source(pixels)
    assert source.digests() == digests
    assert source.describe()["sha256"] == hashlib.sha256(b"".join(digests)).hexdigest()
    assert source.describe(2)["sha256"] == hashlib.sha256(b"".join(digests[:2])).hexdigest()
    assert open_source(pixels[::-1]).describe()["sha256"] != source.describe()["sha256"]


def test_what_a_source_says_of_itself(pixels, tmp_path):
    kinds = every_kind(pixels, tmp_path)
    folder = open_source(kinds["folder"]).describe()
    assert (folder["kind"], folder["name"], folder["format"]) == ("folder", kinds["folder"], "PNG")
    assert open_source(kinds["zip"]).describe()["kind"] == "zip"
    assert open_source(kinds["npz"]).describe()["kind"] == "npz"
    assert open_source(kinds["array"]).describe()["format"] == "uint8"
    assert "floats in [0, 1] became bytes by round(255 x)" in open_source(kinds["float array"]).describe()["notes"]
    write_pngs(tmp_path / "folder", pixels, "{:02d}.jpg")
    (tmp_path / "folder" / "readme.txt").write_text("x")
    mixed = open_source(tmp_path / "folder").describe()
    assert mixed["format"] == "JPEG+PNG" and "1 other files left alone" in mixed["notes"]


def test_labels(pixels, tmp_path):
    kinds = every_kind(pixels, tmp_path)
    for kind in ("npz", "dicts", "subset", "picture tuples", "tensor tuples", "hugging face"):
        labels = open_source(kinds[kind]).labels(4)
        assert labels is not None and labels.tolist() == [0, 1, 2, 3], kind
    for kind in ("folder", "zip", "npy", "array", "pictures"):
        assert open_source(kinds[kind]).labels(4) is None, kind
    assert open_source(Items([{"image": torch.zeros(1, 2, 2)}] * 3)).labels(2) is None


def test_folders_are_read_deep_in_the_order_of_names(pixels, tmp_path):
    write_pngs(tmp_path, pixels[:1], "b/deep/{:02d}.png")
    write_pngs(tmp_path, pixels[1:2], "a/{:02d}.PNG")
    write_pngs(tmp_path, pixels[2:3], ".hidden/{:02d}.png")
    write_pngs(tmp_path, pixels[3:4], "c/._{:02d}.png")
    source = open_source(tmp_path)
    assert source.names == ["a/00.PNG", "b/deep/00.png"]
    assert torch.equal(source.read([0, 1]), nchw(pixels)[[1, 0]])


def test_a_named_data_set():
    source, data = open_source("dataset:fashion-mnist:test"), load_dataset("fashion-mnist", "test")
    assert source.name == "dataset:fashion-mnist:test" and len(source) == len(data)
    assert torch.equal(source.read([0, 7]), data.images[[0, 7]].expand(-1, 3, -1, -1))
    assert source.labels(5).tolist() == data.labels[:5].tolist()
    with pytest.raises(InvalidInputError, match="dataset:fashion-mnis: unknown dataset"):
        open_source("dataset:fashion-mnis")
    with pytest.raises(InvalidInputError, match="split must be one of"):
        open_source("dataset:fashion-mnist:teste")
    with pytest.raises(InvalidInputError, match="named dataset:NAME or dataset:NAME:SPLIT"):
        open_source("dataset:a:b:c")
    with pytest.raises(InvalidInputError, match="Did you mean dataset:fashion-mnist"):
        open_source("fashion-mnist")


def test_grey_is_repeated_and_alpha_lies_on_white(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(1, 6, 4)
    for images in (grey, grey[..., None], torch.from_numpy(grey), [Image.fromarray(grey[0])]):
        source = open_source(images)
        assert torch.equal(source.read([0]), torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1))
        assert source.describe()["notes"] == []
    clear = np.full((2, 2, 2, 4), (10, 20, 30, 0), dtype=np.uint8)
    clear[:, 0, 0, 3], clear[:, 1, 1, 3] = 255, 128
    Image.fromarray(clear[0]).save(tmp_path / "a.png")
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    palette.save(tmp_path / "b.png", transparency=0)
    for source in (open_source(clear), open_source(torch.from_numpy(clear).permute(0, 3, 1, 2)), open_source(tmp_path)):
        image = source.read([0])[0]
        assert image[:, 0, 0].tolist() == [10, 20, 30] and image[:, 0, 1].tolist() == [255, 255, 255]
        # 128 of 255 parts of the colour, the rest white
        assert image[:, 1, 1].tolist() == pytest.approx([132, 137, 142], abs=1)
        assert "alpha composited on white" in source.describe()["notes"]
    assert (open_source(tmp_path).read([1]) == 255).all()


def test_other_modes(tmp_path):
    Image.new("1", (3, 2), 1).save(tmp_path / "a.png")
    Image.new("CMYK", (3, 2), (0, 0, 0, 0)).save(tmp_path / "b.jpg")
    assert (open_source(tmp_path).read([0, 1]) == 255).all()


def test_resize_smooths_and_is_the_same_for_every_kind(tmp_path):
    board = np.zeros((8, 8, 3), dtype=np.uint8)
    board[::2] = 255
    write_pngs(tmp_path, [board, board[:4, :6]])
    source = open_source(tmp_path, resize=4)
    images = source.read([0, 1])
    assert images.shape == (2, 3, 4, 4)
    # lines of one pixel become grey; without smoothing they would stay black or white
    assert (images[0].float() - 127.5).abs().max() < 40
    expected = np.asarray(Image.fromarray(board).resize((4, 4), Image.Resampling.BICUBIC))
    assert torch.equal(images[0], torch.from_numpy(expected.copy()).permute(2, 0, 1))
    assert torch.equal(open_source(board[None], resize=(4, 4)).read([0])[0], images[0])
    assert source.describe()["size"] == [4, 4]
    assert source.describe()["notes"] == ["resized to 4x4 (Pillow bicubic, antialiased)"]
    assert open_source(board[None], resize=(2, 6)).read([0]).shape == (1, 3, 2, 6)
    for wrong in (0, (3,), "4", True, (4, 0)):
        with pytest.raises(InvalidInputError, match="resize must be a side or"):
            open_source(tmp_path, resize=wrong)


def test_a_source_is_returned_as_it_is(pixels):
    source = ArraySource(pixels)
    assert open_source(source) is source
    with pytest.raises(InvalidInputError, match="must be given where the source"):
        open_source(source, resize=3)
