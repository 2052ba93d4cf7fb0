"""Saved pipelines as sources of images to score, one for each number of steps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gendiff.data.pipeline_source import PipelineSource
from gendiff.data.pixels import check_size
from gendiff.data.sources import NAMED
from gendiff.errors import InvalidInputError
from gendiff.pipelines.base import GendiffPipeline, load_pipeline
from gendiff.pipelines.registry import task_of
from gendiff.pipelines.saved import check_folder, read_index
from gendiff.samplers.solvers import solver

from .checkpoint_data import SHIPPED_PART


@dataclass(frozen=True)
class PipelineOrder:
    """What to draw and to score.

    Attributes:
        path: built-in checkpoint, or folder of a pipeline of gendiff or diffusers.
        steps: numbers of steps, one row each.
        num: images of each row.
        reference: real images as typed; None for unseen ones of the checkpoint's own data.
        scheduler: one of `gendiff.samplers.solvers.SOLVERS`; None for the model's own.
        seed: image i is drawn from seed + i.
        batch_size: images in a block.
        resize: side in pixels that all images are brought to.
        device: e.g. "cuda"; None for the CPU.
        call: further arguments of the pipeline's call.
    """

    path: str
    steps: Sequence[int]
    num: int
    reference: str | None = None
    scheduler: str | None = None
    seed: int = 0
    batch_size: int = 64
    resize: int | None = None
    device: str | None = None
    call: Mapping[str, Any] = field(default_factory=dict)


def open_sources(order: PipelineOrder) -> list[PipelineSource]:
    """One source for each number of steps, of one pipeline; balanced classes where it knows any.

    Raises:
        InvalidInputError: the pipeline cannot be scored by its images alone, or an argument does not fit it.
        OSError, ValueError: the pipeline cannot be loaded.
    """
    pipe = open_pipeline(order.path, order.device)
    if order.scheduler is not None:
        _set_scheduler(pipe, order.scheduler)
    config = getattr(getattr(pipe, "scheduler", None), "config", {})
    limit = config.get("num_train_timesteps", max(order.steps))
    for steps in order.steps:
        if not 1 <= steps <= limit:
            raise InvalidInputError(f"--steps must be whole numbers from 1 to {limit}, got {steps}.")
    labels = "balanced" if getattr(pipe, "class_names", ()) else None
    size = check_size("resize", order.resize)
    return [
        PipelineSource(
            pipe,
            order.num,
            order.seed,
            order.batch_size,
            labels,
            resize=size,
            num_inference_steps=steps,
            **order.call,
        )
        for steps in order.steps
    ]


def open_pipeline(path: str, device: str | None = None, **options: Any) -> Any:
    """A built-in checkpoint, or a folder of a pipeline of gendiff or diffusers.

    Args:
        path: its name or folder.
        device: e.g. "cuda"; None for the CPU.
        options: of `from_pretrained`, e.g. `dtype`.

    Raises:
        OSError: a file is missing.
        ValueError: the files are damaged, hold a pickle or name a class that is neither ours nor diffusers', or the
            device cannot be used.
    """
    from diffusers.utils import logging

    logging.disable_progress_bar()  # of loading
    foreign = os.path.isdir(path) and task_of(read_index(path)["_class_name"]) is None
    pipe = _load_diffusers(path, **options) if foreign else load_pipeline(path, **options)
    if device is None:
        return pipe
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInputError(f"--device {device!r} cannot be used on this machine: {reason}") from error


def own_reference(path: str) -> str:
    """Unseen images of the data a checkpoint was trained on, as "dataset:NAME:test".

    Raises:
        InvalidInputError: the checkpoint does not say what it was trained on.
    """
    folder = Path(path if os.path.isdir(path) else GendiffPipeline.download(path))
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise InvalidInputError(f"{folder} holds no recipe.yaml, so its data is unknown: give --reference.")
    name = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]["name"]
    return f"{NAMED}{SHIPPED_PART.get(name, name)}:test"


def _set_scheduler(pipe: Any, name: str) -> None:
    if type(pipe).__name__ == "DDIMPipeline" and name != "ddim":
        # It hands its scheduler arguments that only DDIM takes.
        raise InvalidInputError(f"--scheduler {name}: a DDIMPipeline of diffusers works with ddim only.")
    if getattr(pipe, "scheduler", None) is None:
        raise InvalidInputError(f"--scheduler {name}: a {type(pipe).__name__} has no scheduler to replace.")
    pipe.scheduler = solver(name, pipe.scheduler)


def _load_diffusers(folder: str, **options: Any) -> Any:
    import diffusers

    class_name = check_folder(folder)["_class_name"]
    found = getattr(diffusers, class_name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise InvalidInputError(f"{folder} holds a {class_name}, a pipeline that neither gendiff nor diffusers has.")
    try:
        return found.from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)
    except (ValueError, RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{folder} could not be loaded as a {class_name}: {error}") from error
