"""How to load and to call a pipeline of any kind, so that a benchmark need not know which one it times."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from calibration import DTYPES
from diffusers.utils import logging

import gendiff
from gendiff.app.evaluation_pipeline import open_pipeline
from gendiff.data.pipeline_call import DENOISERS
from gendiff.data.pipeline_source import COUNTS
from gendiff.errors import InvalidInputError


@dataclass(frozen=True)
class Work:
    """What to load and how to run it; picklable, so that another process can do the same.

    Attributes:
        task: of gendiff, None where the model's folder says what it is.
        model: built-in name, hub name or folder, of gendiff or of diffusers; None for the task's own.
        steps: `num_inference_steps`; None leaves the pipeline's own.
        compile_mode: of torch.compile for the denoising network, None for none.
        prompt: for pipelines that read text.
        options: further arguments of the call.
    """

    task: str | None = None
    model: str | None = None
    steps: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    compile_mode: str | None = None
    channels_last: bool = False
    seed: int = 0
    prompt: str = "a photograph"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For file names and ids."""
        return Path(self.model).name if self.model else str(self.task)


@dataclass(frozen=True)
class Call:
    """One call of a pipeline with its inputs ready.

    Attributes:
        run: makes the images.
        before: puts the generators back to their seeds, so that every run makes the same images.
    """

    run: Callable[[], Any]
    before: Callable[[], None]


def load(work: Work) -> Any:
    """The pipeline, on its device, without progress bars and safety checker, not yet compiled.

    Raises:
        ValueError, OSError: it cannot be loaded; named in the message.
    """
    logging.disable_progress_bar()
    dtype = DTYPES[work.dtype]
    if work.task is not None:
        pipe = gendiff.pipeline(work.task, work.model, work.device, dtype)
    elif work.model is None:
        raise InvalidInputError("task or model must be given: nothing says which pipeline to time.")
    else:
        pipe = open_pipeline(work.model, work.device, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None
    if work.channels_last:
        network_of(pipe).to(memory_format=torch.channels_last)
    return pipe


def compile_network(pipe: Any, work: Work) -> None:
    """Compile the denoising network in place, if the work says so; the first call then takes the time."""
    if work.compile_mode:
        network_of(pipe).compile(mode=work.compile_mode)


def network_of(pipe: Any) -> torch.nn.Module:
    """The network that is called at every step.

    Raises:
        InvalidInputError: the pipeline has none of the usual names.
    """
    for name in DENOISERS:
        network = getattr(pipe, name, None)
        if isinstance(network, torch.nn.Module):
            return network
    raise InvalidInputError(f"{type(pipe).__name__} has no network called {', '.join(DENOISERS)}.")


def make_call(pipe: Any, work: Work, batch: int) -> Call:
    """The call for `batch` samples: from the table where the pipeline needs its own inputs, else by its signature.

    Raises:
        InvalidInputError: the pipeline wants an argument that nothing here can supply.
    """
    generators = [torch.Generator().manual_seed(work.seed + index) for index in range(batch)]
    arguments = CALLS.get(type(pipe).__name__, arguments_by_signature)(pipe, work, batch)
    parameters = inspect.signature(pipe.__call__).parameters
    if "generator" in parameters:
        arguments["generator"] = generators
    if "num_inference_steps" in parameters and work.steps is not None:
        arguments["num_inference_steps"] = work.steps
    if "output_type" in parameters:
        arguments["output_type"] = "pt"
    unknown = [name for name in work.options if name not in parameters]
    # A pipeline of the table that hands further options on checks them itself.
    checks = type(pipe).__name__ in CALLS and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if unknown and not checks:
        raise InvalidInputError(f"{type(pipe).__name__} takes no {unknown[0]!r}; it takes {', '.join(parameters)}.")
    arguments.update(work.options)

    def before() -> None:
        for index, generator in enumerate(generators):
            generator.manual_seed(work.seed + index)

    def run() -> Any:
        with torch.no_grad():
            return pipe(**arguments)

    return Call(run, before)


def fresh_run(work: Work, batch: int) -> Callable[[], Any]:
    """Load everything and return the call: what a new process needs to do the same work."""
    pipe = load(work)
    compile_network(pipe, work)
    call = make_call(pipe, work, batch)

    def run() -> Any:
        call.before()
        return call.run()

    return run


def counterfactual_arguments(pipe: Any, work: Work, batch: int) -> dict[str, Any]:
    """Images of noise, and one variable set to the middle of its range: what they show does not change the cost."""
    generator = torch.Generator().manual_seed(work.seed)
    variable = pipe.graph.variables[0]
    value = 0 if variable.kind == "categorical" else variable.loc
    images = torch.rand(batch, *pipe.sample_shape, generator=generator).to(pipe.device)
    return {"image": images, "interventions": {variable.name: value}}


def causal_video_arguments(pipe: Any, work: Work, batch: int) -> dict[str, Any]:
    """First frames of noise, and classes in turn or the prompt, where the network takes them."""
    generator = torch.Generator().manual_seed(work.seed)
    arguments: dict[str, Any] = {"image": torch.rand(batch, *pipe.sample_shape, generator=generator).to(pipe.device)}
    if pipe.class_names:
        arguments["class_labels"] = [index % len(pipe.class_names) for index in range(batch)]
    if pipe.text_encoder is not None:
        arguments["prompt"] = [work.prompt] * batch
    return arguments


def masked_generation_arguments(pipe: Any, work: Work, batch: int) -> dict[str, Any]:
    """The prompt, or classes in turn, with names or without, or a number of images, as the network was trained."""
    if pipe.text_encoder is not None:
        return {"prompt": [work.prompt] * batch}
    if pipe.num_classes:
        return {"class_labels": [index % pipe.num_classes for index in range(batch)]}
    return {"num_images_per_prompt": batch}


CALLS: dict[str, Callable[[Any, Work, int], dict[str, Any]]] = {
    "CausalVideoPipeline": causal_video_arguments,
    "CounterfactualPipeline": counterfactual_arguments,
    "MaskedGenerationPipeline": masked_generation_arguments,
}
"""Pipelines whose inputs no signature tells. All others are called by signature: `class_labels` in turn,
`prompt` repeated, or the number of samples by whichever name it has."""


def arguments_by_signature(pipe: Any, work: Work, batch: int) -> dict[str, Any]:
    """Labels, prompts or a number, as the call's parameters have it."""
    parameters = dict(inspect.signature(pipe.__call__).parameters)
    arguments: dict[str, Any] = {}
    count = next((name for name in COUNTS if name in parameters), None)
    classes = _class_count(pipe) if "class_labels" in parameters else 0
    if classes:
        arguments["class_labels"] = [index % classes for index in range(batch)]
        if count == "batch_size":
            arguments["batch_size"] = batch
    elif "prompt" in parameters:
        arguments["prompt"] = [work.prompt] * batch
    elif count is not None:
        arguments[count] = batch
    elif batch > 1:
        raise InvalidInputError(f"{type(pipe).__name__} takes none of {', '.join(COUNTS)}: only batch 1 can be timed.")
    given = {*arguments, "generator", "num_inference_steps", "output_type", *work.options}
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, parameter in parameters.items():
        if name not in given and parameter.default is parameter.empty and parameter.kind not in open_ended:
            raise InvalidInputError(
                f"{type(pipe).__name__} wants {name!r}, which its signature does not explain: give --set {name}=JSON, "
                "or add the pipeline to CALLS in benchmarks/calls.py."
            )
    return arguments


def option(text: str) -> tuple[str, Any]:
    """NAME=VALUE of the command line; the value is JSON, or else a string.

    Raises:
        ValueError: no name, or no equals sign.
    """
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise InvalidInputError(f"--set must look like NAME=VALUE, got {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _class_count(pipe: Any) -> int:
    names = getattr(pipe, "class_names", None)
    if names is not None:
        return len(names)
    config: Any = network_of(pipe).config
    return int(config.get("num_embeds_ada_norm") or config.get("num_class_embeds") or 0)
