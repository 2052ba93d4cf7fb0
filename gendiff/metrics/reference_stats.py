"""Statistics of a data set in a file: `.npz` as edm, pytorch-fid and clean-fid write it, and what ours says beyond.

`mu` (d,) and `sigma` (d, d); of guided-diffusion also `mu_s`, `sigma_s` for sFID and `arr_0`, images for precision and
recall. Ours add `n`, `extractor_id`, `resize`, `weights_sha256`, `source_sha256` and `gendiff_version`, without which a
number cannot be reproduced. Files are read without pickle, so a file cannot run code.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gendiff import __version__
from gendiff.errors import InvalidInputError, UnsafeFileError
from gendiff.files import write_whole
from gendiff.metrics.frechet_stats import FrechetStats

TEXTS = ("extractor_id", "resize", "weights_sha256", "source_sha256", "gendiff_version")
COMPARED = ("extractor_id", "resize", "weights_sha256")
"""What must be equal on both sides of a distance."""
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
HINT = "where you trust it, convert it once: numpy.savez('ref.npz', mu=..., sigma=...)"


@dataclass(frozen=True)
class ReferenceStats:
    """Statistics with what is known of their origin; None is not known.

    Attributes:
        stats: mean, covariance and count.
        extractor_id: of the network the features come from.
        resize: how images were brought to its size.
        weights_sha256: of its weights.
        source_sha256: of the images.
        gendiff_version: what wrote the file.
        spatial: mean and covariance of the spatial features of sFID.
        images: uint8 (N, H, W, 3), for precision and recall only.
    """

    stats: FrechetStats
    extractor_id: str | None = None
    resize: str | None = None
    weights_sha256: str | None = None
    source_sha256: str | None = None
    gendiff_version: str | None = None
    spatial: FrechetStats | None = None
    images: np.ndarray | None = None


def save_reference(
    path: str | Path,
    stats: FrechetStats,
    *,
    extractor_id: str | None = None,
    resize: str | None = None,
    weights_sha256: str | None = None,
    source_sha256: str | None = None,
    spatial: FrechetStats | None = None,
    images: np.ndarray | None = None,
) -> None:
    """Write statistics, whole or not at all; what is None is left out. Equal statistics give equal bytes.

    Args:
        path: must end in `.npz`.
        stats: of at least two images.
        extractor_id, resize, weights_sha256, source_sha256, spatial, images: see `ReferenceStats`.

    Raises:
        InvalidInputError: another ending, fewer than two images, or images of another shape or type.
        OSError: the file cannot be written.
    """
    if Path(path).suffix != ".npz":
        raise InvalidInputError(f"statistics are written to a .npz file, got {str(path)!r}.")
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3):
        raise InvalidInputError(f"images must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}.")
    content = {
        "mu": stats.mean,
        "sigma": stats.cov,
        "n": stats.n,
        "mu_s": None if spatial is None else spatial.mean,
        "sigma_s": None if spatial is None else spatial.cov,
        "arr_0": images,
        **dict(zip(TEXTS, (extractor_id, resize, weights_sha256, source_sha256, __version__), strict=True)),
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.asarray(it) for name, it in content.items() if it is not None})
    write_whole(path, buffer.getvalue())


def load_reference(path: str | Path, images: bool = False) -> ReferenceStats:
    """Read statistics.

    Args:
        path: `.npz` with at least `mu` and `sigma`.
        images: read `arr_0` too, which may be gigabytes.

    Raises:
        UnsafeFileError: a pickle, or an array of Python objects.
        InvalidInputError: no such file, not a whole `.npz`, entries that are missing or do not fit.
    """
    path = Path(path)
    _check_file(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            entries = {name: file[name] for name in file.files if images or name != "arr_0"}
            names = tuple(file.files)
    except ValueError as error:
        if "pickle" in str(error):
            raise UnsafeFileError(f"{path} holds Python objects and was not read; {HINT}.") from error
        raise InvalidInputError(f"{path} is not a whole .npz file: {error}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise InvalidInputError(f"{path} is not a whole .npz file: {error}.") from error
    if not {"mu", "sigma"} <= entries.keys():
        raise InvalidInputError(f"{path} holds no statistics: it needs mu and sigma, and has {', '.join(names)}.")
    if images and "arr_0" not in entries:
        raise InvalidInputError(f"{path} holds no images: it needs arr_0, and has {', '.join(names)}.")
    try:
        n = int(entries["n"]) if "n" in entries else None
        stats = FrechetStats.from_moments(entries["mu"], entries["sigma"], n)
        spatial = None
        if {"mu_s", "sigma_s"} <= entries.keys():
            spatial = FrechetStats.from_moments(entries["mu_s"], entries["sigma_s"], n)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{path}: {error}") from error
    texts = {name: str(entries[name]) for name in TEXTS if name in entries}
    return ReferenceStats(stats, **texts, spatial=spatial, images=entries.get("arr_0"))


def check_comparable(reference: ReferenceStats, samples: ReferenceStats) -> tuple[str, ...]:
    """Whether two statistics may be put into one distance.

    Returns:
        A line for each of extractor, resize and weights that one of them does not tell.

    Raises:
        InvalidInputError: they differ in dimensions, extractor, resize mode or weights.
    """
    if reference.stats.dim != samples.stats.dim:
        raise InvalidInputError(
            f"the reference has features of {reference.stats.dim} dimensions, the samples of {samples.stats.dim}."
        )
    unknown = []
    for name in COMPARED:
        expected, found = getattr(reference, name), getattr(samples, name)
        if expected is None or found is None:
            unknown.append(f"{name} of {'the reference' if expected is None else 'the samples'} is not known")
        elif expected != found:
            raise InvalidInputError(
                f"{name} of the reference is {expected!r}, of the samples {found!r}: extract both the same way."
            )
    return tuple(unknown)


def _check_file(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise UnsafeFileError(f"{path} is a pickle, which can run code, and was not read; {HINT}.")
    if not path.is_file():
        raise InvalidInputError(f"statistics {path} do not exist.")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            first = file.read(1)
        if first == b"\x80":
            raise UnsafeFileError(f"{path} is a pickle, which can run code, and was not read; {HINT}.")
        raise InvalidInputError(f"{path} is not a whole .npz file.")
