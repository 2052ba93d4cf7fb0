"""DCI: is each code about one variable, each variable in one code, and is it there at all?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gendiff.causal.graph import CausalGraph

TRAIN_SHARE = 0.7
"""Samples that the regressors are fitted on; they are tested on the rest."""


@dataclass(frozen=True)
class DCI:
    """Scores in [0, 1], 1 is best.

    Attributes:
        disentanglement: whether a code helps to predict one variable only, weighted by how much each code helps.
        completeness: whether a variable is predicted from one code only, mean over variables.
        informativeness: by variable, R2 of its prediction on held-out samples (accuracy for a discrete one); R2 can
            be negative where the codes say nothing.
    """

    disentanglement: float
    completeness: float
    informativeness: dict[str, float]


def dci(graph: CausalGraph, codes: Tensor, labels: Tensor, seed: int = 0) -> DCI:
    """Disentanglement, completeness and informativeness of a representation.

    R (D, n) holds the importance of each code in gradient-boosted trees that predict each variable; its columns sum
    to 1. The first rows (`TRAIN_SHARE`) are fitted, the rest are predicted.

    Args:
        graph: names and kinds of the variables.
        codes: (N, D), D >= 2.
        labels: raw values (N, n) in the graph's order, n >= 2, no NaN.
        seed: of the trees.

    Raises:
        ValueError: shapes do not fit, or a label is missing.
        ImportError: scikit-learn is missing.

    Source: Eastwood & Williams 2018, "A framework for the quantitative evaluation of disentangled representations"
        (ICLR), section 2.
    """
    x, y = codes.detach().cpu().double().numpy(), labels.detach().cpu().double().numpy()
    if x.ndim != 2 or y.shape != (len(x), len(graph.names)) or x.shape[1] < 2 or y.shape[1] < 2:
        raise ValueError(
            f"expected codes (N, D) with D >= 2 and labels (N, {len(graph.names)}) of at least 2 variables, "
            f"got {x.shape} and {y.shape}."
        )
    if np.isnan(y).any():
        raise ValueError("labels hold NaN; leave unlabelled samples out.")
    fitted = int(TRAIN_SHARE * len(x))
    importances, scores = [], {}
    for k, variable in enumerate(graph.variables):
        trees = _trees(variable.kind, seed).fit(x[:fitted], y[:fitted, k])
        importances.append(trees.feature_importances_)
        scores[variable.name] = float(trees.score(x[fitted:], y[fitted:, k]))
    table = np.stack(importances, axis=1)
    return DCI(disentanglement(table), completeness(table), scores)


def disentanglement(importances: np.ndarray) -> float:
    """Mean over codes, weighted by their total importance, of 1 - the entropy (base n) of each row of (D, n)."""
    total = importances.sum(axis=1)
    return float((total / total.sum()) @ _concentration(importances))


def completeness(importances: np.ndarray) -> float:
    """Mean over variables of 1 - the entropy (base D) of each column of `importances` (D, n)."""
    return float(_concentration(importances.T).mean())


def _concentration(table: np.ndarray) -> np.ndarray:
    """1 minus the entropy of each row's shares, in units of the largest possible; 0 for a row of zeros."""
    total = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, total, out=np.full_like(table, 1 / table.shape[1]), where=total > 0)
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return 1 + (shares * logarithms).sum(axis=1) / np.log(table.shape[1])


def _trees(kind: str, seed: int) -> Any:
    try:
        from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
    except ImportError as error:
        raise ImportError(f"DCI needs scikit-learn ({error}): pip install 'gendiff[eval]'.") from error
    return (GradientBoostingRegressor if kind == "continuous" else GradientBoostingClassifier)(random_state=seed)
