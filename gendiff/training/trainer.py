"""The one trainer: any method, one process or many, killed and resumed to the same bits."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    is_tensorboard_available,
    set_seed,
)

from .methods import Method, get_method
from .progress import Display, Log
from .recipe import Recipe
from .results import save_final, save_picture
from .run import Run
from .run_folder import RunFolder


class TrainingStopped(Exception):
    """A signal ended the run early; a checkpoint of its last step is on disk."""


def train(
    recipe: Recipe, output_dir: str | Path, resume: bool = False, *, method: Method | None = None, dataset: Any = None
) -> Any:
    """Train a pipeline and save it in `output_dir/final`.

    Works the same in one process and in many. A run that was killed goes on from its newest checkpoint, and on a CPU
    ends with the weights, bit for bit, of one that was not.

    Args:
        recipe: see `load_recipe`.
        output_dir: holds checkpoints/, previews/, log.jsonl, recipe.yaml and at the end final/.
        resume: go on from the newest checkpoint in `output_dir`, from the start if there is none.
        method: instead of the one registered for `recipe.task`.
        dataset: instead of the one that `recipe.data` names.
    Returns: the pipeline in evaluation mode with the final weights: averaged, if the recipe asks for an average.

    Raises:
        ValueError: before anything is written: a recipe, folder or dataset that cannot be used.
        FloatingPointError: the loss or the weights stopped being finite; the last checkpoint is from before.
        TrainingStopped: SIGINT or SIGTERM came; a checkpoint of the last step done is on disk.
    """
    method = method or get_method(recipe.task)
    folder = RunFolder(output_dir)
    accelerator = _accelerator(recipe, folder)
    if accelerator.is_main_process:
        folder.check(recipe, accelerator.num_processes, resume)
    accelerator.wait_for_everyone()
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    dataset = _load_data(recipe) if dataset is None else dataset
    set_seed(recipe.seed)
    run = Run(recipe, method, dataset, method.build(recipe.models, dataset), accelerator)
    if accelerator.is_main_process:
        folder.create(recipe)
    accelerator.wait_for_everyone()
    checkpoint = folder.newest()
    if checkpoint is not None:
        run.load(checkpoint)
    log = Log(folder.log, run.step) if accelerator.is_main_process else None
    _start_tracker(run)
    _loop(run, folder, log)
    pipeline = run.finish()
    if log is not None:
        save_final(pipeline, folder.final, run, log.last)
    accelerator.end_training()
    return pipeline


def _accelerator(recipe: Recipe, folder: RunFolder) -> Accelerator:
    settings = recipe.train
    launched_for_many = "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU") == "True"
    if launched_for_many and not {"RANK", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & os.environ.keys():
        raise ValueError(
            "accelerate launch --cpu started one process only, as it does without MPI. For N processes on a CPU: "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m gendiff train ..."
        )
    return Accelerator(
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation,
        log_with="tensorboard" if settings.tracker == "tensorboard" and is_tensorboard_available() else None,
        project_config=ProjectConfiguration(project_dir=str(folder.path), logging_dir=str(folder.path)),
        # An objective may leave a module out of a step, e.g. under condition dropout.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _load_data(recipe: Recipe) -> Any:
    from gendiff.data import load_dataset

    arguments = dict(recipe.data)
    if "name" not in arguments:
        raise ValueError("data.name is missing.")
    if "split" in arguments:
        raise ValueError("data.split cannot be set: training reads the training split.")
    return load_dataset(arguments.pop("name"), split="train", **arguments)


def _start_tracker(run: Run) -> None:
    # On a resumed run the steps that are made again replace the ones of before.
    run.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": run.step + 1}})


def _loop(run: Run, folder: RunFolder, log: Log | None) -> None:
    """Train to the last step, with all that happens between steps."""
    settings, main = run.recipe.train, run.accelerator.is_main_process
    with (
        Display(run.recipe.name, settings.steps, run.step, quiet=not main) as display,
        _stop_signals() as stop,
    ):
        display.say(_opening(run, folder))
        batches = run.batches()
        while run.step < settings.steps:
            logging = _due(run.step + 1, settings.log_every, settings.steps)
            report = run.advance(batches, measure=logging)
            display.step(run.step)
            if logging:
                _log(run, report, log, display)
            stopping = _agree_to_stop(run, stop)
            if stopping or _due(run.step, settings.checkpoint_every, settings.steps):
                run.save(folder.checkpoints)
            if run.recipe.preview.every and _due(run.step, run.recipe.preview.every, settings.steps):
                _preview(run, folder)
            if stopping and run.step < settings.steps:
                cause = signal.Signals(stop[0]).name if stop else "a signal to another process"
                raise TrainingStopped(
                    f"stopped by {cause} at step {run.step} of {settings.steps}; continue with --resume."
                )


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _opening(run: Run, folder: RunFolder) -> str:
    settings, world = run.recipe.train, run.accelerator.num_processes
    where = f"{world} x {run.accelerator.device.type}" if world > 1 else str(run.accelerator.device)
    start = f"from step {run.step}" if run.step else "from the start"
    note = "" if settings.tracker == "none" or is_tensorboard_available() else "; tensorboard is not installed"
    return f"training {run.recipe.name} {start} to step {settings.steps} on {where}, in {folder.path}{note}"


def _log(run: Run, report: dict[str, float], log: Log | None, display: Display) -> None:
    means = run.read_means()
    wrong = [name for name in ("loss", *run.recipe.losses) if not math.isfinite(means[name])]
    if wrong:
        raise FloatingPointError(
            f"{', '.join(wrong)} stopped being finite by step {run.step}: try a lower train.learning_rate, or "
            "mixed_precision: no. The last checkpoint is from before."
        )
    row = {"step": run.step, **means, **report, "seconds": run.seconds}
    run.accelerator.log({k: v for k, v in row.items() if k != "step" and math.isfinite(v)}, step=run.step)
    if log is not None:
        log.append(row)
    display.row(row)


def _preview(run: Run, folder: RunFolder) -> None:
    if run.accelerator.is_main_process:
        generator = torch.Generator().manual_seed(run.recipe.seed)
        with run.averaged() as pipeline, torch.no_grad():
            picture = run.method.preview(pipeline, run.dataset, generator)
        if picture is not None:
            save_picture(picture, folder.previews / f"step-{run.step:08d}.png")
    run.accelerator.wait_for_everyone()


def _agree_to_stop(run: Run, stop: list[int]) -> bool:
    """Whether any process got a signal: all must leave the loop at the same step."""
    world, device = run.accelerator.num_processes, run.accelerator.device
    if world == 1:
        return bool(stop)
    # On an accelerator the question makes the host wait, so it is asked only where the log waits anyway.
    if device.type != "cpu" and not _due(run.step, run.recipe.train.log_every, run.recipe.train.steps):
        return False
    asked = torch.tensor(float(bool(stop)), device=device)
    return bool(run.accelerator.reduce(asked, "sum").item())  # type: ignore[union-attr]


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one of a kind acts as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, remember)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
