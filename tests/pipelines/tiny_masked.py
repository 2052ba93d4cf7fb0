"""Calls of a tiny pipeline over hidden tokens: 16 tokens of 16 codes, pictures of 8 x 8 pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gendiff.pipelines.masked_generation import MaskedGenerationPipeline

N, V, SIDE = 16, 16, 8
ORDERS = ["confidence", "halton", "random"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def each(count: int, first: int = 0) -> list[torch.Generator]:
    return [seeded(first + b) for b in range(count)]


def picture(batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, 1, SIDE, SIDE, generator=seeded(seed))


def draw(pipe: MaskedGenerationPipeline, labels: Any = (0, 1, 2), **options: Any) -> Any:
    options = {"num_inference_steps": 6, "generator": seeded(), "output_type": "tokens", **options}
    return pipe(list(labels) if isinstance(labels, tuple) else labels, **options)


class Calls:
    """What the transformer is asked, in order."""

    def __init__(self, pipe: MaskedGenerationPipeline) -> None:
        self.labels: list[list[int]] = []
        self.rows: list[Tensor | None] = []
        self.caches: list[Any] = []
        self.hidden: list[Tensor] = []
        pipe.transformer.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Any) -> None:
        self.hidden.append(args[1])
        self.labels.append(args[2].tolist())
        self.rows.append(kwargs.get("rows"))
        self.caches.append(kwargs.get("cache"))

    def __len__(self) -> int:
        return len(self.labels)
