"""Which tasks there are, and which checkpoints the package holds. Names only: reading them imports no network."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@dataclass(frozen=True)
class Task:
    """What a user can ask for.

    Attributes:
        pipeline: full path of the pipeline class; imported only when it is needed.
        checkpoint: name of the built-in checkpoint used when the caller names none.
        summary: one line for listings.
    """

    pipeline: str
    checkpoint: str
    summary: str

    @property
    def class_name(self) -> str:
        return self.pipeline.rpartition(".")[2]

    def load_class(self) -> Any:
        """Import and return the pipeline class."""
        module, _, name = self.pipeline.rpartition(".")
        return getattr(importlib.import_module(module), name)


TASKS: dict[str, Task] = {
    "causal-video": Task(
        pipeline="gendiff.pipelines.causal_video.CausalVideoPipeline",
        checkpoint="causal-video-balls",
        summary="Videos of any length, chunk after chunk; finished frames are computed once and cached.",
    ),
    "counterfactual": Task(
        pipeline="gendiff.pipelines.counterfactual.CounterfactualPipeline",
        checkpoint="counterfactual-handwriting",
        summary="What would this image look like, had one of its causes been different?",
    ),
    "image-generation": Task(
        pipeline="gendiff.pipelines.image_generation.ImageGenerationPipeline",
        checkpoint="ddpm-fashion",
        summary="Images by class from a plain diffusion model, the baseline of every comparison.",
    ),
    "lina": Task(
        pipeline="gendiff.pipelines.lina.LINAPipeline",
        checkpoint="lina-shadows",
        summary="Text to image, steered towards physically right pictures by interventions that fit each prompt.",
    ),
    "masked-generation": Task(
        pipeline="gendiff.pipelines.masked_generation.MaskedGenerationPipeline",
        checkpoint="maskgit-fashion",
        summary="Images from hidden tokens, revealed a few at a time; ReCAP makes steps cheap by reusing context.",
    ),
    "next-frequency": Task(
        pipeline="gendiff.pipelines.next_frequency.NextFrequencyPipeline",
        checkpoint="next-frequency-fashion",
        summary="Images in a few steps, coarse to fine, each step one frequency band or one scale.",
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """A saved pipeline that ships with the package; `task` is None if no task of this version uses its class."""

    name: str
    path: Path
    task: str | None


def builtin_checkpoints() -> dict[str, Checkpoint]:
    """Checkpoints of this installation by name, sorted."""
    found = {}
    for index in sorted(CHECKPOINTS.glob("*/model_index.json")):
        class_name = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
        found[index.parent.name] = Checkpoint(index.parent.name, index.parent, task_of(class_name))
    return found


def task_of(class_name: str) -> str | None:
    """Name of the task whose pipeline class is called `class_name`."""
    return next((name for name, task in TASKS.items() if task.class_name == class_name), None)


def get_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        ValueError: there is none; the message lists the known ones and the nearest.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; {suggest(name, TASKS)}")
    return TASKS[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: what is known, and what was probably meant."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"known: {', '.join(known) or 'none'}." + (f" Did you mean {near[0]!r}?" if near else "")
