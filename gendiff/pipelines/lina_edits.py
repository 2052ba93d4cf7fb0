"""Exchanges the prompt in a denoiser's arguments, in the rows that hold it, while the window is open.

`callback_on_step_end` could do it too, but there families differ in what "prompt_embeds" is, it comes after a step and
so can not open a window at the first one, and the user's own callback would have to be wrapped. Here the denoiser's
rows are compared with E once, so that unconditional rows are left alone whatever their order in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gendiff.samplers.prompt_embeds import PromptEmbeds

from .lina_families import EMBEDS, text_slots

CLOSE = 0.01
"""Rows are the prompt's if they differ by less than this share of its rms: rounding stays below, another word above."""


class PromptEdit:
    """E -> E' while `acts()`.

    Args:
        prompt: E, of P texts.
        edited: E'; its pooled vectors are exchanged as well where it has some.
        acts: whether the window is open now.
    """

    def __init__(self, prompt: PromptEmbeds, edited: PromptEmbeds, acts: Callable[[], bool]) -> None:
        self._prompt, self._edited, self._acts = prompt, edited, acts
        self._seen: dict[int, tuple[Tensor, dict[int, int], Tensor]] = {}
        self.found = False

    def reset(self) -> None:
        """Begin a run: forget what its tensors were."""
        self._seen.clear()
        self.found = False

    def check(self) -> None:
        """After a step inside the window.

        Raises:
            ValueError: no row held the prompt.
        """
        if not self.found:
            raise ValueError("the pipeline was called with another prompt than conditions.prompt: no row holds it.")

    def apply(self, module: nn.Module, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments with the prompt exchanged; None where nothing is to be exchanged."""
        if not self._acts():
            return None
        owner, changed = self._rows(arguments[EMBEDS])
        if not owner:
            return None
        self.found = True
        arguments = {**arguments, EMBEDS: changed}
        path = text_slots(module).pooled
        if path is not None and self._edited.pooled is not None:
            old: Any = arguments
            for name in path:
                old = old[name]
            new = _with_rows(old, self._edited.pooled, owner)
            arguments[path[0]] = new if len(path) == 1 else {**arguments[path[0]], path[1]: new}
        return arguments

    def _rows(self, states: Tensor) -> tuple[dict[int, int], Tensor]:
        """Row -> prompt, and the states with those rows exchanged. Pipelines hand in one tensor at all steps."""
        known = self._seen.get(id(states))
        if known is None:
            owner = _owners(states, self._prompt.embeds)
            changed = _with_rows(states, self._edited.embeds, owner)
            # The tensor is kept with its answer, so that its id can not become another's.
            known = self._seen[id(states)] = (states, owner, changed)
        return known[1], known[2]


def _owners(states: Tensor, embeds: Tensor) -> dict[int, int]:
    if states.shape[1:] != embeds.shape[1:]:
        raise ValueError(
            f"conditions.prompt must be (P, *{tuple(states.shape[1:])}) as recorded in a call of shape "
            f"{tuple(states.shape)}, got {tuple(embeds.shape)}."
        )
    fine, owner = states.float(), {}
    for number, text in enumerate(embeds.to(fine)):
        distance = (fine - text).square().mean(dim=(1, 2)).sqrt()
        near = distance <= CLOSE * text.square().mean().sqrt()
        for row in near.nonzero().flatten().tolist():
            owner.setdefault(row, number)
    return owner


def _with_rows(old: Tensor, new: Tensor, owner: dict[int, int]) -> Tensor:
    if not owner:
        return old
    changed = old.clone()
    with torch.no_grad():
        changed[list(owner)] = new.to(old)[list(owner.values())]
    return changed
