"""Winoground scores of a generator: two captions of the same words, two images made from them, and who fits whom.

Winoground (Thrush et al., CVPR 2022, arXiv 2204.03162) asks of a matching model, with m_ij the score of image i and
caption j: "image" m_00 > m_10 and m_11 > m_01, "text" m_00 > m_01 and m_11 > m_10, "group" both. Here the images are
the generator's own and the matching model is trusted, so that the same numbers judge the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.metrics.pap import check_unit_scores

CHANCE = {"image": 1 / 4, "text": 1 / 4, "group": 1 / 6}
"""Scores of four independent draws from one continuous distribution. A scorer that ties has less: ties fail."""


class Scorer(Protocol):
    """Anything that says how well images fit texts: an exact verifier, a CLIP cosine, a VQA score, a reward model."""

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Scores (M, N) of M images (M, 3, S, S) in [-1, 1] and N texts; larger fits better."""
        ...


class VerifierScorer:
    """Scores by a world's exact verifier: the share of a text's checks that an image passes.

    Args:
        check: (images (B, ...), B prompts) -> {node: (B,) bool or pass rate in [0, 1]}.
        nodes: the checks that count; all by default.
    """

    def __init__(
        self, check: Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]], nodes: Sequence[str] | None = None
    ):
        self.check = check
        self.nodes = nodes

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """(M, N) float32 in [0, 1].

        Raises:
            InvalidInputError: a check that the verifier does not make, or one that is NaN or outside [0, 1]; the image
                (as candidate) and the text (as prompt) are named.
        """
        repeated = images.repeat_interleave(len(texts), dim=0)
        checks = self.check(repeated, list(texts) * len(images))
        nodes = list(checks) if self.nodes is None else self.nodes
        missing = [name for name in nodes if name not in checks]
        if missing or not nodes:
            raise InvalidInputError(f"nodes must be checks of the verifier, {', '.join(checks)}; got {list(nodes)}")
        grid = (len(images), len(texts))
        return torch.stack([check_unit_scores(checks[name].reshape(grid), f"check {name!r}") for name in nodes]).mean(0)


def pair_scores(scorer: Scorer, images: Tensor, captions: Sequence[tuple[str, str]]) -> Tensor:
    """The matrices m_ij of pairs.

    Args:
        scorer: see `Scorer`.
        images: (P, 2, C, S, S); image [p, i] was made from caption [p][i].
        captions: P pairs.

    Returns:
        (P, 2, 2) float32, [p, i, j] the score of image i and caption j.

    Raises:
        InvalidInputError: shapes that do not fit, or a scorer that does not answer with a number for each of the four.
    """
    if images.ndim != 5 or images.shape[1] != 2 or len(captions) != len(images):
        raise InvalidInputError(
            f"images must be (P, 2, C, S, S), two for each of the {len(captions)} captions, got {tuple(images.shape)}"
        )
    matrices = []
    for index, (two, texts) in enumerate(zip(images, captions, strict=True)):
        scores = scorer(two, texts)
        if tuple(scores.shape) != (2, 2):
            raise InvalidInputError(f"scorer must answer (2, 2) for pair {index}, got {tuple(scores.shape)}")
        matrices.append(scores.float())
    return torch.stack(matrices) if matrices else torch.zeros(0, 2, 2)


def winoground_score(scores: Tensor) -> dict[str, float]:
    """Shares of the pairs that are told apart.

    Args:
        scores: (P, 2, 2), [p, i, j] the score of image i and caption j of pair p; any finite numbers.

    Returns:
        "image", "text", "group": shares in [0, 1]; "chance_image", "chance_text", "chance_group": `CHANCE`. A tie is a
        failure.

    Raises:
        InvalidInputError: another shape, no pair, or a score that is not finite; the pair is named.
    """
    if scores.ndim != 3 or tuple(scores.shape[1:]) != (2, 2) or not len(scores):
        raise InvalidInputError(f"scores must be (P, 2, 2) with at least one pair, got {tuple(scores.shape)}")
    wrong = (~scores.isfinite()).flatten(1).any(1).nonzero()
    if len(wrong):
        pair = int(wrong[0])
        raise InvalidInputError(f"scores must be finite, pair {pair} has {scores[pair].tolist()}")
    own, other = scores.diagonal(dim1=1, dim2=2), scores.flip(2).diagonal(dim1=1, dim2=2)
    # other[:, i] is m_i,1-i; the other image under the same caption is its mirror.
    text = (own > other).all(1)
    image = (own > other.flip(1)).all(1)
    told = {"image": image, "text": text, "group": image & text}
    shares = {name: value.double().mean().item() for name, value in told.items()}
    return shares | {f"chance_{name}": chance for name, chance in CHANCE.items()}
