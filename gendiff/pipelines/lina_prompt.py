"""Prompts as people hand them over, and their embeddings edited along causal factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gendiff.samplers.intervention import Intervention

from .factor_directions import FactorDirections
from .registry import suggest

if TYPE_CHECKING:
    from .lina import LINAPipeline

TEMPLATES = 16
"""Prompts that a factor's direction is averaged over, at most."""


def typed_prompts(prompt: str | Sequence[str], count: int | None = None) -> list[str]:
    """A list of prompts from one or several; one is repeated to `count`.

    Raises:
        ValueError: no prompt, one that is no text, or a wrong number of them.
    """
    prompts = [prompt] * (count or 1) if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"prompt must be a text or a list of one or more, got {prompt!r}.")
    if count is not None and len(prompts) != count:
        raise ValueError(f"counterfactual_prompt must be one or one for each of {count} prompts, got {len(prompts)}.")
    return prompts


def edited_prompts(
    pipe: LINAPipeline, prompts: Sequence[str], embeds: Tensor, words: Tensor, interventions: Sequence[Intervention]
) -> Tensor:
    """Embeddings (B, L, D) moved along each prompt's own causal factors by alpha; `embeds` itself if there is none.

    A factor is a slot of the grammar. Its direction in a prompt is that from the sentences with the slot's other value
    to those with the prompt's own, averaged over what else a sentence may say.

    Raises:
        ValueError: alpha names no slot.
    """
    if not any(one.gate and any(one.alpha.values()) for one in interventions):
        return embeds
    slots = list(pipe.grammar.slots)
    for one in interventions:
        if unknown := [name for name in one.alpha if name not in slots]:
            raise ValueError(f"alpha has {unknown[0]!r}; {suggest(unknown[0], slots)}")
    edited = embeds.clone()
    for i, (text, one) in enumerate(zip(prompts, interventions, strict=True)):
        alpha = {name: value for name, value in one.alpha.items() if value and one.gate}
        if alpha:
            directions = FactorDirections.fit(pipe, {name: _pairs(pipe, text, name) for name in alpha})
            row = torch.tensor([i], device=embeds.device)
            edited[i] = directions.edit(embeds[row], words[row], alpha)[0]
    return edited


def _pairs(pipe: LINAPipeline, prompt: str, slot: str) -> list[tuple[str, str]]:
    """Sentences with the prompt's value of a slot, and the same with its other value."""
    value = pipe.grammar.values(prompt)[slot]
    same = [text for text in pipe.grammar.prompts() if pipe.grammar.values(text)[slot] == value]
    chosen = same[:: max(1, len(same) // TEMPLATES)][:TEMPLATES]
    return [(text, pipe.grammar.counterfactual(text, slot)) for text in chosen]
