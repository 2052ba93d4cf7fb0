"""Other people's files of tensors, read without running code from them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gendiff.errors import InvalidInputError, UnsafeFileError


def read_tensors(source: Path) -> Mapping[str, Any]:
    """What a `.pt`, `.pth` or `.safetensors` file holds by name: tensors, or dicts of them.

    Raises:
        UnsafeFileError: a pickle that holds more than plain data.
        InvalidInputError: not such a file, or not a whole one.
    """
    if source.suffix == ".safetensors":
        try:
            return load_file(source)
        except SafetensorError as error:
            raise InvalidInputError(f"not a whole safetensors file: {error}") from error
    if source.suffix not in (".pt", ".pth"):
        raise InvalidInputError(f"expected a .pt, .pth or .safetensors file, got {source.suffix or 'no ending'}.")
    try:
        # Mapped, not read: such files hold up to three networks.
        content = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(f"{source}: cannot be read as plain tensors, so it was not read.") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise InvalidInputError(f"not a whole torch file: {error}") from error
    if not isinstance(content, Mapping):
        raise InvalidInputError(f"expected a dict of networks or of tensors, got {type(content).__name__}.")
    return content


def check_destination(destination: Path) -> None:
    """Raise FileExistsError unless `destination` is free: nothing, or an empty folder."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"destination {destination} exists already; remove it or choose another folder.")


def shown(names: Iterable[str], separator: str = ", ", most: int = 5) -> str:
    """The first names of a list that may be long."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
