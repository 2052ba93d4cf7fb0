"""Weights of feature networks: looked for on this machine, checked by sha256 before anything reads them.

Order: what the caller names, `$GENDIFF_WEIGHTS_DIR`, the package that ships them, the cache of torch.hub. A download
happens only where the caller allows it with `download=True` and `GENDIFF_OFFLINE` is not set.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gendiff.errors import InvalidInputError, UnsafeFileError, WeightsCorruptError, WeightsNotFoundError
from gendiff.metrics.weights_table import WEIGHTS, WeightFile, WeightsEntry, hub_cache, is_offline, weights_dir

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class FoundWeights:
    """Weights on this machine, already checked.

    Attributes:
        path: file, or folder in the format of transformers.
        sha256: of the file, or of the safetensors in the folder.
        place: where it was found, in words.
        file: the published file it is, byte for byte; None for other weights, whose scores must not take the
            published name.
        torchscript: it holds code.
    """

    path: Path
    sha256: str
    place: str
    file: WeightFile | None
    torchscript: bool = False

    @property
    def official(self) -> bool:
        return self.file is not None


def find_weights(name: str, given: str | Path | None = None, *, download: bool = False) -> Path:
    """Where the weights called `name` are. See `locate_weights`."""
    return locate_weights(name, given, download=download).path


def locate_weights(name: str, given: str | Path | None = None, *, download: bool = False) -> FoundWeights:
    """Find weights and check their sha256.

    Args:
        name: key of `WEIGHTS`.
        given: a file (or, for transformers models, a folder) that the caller names; nothing else is looked at then.
            It may hold other weights of the same architecture, unless its file name is that of a published file.
        download: fetch a file that is not here, if its publisher is known and `GENDIFF_OFFLINE` is not set.

    Raises:
        InvalidInputError: unknown name.
        WeightsNotFoundError: nothing was found; the message says where it was looked for and what to put where.
        WeightsCorruptError: a file with the right name has another sha256, or a folder is in its place.
        UnsafeFileError: the file would run code that nobody vouches for.
    """
    entry = entry_of(name)
    if not entry.files:
        return _locate_folder(name, entry, given)
    if given is not None:
        return _given_file(entry, Path(given).expanduser())
    looked: list[str] = []
    for place, file, path in _candidates(entry):
        if path.exists():
            return _checked(path, file, place)
        if path.parent.as_posix() not in looked:
            looked.append(path.parent.as_posix())
    preferred = entry.files[0]
    if download and preferred.url and not is_offline():
        from gendiff.metrics.weights_download import download_file, url_of

        target = (weights_dir() or hub_cache()) / preferred.names[0]
        return _checked(download_file(url_of(preferred), target, preferred), preferred, "downloaded")
    raise WeightsNotFoundError(
        f"{entry.title} weights not found. Looked in: {', '.join(looked) or 'nowhere: GENDIFF_WEIGHTS_DIR is not set'}."
        f"{_no_download(preferred, download)} Put {preferred} into $GENDIFF_WEIGHTS_DIR or pass --weights;"
        f" or {entry.hint}."
    )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict, on the CPU, read without running code (`weights_only=True`).

    Raises:
        UnsafeFileError: a TorchScript archive, or a pickle of more than tensors.
        WeightsCorruptError: it cannot be read, or does not hold tensors by name.
    """
    import pickle
    import zipfile

    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(Path(name).name == "constants.pkl" for name in archive.namelist()):
                raise UnsafeFileError(f"{path} is a TorchScript archive, whose code would run; a state dict is needed.")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = str(error).splitlines()[0]
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise UnsafeFileError(f"{path} holds more than tensors, and was not read: {message}") from error
        raise WeightsCorruptError(f"{path} cannot be read as a state dict: {message}") from error
    except Exception as error:  # a cut file fails in many ways, and none of their messages names the file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsCorruptError(f"{path} cannot be read as a state dict: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsCorruptError(f"{path} holds {type(state).__name__}, not a state dict of tensors.")
    return state


def fill(network: nn.Module, path: str | Path, title: str) -> None:
    """Give a network, which may be on the meta device, the state dict at `path`.

    Args:
        title: of the network, for the error.

    Raises:
        UnsafeFileError: see `read_state_dict`.
        WeightsCorruptError: see `read_state_dict`; or they are tensors of another network.
    """
    from torch import nn

    try:
        # The base's method: a network may have changed its own.
        nn.Module.load_state_dict(network, read_state_dict(path), assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]  # a heading, then one complaint a line
        raise WeightsCorruptError(f"{path} is not a state dict of {title}: {lines[:2][-1][:200]}") from error


def sha256_of(path: Path) -> str:
    """sha256 of a file; of a folder, that of its safetensors file, or of the names and hashes of several."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return sha256_of(files[0])
    content = hashlib.sha256()
    for file in files:
        content.update(f"{file.name}\0{sha256_of(file)}\0".encode())
    return content.hexdigest()


def entry_of(name: str) -> WeightsEntry:
    """The table's entry.

    Raises:
        InvalidInputError: there is none; the nearest name is given.
    """
    if name not in WEIGHTS:
        near = difflib.get_close_matches(str(name), WEIGHTS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidInputError(f"no weights are called {name!r}; known: {', '.join(WEIGHTS)}.{hint}")
    return WEIGHTS[name]


def _candidates(entry: WeightsEntry) -> Iterator[tuple[str, WeightFile, Path]]:
    """(place, file, path) in the order of the lookup, whether they exist or not."""
    folder = weights_dir()
    if folder is not None:
        yield from (("$GENDIFF_WEIGHTS_DIR", file, folder / name) for file in entry.files for name in file.names)
    for file in entry.files:
        if file.package and file.inside:
            spec = importlib.util.find_spec(file.package)
            for root in (spec.submodule_search_locations or ()) if spec else ():
                yield f"package {file.package}", file, Path(root, file.inside)
    yield from (("torch.hub cache", file, hub_cache() / name) for file in entry.files for name in file.names)


def _checked(path: Path, file: WeightFile, place: str) -> FoundWeights:
    """The file at `path`, once it is known to be `file`."""
    if path.is_dir():
        raise WeightsCorruptError(f"{path} is a folder where the file {file} should be.")
    found = sha256_of(path)
    expected = file.sha256 or _pinned(path)
    if expected is None:
        raise UnsafeFileError(
            f"{path} would run code, and no sha256 of it is published. If you trust it, pin it beside the file:"
            f" sha256sum {path.name} > {path.name}.sha256 (found: {found})."
        )
    if found != expected:
        size, right = path.stat().st_size, "" if file.size is None else f", should be {file.size}"
        raise WeightsCorruptError(
            f"{path} is not {file.names[0]}: sha256 {found}, expected {expected}; size {size} bytes{right}. Copy it"
            " again from its source."
        )
    return FoundWeights(path, found, place, file if file.sha256 else None, file.torchscript)


def _given_file(entry: WeightsEntry, path: Path) -> FoundWeights:
    if not path.exists():
        raise WeightsNotFoundError(f"{entry.title} weights {path} do not exist; {entry.files[0]} is meant.")
    if path.is_dir():
        raise WeightsCorruptError(f"{path} is a folder; the {entry.title} weights are one file, {entry.files[0]}.")
    promised = next((file for file in entry.files if path.name in file.names), None)
    found = sha256_of(path)
    file = next((file for file in entry.files if file.sha256 == found), promised)
    if file is not None:
        return _checked(path, file, "given")
    if all(known.torchscript for known in entry.files):
        return _checked(path, WeightFile((path.name,), None, torchscript=True), "given")
    return FoundWeights(path, found, "given", None)


def _pinned(path: Path) -> str | None:
    """The sha256 that the user wrote beside a file whose publisher gives none."""
    pin = path.with_name(path.name + ".sha256")
    words = pin.read_text(encoding="utf-8").split() if pin.is_file() else []
    return words[0].lower() if words else None


def _locate_folder(name: str, entry: WeightsEntry, given: str | Path | None) -> FoundWeights:
    folder = weights_dir()
    place, path = "given", Path(given).expanduser() if given is not None else None
    if path is None and folder is not None:
        place, path = "$GENDIFF_WEIGHTS_DIR", folder / name
    if path is None or not path.exists():
        raise WeightsNotFoundError(
            f"{entry.title} weights not found. Looked in: {path or 'nowhere: GENDIFF_WEIGHTS_DIR is not set'}. Put the"
            f" folder of transformers (config.json and safetensors) at $GENDIFF_WEIGHTS_DIR/{name} or pass --weights;"
            f" or {entry.hint}."
        )
    if not path.is_dir() or not (path / "config.json").is_file():
        raise WeightsCorruptError(f"{path} is not a folder of transformers: it needs config.json and safetensors.")
    if not any(path.glob("*.safetensors")):
        raise UnsafeFileError(
            f"{path} holds no safetensors, and pickled weights could run code: convert them with save_pretrained."
        )
    return FoundWeights(path, sha256_of(path), place, None)


def _no_download(file: WeightFile, download: bool) -> str:
    if file.url is None or not download:
        return ""
    return " GENDIFF_OFFLINE forbids downloading them."
