"""What every feature network is to its callers: uint8 images in, float32 rows out, and a name that says what it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gendiff.errors import InvalidInputError


class FeatureExtractor(nn.Module, ABC):
    """A frozen network with its own resize and normalisation, so that no caller can get them wrong.

    It is always in evaluation mode, and computes in float32 without gradients, mixed precision or TF32.

    Args:
        id: name of the features; statistics of different ids must not be compared.
        dim: d, length of a row.
        input_spec: one line: resize, size, normalisation.
        weights_sha256: of the weights; None for an extractor without weights.
        label: how a Fréchet distance of these features is printed; None gives `FD[id]`.
        video: rows are of clips (B, F, 3, H, W) instead of images.
    """

    def __init__(
        self,
        id: str,
        dim: int,
        input_spec: str,
        weights_sha256: str | None = None,
        label: str | None = None,
        video: bool = False,
    ) -> None:
        super().__init__()
        self.id = id
        self.dim = dim
        self.input_spec = input_spec
        self.weights_sha256 = weights_sha256
        self.label = label or f"FD[{id}]"
        self.video = video
        # Says where the extractor is, for those without weights too.
        self.register_buffer("_place", torch.zeros(()), persistent=False)

    @abstractmethod
    def extract(self, images: Tensor) -> Tensor:
        """Features (B, dim) of images that `forward` has checked and moved to the extractor's device."""

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images as for `extract`, where the network classifies.

        Raises:
            InvalidInputError: it does not.
        """
        raise InvalidInputError(f"extractor {self.id} has no logits: it does not classify.")

    def extract_and_classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both; a network whose logits follow from its features overrides it to walk once."""
        return self.extract(images), self.classify(images)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, dim) float32 of images uint8 (B, 3, H, W) in 0 .. 255; of clips uint8 (B, F, 3, H, W).

        Raises:
            InvalidInputError: another type or shape, or no image at all.
        """
        return self._run(self.extract, images)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) float32 of the same images.

        Raises:
            InvalidInputError: as `forward`, or the network does not classify.
        """
        return self._run(self.classify, images)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` and `logits` return, of one reading.

        Raises:
            InvalidInputError: as `logits`.
        """
        return self._run(self.extract_and_classify, images)

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in evaluation mode, whatever is asked for: batch norm of a yardstick must not follow its data."""
        super().train(False)
        return self

    def freeze(self) -> FeatureExtractor:
        """Evaluation mode, float32, no gradients."""
        return self.eval().float().requires_grad_(False)

    def _run(self, function: Any, images: Tensor) -> Any:
        check_images(images, self.video)
        place: Any = self._place
        self.eval()  # networks are in training mode when they are made, and here batch norm would follow the images
        with torch.inference_mode(), full_precision(place.device.type):
            found = function(images.to(place.device))
            return tuple(rows.float() for rows in found) if isinstance(found, tuple) else found.float()


def check_images(images: Any, video: bool = False) -> None:
    """Raise InvalidInputError unless `images` are uint8 (B, 3, H, W), or clips (B, F, 3, H, W)."""
    wanted, ndim = ("(B, F, 3, H, W)", 5) if video else ("(B, 3, H, W)", 4)
    if not isinstance(images, Tensor):
        raise InvalidInputError(f"images must be a uint8 tensor {wanted}, got {type(images).__name__}.")
    if images.dtype != torch.uint8:
        raise InvalidInputError(
            f"images must be uint8 {wanted} in 0 .. 255, as they are saved; got {images.dtype}. Round them first."
        )
    if images.ndim != ndim or images.shape[-3] != 3 or 0 in images.shape:
        raise InvalidInputError(f"images must be {wanted}, none of them 0, got {tuple(images.shape)}.")


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Without TF32 and mixed precision, whatever the caller has switched on; all is put back afterwards."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def with_sha(name: str, sha256: str | None) -> str:
    """The id of features of other weights than the published ones: `name@` and eight digits of their sha256."""
    return f"{name}@{sha256[:8]}" if sha256 else name
