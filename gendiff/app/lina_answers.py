"""What a steered model draws for the gallery: the plain pictures and its own, from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gendiff.pipelines.lina import LINAPipeline
from gendiff.pipelines.lina_output import LINAPipelineOutput

from .lina_verdicts import Verdict, verdicts
from .lina_worlds import KINDS, Kind, pick, true_picture, world_class

FIRST_NOISE = 9000
"""Seed of the first picture, less that of the page: no calibration of a model used noise from here on."""


@dataclass(frozen=True)
class Side:
    """One of the two ways to draw.

    Attributes:
        images: (N, 3, S, S) in [0, 1].
        found: a verdict for each, or none.
        output: of the call.
    """

    images: Tensor
    found: list[Verdict]
    output: LINAPipelineOutput

    @property
    def right(self) -> int:
        """Pictures that are as asked throughout."""
        return sum(verdict.passed for verdict in self.found)

    def mean(self, score: str) -> float:
        """Mean of a score of the verdicts."""
        return sum(verdict.scores[score] for verdict in self.found) / len(self.found)


@dataclass(frozen=True)
class Answer:
    """Prompts of one kind, drawn both ways.

    Attributes:
        kind: what the prompts have in common.
        calibrated: whether the predictor was made with prompts of this kind; None where that is unknown.
        seed: noise of the first picture; the next one has the next.
        prompts: N texts, a picture each.
        truths: right pictures (N, 3, S, S) in [0, 1], None where no rules are known.
        plain, lina: the two ways.
    """

    kind: Kind
    calibrated: bool | None
    seed: int
    prompts: list[str]
    truths: Tensor | None
    plain: Side
    lina: Side


def kinds_of(pipe: LINAPipeline) -> dict[Kind, list[str]]:
    """Kinds of prompts to show, and all prompts of each."""
    name = pipe.config["world"]
    if name not in KINDS:
        return {Kind("", "Prompts", "Sentences that the model knows."): pipe.grammar.prompts()}
    return {kind: world_class(name).prompts(kind.name) for kind in KINDS[name]}


def answers(pipe: LINAPipeline, count: int, seed: int, steps: int) -> list[Answer]:
    """`count` prompts of each kind that `seed` chooses, a picture each, plain and with LINA.

    Args:
        pipe: with a predictor, or without one; then both ways are the same.
        count: prompts of each kind, at most.
        seed: chooses prompts and noise.
        steps: of each picture.
    """
    found = []
    for number, (kind, prompts) in enumerate(kinds_of(pipe).items()):
        chosen = pick(prompts, count, seed)
        first = FIRST_NOISE + seed + number * count
        plain, lina = (_side(pipe, chosen, first, steps, one) for one in ("off", None))
        truths = [true_picture(pipe.config["world"], pipe.grammar.values(text)) for text in chosen]
        drawn = [truth for truth in truths if truth is not None]
        found.append(
            Answer(kind, _calibrated(pipe, kind), first, chosen, torch.stack(drawn) if drawn else None, plain, lina)
        )
    return found


def _side(pipe: LINAPipeline, prompts: Sequence[str], first: int, steps: int, intervention: str | None) -> Side:
    output = pipe(
        prompts,
        num_inference_steps=steps,
        intervention=intervention,
        generator=[torch.Generator().manual_seed(first + i) for i in range(len(prompts))],
        output_type="pt",
    )
    assert isinstance(output, LINAPipelineOutput)
    images = output.images.float().cpu()
    return Side(images, verdicts(pipe.config["world"], images, prompts, output.graphs[0]), output)


def _calibrated(pipe: LINAPipeline, kind: Kind) -> bool | None:
    name = pipe.config["world"]
    if pipe.predictor is None or name not in KINDS:
        return None
    return kind.name in world_class(name).calibration
