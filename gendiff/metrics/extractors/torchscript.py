"""TorchScript files, which hold code: loaded only after their sha256 is known to be right."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from gendiff.errors import UnsafeFileError
from gendiff.metrics.weights import FoundWeights


def load_script(found: FoundWeights) -> Any:
    """The script on the CPU, in evaluation mode.

    Args:
        found: of `locate_weights`, which has checked the sha256.

    Raises:
        UnsafeFileError: its sha256 is not one that somebody vouches for, or the file is no TorchScript.
    """
    if not found.torchscript:
        raise UnsafeFileError(f"{found.path} is not known as TorchScript, and was not loaded.")
    try:
        with warnings.catch_warnings():
            # The file was published as TorchScript; there is no other form of it to switch to.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.load.* is deprecated")
            return torch.jit.load(found.path, map_location="cpu").eval()
    except RuntimeError as error:
        raise UnsafeFileError(f"{found.path} is not TorchScript: {str(error).splitlines()[0]}") from error
