"""Around one call of a pipeline: a quiet, repeatable surrounding, a count of network calls, and what was asked for."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

DENOISERS = ("unet", "transformer", "denoiser", "prior", "model", "network")
"""What pipelines call the network that they call at every step, in the order in which names are looked for."""


def networks_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """Networks of a pipeline by name."""
    components = getattr(pipeline, "components", None)
    held = components if isinstance(components, Mapping) else vars(pipeline) if hasattr(pipeline, "__dict__") else {}
    return {name: part for name, part in sorted(held.items()) if isinstance(part, torch.nn.Module)}


class CallCounter:
    """Counts forward passes of a pipeline's denoising network while the block runs; 0 if none is found."""

    def __init__(self, pipeline: Any):
        networks = networks_of(pipeline)
        self._network = next((networks[name] for name in DENOISERS if name in networks), None)
        self.calls = 0

    def __enter__(self) -> CallCounter:
        if self._network is not None:
            self._handle = self._network.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        if self._network is not None:
            self._handle.remove()

    def _count(self, *arguments: Any) -> None:
        self.calls += 1


@contextmanager
def undisturbed(pipeline: Any, threads: int | None, seed: int) -> Iterator[None]:
    """Run a call with progress bars off, networks in evaluation mode, a number of threads and a known global state.

    Everything is put back afterwards, the global random state too: it is seeded because some pipelines and schedulers
    draw from it although they are handed generators.
    """
    bars = getattr(pipeline, "_progress_bar_config", {})
    modules = [module for network in networks_of(pipeline).values() for module in network.modules()]
    training = [module for module in modules if module.training]
    before = torch.get_num_threads()
    cuda = {p.device.index for network in networks_of(pipeline).values() for p in network.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=sorted(cuda)):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        try:
            if hasattr(pipeline, "set_progress_bar_config"):
                pipeline.set_progress_bar_config(**{**bars, "disable": True})
            if threads is not None and threads != before:
                torch.set_num_threads(threads)
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True
            if threads is not None and threads != before:
                torch.set_num_threads(before)
            if hasattr(pipeline, "set_progress_bar_config"):
                pipeline.set_progress_bar_config(**bars)


def call_settings(
    pipeline: Any, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What images of a pipeline depend on besides its weights and seeds, as JSON.

    Returns: `checkpoint` (name or folder it was loaded from, None if built in memory), `scheduler` with its settings,
        `steps` and `guidance` as given or by default, all given `arguments`, `dtype` and `device`.
    """
    scheduler = getattr(pipeline, "scheduler", None)
    tensor = next((p for network in networks_of(pipeline).values() for p in network.parameters()), None)

    def setting(name: str) -> Any:
        default = parameters[name].default if name in parameters else None
        return plain(given.get(name, None if default is inspect.Parameter.empty else default))

    return {
        "checkpoint": getattr(getattr(pipeline, "config", None), "_name_or_path", None) or None,
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "scheduler_config": {
            key: plain(value)
            for key, value in dict(getattr(scheduler, "config", {})).items()
            if not key.startswith("_")
        },
        "steps": setting("num_inference_steps"),
        "guidance": setting("guidance_scale"),
        "arguments": {name: plain(value) for name, value in given.items()},
        "dtype": None if tensor is None else str(tensor.dtype).removeprefix("torch."),
        "device": None if tensor is None else tensor.device.type,
    }


def weights_hash(pipeline: Any) -> str | None:
    """sha256 of all weights of a pipeline's networks with their names; None if there are none.

    It is taken from memory, so it also tells a network whose weights were changed after loading.
    """
    networks = networks_of(pipeline)
    if not networks:
        return None
    found = hashlib.sha256()
    for name, network in networks.items():
        for key, tensor in sorted(network.state_dict().items()):
            found.update(f"{name}.{key}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON; what JSON cannot hold becomes its type and a short text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
