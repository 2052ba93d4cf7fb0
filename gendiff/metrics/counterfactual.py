"""How good counterfactuals are: of the picture, of what is read from it, and of asking again.

Images are (B, C, H, W) in [-1, 1]; x is the factual image, x' the counterfactual, x* the true one. Distances between
images are in grey levels, 0 to 255. Values are raw units, (B,) by name; errors of a continuous variable are in units of
its `scale`. Every result is a mean over the batch.

Sources: Monteiro et al. 2023, "Measuring axiomatic soundness of counterfactual image models" (ICLR), for
composition, effectiveness and reversibility. The others compare with a known truth and are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from gendiff.causal.graph import CausalGraph, Variable

GREY_LEVELS = 127.5
"""Grey levels, 0 to 255, in one unit of an image in [-1, 1]."""


def l1(first: Tensor, second: Tensor) -> float:
    """Mean absolute difference of two batches of images, grey levels.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same("images", first, second)
    return GREY_LEVELS * (first.double() - second.double()).abs().mean().item()


def cf_l1(counterfactual: Tensor, truth: Tensor) -> float:
    """l1(x', x*), grey levels; 0 is perfect."""
    return l1(counterfactual, truth)


def cf_gain(counterfactual: Tensor, truth: Tensor, factual: Tensor) -> float:
    """1 - l1(x', x*) / l1(x, x*): 1 is perfect, 0 no better than returning the input.

    Raises:
        ValueError: x* equals x, so that there is nothing to gain.
    """
    change = l1(factual, truth)
    if change == 0:
        raise ValueError("the true counterfactuals equal the factual images: there is nothing to gain.")
    return 1 - l1(counterfactual, truth) / change


def effectiveness(graph: CausalGraph, read: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """How far what is read from x' lies from what is true under the intervention, for every variable read.

    Args:
        graph: units and kinds of the variables.
        read: values read from x'.
        truth: values of x*, at least of the variables read.

    Returns: mean |read - truth| / scale by name, 0 is perfect; for a discrete variable the accuracy, 1 is perfect.

    Raises:
        ValueError: a variable is missing in `truth`, or shapes differ.
    """
    return {
        name: 1 - error if graph[name].kind != "continuous" else error
        for name in read
        for error in [_error(graph[name], read[name], _value(truth, name))]
    }


def propagation_error(
    graph: CausalGraph, values: Mapping[str, Tensor], truth: Mapping[str, Tensor], intervened: str
) -> dict[str, float]:
    """How far the model's own values of the descendants lie from the truth: the mechanisms' error, without the decoder.

    Args:
        graph: whose descendants of `intervened` are compared.
        values: counterfactual values the model computed.
        truth: values of x*.
        intervened: the variable that was set.

    Returns: mean |value - truth| / scale for each descendant (share of wrong ones for a discrete one); 0 is perfect,
        and nothing is returned for a variable without descendants.
    """
    return {
        name: _error(graph[name], _value(values, name), _value(truth, name)) for name in graph.descendants(intervened)
    }


def leakage(
    graph: CausalGraph, read: Mapping[str, Tensor], factual: Mapping[str, Tensor], intervened: str
) -> dict[str, float]:
    """How much the intervention moved what it must not: variables that are neither set nor descendants.

    Args:
        graph: decides which variables those are.
        read: values read from x'.
        factual: values read from x, by the same reader.
        intervened: the variable that was set.

    Returns: mean |read(x') - read(x)| / scale by name (share of changed ones for a discrete variable); 0 is perfect.
    """
    reached = {intervened, *graph.descendants(intervened)}
    return {
        name: _error(graph[name], read[name], _value(factual, name))
        for name in graph.names
        if name in read and name not in reached
    }


def composition(images: Tensor, null: Callable[[Tensor], Tensor], counts: Sequence[int] = (1, 10)) -> dict[int, float]:
    """l1 between images and what is left of them after k null interventions, for each k of `counts`; 0 is perfect.

    Args:
        images: (B, C, H, W) in [-1, 1].
        null: answers an empty intervention; what it returns is what it is asked about next.
        counts: numbers of applications k, in one chain.

    Source: Monteiro et al. 2023.
    """
    return _drift(images, null, counts)


def reversibility(
    images: Tensor,
    act: Callable[[Tensor], Tensor],
    undo: Callable[[Tensor], Tensor],
    counts: Sequence[int] = (1, 10),
) -> dict[int, float]:
    """l1 between images and what is left of them after k times there and back, for each k of `counts`; 0 is perfect.

    Args:
        images: (B, C, H, W) in [-1, 1].
        act: answers an intervention, from an image alone.
        undo: answers the intervention that sets the same variable back, from an image alone.
        counts: numbers of round trips k, in one chain.

    Source: Monteiro et al. 2023.
    """
    return _drift(images, lambda image: undo(act(image)), counts)


def _drift(images: Tensor, step: Callable[[Tensor], Tensor], counts: Sequence[int]) -> dict[int, float]:
    if not counts or min(counts) < 1:
        raise ValueError(f"counts must be numbers of applications of at least 1, got {list(counts)}.")
    distances, current = {}, images
    for k in range(1, max(counts) + 1):
        current = step(current)
        if k in counts:
            distances[k] = l1(images, current)
    return distances


def _error(variable: Variable, first: Tensor, second: Tensor) -> float:
    _check_same(variable.name, first, second)
    if variable.kind == "continuous":
        return (first.double() - second.double()).abs().mean().item() / variable.scale
    return (first != second).double().mean().item()


def _value(values: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in values:
        raise ValueError(f"no value of {name!r} is given; given: {', '.join(values) or 'none'}.")
    return values[name]


def _check_same(name: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.numel() == 0:
        raise ValueError(
            f"{name}: expected two tensors of one shape that are not empty, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}."
        )
