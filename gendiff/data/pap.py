"""Reader of the physical alignment probe as it is published: Parquet files of prompts, images and masks.

The published set (OpenCausaLab/LINA-PAP, Apache-2.0) has one split, `train`, of 28,700 rows in `data/train-*.parquet`.
Columns that gendiff adds (see `PAPRecord`) are read if they are there: graph, factors and checks as JSON text.
"""

from __future__ import annotations

import bisect
import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.data.pap_record import CHECK_FIELDS, Check, PAPRecord
from gendiff.data.pixels import from_pil, to_rgb
from gendiff.errors import InvalidInputError

TEXTS = ("id", "model", "prompt", "category", "subcategory")
MASKS = ("mask_object", "mask_mirror", "mask_on_mirror_reflection")
REQUIRED = (*TEXTS, "seed", "metadata", "image")
OWN = ("csg", "factors", "split", "ood", "checks")


class PAPDataset(Dataset):
    """Records of a physical alignment probe, read from Parquet files one row group at a time.

    Opening reads the files' footers alone; the images of a row are decoded when it is asked for. The last row group is
    kept, so reading in order is cheap and reading at random costs a row group a record.

    Args:
        path: a Parquet file, or a folder in which every `*.parquet`, at any depth, is read in the order of its name.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: there is no such file, or no Parquet file in the folder.
        InvalidInputError: a file is not Parquet, or lacks a column; file and column are named.
    """

    def __init__(self, path: str | Path):
        parquet = _parquet()
        path = Path(path)
        self.paths = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not self.paths or not self.paths[0].is_file():
            raise FileNotFoundError(f"path must be a Parquet file or a folder of such, found none at {path}")
        self._groups: list[tuple[Path, int]] = []
        self._starts: list[int] = []
        self._length = 0
        self._cached: tuple[int, Any] | None = None
        for file in self.paths:
            # Opened only as long as it takes, so that the dataset can be sent to loader processes.
            with _opened(parquet, file) as opened:
                missing = [name for name in REQUIRED if name not in opened.schema_arrow.names]
                if missing:
                    raise InvalidInputError(
                        f"{file} must have the columns {', '.join(REQUIRED)}; it lacks {missing[0]!r}"
                    )
                for group in range(opened.metadata.num_row_groups):
                    self._groups.append((file, group))
                    self._starts.append(self._length)
                    self._length += opened.metadata.row_group(group).num_rows

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> PAPRecord:
        """The record at a position, negative from the end.

        Raises:
            IndexError: no such record.
            InvalidInputError: a column of it cannot be read; file, row and column are named.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a probe of {len(self)} records")
        index %= len(self)
        group = bisect.bisect_right(self._starts, index) - 1
        if self._cached is None or self._cached[0] != group:
            file, number = self._groups[group]
            with _opened(_parquet(), file) as opened:
                known = [name for name in (*REQUIRED, *MASKS, *OWN) if name in opened.schema_arrow.names]
                self._cached = (group, opened.read_row_group(number, columns=known))
        row = self._cached[1].slice(index - self._starts[group], 1).to_pylist()[0]
        return read_row(row, f"{self._groups[group][0]}, record {index}")

    def column(self, name: str) -> list[Any]:
        """All values of a column that holds no picture, such as "prompt" or "category", without reading any picture.

        Raises:
            InvalidInputError: no such column, or one of pictures.
        """
        allowed = [column for column in (*REQUIRED, *OWN) if column != "image"]
        if name not in allowed:
            raise InvalidInputError(f"name must be one of {', '.join(allowed)}, got {name!r}")
        values: list[Any] = []
        for file in self.paths:
            with _opened(_parquet(), file) as opened:
                if name not in opened.schema_arrow.names:
                    raise InvalidInputError(f"{file} has no column {name!r}")
                values += opened.read(columns=[name]).column(name).to_pylist()
        return values

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cached": None}


def read_row(row: dict[str, Any], where: str = "row") -> PAPRecord:
    """A row of the published table as a record.

    Args:
        row: column -> value; pictures are {"bytes": ..., "path": ...} or None.
        where: what the row is, for messages.

    Raises:
        InvalidInputError: a value cannot be read; `where` and the column are named.
    """
    image = _picture(row["image"], f"{where}: image")
    if image is None:
        raise InvalidInputError(f"{where}: image must hold the bytes of a picture, got none")
    masks: dict[str, Any] = {name: _mask(row.get(name), image, f"{where}: {name}") for name in MASKS}
    texts: dict[str, Any] = {name: row[name] or "" for name in TEXTS}
    checks = _read_json(row.get("checks"), list, f"{where}: checks")
    return PAPRecord(
        **texts,
        seed=row["seed"],
        metadata=_read_json(row["metadata"], dict, f"{where}: metadata"),
        image=to_rgb(image),
        **masks,
        csg=row.get("csg") or "",
        factors=_read_json(row.get("factors"), dict, f"{where}: factors"),
        split=row.get("split") or "train",
        ood=bool(row.get("ood")),
        checks=tuple(_checks(checks, f"{where}: checks")),
    )


def _checks(entries: Sequence[Any], where: str) -> list[Check]:
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or not set(entry) <= set(CHECK_FIELDS)
            or not set(entry) >= set(CHECK_FIELDS[:4])
        ):
            raise InvalidInputError(f"{where} must be objects of {', '.join(CHECK_FIELDS)}, got {entry!r}")
    return [Check(**entry) for entry in entries]


def _read_json(text: Any, kind: type, where: str) -> Any:
    """The JSON of a text, which must be of a `kind`; empty if there is no text. Structs are taken as they are."""
    if text is None or text == "":
        return kind()
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"{where} must be JSON, got {text[:60]!r} ({error})") from error
    if not isinstance(value, kind):
        raise InvalidInputError(f"{where} must be a JSON {kind.__name__}, got {value!r}")
    return value


def _picture(struct: Any, where: str) -> Tensor | None:
    """A picture's struct as uint8 (1 | 3, H, W); None if it holds nothing."""
    if struct is None or (struct.get("bytes") is None and struct.get("path") is None):
        return None
    if struct.get("bytes") is None:
        # A path into the machine that wrote the file means nothing here.
        raise InvalidInputError(f"{where} must hold the bytes of a picture, it only names {struct['path']!r}")
    try:
        return from_pil(Image.open(io.BytesIO(struct["bytes"])))
    except InvalidInputError as error:
        raise InvalidInputError(f"{where} {error}") from error
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidInputError(f"{where} cannot be decoded ({error})") from error


def _mask(struct: Any, image: Tensor, where: str) -> Tensor | None:
    """A mask as (H, W) bool, true where it is brighter than half."""
    mask = _picture(struct, where)
    if mask is None:
        return None
    if mask.shape[1:] != image.shape[1:]:
        raise InvalidInputError(
            f"{where} must be as large as the image, {tuple(image.shape[1:])}, got {tuple(mask.shape[1:])}"
        )
    return (mask > 127).any(0)


def _parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError('reading Parquet needs the package "pyarrow": pip install "pyarrow>=15".') from error


def _opened(parquet: Any, path: Path) -> Any:
    invalid = importlib.import_module("pyarrow").ArrowInvalid
    try:
        return parquet.ParquetFile(path)
    except invalid as error:
        raise InvalidInputError(f"{path} is not a Parquet file that can be read ({error})") from error
