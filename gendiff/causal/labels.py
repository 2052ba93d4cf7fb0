"""Raw values to latent targets and back: the one place where units are converted.

A continuous value fills its block with (y - loc) / scale, a binary one with -1 or 1, and a class becomes 2 onehot - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import CausalGraph, Variable


def embed(variable: Variable, values: Tensor) -> Tensor:
    """Latent block that stands for raw `values`.

    Args:
        values: raw units, (B,); NaN = not labelled.

    Returns: (B, d); NaN wherever the value is NaN.
    """
    if variable.kind == "categorical":
        missing = values.isnan()
        classes = values.masked_fill(missing, 0).long()
        onehot = torch.nn.functional.one_hot(classes, variable.dim).to(values.dtype)
        return (2 * onehot - 1).masked_fill(missing[:, None], torch.nan)
    if variable.kind == "continuous":
        values = (values - variable.loc) / variable.scale
    return values[:, None].expand(-1, variable.dim)


def unembed(variable: Variable, block: Tensor) -> Tensor:
    """Raw values that a latent block stands for: block mean, sign, or the largest class.

    Args:
        block: (B, d).

    Returns: raw units, (B,), in the dtype of `block`.
    """
    if variable.kind == "categorical":
        return block.argmax(dim=1).to(block.dtype)
    mean = block.mean(dim=1)
    if variable.kind == "binary":
        return torch.where(mean >= 0, 1.0, -1.0).to(block.dtype)
    return variable.loc + variable.scale * mean


def embed_all(graph: CausalGraph, labels: Tensor) -> Tensor:
    """Targets of all blocks, (B, D), for raw labels (B, n) in the graph's order; NaN stays NaN."""
    return torch.cat([embed(variable, labels[:, i]) for i, variable in enumerate(graph.variables)], dim=1)


def unembed_all(graph: CausalGraph, z: Tensor) -> dict[str, Tensor]:
    """Raw values (B,) by name, read from all blocks z (B, D)."""
    return {variable.name: unembed(variable, z[:, graph.slices[variable.name]]) for variable in graph.variables}
