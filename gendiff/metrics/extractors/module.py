"""Any module as a feature extractor."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from gendiff.errors import InvalidInputError
from gendiff.metrics.extractors.base import FeatureExtractor, full_precision, with_sha

PROBE = 64
"""Side in pixels of the black images that a module is asked about to learn its d."""


class ModuleExtractor(FeatureExtractor):
    """A user's module that maps uint8 (B, 3, H, W) to (B, d), or clips if its attribute `video` is true.

    Its attributes `id`, `dim` and `input_spec` are used where it has them; otherwise its id is its name with the hash
    of its weights, and d is learnt from two black images.

    Args:
        module: frozen by this.
        name: of the class, for its id.

    Raises:
        InvalidInputError: not a module, or its answer is not (B, d).
    """

    def __init__(self, module: Any, name: str) -> None:
        if not isinstance(module, nn.Module):
            raise InvalidInputError(f"extractor {name} must be a torch.nn.Module, got {type(module).__name__}.")
        module.eval()
        sha256 = state_sha256(module)
        video = bool(getattr(module, "video", False))
        super().__init__(
            id=str(getattr(module, "id", None) or with_sha(name, sha256)),
            dim=int(getattr(module, "dim", None) or _probe(module, name, video)),
            input_spec=str(getattr(module, "input_spec", None) or "of the module itself"),
            weights_sha256=sha256,
            video=video,
        )
        self.module = module
        tensor = next(module.parameters(), next(module.buffers(), None))
        if tensor is not None:
            self.to(tensor.device)

    def extract(self, images: Tensor) -> Tensor:
        rows = self.module(images)
        if not isinstance(rows, Tensor) or rows.shape != (len(images), self.dim):
            raise InvalidInputError(
                f"extractor {self.id} must return ({len(images)}, {self.dim}) features, got {_shape(rows)}."
            )
        return rows


def state_sha256(module: nn.Module) -> str | None:
    """sha256 over names, types, shapes and bytes of all parameters and buffers; None if there are none."""
    state = module.state_dict()
    content = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        content.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest() if state else None


def _probe(module: nn.Module, name: str, video: bool) -> int:
    tensor = next(module.parameters(), next(module.buffers(), torch.zeros(())))
    shape = (2, 16, 3, PROBE, PROBE) if video else (2, 3, PROBE, PROBE)
    with torch.inference_mode(), full_precision(tensor.device.type):
        rows = module(torch.zeros(shape, dtype=torch.uint8, device=tensor.device))
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != 2:
        raise InvalidInputError(f"extractor {name} must map uint8 {shape} to (2, d), got {_shape(rows)}.")
    return rows.shape[1]


def _shape(rows: Any) -> str:
    return str(tuple(rows.shape)) if isinstance(rows, Tensor) else type(rows).__name__
