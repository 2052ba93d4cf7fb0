"""Several calls of a pipeline as one: arguments dealt out to prompts, results joined, and what a call walked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendiff.samplers.loop import steps_of
from gendiff.samplers.noise_levels import noise_level, noise_share

from .lina_families import denoisers
from .lina_recorder import Recorder

RESULTS = ("images", "frames")
"""What pipelines call what they made."""
PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt")


@contextmanager
def counting(pipe: Any, wanted: bool) -> Iterator[Recorder | None]:
    """Count the rows of denoisers, if `wanted`."""
    if not wanted:
        yield None
        return
    with Recorder(denoisers(pipe), keep=False) as recorder:
        yield recorder


def result_of(output: Any) -> Any:
    """Images or videos of a pipeline's output.

    Raises:
        TypeError: it has neither.
    """
    for name in RESULTS:
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    raise TypeError(f"{type(output).__name__} has neither images nor frames.")


def walked(scheduler: Any) -> list[float]:
    """The noise shares of a scheduler's steps, 1 first; empty where it has no levels to read."""
    try:
        return [noise_share(noise_level(scheduler, step)) for step in steps_of(scheduler)]
    except ValueError:
        return []


def dealt(kwargs: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The arguments of each prompt's call: lists of generators and rows of latents are cut, the rest is the same.

    Raises:
        ValueError: generators or latents are not one for each image.
    """
    if count == 1:
        return [dict(kwargs)]
    each = next((kwargs[name] for name in PER_PROMPT if kwargs.get(name)), 1)
    calls = [dict(kwargs) for _ in range(count)]
    for name in ("generator", "latents"):
        value = kwargs.get(name)
        if not isinstance(value, list | Tensor):
            continue
        if len(value) != each * count:
            raise ValueError(f"{name} must be one for each of {each * count} images, got {len(value)}.")
        for i, call in enumerate(calls):
            call[name] = value[i * each : (i + 1) * each]
    return calls


def joined(results: Sequence[Any]) -> Any:
    """Results of several calls in one: tensors and arrays by rows, lists end to end."""
    if len(results) == 1:
        return results[0]
    if isinstance(results[0], Tensor):
        return torch.cat(list(results))
    if isinstance(results[0], np.ndarray):
        return np.concatenate(list(results))
    return [image for result in results for image in result]
