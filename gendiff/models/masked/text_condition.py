"""What a text-conditioned transformer over hidden tokens reads beside the tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TextCondition:
    """A text for each image of a batch, as diffusers' `UVit2DModel` takes it.

    Attributes:
        encoder_hidden_states: (B, T, D), a vector for each token of the text.
        pooled_text_emb: (B, E), the whole text in one vector.
        micro_conds: (B, 5): width and height of the original in pixels, the crop's two coordinates, aesthetic score.

    Raises:
        ValueError: shapes that do not fit together.
    """

    encoder_hidden_states: Tensor
    pooled_text_emb: Tensor
    micro_conds: Tensor

    def __post_init__(self) -> None:
        shapes = {name: tuple(part.shape) for name, part in vars(self).items()}
        dims = [len(shape) for shape in shapes.values()]
        if dims != [3, 2, 2] or len({shape[0] for shape in shapes.values()}) != 1:
            raise ValueError(f"a text condition must be (B, T, D), (B, E) and (B, 5) of one batch, got {shapes}.")

    def __len__(self) -> int:
        """B."""
        return len(self.pooled_text_emb)

    def repeat(self, count: int) -> TextCondition:
        """Each text `count` times, one after the other."""
        return TextCondition(*(part.repeat_interleave(count, dim=0) for part in vars(self).values()))
