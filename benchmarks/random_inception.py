"""Inception-v3 of 2015-12-05 with random weights: its numbers mean nothing, but two programs must agree on them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


class _Shapes(FeatureExtractorInceptionV3):
    """The network without weights."""

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        return None


def random_inception(seed: int = 0) -> dict[str, Tensor]:
    """A state dict whose activations neither vanish nor explode (He et al. 2015), the same for the same seed."""
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.device("meta"):
        shapes = _Shapes("shapes", ["2048"], feature_extractor_weights_path=empty).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {name: _fill(name, shape, generator) for name, shape in shapes.items()}


def write_random_inception(path: Path, seed: int = 0) -> Path:
    """`random_inception` as a file that torch-fidelity can load."""
    torch.save(random_inception(seed), path)
    return path


def _fill(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    noise = torch.randn(like.shape, generator=generator)
    if like.ndim == 4:
        return noise * (2 / like[0].numel()) ** 0.5
    if like.ndim == 2:
        return noise * like.shape[1] ** -0.5
    if name.endswith(("running_var", "bn.weight")):
        return 1 + 0.25 * noise.clamp(-2, 2)
    return 0.1 * noise
