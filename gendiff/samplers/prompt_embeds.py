"""What a denoiser reads of a text, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PromptEmbeds:
    """A text, or P texts, as a denoiser reads them.

    Attributes:
        embeds: (P, L, D).
        pooled: (P, D'), for denoisers that read one vector a text as well (SDXL, SD3, FLUX); else None.
        mask: (P, L), 1 where a token is valid, for denoisers that are told so (PixArt); else None.

    Raises:
        ValueError: a wrong shape, or another number of texts.
    """

    embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.embeds.ndim != 3:
            raise ValueError(f"embeds must be (P, L, D), got {tuple(self.embeds.shape)}.")
        for name in ("pooled", "mask"):
            value = getattr(self, name)
            if value is not None and (value.ndim != 2 or len(value) != len(self.embeds)):
                raise ValueError(f"{name} must be ({len(self.embeds)}, ...) in two axes, got {tuple(value.shape)}.")

    def __len__(self) -> int:
        """P, how many texts."""
        return len(self.embeds)

    def rows(self, count: int) -> PromptEmbeds:
        """The same for `count` rows: each text stands for `count / P` rows in a row, as pipelines order their images.

        Raises:
            ValueError: P does not divide `count`.
        """
        if count == len(self):
            return self
        if count % len(self):
            raise ValueError(f"{len(self)} prompts do not divide a batch of {count} rows.")
        repeats = count // len(self)
        pooled, mask = (
            None if part is None else part.repeat_interleave(repeats, 0) for part in (self.pooled, self.mask)
        )
        return PromptEmbeds(self.embeds.repeat_interleave(repeats, 0), pooled, mask)
