"""Feature networks by name. Names only: a network's module is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gendiff.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gendiff.metrics.extractors.base import FeatureExtractor

_HERE = "gendiff.metrics.extractors"

EXTRACTORS: dict[str, str] = {
    **{f"lite0-{dim}": f"{_HERE}.lite0:make_lite0" for dim in (40, 80, 112, 192, 320, 1280)},
    **{f"{data}-cnn": f"{_HERE}.classifier_features:make_classifier" for data in ("fmnist", "digit", "emoji")},
    "pixel": f"{_HERE}.pixel:make_pixel",
    **{f"inception-{mode}": f"{_HERE}.inception:make_inception" for mode in ("clean", "legacy-tf", "legacy-pt")},
    **{f"sfid-{mode}": f"{_HERE}.inception:make_inception" for mode in ("clean", "legacy-tf", "legacy-pt")},
    "dinov2-l14": f"{_HERE}.transformers_features:make_dinov2",
    "clip-l14-336": f"{_HERE}.transformers_features:make_clip",
    "lite0-video": f"{_HERE}.video:make_lite0_video",
    "i3d-videogpt": f"{_HERE}.video:make_i3d",
    "i3d-styleganv": f"{_HERE}.video:make_i3d",
}
"""Name -> "module:factory", a function (name, weights) -> FeatureExtractor."""

ALIASES = {"lite0": "lite0-1280", "inception": "inception-clean", "sfid": "sfid-legacy-tf"}


def get_extractor(
    name_or_module: str | nn.Module,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
) -> FeatureExtractor:
    """A feature network, frozen, on `device`.

    Args:
        name_or_module: a name of `EXTRACTORS` or `ALIASES`; "pkg.mod:Class" of your own; or a module, a
            `FeatureExtractor` or any that maps uint8 (B, 3, H, W) to (B, d).
        weights: file or folder of its weights; None searches this machine. Weights other than the published ones are
            taken, and show in `id` and `label`.
        device: None leaves a module where it is, and a named network on the CPU.

    Raises:
        InvalidInputError: unknown name, a class that cannot be used, or `weights` for one that takes none.
        WeightsNotFoundError, WeightsCorruptError, UnsafeFileError: of the weights, see `locate_weights`.
        ImportError: a package the network comes from is missing.
    """
    if isinstance(name_or_module, str):
        extractor = _by_name(name_or_module, weights)
    else:
        if weights is not None:
            raise InvalidInputError("weights must be None for a module, which has its own.")
        extractor = _of_module(name_or_module, type(name_or_module).__name__)
    extractor.freeze()
    return extractor if device is None else extractor.to(device)


def _by_name(name: str, weights: str | Path | None) -> FeatureExtractor:
    name = ALIASES.get(name, name)
    if name in EXTRACTORS:
        module, factory = EXTRACTORS[name].split(":")
        return getattr(importlib.import_module(module), factory)(name, weights)
    if ":" not in name:
        near = difflib.get_close_matches(name, [*EXTRACTORS, *ALIASES], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidInputError(
            f"unknown extractor {name!r}; known: {', '.join([*EXTRACTORS, *ALIASES])}, or pkg.mod:Class.{hint}"
        )
    module, _, class_name = name.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInputError(f"extractor {name!r} cannot be imported: {error}.") from error
    try:
        made = factory() if weights is None else factory(weights=weights)
    except TypeError as error:
        arguments = "no argument" if weights is None else "weights="
        raise InvalidInputError(f"extractor {name!r} cannot be made with {arguments}: {error}.") from error
    return _of_module(made, name)


def _of_module(module: Any, name: str) -> FeatureExtractor:
    from gendiff.metrics.extractors.base import FeatureExtractor
    from gendiff.metrics.extractors.module import ModuleExtractor

    return module if isinstance(module, FeatureExtractor) else ModuleExtractor(module, name)
