"""Pictures of your own: a folder for each split, in it a folder for each class, in those the image files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gendiff.data.labelled import LabelledImages, check_choice, check_num_images
from gendiff.data.pixels import from_pil, to_rgb
from gendiff.data.rendered import check_count
from gendiff.data.source_files import BROKEN, SUFFIXES
from gendiff.errors import InvalidInputError

RESIZES = ("exact", "crop", "squash")
FILTER = Image.Resampling.BICUBIC
"""Pillow's filters look at all pixels when they shrink, so nothing is aliased."""


class ImageFolder(LabelledImages):
    """The images in `root/split/CLASS/`, or in `root/CLASS/` for the split `all`, sorted by class and name.

    They are decoded at once and kept in memory as bytes. Transparent pictures are laid on white, and a camera's note of
    which side is up is followed.

    Args:
        split: name of a folder in `root`, or `all` for the folders of classes in `root` itself.
        root: the folder.
        size: height and width of the images.
        resize: `exact` takes images of that size alone; `crop` scales the shorter side to `size` and cuts the middle
            out; `squash` scales both sides, each by its own factor.
        channels: 3 for colour (grey is repeated) or 1 for grey.
        num_images: keep only so many, taken evenly from the sorted list.

    Attributes:
        paths: file of each image.

    Raises:
        FileNotFoundError: the folder is missing, or has no folder with images in it.
        InvalidInputError: a bad argument, or an image that is damaged, of another size or deeper than 8 bits; its file
            is named.
    """

    paths: tuple[Path, ...]

    def __init__(
        self,
        split: str = "train",
        root: str | Path = "data",
        size: int = 64,
        resize: str = "exact",
        channels: int = 3,
        num_images: int | None = None,
    ):
        check_count("size", size)
        check_choice("resize", resize, RESIZES)
        check_choice("channels", channels, (1, 3))
        files, classes = _files(Path(root), split)
        if num_images is not None:
            check_num_images(num_images, len(files))
            files = [files[k * len(files) // num_images] for k in range(num_images)]
        images = np.stack([_read(path, size, resize, channels) for path, _ in files])
        super().__init__(images, np.array([label for _, label in files]), classes)
        self.paths = tuple(path for path, _ in files)


def _files(root: Path, split: str) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """Image files with their classes, and the names of the classes."""
    if not isinstance(split, str) or split in ("", "..") or Path(split).name != split:
        raise InvalidInputError(f"split must be the name of a folder in root, or all; got {split!r}.")
    folder = root if split == "all" else root / split
    if not folder.is_dir():
        hint = f" {root} itself, with a folder for each class, is the split 'all'." if root.is_dir() else ""
        raise FileNotFoundError(f"the folder {folder} does not exist.{hint}")
    by_class = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found = sorted(path for path in inner.iterdir() if _is_image(path))
        if found:
            by_class[inner.name] = found
    if not by_class:
        raise FileNotFoundError(f"no folder in {folder} holds an image ({', '.join(SUFFIXES)}).")
    files = [(path, label) for label, found in enumerate(by_class.values()) for path in found]
    return files, tuple(by_class)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read(path: Path, size: int, resize: str, channels: int) -> np.ndarray:
    """One image, (channels, size, size) uint8."""
    try:
        # A decompression bomb is only a warning of Pillow's up to twice its limit.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                pixels = to_rgb(from_pil(ImageOps.exif_transpose(opened)))
    except (*BROKEN, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if resize == "exact" and picture.size != (size, size):
        raise InvalidInputError(
            f"{path} has {picture.width}x{picture.height} pixels, not {size}x{size}; give its size, or resize='crop' or"
            " resize='squash'."
        )
    if resize == "crop":
        picture = ImageOps.fit(picture, (size, size), FILTER)
    elif picture.size != (size, size):
        picture = picture.resize((size, size), FILTER)
    return np.atleast_3d(np.array(picture.convert("L" if channels == 1 else "RGB"))).transpose(2, 0, 1)
