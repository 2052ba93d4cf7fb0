"""What a video is conditioned on, class or text, as the network takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .class_labels import class_number


@dataclass(frozen=True)
class Condition:
    """The condition of a batch of videos.

    Attributes:
        batch: B.
        class_labels: (B,) int64; None for a model without classes.
        text: (B, L, c); None for a model without text.
        text_mask: (B, L) bool; None = every token counts.
    """

    batch: int
    class_labels: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None

    def repeated(self, copies: int) -> Condition:
        """Each video's condition `copies` times, next to one another."""
        parts = [None if part is None else part.repeat_interleave(copies, 0) for part in self._parts()]
        return Condition(self.batch * copies, *parts)

    def to(self, device: torch.device, dtype: torch.dtype) -> Condition:
        """The same on `device`, text in `dtype`."""
        labels, text, mask = (None if part is None else part.to(device) for part in self._parts())
        return Condition(self.batch, labels, None if text is None else text.to(dtype), mask)

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.class_labels, self.text, self.text_mask

    def arguments(self) -> dict[str, Tensor]:
        """Keyword arguments of the network."""
        named = {
            "class_labels": self.class_labels,
            "encoder_hidden_states": self.text,
            "encoder_attention_mask": self.text_mask,
        }
        return {name: value for name, value in named.items() if value is not None}


def class_condition(class_labels: Any, batch: int, names: Sequence[str], num_classes: int) -> Tensor | None:
    """Labels (B,) int64 from names or numbers; `num_classes` stands for none.

    Args:
        class_labels: a class or one for each video; None for none.
        batch: B.
        names: of the classes, may be empty.
        num_classes: 0 for a model without classes.

    Raises:
        ValueError: an unknown class, or as many as there are videos are not given.
    """
    if class_labels is None:
        return torch.full((batch,), num_classes) if num_classes else None
    if not num_classes:
        raise ValueError(f"class_labels must be None: the model knows no classes, got {class_labels!r}.")
    if isinstance(class_labels, Tensor | np.ndarray | np.generic):
        class_labels = class_labels.tolist()
    given = list(class_labels) if _is_several(class_labels) else [class_labels]
    if len(given) == 1:
        given = given * batch
    if len(given) != batch or not given:
        raise ValueError(f"class_labels must hold one class for each of {batch} videos, got {len(given)}.")
    return torch.tensor([class_number(label, names, num_classes) for label in given])


def text_condition(
    prompt: str | Sequence[str] | None,
    text: Mapping[str, Any],
    name: str,
    batch: int,
    width: int | None,
    tokenizer: Any,
    text_encoder: Any,
) -> Callable[[], tuple[Tensor | None, Tensor | None]]:
    """Check prompts, or embeddings made elsewhere; the result makes text (B, L, c) and its mask (B, L) of them.

    Args:
        prompt: one, or one for each video.
        text: may hold f"{name}_embeds" (B, L, c) instead, and f"{name}_attention_mask" (B, L) of them.
        name: "prompt" or "negative_prompt".
        batch: B.
        width: c of the model; None for a model without text.
        tokenizer: of the pipeline, None if it has none.
        text_encoder: of the pipeline, None if it has none.

    Raises:
        ValueError: both or neither where the model needs one, or a wrong shape or number.
    """
    embeddings, mask = text.get(f"{name}_embeds"), text.get(f"{name}_attention_mask")
    if width is None:
        if prompt is not None or embeddings is not None:
            raise ValueError(f"{name} and {name}_embeds must be None: the model takes no text.")
        return lambda: (None, None)
    if (prompt is None) == (embeddings is None):
        raise ValueError(f"pass exactly one of {name} and {name}_embeds: the model is conditioned on text.")
    if prompt is not None:
        if tokenizer is None or text_encoder is None:
            raise ValueError(f"{name} needs a pipeline with tokenizer and text_encoder; pass {name}_embeds instead.")
        if mask is not None:
            raise ValueError(f"{name}_attention_mask belongs to {name}_embeds, got it with {name}.")
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if wrong := [one for one in texts if not isinstance(one, str)]:
            raise ValueError(f"{name} must be a text or a list of texts, got {wrong[0]!r} in it.")
        _check_number(name, len(texts), batch)
        return lambda: _for_all(batch, *_encode(texts, tokenizer, text_encoder))
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 3 or embeddings.shape[2] != width:
        got = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise ValueError(f"{name}_embeds must be (B, L, {width}), got {got}.")
    if mask is not None and mask.shape != embeddings.shape[:2]:
        raise ValueError(f"{name}_attention_mask must be {tuple(embeddings.shape[:2])}, got {tuple(mask.shape)}.")
    if mask is not None and not mask.bool().any(dim=1).all():
        empty = int(mask.bool().any(dim=1).logical_not().nonzero()[0])
        raise ValueError(f"{name}_attention_mask must leave each text a token, got none for text {empty}.")
    _check_number(f"{name}_embeds", len(embeddings), batch)
    return lambda: _for_all(batch, embeddings, mask)


def negative_text(
    text: Mapping[str, Any], batch: int, width: int | None, tokenizer: Any, text_encoder: Any
) -> Callable[[], tuple[Tensor | None, Tensor | None]] | None:
    """What guidance moves away from: the negative prompt, else the empty one; None if nothing can encode it."""
    prompt = text.get("negative_prompt")
    if width is not None and prompt is None and text.get("negative_prompt_embeds") is None:
        if tokenizer is None or text_encoder is None:
            return None
        prompt = ""
    return text_condition(prompt, text, "negative_prompt", batch, width, tokenizer, text_encoder)


def count_videos(given: int | None, class_labels: Any, prompt: Any, prompt_embeds: Any) -> int:
    """B, as given frames say it, else as the longest of the conditions says it; 1 if none does.

    Args:
        given: B of given frames; None for none.
        class_labels, prompt, prompt_embeds: as of the pipeline.
    """
    if given is not None:
        return given
    counts = [len(value) for value in (class_labels, prompt, prompt_embeds) if _is_several(value)]
    return max([*counts, 1])


def make_conditions(
    config: Mapping[str, Any],
    class_names: Sequence[str],
    tokenizer: Any,
    text_encoder: Any,
    class_labels: Any,
    prompt: Any,
    batch: int,
    copies: int = 1,
    **text: Any,
) -> tuple[Condition, Condition | None]:
    """What the videos are conditioned on, and what guidance moves away from; None without a condition.

    Args:
        config: of the network.
        class_names: may be empty.
        tokenizer: None if there is none.
        text_encoder: None if there is none.
        class_labels, prompt: as of the pipeline.
        batch: B, before `copies`.
        copies: videos for each of them.
        text: some of `TEXT_OPTIONS`.

    Raises:
        ValueError: a condition that the model does not take, or another number of them; before any text is encoded.
        TypeError: an option that is not one.
    """
    if unknown := set(text) - TEXT_OPTIONS:
        raise TypeError(f"unexpected keyword argument {sorted(unknown)[0]!r}.")
    classes, width = config["num_classes"], config["cross_attention_dim"]
    labels = class_condition(class_labels, batch, class_names, classes)
    positive = text_condition(prompt, text, "prompt", batch, width, tokenizer, text_encoder)
    negative = negative_text(text, batch, width, tokenizer, text_encoder)
    words = positive()
    condition = Condition(batch, labels, *words).repeated(copies)
    if class_labels is None and words[0] is None:
        return condition, None
    none = torch.full((batch,), classes) if classes else None
    if negative is not None:
        away = negative()
    else:
        assert words[0] is not None
        away = torch.zeros_like(words[0]), words[1]
    return condition, Condition(batch, none, *away).repeated(copies)


TEXT_OPTIONS = {
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
}


def _is_several(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_number(name: str, count: int, batch: int) -> None:
    if count not in {1, batch}:
        raise ValueError(f"{name} must hold one text for each of {batch} videos, got {count}.")


def _for_all(batch: int, embeddings: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    mask = None if mask is None else mask.bool().expand(batch, -1)
    return embeddings.expand(batch, -1, -1), mask


@torch.no_grad()
def _encode(texts: list[str], tokenizer: Any, text_encoder: Any) -> tuple[Tensor, Tensor]:
    tokens = tokenizer(texts, padding="longest", truncation=True, return_tensors="pt").to(text_encoder.device)
    return text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0], tokens.attention_mask
