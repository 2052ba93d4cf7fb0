"""How a direction of a factor is measured on pairs of texts: the difference, less texture, of rms 1. All in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .prompt_encoding import Encoded

Pairs = Sequence[tuple[str, str]]
"""Texts that state an effect correctly, each with its counterfactual."""


def selected(mask: Tensor, skip: Sequence[int]) -> Tensor:
    """Valid tokens but those to skip, bool (B, L)."""
    chosen = mask.clone()
    chosen[:, [position for position in skip if position < mask.shape[1]]] = False
    return chosen


def _aligned(plus: Encoded, minus: Encoded) -> bool:
    """Whether all texts have their tokens at the same positions."""
    masks = torch.cat([plus.mask, minus.mask])
    return bool((masks == masks[:1]).all())


def difference(
    name: str, read: Callable[[list[str]], Encoded], texts: Pairs, positions: str, skip: Sequence[int]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Mean difference, float64 (L, D) or (D,), its tokens (L,) in the first case, and that of the pooled vector."""
    plus, minus = read([pair[0] for pair in texts]), read([pair[1] for pair in texts])
    aligned = plus.mask.shape == minus.mask.shape and _aligned(plus, minus)
    if positions == "tokens" and not aligned:
        counts = sorted({*plus.mask.sum(1).tolist(), *minus.mask.sum(1).tolist()})
        raise ValueError(
            f"pairs of {name!r} must have equally many tokens for positions 'tokens', got {counts}; use 'mean'."
        )
    vector = None
    if plus.pooled is not None and minus.pooled is not None:
        vector = (plus.pooled - minus.pooled).mean(0)
    chosen = selected(plus.mask, skip)[0] if aligned and positions != "mean" else None
    if chosen is not None:
        rows = (plus.embeds - minus.embeds).mean(0) * chosen[:, None]
    else:
        rows = (plus.mean() - minus.mean()).mean(0)
    if not rows.any():
        raise ValueError(f"pairs of {name!r} encode alike: the texts of a pair must differ in the factor.")
    return rows, chosen, vector


def texture_bases(
    read: Callable[[list[str]], Encoded], texts: Pairs, max_rank: int, energy: float, skip: Sequence[int], pooled: bool
) -> tuple[Tensor, Tensor]:
    """Orthonormal bases float64 (D, r) of texture in the embedding, and (P, r) in the pooled vector."""
    if not texts:
        return torch.zeros(0, 0), torch.zeros(0, 0)
    rows: list[Tensor] = []
    vectors: list[Tensor] = []
    for first, second in texts:
        plus, minus = read([first]), read([second])
        if plus.mask.shape == minus.mask.shape and _aligned(plus, minus):
            rows.append((plus.embeds - minus.embeds)[0][selected(plus.mask, skip)[0]])
        rows.append(plus.mean() - minus.mean())
        if pooled:
            vectors.append(given("texture_pairs", plus.pooled) - given("texture_pairs", minus.pooled))
    moved = _basis(torch.cat(rows), max_rank, energy)
    return moved, _basis(torch.cat(vectors), max_rank, energy) if pooled else torch.zeros(0, 0)


def _basis(rows: Tensor, max_rank: int, energy: float) -> Tensor:
    """The fewest right singular vectors (D, r), at most `max_rank`, that hold `energy` of the rows (m, D)."""
    _, strength, right = torch.linalg.svd(rows, full_matrices=False)
    held = strength.square().cumsum(0) / strength.square().sum().clamp(min=1e-300)
    rank = min(int((held < energy).sum()) + 1, max_rank, int((strength > 1e-9 * strength[0]).sum()))
    return right[:rank].T


def finished(raw: Mapping[str, Tensor], texture: Tensor, orthogonal: bool) -> dict[str, Tensor]:
    """Without texture, and at right angles to each other if asked for; float64."""
    done: dict[str, Tensor] = {}
    for name, rows in raw.items():
        left = rows - (rows @ texture) @ texture.T if texture.numel() else rows
        if orthogonal:
            for other in done.values():
                left = left - other * ((left * other).sum() / other.square().sum())
        if left.norm() <= 1e-6 * rows.norm():
            raise ValueError(f"the direction of {name!r} is nothing but texture, or a sum of earlier directions.")
        done[name] = left
    return done


def unit(direction: Tensor, tokens: Tensor | None) -> Tensor:
    """Of rms 1 over its tokens, float32."""
    squares = direction.square().mean() if tokens is None else direction[tokens].square().mean()
    return (direction / squares.sqrt()).float()


def given(name: str, vector: Tensor | None) -> Tensor:
    """The pooled vector, once it is known to be there.

    Raises:
        ValueError: the encoder gave none.
    """
    if vector is None:
        raise ValueError(f"pooled needs an encode that gives a pooled vector as a third value; {name!r} got none.")
    return vector
