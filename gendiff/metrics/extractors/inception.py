"""Inception-v3 of 2015-12-05, the network of FID: torch-fidelity's layers, clean-fid's resizers.

Only with the published weights is the distance called FID, always with its resize: the three differ by several points.
sFID takes the same network: Nash et al. 2021, "Generating images with sparse representations" (ICML), with the layer
and channels of guided-diffusion's evaluator.

Sources: Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash equilibrium"
(NeurIPS), for FID; Parmar et al. 2022, "On aliased resizing and surprising subtleties in GAN evaluation" (CVPR).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gendiff.errors import InvalidInputError
from gendiff.metrics.extractors.base import FeatureExtractor, with_sha
from gendiff.metrics.extractors.torchscript import load_script
from gendiff.metrics.weights import fill, locate_weights

SIDE = 299
MODES = {
    "clean": "PIL bicubic to 299x299 per channel in float32, not rounded; (x-128)/128",
    "legacy-tf": "bilinear of TensorFlow 1 to 299x299, no antialias; (x-128)/128",
    "legacy-pt": "bilinear of PyTorch to 299x299, no antialias; x/127.5-1",
}
"""Mode -> resize and normalisation. `legacy-pt` is that of pytorch-fid, whose zero lies at 127.5."""

LAYERS_BEFORE_SPATIAL = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"),
)
LAYERS_AFTER_SPATIAL = ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool")
SPATIAL_CHANNELS = 7
"""Channels of `mixed_6/conv` (torch-fidelity's Mixed_6d.branch1x1) that sFID reads: 7 x 17 x 17 = 2023 numbers."""


class InceptionExtractor(FeatureExtractor):
    """Pool features (2048), or for sFID the first channels of an inner layer (2023).

    Args:
        mode: a key of `MODES`.
        weights: state dict, or the published TorchScript file; None searches for them. Another state dict of this
            architecture is taken, and the distance is then `FD[inception-<mode>@<sha256>]`, not FID.
        spatial: the features of sFID.

    Raises:
        InvalidInputError: unknown mode; or a combination that the TorchScript file does not have.
        ImportError: torch-fidelity or clean-fid is missing.
        WeightsNotFoundError, WeightsCorruptError, UnsafeFileError: see `locate_weights` and `fill`.
    """

    def __init__(self, mode: str = "clean", weights: str | Path | None = None, spatial: bool = False) -> None:
        if mode not in MODES:
            raise InvalidInputError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
        found = locate_weights("inception", weights)
        if found.torchscript and (spatial or mode == "legacy-pt"):
            raise InvalidInputError(
                f"{'sFID' if spatial else mode} needs the state dict, not the TorchScript file {found.path}."
            )
        kind, metric = ("sfid", "sFID") if spatial else ("inception", "FID")
        name = f"{kind}-{mode}"
        super().__init__(
            id=name if found.official else with_sha(name, found.sha256),
            dim=SPATIAL_CHANNELS * 17 * 17 if spatial else 2048,
            input_spec=MODES[mode],
            weights_sha256=found.sha256,
            label=f"{metric}({mode})" if found.official else None,
        )
        self.mode, self.spatial, self.torchscript = mode, spatial, found.torchscript
        self.network = load_script(found) if found.torchscript else load_inception(found.path)

    def extract(self, images: Tensor) -> Tensor:
        if self.torchscript:
            # The script resizes as TensorFlow did, and would be asked not to by its inner layers alone.
            if self.mode == "legacy-tf":
                return self.network(images.float(), return_features=True).flatten(1)
            return self.network.layers(self._prepare(images)).flatten(1)
        x = _run(self.network, LAYERS_BEFORE_SPATIAL, self._prepare(images))
        if self.spatial:
            return self.network.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS].flatten(1)
        return _run(self.network, LAYERS_AFTER_SPATIAL, x).flatten(1)

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, 1008) without the bias, which the Inception score has left out since 2016.

        Raises:
            InvalidInputError: the weights are the TorchScript file.
        """
        if self.torchscript:
            raise InvalidInputError("the TorchScript file gives no logits; use the state dict.")
        x = _run(self.network, LAYERS_BEFORE_SPATIAL + LAYERS_AFTER_SPATIAL, self._prepare(images))
        return x.flatten(1) @ self.network.fc.weight.T

    def extract_and_classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.spatial or self.torchscript:
            return super().extract_and_classify(images)
        features = self.extract(images)
        return features, features @ self.network.fc.weight.T

    def _prepare(self, images: Tensor) -> Tensor:
        """Images (B, 3, 299, 299) as the first layer reads them."""
        if self.mode == "clean":
            x = (_clean_resize(images) - 128) / 128
        elif self.mode == "legacy-tf":
            from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

            x = (resize(images.float(), size=(SIDE, SIDE), align_corners=False) - 128) / 128
        else:
            x = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            x = 2 * (x.clamp(0, 255) / 255) - 1
        return x.contiguous(memory_format=torch.channels_last)


def make_inception(name: str, weights: str | Path | None) -> InceptionExtractor:
    """Factory of the registry: `inception-<mode>` or `sfid-<mode>`."""
    kind, _, mode = name.partition("-")
    return InceptionExtractor(mode, weights, spatial=kind == "sfid")


def load_inception(path: Path) -> Any:
    """torch-fidelity's network with the state dict at `path`, which is read without running code.

    Raises:
        ImportError: torch-fidelity is missing.
        WeightsCorruptError, UnsafeFileError: not a state dict of this network.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError('Inception needs the package "torch-fidelity": pip install "gendiff[metrics]".') from error

    class Unfilled(FeatureExtractorInceptionV3):
        """The network before it has weights, which it would unpickle from a file as soon as it is made."""

        def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
            return None

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    # On the meta device no memory is filled with numbers that are thrown away, and the random state stays as it was.
    with torch.device("meta"):
        network: nn.Module = Unfilled(
            "inception-v3-compat",
            ["2048"],
            feature_extractor_weights_path=empty,  # pyright: ignore[reportArgumentType]
        )
    fill(network, path, "Inception-v3 of 2015-12-05")
    network.requires_grad_(False).float()
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _run(network: Any, layers: tuple[str, ...], x: Tensor) -> Tensor:
    for name in layers:
        x = getattr(network, name)(x)
    return x


def _clean_resize(images: Tensor) -> Tensor:
    """Images (B, 3, 299, 299) float32 in 0 .. 255, resized one by one by clean-fid's own function."""
    try:
        from cleanfid.resize import build_resizer
    except ImportError as error:
        raise ImportError('inception-clean needs the package "clean-fid": pip install "gendiff[metrics]".') from error
    resize = build_resizer("clean")
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    resized = torch.stack([torch.from_numpy(resize(array)) for array in arrays])
    return resized.permute(0, 3, 1, 2).to(images.device)
