"""Checks of the random generators that a call is given."""

from __future__ import annotations

from typing import Any

import torch


def check_generator(generator: Any, batch: int) -> None:
    """Raise ValueError unless it is None, a generator, or a list of one for each of `batch` images."""
    several = generator if isinstance(generator, list) else [] if generator is None else [generator]
    wrong = [type(one).__name__ for one in several if not isinstance(one, torch.Generator)]
    if wrong:
        raise ValueError(f"generator must be a torch.Generator, or a list of one for each image, got {wrong[0]}.")
    if isinstance(generator, list) and len(generator) != batch:
        raise ValueError(f"generator must hold one generator for each of {batch} images, got {len(generator)}.")
