"""Images in files: a folder and everything below it, or a zip archive. Names are sorted, so that order is fixed."""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from PIL import Image
from torch import Tensor

from gendiff.data.image_source import ImageSource, mixed_sizes
from gendiff.data.pixels import EIGHT_BIT_MODES, from_pil, has_alpha
from gendiff.errors import InvalidInputError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files that are taken for images, by the end of their name; others are left alone."""

BROKEN = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What Pillow and zipfile raise for damaged, truncated, encrypted or mislabelled files."""


class FileSource(ImageSource):
    """Image files by name. All headers are read at once, so that a file of another kind or size is found at once.

    Attributes:
        names: of the files, sorted, with `/` between folders.
        formats: number of files of each format, as Pillow names them.

    Raises:
        InvalidInputError: no image, one that cannot be read, one of more than 8 bits, or mixed sizes without `resize`.
    """

    threaded = True

    def __init__(self, name: str, names: Sequence[str], resize: tuple[int, int] | None):
        super().__init__(name, resize)
        self.names = sorted(map(str, filter(_is_image, names)))
        if not self.names:
            raise InvalidInputError(f"{name} holds no image: no file ends in {', '.join(SUFFIXES)}.")
        if others := len(names) - len(self.names):
            self.note(f"{others} other files left alone")
        self.formats: Counter[str] = Counter()
        self._scan()
        self.format = "+".join(sorted(self.formats))

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """The bytes of one file; called by several threads."""

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        return f"{self.name}/{self.names[index]}"

    def load(self, indices: Sequence[int]) -> list[Tensor]:
        return [self._decode(index) for index in indices]

    def _decode(self, index: int) -> Tensor:
        try:
            with self.open(self.names[index]) as file, Image.open(file) as image:
                return from_pil(image)
        except BROKEN as error:
            raise InvalidInputError(f"{self.where(index)} cannot be read: {error}") from error

    def _scan(self) -> None:
        for index, name in enumerate(self.names):
            # Decompression bombs are only a warning of Pillow's up to twice its limit.
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                try:
                    with self.open(name) as file, Image.open(file) as image:
                        width, height = image.size
                        mode, alpha, kind = image.mode, has_alpha(image), str(image.format)
                except (*BROKEN, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
                    raise InvalidInputError(f"{self.where(index)} is not a readable image: {error}") from error
            if mode not in EIGHT_BIT_MODES:
                raise InvalidInputError(
                    f"{self.where(index)} has pixels of mode {mode}; save it with 8 bits per channel, grey or RGB."
                )
            self.formats[kind] += 1
            if alpha:
                self.note("alpha composited on white")
            if self._size is None:
                self._size = (height, width)
            if self.resize is None and (height, width) != self._size:
                raise InvalidInputError(mixed_sizes(self.where(index), (height, width), self.where(0), self._size))


class FolderSource(FileSource):
    """Images in a folder and everything below it; hidden files and folders are left alone."""

    kind = "folder"

    def __init__(self, path: str | Path, resize: tuple[int, int] | None = None):
        self._root = Path(path)
        files = [file.relative_to(self._root).as_posix() for file in self._root.rglob("*") if file.is_file()]
        super().__init__(str(path), files, resize)

    def open(self, name: str) -> IO[bytes]:
        return (self._root / name).open("rb")


class ZipSource(FileSource):
    """Images in a zip archive, in the order of their names rather than of the archive."""

    kind = "zip"

    def __init__(self, path: str | Path, resize: tuple[int, int] | None = None):
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InvalidInputError(f"{path} is not a zip archive: {error}.") from error
        files = [entry.filename for entry in self._archive.infolist() if not entry.is_dir()]
        super().__init__(str(path), files, resize)

    def open(self, name: str) -> IO[bytes]:
        # At once, so that the archive checks its checksum even where Pillow would stop before the end.
        return io.BytesIO(self._archive.read(name))


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES
