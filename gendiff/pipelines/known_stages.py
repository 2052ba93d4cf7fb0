"""Which tokens of an image are kept while the others are generated: the first stages, or a part of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

FEW_TOKENS = 3
"""Stages of at most so many tokens are kept whole when a part of a picture is: they say what all of it is like."""

Known = list[tuple[Tensor, Tensor] | None]
"""For each stage its tokens (B, n_k) and which are kept (B or 1, n_k) bool; None where none is."""


def known_stages(tokens: Sequence[Tensor], stages: Sequence[int], keep_stages: int, mask: Tensor | None) -> Known:
    """What of an image stays.

    Args:
        tokens: of the image, all K stages.
        stages: side of each token grid.
        keep_stages: the first so many are kept whole.
        mask: (B or 1, 1, S, S) in [0, 1], 1 = generate anew; None leaves all stages behind the first to be generated.

    Source: the mask at each stage, Tian et al. 2024 (VAR), zero-shot editing.
    """
    known: Known = []
    for stage, (codes, side) in enumerate(zip(tokens, stages, strict=True)):
        if stage < keep_stages or (mask is not None and side**2 <= FEW_TOKENS):
            known.append((codes, torch.ones(1, side**2, dtype=torch.bool, device=codes.device)))
        elif mask is not None:
            kept = interpolate(1 - mask.float(), size=(side, side), mode="bilinear") > 0.5
            known.append((codes, kept.flatten(1).to(codes.device)))
        else:
            known.append(None)
    return known
