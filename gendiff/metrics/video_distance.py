"""Fréchet distance between sets of videos, by features of whole clips, under the name that says which features.

`FD[lite0-video]` sees what frames look like and how much they change; `FVD(videogpt)` and `FVD(styleganv)` are the two
distances that papers call FVD, which differ in how frames are resized and cannot be compared with each other.

Source: Unterthiner et al. 2019, "FVD: a new metric for video generation" (ICLR workshop), for FVD.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gendiff.errors import InvalidInputError, MetricWarning
from gendiff.metrics.extractors.video import FEWEST_FRAMES
from gendiff.metrics.features import device_of
from gendiff.metrics.frechet import frechet_distance
from gendiff.metrics.rows import whole_number
from gendiff.metrics.video_clips import Clips, clip, open_clips


@dataclass(frozen=True)
class VideoDistanceResult:
    """A Fréchet distance between videos with everything it depends on.

    Attributes:
        label: "FD[lite0-video]", "FVD(videogpt)", ...: the name to print it by.
        value: squared distance; 0 for equal sets.
        mean_term, cov_term: its two parts.
        n_samples, n_reference: videos on each side, one clip each.
        frames, stride: the clip's frames are 0, stride, 2 stride, ... of a video.
        samples_size, reference_size: (H, W) in pixels before the extractor resized them.
        samples_sha256, reference_sha256: of the bytes of all clips in order.
        extractor, dim, input_spec, weights_sha256: of the feature extractor.
        route: how the distance was computed, see `frechet_distance`.
        warnings: why the value is hard to trust, one line each.
    """

    label: str
    value: float
    mean_term: float
    cov_term: float
    n_samples: int
    n_reference: int
    frames: int
    stride: int
    samples_size: tuple[int, int]
    reference_size: tuple[int, int]
    samples_sha256: str
    reference_sha256: str
    extractor: str
    dim: int
    input_spec: str
    weights_sha256: str | None
    route: str
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def video_distance(
    samples: Any,
    reference: Any,
    extractor: str | nn.Module = "lite0-video",
    frames: int = 16,
    stride: int = 1,
    num: int | None = None,
    batch_size: int = 8,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
) -> VideoDistanceResult:
    """Squared Fréchet distance between the features of two sets of videos.

    Args:
        samples: uint8 tensor or array (N, F, C, H, W) with C = 1 or 3; a dataset with items {"video": (F, C, H, W) in
            [-1, 1]}; a folder of frame folders; or an .npz file with `arr_0`, uint8 (N, F, H, W, C).
        reference: real videos, in any of these forms.
        extractor: "lite0-video", "i3d-videogpt", "i3d-styleganv", or a module uint8 (B, F, 3, H, W) -> (B, d) with the
            attributes of a `FeatureExtractor`.
        frames: of each clip; at least 2, and 10 for I3D.
        stride: between frames; the same for both sides, so record both at one frame rate.
        num: the first `num` videos of each side; None takes all.
        batch_size: clips in one pass.
        weights: file of the extractor; None searches for it.
        device: where the extractor runs; None leaves the choice to it.

    Raises:
        InvalidInputError: fewer frames than the extractor or a video has, fewer than 2 videos, or another bad argument.
        WeightsNotFoundError: the extractor's weights are not on this machine.
    """
    for name, value in (("frames", frames), ("stride", stride), ("batch_size", batch_size)):
        whole_number(name, value, 1)
    # Before anything is opened, and before weights are sought.
    fewest = FEWEST_FRAMES.get(extractor if isinstance(extractor, str) else "", 2)
    if frames < fewest:
        named = extractor if isinstance(extractor, str) else type(extractor).__name__
        raise InvalidInputError(f"frames must be at least {fewest} for {named}, got {frames}.")
    sides = {"samples": open_clips(samples, "samples"), "reference": open_clips(reference, "reference")}
    counts = {name: _count(name, clips, num) for name, clips in sides.items()}
    first = {name: clip(clips, 0, frames, stride, name) for name, clips in sides.items()}

    from gendiff.metrics.extractors import get_extractor

    network = get_extractor(extractor, weights=weights, device=device)
    read = {
        name: _features(network, clips, counts[name], frames, stride, batch_size, name) for name, clips in sides.items()
    }
    result = frechet_distance(read["samples"][0], read["reference"][0], warn=False)
    sizes = {name: (images.shape[-2], images.shape[-1]) for name, images in first.items()}
    notes = (*result.warnings, *_differences(sides, sizes, counts))
    for note in notes:
        warnings.warn(note, MetricWarning, stacklevel=2)
    return VideoDistanceResult(
        label=network.label,
        value=result.value,
        mean_term=result.mean_term,
        cov_term=result.cov_term,
        n_samples=counts["samples"],
        n_reference=counts["reference"],
        frames=frames,
        stride=stride,
        samples_size=sizes["samples"],
        reference_size=sizes["reference"],
        samples_sha256=read["samples"][1],
        reference_sha256=read["reference"][1],
        extractor=network.id,
        dim=network.dim,
        input_spec=network.input_spec,
        weights_sha256=network.weights_sha256,
        route=result.route,
        warnings=notes,
    )


def _features(
    network: nn.Module, clips: Clips, count: int, frames: int, stride: int, batch_size: int, name: str
) -> tuple[np.ndarray, str]:
    """float64 (count, d) of the first `count` videos, and the sha256 of their clips' bytes."""
    digest, rows, batch = hashlib.sha256(), [], []
    shape: tuple[int, ...] | None = None
    for index in range(count):
        images = clip(clips, index, frames, stride, name)
        shape = shape or tuple(images.shape)
        if tuple(images.shape) != shape:
            raise InvalidInputError(
                f"{name}: video {index} is {tuple(images.shape[-2:])}, video 0 is {shape[-2:]}; sizes must be equal."
            )
        digest.update(images.contiguous().numpy().tobytes())
        batch.append(images)
        if len(batch) == batch_size or index == count - 1:
            rows.append(_forward(network, torch.stack(batch)))
            batch = []
    return np.concatenate(rows), digest.hexdigest()


def _forward(network: nn.Module, clips: Tensor) -> np.ndarray:
    with torch.inference_mode():
        features = network(clips.to(device_of(network)))
    if features.shape != (len(clips), network.dim):
        raise InvalidInputError(
            f"extractor {network.id} must map {len(clips)} clips to ({len(clips)}, {network.dim}), "
            f"got {tuple(features.shape)}: is it one for videos?"
        )
    return features.double().cpu().numpy()


def _count(name: str, clips: Clips, num: int | None) -> int:
    count = len(clips) if num is None else whole_number("num", num, 1)
    if count > len(clips):
        raise InvalidInputError(f"num is {num}, but {name} holds {len(clips)} videos.")
    if count < 2:
        raise InvalidInputError(f"{name} must be at least 2 videos to have a covariance, got {count}.")
    return count


def _differences(sides: dict[str, Clips], sizes: dict[str, tuple[int, int]], counts: dict[str, int]) -> tuple[str, ...]:
    """What differs between the two sides besides the videos themselves."""
    said = {
        "size": {name: f"{height}x{width} px" for name, (height, width) in sizes.items()},
        "format": {name: clips.format for name, clips in sides.items()},
        "number": {name: f"{count} videos" for name, count in counts.items()},
    }
    return tuple(
        f"samples and reference differ in {what}: {values['samples']} against {values['reference']}"
        for what, values in said.items()
        if values["samples"] != values["reference"]
    )
