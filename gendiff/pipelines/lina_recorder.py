"""Listens to the denoisers of a pipeline: what they were asked in this step, what they said, and how many rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gendiff.samplers.prompt_embeds import PromptEmbeds

from .lina_edits import PromptEdit
from .lina_families import EMBEDS, MASKS, forward_signature, text_slots


@dataclass(frozen=True)
class Call:
    """One call of a denoiser.

    Attributes:
        module: the denoiser.
        arguments: by name, as `forward` has them.
        output: what it said, (rows, ...).
    """

    module: nn.Module
    arguments: Mapping[str, Any]
    output: Tensor

    @property
    def rows(self) -> int:
        return len(self.output)

    def tail(self, count: int) -> Call:
        """Its last `count` rows: those of the prompt in a batch of [unconditional; conditional]."""
        return self if count == self.rows else self._cut(slice(self.rows - count, self.rows))

    def head(self, count: int) -> Call:
        """Its first `count` rows."""
        return self if count == self.rows else self._cut(slice(0, count))

    def _cut(self, rows: slice) -> Call:
        arguments = {name: _cut(value, self.rows, rows) for name, value in self.arguments.items()}
        return replace(self, arguments=arguments, output=self.output[rows])

    @property
    def input(self) -> Tensor:
        """The noisy latents that it read, (rows, ...): the first argument of every denoiser."""
        return next(iter(self.arguments.values()))

    def under(self, prompt: PromptEmbeds) -> Call:
        """The same question about another prompt; nothing else is exchanged.

        Raises:
            ValueError: the prompt differs from the recorded one in shape, dtype or device; names both.
        """
        prompt = prompt.rows(self.rows)
        arguments = {**self.arguments, EMBEDS: _exchanged(EMBEDS, self.arguments[EMBEDS], prompt.embeds)}
        for name in MASKS:
            if arguments.get(name) is not None:
                arguments[name] = _exchanged(name, arguments[name], prompt.mask)
        path = text_slots(self.module).pooled
        if path is not None:
            old: Any = arguments
            for name in path:
                old = old[name]
            new: Any = _exchanged(path[-1], old, prompt.pooled)
            arguments[path[0]] = new if len(path) == 1 else {**arguments[path[0]], path[1]: new}
        return replace(self, arguments=arguments)

    def ask(self, context: str, latents: Tensor | None = None) -> Tensor:
        """Ask again, by `forward`, so that no hook of ours hears it; hooks of accelerate replace `forward` and stay.

        Args:
            context: names a cache context of its own, so that what is cached for the pipeline's calls stays as it is.
            latents: instead of `input`.
        """
        name = next(iter(self.arguments))
        arguments = {**self.arguments} if latents is None else {**self.arguments, name: latents}
        caches = getattr(self.module, "cache_context", None)
        with nullcontext() if caches is None else caches(context):
            return _first(self.module.forward(**arguments))


class Recorder:
    """Hooks on denoisers. Counts rows always; keeps calls only if asked to, until they are taken.

    Attributes:
        rows: rows evaluated since the last `reset`, those that `count` added included.
    """

    def __init__(self, modules: Iterable[nn.Module], keep: bool, edit: PromptEdit | None = None) -> None:
        self.rows = 0
        self._modules, self._keep, self._edit = list(modules), keep, edit
        self._signatures = {module: forward_signature(module) for module in self._modules}
        self._calls: list[Call] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Recorder:
        for module in self._modules:
            if self._edit is not None:
                self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._calls.clear()

    def reset(self) -> None:
        """Begin a run."""
        self.rows = 0
        self._calls.clear()

    def count(self, rows: int) -> None:
        """Rows that were evaluated past the hooks."""
        self.rows += rows

    def take(self) -> list[Call]:
        """The calls since the last time, in order."""
        calls, self._calls = self._calls, []
        return calls

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        arguments = self._bound(module, args, kwargs)
        changed = self._edit and self._edit.apply(module, arguments)
        return ((), changed) if changed else None

    def _after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        said = _first(output)
        self.rows += len(said)
        if self._keep:
            self._calls.append(Call(module, self._bound(module, args, kwargs), said.detach()))

    def _bound(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        signature = self._signatures[module]
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
        return arguments


def _first(output: Any) -> Tensor:
    """A denoiser gives a tensor, a tuple or an output whose first entry is the prediction."""
    return output if isinstance(output, Tensor) else output[0]


def _cut(value: Any, count: int, rows: slice) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == count else value
    if isinstance(value, dict):
        return {name: _cut(part, count, rows) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cut(part, count, rows) for part in value)
    return value


def _exchanged(name: str, old: Tensor, new: Tensor | None) -> Tensor:
    if new is None:
        raise ValueError(f"the denoiser was called with {name} of shape {tuple(old.shape)}; the conditions have none.")
    seen = [f"{tuple(one.shape)} {one.dtype} on {one.device}" for one in (old, new)]
    if seen[0] != seen[1]:
        raise ValueError(f"{name} of the conditions must be as recorded, {seen[0]}, got {seen[1]}.")
    return new


@torch.no_grad()
def ask_quietly(call: Call, context: str) -> Tensor:
    """`call.ask` without a gradient."""
    return call.ask(context)
