"""Minimality: does a counterfactual stay as near to its image as the intervention allows?"""

from __future__ import annotations

import torch
from torch import Tensor

from gendiff.causal.graph import Variable

WEIGHT = 0.8
"""Share of the first of the two probabilities in the score, 0.2 being left for the second."""
TOLERANCE = 0.1
"""Two continuous values that differ by at most this share of their scale count as the same."""


def minimality(
    variable: Variable,
    features: Tensor,
    counterfactual: Tensor,
    reference: Tensor,
    factual_values: Tensor,
    values: Tensor,
    reference_values: Tensor,
) -> Tensor:
    """log(0.8 exp P1 + 0.2 exp P2) of each image; lower is better.

    With d the Euclidean distance of features and delta = d(x', x): P1 = P(d(r, x) <= delta) over real images r that
    have the counterfactual value, P2 = P(d(r, x) >= delta) over real r that have the factual value. A counterfactual
    nearer to its image than every real one of its value, but farther than those of the old value, scores
    log(0.8 + 0.2) = 0; the worst is log(0.8 e + 0.2).

    Args:
        variable: the one intervened on; decides what counts as the same value (see `TOLERANCE`).
        features, counterfactual: features of x and of x', (B, F).
        reference: features of real images other than x, (R, F).
        factual_values, values: raw value of `variable` before and after, (B,).
        reference_values: raw value of each real image, (R,).

    Returns: (B,) float64; NaN where no real image has the counterfactual or the factual value.

    Raises:
        ValueError: shapes do not fit.

    Source: Melistas et al. 2024, "Benchmarking counterfactual image generation" (NeurIPS), after the counterfactual
        latent divergence of Sanchez & Tsaftaris 2022 (CLeaR).
    """
    _check(features, counterfactual, reference, factual_values, values, reference_values)
    moved = (counterfactual.double() - features.double()).norm(dim=1, keepdim=True)
    distances = torch.cdist(features.double(), reference.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearer = _share(distances <= moved, _same(variable, values, reference_values))
    farther = _share(distances >= moved, _same(variable, factual_values, reference_values))
    return torch.log(WEIGHT * nearer.exp() + (1 - WEIGHT) * farther.exp())


def _same(variable: Variable, values: Tensor, reference_values: Tensor) -> Tensor:
    """Which real images (R) have each of `values` (B): (B, R) bool."""
    tolerance = TOLERANCE * variable.scale if variable.kind == "continuous" else 0
    return (values[:, None] - reference_values[None]).abs() <= tolerance


def _share(event: Tensor, among: Tensor) -> Tensor:
    """Share (B,) of the real images in `among` (B, R) for which `event` (B, R) holds; 0 / 0 = NaN."""
    return (event & among).sum(dim=1).double() / among.sum(dim=1)


def _check(
    features: Tensor,
    counterfactual: Tensor,
    reference: Tensor,
    factual_values: Tensor,
    values: Tensor,
    reference_values: Tensor,
) -> None:
    batch, width = features.shape
    wanted = {
        "counterfactual": (counterfactual, (batch, width)),
        "reference": (reference, (len(reference), width)),
        "factual_values": (factual_values, (batch,)),
        "values": (values, (batch,)),
        "reference_values": (reference_values, (len(reference),)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}.")
