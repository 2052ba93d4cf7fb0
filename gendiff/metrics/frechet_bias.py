"""How far too large a Fréchet distance of few images is, to be said beside it.

For N images on each side of one Gaussian, to first order in 1/N,

    E[FD] = (1/Na + 1/Nb) (tr Σ + ½ Σ_ij λi λj (1 + δij) / (λi + λj)),

with the eigenvalues λ of Σ: the first term is the error of the means, the second the squared Bures distance between Σ
and Σ plus the error E of a sample covariance, E|E_ij|² = λi λj (1 + δij) / N. For Σ = I it is d (d + 5) / (2N).

Real features are not Gaussian and their spectrum is itself a sample, spread out where N is not far above d, which makes
the estimate too small: by a tenth at N = 4 d, by half below d, where the note says ≳. It is no correction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ENOUGH = 10
"""Images a dimension from which on no note is made."""
REMEDY = "give more images, or use features of fewer dimensions, KID, or FD∞"


def small_sample_notes(
    counts: tuple[int | None, int | None], dim: int, spectrum: Callable[[int], Tensor]
) -> tuple[str, ...]:
    """What to say about a distance of that many images.

    Args:
        counts: Na and Nb; None is unknown and taken for many.
        dim: d.
        spectrum: gives the eigenvalues above 0 of the covariance of side 0 or 1; asked only where there is a note.

    Returns:
        Nothing where the smaller N is at least 10 d; a line with the bias below that; one line more below d.
    """
    known = [n for n in counts if n is not None]
    n = min(known, default=ENOUGH * dim)
    if n >= ENOUGH * dim:
        return ()
    # The side with more images knows the spectrum better.
    better = max(range(2), key=lambda side: counts[side] or float("inf"))
    bias = frechet_bias(spectrum(better), counts)
    about = "≈" if (counts[better] or dim) >= dim else "≳"
    notes = [f"N={n} < 10·d={ENOUGH * dim}; bias {about} {bias:.3g}; {REMEDY}"]
    if n < dim:
        notes.append(f"error: N={n} < d={dim}: a covariance is singular and the value is mostly bias; do not report it")
    return tuple(notes)


def frechet_bias(eigenvalues: Tensor, counts: tuple[int | None, int | None]) -> float:
    """Expected Fréchet distance between samples of one Gaussian, to first order in 1/N.

    Args:
        eigenvalues: (r,) of its covariance, all above 0.
        counts: Na and Nb; None is infinitely many.
    """
    pairs = torch.outer(eigenvalues, eigenvalues) / (eigenvalues[:, None] + eigenvalues)
    covariance = 0.5 * (pairs.sum() + pairs.diagonal().sum())
    return float(eigenvalues.sum() + covariance) * sum(1 / n for n in counts if n is not None)
