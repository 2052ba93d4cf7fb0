"""What a user asks for with `do`, checked before any work starts."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .graph import CausalGraph, Variable


class InterventionError(ValueError):
    """An intervention or label does not fit the graph."""


def check_interventions(
    graph: CausalGraph,
    interventions: Mapping[str, Any],
    batch_size: int,
    *,
    allow_extrapolation: bool = False,
) -> dict[str, Tensor]:
    """Values of an intervention as tensors, or an error that names the offender.

    Args:
        interventions: raw value by variable name; a scalar for the whole batch or one value for each sample.
        batch_size: number of samples, B.
        allow_extrapolation: warn instead of raising for values outside [low, high].

    Returns: float64 tensors (B,) by name, in the graph's declaration order.

    Raises:
        InterventionError: unknown name, not a finite number, wrong length, class out of range, or outside [low, high].
    """
    if not isinstance(interventions, Mapping):
        raise InterventionError(f"interventions must map names to values, got {type(interventions).__name__}.")
    for name in interventions:
        if name not in graph.names:
            close = difflib.get_close_matches(str(name), graph.names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InterventionError(f"unknown variable {name!r}; known: {', '.join(graph.names)}.{hint}")
    return {
        name: _check_values(graph[name], interventions[name], batch_size, allow_extrapolation)
        for name in graph.names
        if name in interventions
    }


def _check_values(variable: Variable, given: Any, batch_size: int, allow_extrapolation: bool) -> Tensor:
    name = variable.name
    try:
        values = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InterventionError(f"{name} must be a number or {batch_size} numbers, got {given!r}.") from error
    if values.ndim > 1 or (values.ndim == 1 and len(values) not in (1, batch_size)):
        got = len(values) if values.ndim == 1 else f"shape {tuple(values.shape)}"
        raise InterventionError(f"{name}: expected scalar or {batch_size} values, got {got}.")
    values = values.expand(batch_size) if values.ndim == 0 or len(values) == 1 else values
    if not values.isfinite().all():
        raise InterventionError(f"{name} must be finite, got {given!r}.")
    if variable.kind == "categorical":
        _refuse(values, (values != values.round()), f"{name} is a class and must be a whole number")
        last = variable.dim - 1
        _refuse(values, (values < 0) | (values > last), f"{name} must be one of the classes 0 to {last}")
    elif variable.kind == "binary":
        _refuse(values, values.abs() != 1, f"{name} is binary and must be -1 or 1")
    else:
        _check_range(variable, values, allow_extrapolation)
    return values.clone()


def _refuse(values: Tensor, bad: Tensor, rule: str) -> None:
    if bad.any():
        raise InterventionError(f"{rule}, got {values[bad][0].item():g}.")


def _check_range(variable: Variable, values: Tensor, allow_extrapolation: bool) -> None:
    low = -torch.inf if variable.low is None else variable.low
    high = torch.inf if variable.high is None else variable.high
    outside = (values < low) | (values > high)
    if not outside.any():
        return
    message = f"{variable.name}={values[outside][0].item():g} is outside the training range [{low:g}, {high:g}]"
    if not allow_extrapolation:
        raise InterventionError(f"{message}; allow_extrapolation=True permits it.")
    warnings.warn(message, UserWarning, stacklevel=4)
