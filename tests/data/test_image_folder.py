from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gendiff.data import load_dataset
from gendiff.errors import InvalidInputError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path, colour, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def root(tmp_path):
    save(tmp_path / "train" / "cat" / "b.png", RED)
    save(tmp_path / "train" / "cat" / "a.PNG", GREEN)
    save(tmp_path / "train" / "dog" / "x.bmp", BLUE)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / "empty").mkdir()
    save(tmp_path / "train" / ".thumbnails" / "a.png", RED)
    return tmp_path


def test_classes_are_folders_and_files_are_sorted(root):
    data = load_dataset("image-folder", root=root, size=8)
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [0, 0, 1]
    assert [path.name for path in data.paths] == ["a.PNG", "b.png", "x.bmp"]
    assert data.images.shape == (3, 3, 8, 8)
    assert data.images[:, :, 0, 0].tolist() == [list(GREEN), list(RED), list(BLUE)]
    assert data[0]["image"][:, 3, 3].tolist() == [-1, 1, -1] and data[2]["label"] == 1
    assert load_dataset("image-folder", "all", root=root / "train", size=8).images.equal(data.images)
    evenly = load_dataset("image-folder", root=root, size=8, num_images=2)
    assert [path.name for path in evenly.paths] == ["a.PNG", "b.png"] and evenly.classes == data.classes


def test_another_size_is_scaled_only_if_asked(root):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, :4], wide[:, 12:] = RED, BLUE
    Image.fromarray(wide).save(root / "train" / "dog" / "y.png")
    with pytest.raises(InvalidInputError, match=r"y\.png has 16x8 pixels, not 8x8; .*resize='crop' or resize='squash'"):
        load_dataset("image-folder", root=root, size=8)
    crop = load_dataset("image-folder", root=root, size=8, resize="crop").images[3]
    assert crop.max() == 0  # the middle alone, and not scaled
    squash = load_dataset("image-folder", root=root, size=8, resize="squash").images[3]
    assert squash[:, 0, 0].tolist() == list(RED) and squash[:, 0, -1].tolist() == list(BLUE)


def test_shrinking_looks_at_all_pixels(root):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(root / "train" / "dog" / "z.png")
    for resize in ("crop", "squash"):
        small = load_dataset("image-folder", root=root, size=8, resize=resize).images[3].float()
        assert (small - 127.5).abs().max() < 8  # a filter that skips pixels would see black or white alone


def test_alpha_is_laid_on_white_and_grey_and_colour_convert(root):
    save(root / "test" / "a" / "clear.png", (0, 0, 0, 0), mode="RGBA")
    save(root / "test" / "b" / "grey.png", 100, mode="L")
    data = load_dataset("image-folder", "test", root=root, size=8)
    assert data.images[:, :, 0, 0].tolist() == [[255] * 3, [100] * 3]
    grey = load_dataset("image-folder", "test", root=root, size=8, channels=1)
    assert grey.images.shape == (2, 1, 8, 8) and grey.images[:, 0, 0, 0].tolist() == [255, 100]


def test_a_camera_held_sideways(root):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(np.rot90(upright).copy()).save(root / "train" / "dog" / "y.png", exif=exif)
    data = load_dataset("image-folder", root=root, size=8)
    np.testing.assert_array_equal(data.images[3].permute(1, 2, 0), upright)


def test_a_damaged_image_is_named(root):
    good = root / "train" / "dog" / "x.png"
    save(good, RED, size=(64, 64))
    (root / "train" / "dog" / "y.png").write_bytes(good.read_bytes()[:60])
    with pytest.raises(InvalidInputError, match=r"dog/y\.png cannot be read"):
        load_dataset("image-folder", root=root, size=8, resize="crop")
    (root / "train" / "dog" / "y.png").write_bytes(b"no image at all")
    with pytest.raises(InvalidInputError, match=r"dog/y\.png cannot be read"):
        load_dataset("image-folder", root=root, size=8, resize="crop")


def test_an_image_of_16_bits_is_named(root):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(root / "train" / "dog" / "deep.png")
    with pytest.raises(InvalidInputError, match=r"dog/deep\.png .*8 bits per channel"):
        load_dataset("image-folder", root=root, size=8)


def test_bad_arguments(root):
    with pytest.raises(ValueError, match="size must be an integer of at least 1, got 0"):
        load_dataset("image-folder", root=root, size=0)
    with pytest.raises(InvalidInputError, match="resize must be one of exact, crop, squash, got 'fit'"):
        load_dataset("image-folder", root=root, resize="fit")
    with pytest.raises(InvalidInputError, match="channels must be one of 1, 3, got 4"):
        load_dataset("image-folder", root=root, channels=4)
    with pytest.raises(InvalidInputError, match="num_images must be a whole number from 1 to 3, got 4"):
        load_dataset("image-folder", root=root, size=8, num_images=4)
    for split in ("../train", "", ".", ".."):
        with pytest.raises(InvalidInputError, match="split must be the name of a folder in root"):
            load_dataset("image-folder", split, root=root)
    with pytest.raises(FileNotFoundError, match=r"validation does not exist\. .* is the split 'all'"):
        load_dataset("image-folder", "validation", root=root)
    with pytest.raises(FileNotFoundError, match="nothing/train does not exist"):
        load_dataset("image-folder", root=root / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no folder in .* holds an image"):
        load_dataset("image-folder", "all", root=root / "train" / "empty")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # outside of tests no warning is an error
def test_a_picture_too_large_to_decode_is_named(root, monkeypatch):
    # Up to twice its limit Pillow only warns, as it opens the file.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(InvalidInputError, match=r"a\.PNG cannot be read: Image size \(64 pixels\) exceeds limit"):
        load_dataset("image-folder", root=root, size=8)
