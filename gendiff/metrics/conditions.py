"""What a score depends on, as JSON: both sets of images, the network, settings, versions, and what sampling cost."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

import torch

from gendiff.data.image_source import ImageSource
from gendiff.metrics.features import device_of
from gendiff.metrics.processes import each_its_share, process_state
from gendiff.metrics.sides import Side

if TYPE_CHECKING:
    from gendiff.metrics.extractors.base import FeatureExtractor

LIBRARIES = ("gendiff", "torch", "torchvision", "numpy", "scipy", "pillow", "diffusers", "accelerate")


def conditions(
    samples: Side, reference: Side, network: FeatureExtractor | None, given: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything that the scores of one evaluation depend on; every process must call it.

    Args:
        samples, reference: what was compared, already read.
        network: whose features were compared; None where features were given.
        given: what is known of the features without a network: id, label, dim.
        settings: of the evaluation, copied.
    """
    extractor = dict(given)
    if network is not None:
        extractor |= {"weights_sha256": network.weights_sha256, "input": network.input_spec}
    found = {
        "n_gen": samples.count,
        "n_real": reference.count,
        "extractor": extractor,
        "dtype": "features float32 without TF32, statistics float64 on the CPU",
        **settings,
        "device": None if network is None else device_of(network).type,
        "threads": torch.get_num_threads(),
        "processes": process_state().num_processes,
        "samples": samples.describe(),
        "reference": reference.describe(),
        "samples_in_reference": _shared(samples, reference),
        "sampling_cost": _cost(samples.source),
        "versions": versions(),
    }
    return {name: value for name, value in found.items() if value is not None or name == "n_real"}


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that scores and samples pass through, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _shared(samples: Side, reference: Side) -> int | None:
    """How many samples are, pixel for pixel, images of the reference; None where pixels are not known."""
    own, others = samples.digests(), set(reference.digests())
    return sum(one in others for one in own) if own and others else None


def _cost(source: ImageSource | None) -> dict[str, Any] | None:
    """What all processes have spent on making samples; None for images that were there."""
    stats = getattr(source, "stats", None)
    if stats is None:
        return None
    every = each_its_share(list(range(process_state().num_processes)), lambda _: stats())
    return {
        name: None if any(one[name] is None for one in every) else sum(one[name] for one in every) for name in every[0]
    }
