"""What images are to show, as the network takes it: classes by number or name, or texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .amused import AESTHETIC_SCORE, encode_prompts
from .class_labels import class_numbers


def class_labels_of(
    given: Any, per_label: int, names: Sequence[str], num_classes: int, unconditional: bool = False
) -> Tensor:
    """(B,) int64 on the CPU, -1 = no class.

    Args:
        given: see `class_numbers`.
        per_label: images for each.
        names: of the classes; may be empty.
        num_classes: 0 for a model that knows none.
        unconditional: draw without a class from a model that knows some.

    Raises:
        TypeError: neither a number nor a name.
        ValueError: a class where none is known, none where some are, or an unknown one.
    """
    if not num_classes and given is not None:
        raise ValueError(f"class_labels must be None: the model knows no classes, got {given!r}.")
    if num_classes and given is None and not unconditional:
        raise ValueError("class_labels is missing: give a class, or unconditional=True to draw without one.")
    if unconditional and given is not None:
        raise ValueError(f"class_labels must be None if unconditional, got {given!r}.")
    return class_numbers(given, per_label, names, num_classes)


def texts_of(prompt: Any, negative_prompt: Any, per_prompt: int) -> tuple[list[str], list[str]]:
    """Texts and what to move away from, one of each for each image.

    Raises:
        ValueError: something other than texts, or another number of negative ones.
    """
    wanted = [prompt] if isinstance(prompt, str) else prompt
    unwanted = "" if negative_prompt is None else negative_prompt
    for name, texts in (("prompt", wanted), ("negative_prompt", unwanted)):
        several = [texts] if isinstance(texts, str) else texts
        if not isinstance(several, list | tuple) or not several or not all(isinstance(t, str) for t in several):
            raise ValueError(f"{name} must be a text or a list of texts, got {texts!r:.60}.")
    unwanted = [unwanted] * len(wanted) if isinstance(unwanted, str) else list(unwanted)
    if len(unwanted) != len(wanted):
        raise ValueError(f"negative_prompt must be one, or one for each of {len(wanted)} prompts, got {len(unwanted)}.")
    return [t for t in wanted for _ in range(per_prompt)], [t for t in unwanted for _ in range(per_prompt)]


def text_conditions(
    tokenizer: Any,
    text_encoder: Any,
    texts: tuple[list[str], list[str]],
    side: int,
    guided: bool,
    crop: tuple[int, int] = (0, 0),
    aesthetic_score: float = AESTHETIC_SCORE,
) -> tuple[Any, Any]:
    """`TextCondition`s of what is wanted and of what is not; the latter None without guidance.

    Args:
        tokenizer: of the encoder.
        text_encoder: CLIP's.
        texts: from `texts_of`.
        side: of the picture, in pixels.
        guided: whether both are needed.
        crop: see `encode_prompts`.
        aesthetic_score: see `encode_prompts`.
    """

    def encoded(prompts: list[str]) -> Any:
        return encode_prompts(tokenizer, text_encoder, prompts, (side, side), crop, aesthetic_score)

    return encoded(texts[0]), encoded(texts[1]) if guided else None


def class_conditions(labels: Tensor, none: int) -> tuple[Tensor, Tensor]:
    """Classes (B,) and no class (B,), from labels of which -1 is none."""
    return labels.masked_fill(labels < 0, none), torch.full_like(labels, none)
