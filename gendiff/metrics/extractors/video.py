"""Features of clips: of Lite0 without any download, and of I3D as the two papers that FVD is quoted from prepare it.

Sources: Unterthiner et al. 2019, "FVD: a new metric for video generation"; Yan et al. 2021, "VideoGPT"; Skorokhodov et
al. 2022, "StyleGAN-V" (CVPR).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.metrics.extractors.base import FeatureExtractor, with_sha
from gendiff.metrics.extractors.lite0 import Lite0Extractor
from gendiff.metrics.extractors.torchscript import load_script
from gendiff.metrics.weights import locate_weights

FEWEST_FRAMES = {"i3d-videogpt": 10, "i3d-styleganv": 10}
"""Frames of a clip below which the network's pooling over time has nothing left to pool; 2 for all others."""
SIDE = 224
I3D_RESIZE = {
    "i3d-videogpt": f"bilinear to {SIDE}x{SIDE}, aspect not kept",
    "i3d-styleganv": f"bilinear, short side to {SIDE}, centre crop",
}


class Lite0VideoExtractor(FeatureExtractor):
    """How frames look and how much they change: mean of `lite0-112` over frames, mean |difference| of successive ones.

    Args:
        weights: as of `Lite0Extractor`.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        frames = Lite0Extractor(112, weights=weights)
        super().__init__(
            id=frames.id.replace("lite0-112", "lite0-video"),
            dim=2 * frames.dim,
            input_spec=f"each frame: {frames.input_spec}",
            weights_sha256=frames.weights_sha256,
            video=True,
        )
        self.frames = frames

    def extract(self, images: Tensor) -> Tensor:
        batch, count = images.shape[:2]
        if count < 2:
            raise InvalidInputError(f"clips must be at least 2 frames long for {self.id}, got {count}.")
        rows = self.frames.extract(images.flatten(0, 1)).unflatten(0, (batch, count))
        return torch.cat([rows.mean(1), rows.diff(dim=1).abs().mean(1)], dim=1)


class I3dExtractor(FeatureExtractor):
    """Kinetics-400 logits of I3D, 400 numbers, from a TorchScript file on this machine.

    The script is called as StyleGAN-V's: `script(x, rescale=False, resize=False, return_features=True)` with x
    (B, 3, F, 224, 224) in [-1, 1]. VideoGPT publishes a state dict only: script its network with that signature.

    Args:
        name: i3d-videogpt or i3d-styleganv; they resize frames differently, and are not comparable.
        weights: the script; None searches for it. Only a known or pinned sha256 is loaded, for it runs code.

    Raises:
        WeightsNotFoundError, WeightsCorruptError, UnsafeFileError: see `locate_weights`; or the file is no TorchScript.
    """

    def __init__(self, name: str, weights: str | Path | None = None) -> None:
        if name not in I3D_RESIZE:
            raise InvalidInputError(f"name must be one of {', '.join(I3D_RESIZE)}, got {name!r}.")
        found = locate_weights(name, weights)
        super().__init__(
            id=name if found.official else with_sha(name, found.sha256),
            dim=400,
            input_spec=f"RGB, {I3D_RESIZE[name]}, x/127.5-1",
            weights_sha256=found.sha256,
            label=f"FVD({name.removeprefix('i3d-')})" if found.official else None,
            video=True,
        )
        self.keeps_aspect, self.fewest_frames = name == "i3d-styleganv", FEWEST_FRAMES[name]
        self.script = load_script(found)

    def extract(self, images: Tensor) -> Tensor:
        if images.shape[1] < self.fewest_frames:
            raise InvalidInputError(
                f"clips must be at least {self.fewest_frames} frames long for {self.id}, got {images.shape[1]}."
            )
        clips = self.prepare(images)
        rows = self.script(clips, rescale=False, resize=False, return_features=True)
        if rows.shape != (len(images), self.dim):
            raise InvalidInputError(f"{self.id} must return ({len(images)}, 400) logits, got {tuple(rows.shape)}.")
        return rows

    def prepare(self, images: Tensor) -> Tensor:
        """Clips (B, 3, F, 224, 224) float32 in [-1, 1] of clips uint8 (B, F, 3, H, W)."""
        batch, count, _, height, width = images.shape
        size = (SIDE, SIDE)
        if self.keeps_aspect:
            # The long side is rounded up, so that the crop always fits.
            scale = SIDE / min(height, width)
            size = (SIDE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIDE)
        frames = F.interpolate(images.flatten(0, 1).float(), size=size, mode="bilinear", align_corners=False)
        top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
        frames = frames[..., top : top + SIDE, left : left + SIDE] / 127.5 - 1
        return frames.unflatten(0, (batch, count)).transpose(1, 2).contiguous()


def make_lite0_video(name: str, weights: str | Path | None) -> Lite0VideoExtractor:
    """Factory of the registry."""
    return Lite0VideoExtractor(weights)


def make_i3d(name: str, weights: str | Path | None) -> I3dExtractor:
    """Factory of the registry."""
    return I3dExtractor(name, weights)
