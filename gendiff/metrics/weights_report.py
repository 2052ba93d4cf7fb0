"""Which weights are on this machine: what `gendiff evaluate weights` prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gendiff.errors import GendiffError, WeightsNotFoundError
from gendiff.metrics.weights import FoundWeights, locate_weights, sha256_of
from gendiff.metrics.weights_table import WEIGHTS

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
BUILT_IN = ("fmnist-cnn", "digit-cnn", "emoji-cnn")
"""Our own classifiers, each a folder of `gendiff/checkpoints`."""


@dataclass(frozen=True)
class WeightsStatus:
    """One line of the listing.

    Attributes:
        name: of the weights.
        path: where they are; None if they are not.
        place: what led there: given, $GENDIFF_WEIGHTS_DIR, a package, torch.hub's cache; "" if nowhere.
        state: "ok" (the published file), "unverified" (nothing published to compare with), "missing" or "corrupt".
        sha256: of what was found.
        message: why, and what to do, where something is missing or wrong.
    """

    name: str
    path: Path | None
    place: str
    state: str
    sha256: str | None
    message: str = ""


def list_weights() -> list[WeightsStatus]:
    """Every entry of the table, then our own classifiers. Files are hashed; nothing is loaded or downloaded."""
    return [_status(name) for name in WEIGHTS] + [_built_in(name) for name in BUILT_IN]


def _status(name: str) -> WeightsStatus:
    try:
        found: FoundWeights = locate_weights(name)
    except WeightsNotFoundError as error:
        return WeightsStatus(name, None, "", "missing", None, str(error))
    except GendiffError as error:
        return WeightsStatus(name, None, "", "corrupt", None, str(error))
    return WeightsStatus(name, found.path, found.place, "ok" if found.official else "unverified", found.sha256)


def _built_in(name: str) -> WeightsStatus:
    path = CHECKPOINTS / name
    if not any(path.glob("*.safetensors")):
        return WeightsStatus(name, None, "", "missing", None, f"{name} does not ship with this version of gendiff.")
    return WeightsStatus(name, path, "package gendiff", "ok", sha256_of(path))
