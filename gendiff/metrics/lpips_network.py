"""The LPIPS network of the `lpips` package, with a backbone that is read from this machine, never fetched.

Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric" (CVPR), version 0.1.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from gendiff.errors import InvalidInputError, WeightsCorruptError
from gendiff.metrics.weights import FoundWeights, locate_weights, read_state_dict

SMALLEST_SIDE = {"alex": 31, "vgg": 16}
"""Sides in pixels below which a pooling layer of the backbone has nothing left to pool."""


def load_lpips(
    net: str = "alex", weights: str | Path | None = None, device: str | torch.device | None = None
) -> tuple[nn.Module, FoundWeights]:
    """LPIPS as `lpips.LPIPS`, in eval mode: its own linear heads, which lie in its wheel, on a backbone found locally.

    Args:
        net: "alex" or "vgg".
        weights: torchvision state dict of the backbone; None searches for it as `locate_weights("lpips-<net>")` says.
        device: where it runs; None is the CPU.

    Returns: the network, (B, 3, H, W) twice in [-1, 1] -> (B, 1, 1, 1), and where its backbone is from.

    Raises:
        ImportError: the package `lpips` is missing.
        InvalidInputError: another `net`.
        WeightsNotFoundError: no backbone on this machine.
        WeightsCorruptError, UnsafeFileError: the file is not this backbone's state dict.
    """
    if net not in SMALLEST_SIDE:
        raise InvalidInputError(f"net must be one of {', '.join(SMALLEST_SIDE)}, got {net!r}.")
    try:
        import lpips
    except ImportError as error:
        raise ImportError('LPIPS needs the package "lpips": pip install "gendiff[metrics]".') from error
    found = locate_weights(f"lpips-{net}", weights)
    backbone = read_state_dict(found.path)

    with warnings.catch_warnings(), torch.device("meta"):
        # lpips asks torchvision for its backbone by a parameter that torchvision has renamed. On the meta device no
        # memory is filled with numbers that are thrown away, and the global random state stays as it was.
        warnings.filterwarnings("ignore", message="The parameter 'pretrained' is deprecated")
        warnings.filterwarnings("ignore", message="Arguments other than a weight enum")
        network: nn.Module = lpips.LPIPS(pretrained=False, pnet_rand=True, net=net, verbose=False)
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    # Its constants are made on the CPU, whatever the default device is.
    state = {**network.scaling_layer.state_dict(prefix="scaling_layer."), **read_state_dict(heads)}
    for name, expected in network.net.state_dict().items():
        # Names in slices keep the number of the layer: slice2.3.weight is features.3.weight of torchvision.
        source = "features." + name.split(".", 1)[1]
        tensor = backbone.get(source)
        if tensor is None or tensor.shape != expected.shape:
            what = "missing" if tensor is None else f"{tuple(tensor.shape)}, not {tuple(expected.shape)}"
            raise WeightsCorruptError(f"{found.path} is not torchvision's {net} for LPIPS: {source} is {what}.")
        state[f"net.{name}"] = tensor
    # lpips lists each head twice, as `lin0` and as `lins.0`; the wheel has the first name.
    network.load_state_dict(state, strict=False, assign=True)
    if any(value.is_meta for value in network.state_dict().values()):
        raise WeightsCorruptError(f"{heads} of the package lpips lacks linear heads; install it again.")
    return network.float().eval().requires_grad_(False).to(device or "cpu"), found
