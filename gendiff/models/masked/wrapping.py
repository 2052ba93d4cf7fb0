"""What tokenizers around an autoencoder of diffusers share: its settings, its stride, its grid and its precision."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

OWN = ("in_channels", "out_channels", "sample_size")
"""Settings of an autoencoder that a tokenizer around it has itself."""


def settings_of(network: Any, kind: type, *own: str) -> dict[str, Any]:
    """Settings of an autoencoder by name, without those in `OWN` and `own`, from which `kind` builds it again.

    Raises:
        TypeError: it is not exactly a `kind`; a subclass would come back from a folder as another network.
        ValueError: what it reads has other channels than what it writes.
    """
    if type(network) is not kind:
        raise TypeError(f"network must be a {kind.__name__} of diffusers, got {type(network).__name__}.")
    config = network.config
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"network must write as many channels as it reads, got in_channels {config['in_channels']} and "
            f"out_channels {config['out_channels']}."
        )
    return {name: value for name, value in config.items() if not name.startswith("_") and name not in (*OWN, *own)}


def check_settings(settings: Mapping[str, Any], *own: str) -> None:
    """Raise ValueError if the settings of an autoencoder hold what the tokenizer around it says."""
    for name in (*OWN, *own):
        if name in settings:
            raise ValueError(f"settings must not have {name}, which is an argument of its own.")


def stride_of(network: Any) -> int:
    """Pixels by which every level of an autoencoder but the last makes the grid coarser."""
    return 2 ** (len(network.config["block_out_channels"]) - 1)


def check_side(name: str, side: int, stride: int) -> None:
    """Raise ValueError unless the side of an image is a multiple of the stride."""
    if side < stride or side % stride:
        raise ValueError(f"{name} must be a multiple of the tokenizer's stride {stride}, got {side}.")


def check_square_images(images: Tensor, channels: int, stride: int) -> None:
    """Raise ValueError unless images are (B, channels, S, S) with S a multiple of the stride."""
    if images.ndim != 4 or images.shape[1] != channels or images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be (B, {channels}, S, S), got {tuple(images.shape)}.")
    check_side("the side of images", images.shape[2], stride)


def grid_of(tokens: Tensor) -> tuple[int, int]:
    """The square grid of tokens (B, N, ...).

    Raises:
        ValueError: N is not a square.
    """
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1] or not side:
        raise ValueError(f"tokens must be those of a square grid, got {tokens.shape[1]}.")
    return side, side


@contextmanager
def precise(network: Any) -> Iterator[Any]:
    """The autoencoder, in float32 for as long as this lasts if it is in float16 and its config says `force_upcast`.

    Float16 to float32 and back changes no weight.
    """
    if network.dtype != torch.float16 or not network.config["force_upcast"]:
        yield network
        return
    # Not by diffusers' own method, which warns where nothing is amiss.
    nn.Module.to(network, torch.float32)
    try:
        yield network
    finally:
        nn.Module.to(network, torch.float16)
