"""A predictor that is asked twice at one step answers once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gendiff.samplers.loop import Predictor, State, Step


def remembered(predict: Predictor) -> Predictor:
    """Keep the last answer of `predict`, for whoever asks again at the same step about the same state.

    Guidance, contrast and projections all read the conditional prediction; wrapped once, before it is handed to each,
    the network computes it once a step. "The same state" means the same object, unchanged since: comparing the
    numbers could cost as much as it saves. One state and one answer are kept alive between calls.

    Args:
        predict: a function of the state and the step alone. One with a cache of its own that must be written at every
            call, or whose condition is exchanged between two calls at one step, must not be remembered.
    """
    kept: list[Any] = []  # [key, state, answer]; the state is held so that its identity can not be given to another

    def answer(state: State, step: Step) -> Any:
        # A prediction made without a graph is no answer for one who wants a gradient.
        key = (step.index, step.count, torch.is_grad_enabled(), _versions(state))
        if kept and kept[1] is state and kept[0] == key:
            return kept[2]
        kept.clear()  # before the network runs, so that two answers are never held at once
        said = predict(state, step)
        kept[:] = [key, state, said]
        return said

    return answer


def _versions(state: State) -> Any:
    """How often each tensor was written to in place; inference tensors do not count that."""
    if isinstance(state, tuple):
        return tuple(_versions(part) for part in state)
    return state._version if isinstance(state, Tensor) and not state.is_inference() else None
