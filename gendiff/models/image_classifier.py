"""A small image classifier, whose features also serve as a yardstick of generated images."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from gendiff.errors import InvalidInputError

GRID = 3
"""Side of the grid that the last convolution is averaged to, whatever the size of the image."""


class ImageClassifier(ModelMixin, ConfigMixin):
    """Convolutions with halving in between, a grid of 3 x 3 means, one hidden layer (the features), one linear layer.

    Normalised by groups, so that a row does not depend on its batch and the weights alone are the network: an average
    of weights would not fit the running means of batch norm.

    Args:
        in_channels: C, channels of the image.
        sample_size: S, side of the square image in pixels.
        num_classes: K.
        widths: of the convolutions; the side halves after each but the last. Multiples of 8.
        feature_dim: width of the hidden layer, which `features` returns.
        classes: names of the K classes in order; () = unnamed.

    Raises:
        InvalidInputError: a number out of its range, or as many names as there are not classes.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        sample_size: int,
        num_classes: int,
        widths: tuple[int, ...] = (16, 32, 64),
        feature_dim: int = 128,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes), ("feature_dim", feature_dim)):
            if value < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {value}.")
        if not widths or any(width < 8 or width % 8 for width in widths):
            raise InvalidInputError(f"widths must be multiples of 8, at least one, got {tuple(widths)}.")
        smallest = GRID * 2 ** (len(widths) - 1)
        if sample_size < smallest:
            raise InvalidInputError(f"sample_size must be at least {smallest} with these widths, got {sample_size}.")
        if classes and len(classes) != num_classes:
            raise InvalidInputError(f"classes must be {num_classes} names, one a class, got {len(classes)}.")
        layers: list[nn.Module] = []
        for level, (narrow, wide) in enumerate(zip((in_channels, *widths), widths, strict=False)):
            layers.append(nn.Conv2d(narrow, wide, 3, padding=1))
            # Halved before norm and ReLU, which then cost a quarter.
            layers += [nn.MaxPool2d(2)] if level < len(widths) - 1 else []
            layers += [nn.GroupNorm(8, wide), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(GRID), nn.Flatten())
        self.hidden = nn.Linear(widths[-1] * GRID**2, feature_dim)
        self.classify = nn.Linear(feature_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, S, S) in [-1, 1].

        Raises:
            InvalidInputError: wrong shape, or not floating point.
        """
        return self.classify(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """What the last layer reads (B, feature_dim), none negative, of images (B, C, S, S) in [-1, 1].

        Raises:
            InvalidInputError: wrong shape, or not floating point.
        """
        side = self.config["sample_size"]
        expected = (self.config["in_channels"], side, side)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected or not images.is_floating_point():
            raise InvalidInputError(
                f"images must be floating point (B, {', '.join(map(str, expected))}) in [-1, 1], "
                f"got {images.dtype} {tuple(images.shape)}."
            )
        return torch.relu(self.hidden(self.convolutions(images)))
