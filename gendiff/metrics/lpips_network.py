"""The LPIPS network of the `lpips` package, with a backbone that is read from this machine, never fetched.

Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric" (CVPR), version 0.1.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gendiff.errors import InvalidInputError, WeightsCorruptError

SMALLEST_SIDE = {"alex": 31, "vgg": 16}
"""Sides in pixels below which a pooling layer of the backbone has nothing left to pool."""


def load_lpips(
    net: str = "alex", weights: str | Path | None = None, device: str | torch.device | None = None
) -> tuple[nn.Module, str]:
    """LPIPS as `lpips.LPIPS`, in eval mode: its own linear heads, which lie in its wheel, on a backbone found locally.

    Args:
        net: "alex" or "vgg".
        weights: torchvision state dict of the backbone; None searches for it as `find_weights("lpips-<net>")` says.
        device: where it runs; None is the CPU.

    Returns: the network, (B, 3, H, W) twice in [-1, 1] -> (B, 1, 1, 1), and the sha256 of the backbone's file.

    Raises:
        ImportError: the package `lpips` is missing.
        InvalidInputError: another `net`.
        WeightsNotFoundError: no backbone on this machine.
        WeightsCorruptError: the file is not this backbone's state dict.
    """
    from gendiff.metrics.weights import find_weights

    if net not in SMALLEST_SIDE:
        raise InvalidInputError(f"net must be one of {', '.join(SMALLEST_SIDE)}, got {net!r}.")
    try:
        import lpips
    except ImportError as error:
        raise ImportError('LPIPS needs the package "lpips": pip install "gendiff[metrics]".') from error
    path = find_weights(f"lpips-{net}", weights)
    backbone = _read_state(path)

    with warnings.catch_warnings(), torch.device("meta"):
        # lpips asks torchvision for its backbone by a parameter that torchvision has renamed. On the meta device no
        # memory is filled with numbers that are thrown away, and the global random state stays as it was.
        warnings.filterwarnings("ignore", message=".*(parameter 'pretrained'|'weights') (is|are) deprecated")
        network: nn.Module = lpips.LPIPS(pretrained=False, pnet_rand=True, net=net, verbose=False)
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    state = {**network.scaling_layer.state_dict(prefix="scaling_layer."), **_read_state(heads)}
    for name, expected in network.net.state_dict().items():
        # Names in slices keep the number of the layer: slice2.3.weight is features.3.weight of torchvision.
        source = "features." + name.split(".", 1)[1]
        found = backbone.get(source)
        if found is None or found.shape != expected.shape:
            what = "missing" if found is None else f"{tuple(found.shape)}, not {tuple(expected.shape)}"
            raise WeightsCorruptError(f"{path} is not torchvision's {net} for LPIPS: {source} is {what}.")
        state[f"net.{name}"] = found
    # lpips lists each head twice, as `lin0` and as `lins.0`; the wheel has the first name.
    network.load_state_dict(state, strict=False, assign=True)
    if any(value.is_meta for value in network.state_dict().values()):
        raise WeightsCorruptError(f"{heads} of the package lpips lacks linear heads; install it again.")
    return network.float().eval().requires_grad_(False).to(device or "cpu"), _sha256(path)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a cut file fails in many ways, and none of their messages names the file
        raise WeightsCorruptError(f"{path} cannot be read as a state dict: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsCorruptError(f"{path} holds {type(state).__name__}, not a state dict of tensors.")
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
