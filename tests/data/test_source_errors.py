from __future__ import annotations

import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from source_forms import Column, H, HuggingFace, Items, N, W, make_pixels, nchw, write_pngs, zipped
from torch.utils.data import TensorDataset

from gendiff.data.rendered import from_bytes
from gendiff.data.sources import open_source
from gendiff.errors import InvalidInputError, UnsafeFileError


@pytest.fixture
def pixels():
    return make_pixels()


def test_no_image_in_a_folder_or_zip(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InvalidInputError, match=rf"{tmp_path} holds no image: no file ends in .*\.png"):
        open_source(tmp_path)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(InvalidInputError, match=r"empty\.zip holds no image"):
        open_source(tmp_path / "empty.zip")


def test_unreadable_images_are_named(pixels, tmp_path):
    folder = write_pngs(tmp_path / "folder", pixels)
    whole = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(b"not a picture")
    for samples in (folder, zipped(folder, tmp_path / "a.zip")):
        with pytest.raises(InvalidInputError, match=r"/03\.png is not a readable image"):
            open_source(samples)
    (folder / "03.png").write_bytes(whole[: len(whole) // 2])
    for samples in (folder, zipped(folder, tmp_path / "b.zip")):
        source = open_source(samples)
        assert torch.equal(source.read([0]), nchw(pixels)[:1])
        with pytest.raises(InvalidInputError, match=r"/03\.png cannot be read"):
            source.read([2, 3])


def test_a_damaged_zip_names_the_member(pixels, tmp_path):
    path = zipped(write_pngs(tmp_path / "folder", pixels), tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    data[data.index(b"00.png") + 40] ^= 255
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"a\.zip/00\.png is not a readable image: Bad CRC"):
        open_source(path)
    path.write_bytes(b"PK not a zip")
    with pytest.raises(InvalidInputError, match="is not a zip archive"):
        open_source(path)


def test_more_than_eight_bits_are_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 4000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InvalidInputError, match=r"deep\.png has pixels of mode I;16; save it with 8 bits"):
        open_source(tmp_path)


def test_a_picture_too_large_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    Image.new("L", (5, 5)).save(tmp_path / "bomb.png")
    with pytest.raises(InvalidInputError, match=r"bomb\.png is not a readable image: .*decompression bomb"):
        open_source(tmp_path)


def test_mixed_sizes_need_resize(pixels, tmp_path):
    folder = write_pngs(tmp_path / "folder", [*pixels, pixels[0][:3]])
    pictures = [Image.fromarray(image) for image in (*pixels, pixels[0][:3])]
    message = r"mixed sizes: .* is 3x4 \(height x width\), .* is 6x4; pass resize=4"
    for samples in (folder, zipped(folder, tmp_path / "a.zip"), pictures):
        with pytest.raises(InvalidInputError, match=message):
            open_source(samples)
        assert open_source(samples, resize=4).read([0, 5]).shape == (2, 3, 4, 4)
    lazy = open_source(Items(list(zip(pictures, range(6), strict=True))))
    with pytest.raises(InvalidInputError, match=message):
        lazy.read([5])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4, 2), np.uint8), r"shape \(2, 4, 4, 2\); images must be \(N, H, W, C\) with C = 1, 3 or 4"),
        (np.zeros((2, 3, 4, 5), np.uint8), "a NumPy array as"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8)[:, :2], r"images must be \(N, C, H, W\)"),
        (torch.zeros(2, 3, 4, dtype=torch.int32), "holds torch.int32; images must be uint8"),
        (np.zeros((2, 4, 4, 3), np.int64), "holds int64; images must be uint8"),
        (np.zeros((0, 4, 4, 3), np.uint8), "holds no image"),
        (np.zeros((4,), np.uint8), r"shape \(4,\)"),
        (np.array([None, None]), r"shape \(2,\)"),
        (np.full((2, 4, 4, 3), None), "holds object"),
    ],
)
def test_arrays_of_another_shape_or_type(images, message):
    with pytest.raises(InvalidInputError, match=message):
        open_source(images)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.5, r"image 1 has values from -0\.5 to 0; float pixels must be in \[0, 1\]\. Images in \[-1, 1\]"),
        (200.0, r"image 1 has values from 0 to 200; .* Give bytes as uint8"),
        (np.nan, "image 1 holds NaN or infinite values"),
        (np.inf, "image 1 holds NaN or infinite values"),
    ],
)
def test_floats_outside_the_range(value, message):
    images = np.zeros((2, 3, 3, 1), np.float32)
    images[1, 0, 0] = value
    source = open_source(images)
    assert (source.read([0]) == 0).all()
    with pytest.raises(InvalidInputError, match=message):
        source.read([0, 1])
    tuples = open_source(TensorDataset(torch.from_numpy(images).permute(0, 3, 1, 2)))
    with pytest.raises(InvalidInputError, match=message):
        tuples.read([1])


def test_items_in_minus_one_to_one_are_checked():
    source = open_source(Items([{"image": torch.full((1, 2, 2), 1.5)}] * 2))
    with pytest.raises(
        InvalidInputError, match=r"has values from 1\.5 to 1\.5; items of this kind must lie in \[-1, 1\]"
    ):
        source.read([0])


def test_every_byte_survives_items_in_minus_one_to_one():
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(open_source(Items([{"image": from_bytes(ramp)}])).read([0])[0], ramp.expand(3, -1, -1))


def test_items_that_hold_no_image():
    for items, message in (
        ([{"picture": 0}], "has no 'image', only picture"),
        ([(3, 4)], "got int"),
        ([torch.zeros(2, 3, 3)], r"got \(2, 3, 3\)"),
        ([torch.zeros(1, 3, 3, dtype=torch.int64)], "holds torch.int64"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            open_source(Items(items)).read([0])
    with pytest.raises(InvalidInputError, match="holds no image"):
        open_source(Items([]))
    nothing = HuggingFace([], [])
    nothing.features = {"text": Column()}
    with pytest.raises(InvalidInputError, match="has no column of images; its columns: text"):
        open_source(nothing)


def test_files_that_could_run_code_are_not_opened(pixels, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    for name in ("a.pkl", "a.pt", "a.pth", "a.ckpt", "a.npy", "b.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(UnsafeFileError, match="run code when"):
            open_source(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", np.array([Bomb()], dtype=object))
    for name in ("objects.npy", "objects.npz"):
        with pytest.raises(UnsafeFileError, match="holds pickled objects"):
            open_source(tmp_path / name)


def test_array_files_that_hold_no_images(pixels, tmp_path):
    np.savez(tmp_path / "other.npz", images=pixels)
    with pytest.raises(InvalidInputError, match=r"has no array arr_0 of images; it holds images\.$"):
        open_source(tmp_path / "other.npz")
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(InvalidInputError, match="These are statistics"):
        open_source(tmp_path / "statistics.npz")
    np.savez(tmp_path / "cut.npz", pixels)
    whole = (tmp_path / "cut.npz").read_bytes()
    for part in (whole[: len(whole) // 2], b""):
        (tmp_path / "cut.npz").write_bytes(part)
        with pytest.raises(InvalidInputError, match=r"cut\.npz is not a whole \.npz file"):
            open_source(tmp_path / "cut.npz")
    np.save(tmp_path / "cut.npy", pixels)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:200])
    with pytest.raises(InvalidInputError, match=r"cut\.npy is not a whole \.npy file"):
        open_source(tmp_path / "cut.npy")


def test_array_files_by_another_name(pixels, tmp_path):
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "b.npz", pixels)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    for name in ("a.npz", "b.npy"):
        with pytest.raises(InvalidInputError, match="by another name"):
            open_source(tmp_path / name)


def test_things_that_are_no_source(tmp_path):
    (tmp_path / "one.png").write_bytes(b"")
    (tmp_path / "text.csv").write_text("")
    for samples, message in (
        (tmp_path / "nothing", "nothing does not exist"),
        (tmp_path / "one.png", "Name the folder it lies in"),
        (tmp_path / "text.csv", r"is not a folder, \.zip, \.npz or \.npy file\.$"),
        (None, "cannot read images from NoneType None; allowed: a folder"),
        ([], "cannot read images from list"),
        ([1, 2], "cannot read images from list"),
        ({"a": 1}, "cannot read images from dict"),
        (7, "cannot read images from int 7"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            open_source(samples)


def test_indices_are_checked(pixels):
    source = open_source(pixels)
    assert source.read([]).shape == (0, 3, H, W)
    for wrong in (-1, N):
        with pytest.raises(InvalidInputError, match=rf"index {wrong} is outside array 5x6x4x3 of 5 images"):
            source.read([wrong])


def test_a_picture_on_disk_is_closed_again(pixels, tmp_path):
    source = open_source(write_pngs(tmp_path, pixels))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        source.read(range(N))
    assert not caught


def test_large_arrays_on_disk_are_not_loaded_at_once(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 2, 2, 3), np.uint8))
    assert isinstance(open_source(tmp_path / "a.npy")._images, np.memmap)
