"""What the trainer must know about a method, and where each task keeps it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor


@dataclass(frozen=True)
class Method:
    """A generative method as the trainer sees it: four functions.

    Attributes:
        build: `build(models, dataset)` gives the untrained pipeline; `models` are the recipe's arguments by component.
        objective: `objective(models, batch, generator)` gives scalar tensors by name. `models` maps component names
            to modules and schedulers, `batch` holds stacked items on the device. All randomness comes from
            `generator`, which lives on the CPU. Further arguments come from the recipe's `objective`. Entries that
            the recipe's `losses` do not name are only logged.
        finish: `finish(pipeline, dataset)` is called once, with the final weights, before they are saved; gives
            Markdown for the section "Measured" of the model card, or None.
        preview: `preview(pipeline, dataset, generator)` gives a picture (1 or 3, H, W) in [0, 1], or None.
    """

    build: Callable[[Mapping[str, Mapping[str, Any]], Any], Any]
    objective: Callable[..., dict[str, Tensor]]
    finish: Callable[[Any, Any], str | None] = lambda pipeline, dataset: None
    preview: Callable[[Any, Any, Generator], Tensor | None] = lambda pipeline, dataset, generator: None


_METHODS: dict[str, Method | str] = {
    "causal-video": "gendiff.training.causal_video:METHOD",
    "classification": "gendiff.training.classification:METHOD",
    "counterfactual": "gendiff.training.counterfactual:METHOD",
    "frequency-tokenizer": "gendiff.training.frequency_vq:METHOD",
    "fsq-tokenizer": "gendiff.training.fsq_tokenizer:METHOD",
    "image-generation": "gendiff.training.image_generation:METHOD",
    "lina": "gendiff.training.lina:METHOD",
    "mage": "gendiff.training.mage:METHOD",
    "mar": "gendiff.training.mar:METHOD",
    "masked-generation": "gendiff.training.masked:METHOD",
    "next-frequency": "gendiff.training.next_frequency:METHOD",
}


def method_names() -> tuple[str, ...]:
    """Tasks that can be trained."""
    return tuple(sorted(_METHODS))


def register_method(name: str, method: Method | str) -> None:
    """Make `task: name` trainable; a string "module:attribute" is imported on first use.

    Raises:
        ValueError: the name is taken.
    """
    if name in _METHODS:
        raise ValueError(f"a method for task {name!r} exists already.")
    _METHODS[name] = method


def get_method(name: str) -> Method:
    """The method of a task.

    Raises:
        ValueError: unknown task.
    """
    if name not in _METHODS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(method_names())}.")
    method = _METHODS[name]
    if isinstance(method, str):
        module, attribute = method.split(":")
        method = _METHODS[name] = getattr(importlib.import_module(module), attribute)
    assert isinstance(method, Method)
    return method
