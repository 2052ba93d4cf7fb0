"""A training run in one process: modules, optimiser, averages, and how one step changes them."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from .checkpoint import read_facts, read_state, save_checkpoint
from .data_order import DataOrder, step_seed
from .methods import Method
from .optimizer import make_optimizer, make_schedule
from .progress import Meter
from .recipe import Recipe, check_arguments


class TrainStep(nn.Module):
    """The trained modules and the objective as one module, so that data parallelism has one thing to wrap.

    Args:
        components: the pipeline's by name; a module is trained if a parameter of it requires gradients.
        objective: see `Method.objective`.

    Raises:
        ValueError: nothing to train.
    """

    def __init__(self, components: Mapping[str, Any], objective: Callable[..., dict[str, Tensor]]):
        super().__init__()
        modules = {name: module for name, module in components.items() if isinstance(module, nn.Module)}
        trained = {name: m for name, m in modules.items() if any(p.requires_grad for p in m.parameters())}
        if not trained:
            raise ValueError("the pipeline has no module with a parameter to train.")
        for name, module in modules.items():
            module.train(name in trained)
        self.trained = nn.ModuleDict(trained)
        self._components = dict(components)
        self._objective = objective

    def forward(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars by name, as the objective gives them."""
        return self._objective(self._components, batch, generator)


class Run:
    """Everything that changes while training goes on.

    The data and the noise of a micro-batch follow from its number alone, so `save` and `load` move the whole state.

    Attributes:
        step: optimiser steps done.
        seconds: spent on them, before resumptions too.
        measured: what `finish` has to say of the final weights, in Markdown.
    """

    def __init__(self, recipe: Recipe, method: Method, dataset: Any, pipeline: Any, accelerator: Accelerator):
        self.recipe, self.method, self.dataset = recipe, method, dataset
        self.pipeline, self.accelerator = pipeline, accelerator
        self.step, self.seconds = 0, 0.0
        self.measured: str | None = None
        self._meter, self._read_at = Meter(), (0, 0.0)
        settings = recipe.train
        pipeline.to(accelerator.device)
        check_arguments("objective", recipe.objective, _options(method.objective))
        train_step = TrainStep(pipeline.components, partial(method.objective, **recipe.objective))
        self.trained = train_step.trained
        if settings.channels_last:
            self._to_memory_format(torch.channels_last)
        self._try_objective(train_step)
        optimizer = make_optimizer(dict(self.trained.items()), settings, accelerator.device)
        self.schedule = make_schedule(optimizer, settings)
        self.model, self.optimizer = accelerator.prepare(train_step, optimizer)
        decay = settings.ema_decay
        self.ema = EMAModel(self.trained.parameters(), decay=decay, foreach=True) if decay else None

    def _to_memory_format(self, memory_format: torch.memory_format) -> None:
        self.trained.to(memory_format=memory_format)  # type: ignore[call-overload]

    def _try_objective(self, train_step: TrainStep) -> None:
        """Call the objective once, so that what is wrong with it or with `losses` shows before anything is written."""
        batch = default_collate([self.dataset[index] for index in self._order(0).batch(0)])
        with self.accelerator.autocast():
            terms = train_step(send_to_device(batch, self.accelerator.device), self._generator(0))
        check_arguments("losses", self.recipe.losses, terms)

    def _order(self, start: int) -> DataOrder:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return DataOrder(len(self.dataset), self.recipe.train.batch_size, self.recipe.seed, rank, world, start)

    def _generator(self, micro_step: int) -> torch.Generator:
        seed = step_seed(self.recipe.seed, micro_step, self.accelerator.process_index)
        torch.manual_seed(seed)  # dropout layers draw from the global generator
        return torch.Generator().manual_seed(seed)

    def batches(self) -> Iterator[Mapping[str, Tensor]]:
        """Endless micro-batches on the device, from where the run stands.

        An item must follow from its index (or, with `num_workers: 0`, from torch's global generator) to be the same
        after a resumption.
        """
        settings = self.recipe.train
        loader = DataLoader(
            self.dataset,
            batch_sampler=self._order(self.step * settings.gradient_accumulation),
            num_workers=settings.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            # Starting a loader draws a number, which must not come from the generator that dropout uses.
            generator=torch.Generator().manual_seed(self.recipe.seed),
        )
        for batch in loader:
            yield send_to_device(batch, self.accelerator.device, non_blocking=True)

    def advance(self, batches: Iterator[Mapping[str, Tensor]], measure: bool = False) -> dict[str, float]:
        """Take one optimiser step.

        Args:
            batches: from `batches`.
            measure: whether to report, which waits for the device.
        Returns: learning rate and gradient norms before clipping if `measure`, else nothing.
        """
        started, settings = time.perf_counter(), self.recipe.train
        progress, norm = self.step / settings.steps, torch.zeros(())
        report: dict[str, float] = {}
        for index in range(settings.gradient_accumulation):
            generator = self._generator(self.step * settings.gradient_accumulation + index)
            batch = next(batches)
            with self.accelerator.accumulate(self.model):
                terms = self.model(batch, generator)
                loss = torch.stack([term.at(progress) * terms[name] for name, term in self.recipe.losses.items()]).sum()
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    limit = settings.max_grad_norm or float("inf")
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
                    report = self._gradient_report(float(norm), limit) if measure and norm is not None else {}
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            self._meter.add({"loss": loss, **terms})
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.trained.parameters())
        self.step += 1
        self.seconds += time.perf_counter() - started
        return report

    def _gradient_report(self, norm: float, limit: float) -> dict[str, float]:
        # The gradients are clipped by now, all by this factor.
        factor = min(1.0, limit / (norm + 1e-6))
        report = {"learning_rate": self.schedule.get_last_lr()[0], "grad_norm": norm}
        for name, module in self.trained.items():
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            report[f"grad_norm/{name}"] = float(torch.nn.utils.get_total_norm(gradients)) / factor if gradients else 0.0
        return report

    def read_means(self) -> dict[str, float]:
        """Means of the objective's scalars over steps and processes, and the speed, since they were last read."""
        means = self._meter.read(gather_object)
        settings, (step, seconds) = self.recipe.train, self._read_at
        samples = (self.step - step) * settings.gradient_accumulation * settings.batch_size
        means["samples_per_second"] = samples * self.accelerator.num_processes / max(self.seconds - seconds, 1e-9)
        self._read_at = (self.step, self.seconds)
        return means

    def save(self, folder: Path) -> None:
        """Write a checkpoint, from the main process.

        Raises:
            FloatingPointError: a weight is not finite; nothing is written.
        """
        for name, module in self.trained.items():
            if not all(torch.isfinite(parameter).all() for parameter in module.parameters()):
                raise FloatingPointError(
                    f"weights of {name} are not finite at step {self.step}: try a lower train.learning_rate, or "
                    "mixed_precision: no. The last checkpoint is from before."
                )
        if self.accelerator.is_main_process:
            state = {name: holder.state_dict() for name, holder in self._stateful().items()}
            facts = {
                "seconds": self.seconds,
                "world": self.accelerator.num_processes,
                "recipe": self.recipe.to_dict(),
            }
            save_checkpoint(folder, self.step, state, facts, self.recipe.train.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path) -> None:
        """Go to where the run was when it wrote `checkpoint`."""
        facts, state = read_facts(checkpoint), read_state(checkpoint)
        for name, holder in self._stateful().items():
            holder.load_state_dict(state[name])
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
        self.step, self.seconds = facts["step"], facts["seconds"]
        self._read_at = (self.step, self.seconds)

    def _stateful(self) -> dict[str, Any]:
        holders = {"modules": self.trained, "optimizer": self.optimizer, "schedule": self.schedule, "ema": self.ema}
        holders["scaler"] = self.accelerator.scaler
        return {name: holder for name, holder in holders.items() if holder is not None}

    @contextmanager
    def averaged(self) -> Iterator[Any]:
        """The pipeline with averaged weights in evaluation mode; training state comes back afterwards."""
        parameters = list(self.trained.parameters())
        if self.ema is not None:
            self.ema.store(parameters)
            self.ema.copy_to(parameters)
        self.trained.eval()
        self.pipeline.set_progress_bar_config(disable=True)
        try:
            yield self.pipeline
        finally:
            self.pipeline.set_progress_bar_config()
            self.trained.train()
            if self.ema is not None:
                self.ema.restore(parameters)

    def finish(self) -> Any:
        """Leave the averaged weights in the pipeline, in evaluation mode, let the method finish it, and return it."""
        if self.ema is not None:
            self.ema.copy_to(self.trained.parameters())
        self._to_memory_format(torch.contiguous_format)
        self.trained.eval()
        self.measured = self.method.finish(self.pipeline, self.dataset)
        return self.pipeline


def _options(objective: Callable[..., Any]) -> list[str]:
    """Arguments that a recipe may give: those after models, batch and generator."""
    return list(inspect.signature(objective).parameters)[3:]
