"""Put an intervention under any diffusers pipeline, for the length of a `with` block, without editing it.

    with attach(pipe, Intervention(lam=2.0), prompt_conditions(pipe, prompt, counterfactual)) as run:
        image = pipe(prompt).images[0]
    run.nfe

While attached, the pipeline walks a copy of its scheduler (`lina_stepping`) and its denoisers carry two hooks
(`lina_recorder`). Both go when the block ends, also by an exception. gendiff's realisation of LINA: that such
interventions exist is stated by Yu & Lu 2025 (arXiv 2512.13290), the formulas and this way of attaching are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from gendiff.samplers.intervention import Intervention

from .lina_conditions import Conditions
from .lina_edits import PromptEdit
from .lina_families import EMBEDS, denoisers
from .lina_recorder import Recorder
from .lina_stepping import SteeredSteps

_ATTACHED: WeakSet[Any] = WeakSet()
"""Pipelines and denoisers under an intervention now."""


class Attachment:
    """What `attach` hands out; read it after the pipeline was called.

    Attributes:
        scheduler: the one that the pipeline walks: a copy of its own, or its own where nothing is attached.
    """

    def __init__(self, scheduler: Any, recorder: Recorder | None = None, steps: SteeredSteps | None = None) -> None:
        self.scheduler, self._recorder, self._steps = scheduler, recorder, steps

    @property
    def rows(self) -> int | None:
        """Rows that denoisers evaluated in the last call of the pipeline; None where nothing is attached."""
        return None if self._recorder is None else self._recorder.rows

    @property
    def nfe(self) -> float | None:
        """Rows by batch size; None where nothing is attached, or before the first step."""
        if self._recorder is None or self._steps is None or not self._steps.batch:
            return None
        return self._recorder.rows / self._steps.batch


@contextmanager
def attach(pipe: Any, intervention: Intervention, conditions: Conditions | None = None) -> Iterator[Attachment]:
    """Run `pipe` under `intervention` inside the block.

    An intervention that is the identity, or whose gate is shut, attaches nothing at all: the pipeline is untouched.

    Args:
        pipe: a diffusers pipeline with a scheduler and a `unet` or `transformer` that reads `encoder_hidden_states`.
        intervention: strengths, window and warp.
        conditions: what it needs beside, e.g. from `prompt_conditions`; a warp alone needs none.

    Raises:
        TypeError: the pipeline offers no route; names its class.
        RuntimeError: already attached, to it or to a pipeline that shares a denoiser.
        ValueError: the conditions lack something; inside the block, embeddings that do not fit the pipeline's calls.
    """
    modules = denoisers(pipe)
    if any(one in _ATTACHED for one in (pipe, *modules)):
        raise RuntimeError(f"already attached: {type(pipe).__name__} is under an intervention; leave its block first.")
    if intervention.is_identity:
        yield Attachment(getattr(pipe, "scheduler", None))
        return
    _check_route(pipe, bool(modules))
    given = Conditions() if conditions is None else conditions
    given.check(pipe, intervention)
    edits = given.edited if any(intervention.alpha.values()) else None
    _check_caches(modules, edits is not None)
    keep = bool(intervention.lam or intervention.rho)
    # The edit asks the steps where they are, the steps tell it when a run begins.
    steps: SteeredSteps | None = None
    edit = None
    if edits is not None and given.prompt is not None:
        edit = PromptEdit(given.prompt, edits, lambda: steps is not None and steps.acts())
    recorder = Recorder(modules, keep, edit)
    steps = SteeredSteps(pipe, intervention, given, recorder)
    steps.edit = edit
    plain, owners = pipe.scheduler, [pipe, *modules]
    try:
        for owner in owners:
            _ATTACHED.add(owner)
        pipe.scheduler = steps.scheduler
        with recorder:
            yield Attachment(steps.scheduler, recorder, steps)
    finally:
        pipe.scheduler = plain
        for owner in owners:
            _ATTACHED.discard(owner)


def _check_route(pipe: Any, has_denoiser: bool) -> None:
    name, scheduler = type(pipe).__name__, getattr(pipe, "scheduler", None)
    if any(base.__name__ == "ModularPipeline" for base in type(pipe).__mro__):
        raise TypeError(f"{name} is modular: give it a guider, pipe.update_components(guider=LINAGuidance(...)).")
    if not has_denoiser:
        raise TypeError(f"{name} offers no route: it has no unet or transformer that takes {EMBEDS}.")
    if not (hasattr(scheduler, "step") and hasattr(scheduler, "set_timesteps")):
        raise TypeError(f"{name} offers no route: it has no scheduler with set_timesteps and step.")


def _check_caches(modules: list[Any], edits: bool) -> None:
    """Raise ValueError where steps would reuse what was computed under another prompt."""
    for module in modules:
        if edits and getattr(module, "is_cache_enabled", False):
            raise ValueError(
                f"alpha changes the prompt inside a run, but {type(module).__name__} caches between steps: "
                "call disable_cache() first."
            )
