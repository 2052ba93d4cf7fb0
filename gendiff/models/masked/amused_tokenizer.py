"""aMUSEd's tokenizer: a `VQModel` of diffusers that was trained on pixels from 0 to 1."""

from __future__ import annotations

from diffusers import ModelMixin  # noqa: F401 (diffusers looks for it in the module of a component it loads)
from torch import Tensor

from gendiff.models.masked.vq_model_tokenizer import VQModelTokenizer


class AmusedTokenizer(VQModelTokenizer):
    """`VQModelTokenizer` whose network reads and writes pixels in [0, 1]; its own images are in [-1, 1] as everywhere.

    Arguments as of `VQModelTokenizer`.
    """

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to tokens (B, N) int64; see `VQModelTokenizer.encode`."""
        return super().encode(images / 2 + 0.5)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) int64 to images (B, C, S, S), about [-1, 1]; see `VQModelTokenizer.decode`."""
        return super().decode(tokens) * 2 - 1
