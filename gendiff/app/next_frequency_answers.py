"""What a checkpoint of next-frequency or next-scale prediction draws for the gallery, and from which pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendiff.pipelines.next_frequency import NextFrequencyPipeline, NextFrequencyPipelineOutput
from gendiff.pipelines.registry import Checkpoint, builtin_checkpoints

from .examples import Examples, examples_of
from .given_pictures import UNKNOWN
from .next_frequency_pictures import stage_pictures

SAME = ("sample_size", "in_channels", "stages")
"""What the tokenizers of two checkpoints that can be compared agree on."""


@dataclass(frozen=True)
class KeptStages:
    """One picture under m = 0 .. K kept stages.

    Attributes:
        alone: (K + 1, C, S, S), what the kept stages decode to by themselves; grey for none.
        drawn: for each name of a row, (K + 1, C, S, S), the picture with the other stages drawn.
    """

    alone: Tensor
    drawn: Mapping[str, Tensor]


def draw(pipe: NextFrequencyPipeline, labels: Sequence[int], seed: int, **options: Any) -> NextFrequencyPipelineOutput:
    """An image of each class, number i from seed + i, as tensors."""
    output = pipe(
        list(labels),
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(labels))],
        output_type="pt",
        **options,
    )
    assert isinstance(output, NextFrequencyPipelineOutput)
    return output


def drawn(pipe: NextFrequencyPipeline, labels: Sequence[int], seed: int, **options: Any) -> Tensor:
    """The images of `draw`, (B, C, S, S) in [0, 1] on the CPU."""
    return draw(pipe, labels, seed, **options).images.float().cpu()


def examples(pipe: NextFrequencyPipeline, folder: Path, count: int, seed: int) -> Examples:
    """`count` test images of different classes that `seed` chooses; where the data is not here, images of its own."""
    return examples_of(folder, pipe.num_classes, count, seed, lambda labels: drawn(pipe, labels, seed))


def keep_stages(pipe: NextFrequencyPipeline, image: Tensor, label: int, other: int, seed: int) -> KeptStages:
    """`image` (C, S, S) with its first 0 .. K stages kept and the rest drawn, twice as its class and once as another.

    Args:
        label: its class.
        other: another one.
        seed: draw i is from seed + i.
    """
    with torch.no_grad():
        tokens = pipe.vqvae.encode(2 * image[None].to(pipe.device) - 1).tokens
    alone = torch.cat([torch.full_like(image, UNKNOWN)[None], stage_pictures(pipe.vqvae, tokens)[:, 0]])
    names = pipe.class_names or [str(number) for number in range(pipe.num_classes)]
    pictures = [
        drawn(pipe, [label, label, other], seed, image=image[None], keep_stages=kept)
        for kept in range(pipe.num_stages + 1)
    ]
    rows = torch.stack(pictures, dim=1)
    return KeptStages(alone, dict(zip(["Draw 1", "Draw 2", f"As {names[other]}"], rows, strict=True)))


def counterpart(checkpoint: Checkpoint) -> Checkpoint | None:
    """Of a checkpoint with bands, the built-in one of the same images, stages and classes without; None if none is."""
    own = _facts(checkpoint)
    if own["bands"] == "none":
        return None
    for other in builtin_checkpoints().values():
        if other.task == checkpoint.task:
            facts = _facts(other)
            if facts["bands"] == "none" and all(facts[key] == own[key] for key in (*SAME, "classes")):
                return other
    return None


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What decides whether two checkpoints can be compared, read without their weights."""
    tokenizer = json.loads((checkpoint.path / "vqvae" / "config.json").read_text(encoding="utf-8"))
    index = json.loads((checkpoint.path / "model_index.json").read_text(encoding="utf-8"))
    return {
        **{key: tokenizer[key] for key in SAME},
        "bands": tokenizer["band_spacing"],
        "classes": list(dict(index.get("class_names", {})).values()),
    }
