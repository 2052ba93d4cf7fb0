"""A network filled from someone else's tensors by a table: each of our parameters, and what of theirs makes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor

from gendiff.convert.tensor_files import check_destination, shown
from gendiff.errors import InvalidInputError
from gendiff.files import written_whole

State = Mapping[str, Any]
Layout = Callable[[Tensor], Tensor]
Model = TypeVar("Model", bound=ModelMixin)

MOST_NAMES = 10
"""Keys that an error lists; it counts the rest."""


@dataclass(frozen=True)
class Made:
    """What makes a parameter.

    Attributes:
        names: their tensors; several are joined, in this order.
        layout: what is done to each before; None for nothing.
        axis: along which they are joined.
    """

    names: tuple[str, ...]
    layout: Layout | None = None
    axis: int = 0


Table = Mapping[str, Made]


def same(names: Mapping[str, str]) -> dict[str, Made]:
    """A table of parameters that only have another name: theirs by ours."""
    return {ours: Made((theirs,)) for ours, theirs in names.items()}


def with_bias(names: Mapping[str, str]) -> dict[str, str]:
    """Names of weights and biases from names of layers."""
    return {f"{a}.{kind}": f"{b}.{kind}" for a, b in names.items() for kind in ("weight", "bias")}


def filled(cls: type[Model], config: Mapping[str, Any], state: State, table: Table) -> Model:
    """A network that holds `state`, in eval mode; tensors keep their dtype, and are not copied where none is made anew.

    Args:
        cls: its class.
        config: its arguments.
        state: tensors by their names.
        table: for every parameter of the network.

    Raises:
        InvalidInputError: keys are missing or too many, a shape does not fit, or a value is no tensor of floating-point
            numbers.
    """
    try:
        with init_empty_weights(include_buffers=False):
            model = cls(**config)
    except ValueError as error:
        raise InvalidInputError(f"shapes that no such network has: {error}") from error
    check_keys(state, (name for made in table.values() for name in made.names))
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    weights, wrong = {}, []
    for ours, made in table.items():
        value = _make(state, made)
        if value is not None and tuple(value.shape) == shapes[ours]:
            weights[ours] = value
            continue
        got = ", ".join(f"{name} {tuple(state[name].shape)}" for name in made.names)
        made_of = "" if value is None else f" gives {tuple(value.shape)}"
        wrong.append(f"{got}{made_of if made.layout or len(made.names) > 1 else ''}, expected {shapes[ours]}")
    if wrong:
        raise InvalidInputError(f"shapes that do not fit: {shown(wrong, '; ', MOST_NAMES)}.")
    buffers = {name: value for name, value in model.state_dict().items() if name not in shapes}
    model.load_state_dict(weights | buffers, assign=True)
    return model.eval()


def check_keys(state: State, names: Iterable[str]) -> None:
    """Raise InvalidInputError unless `state` has exactly these names, each with a tensor of floating-point numbers."""
    names = dict.fromkeys(names)
    problems = []
    if missing := [name for name in names if name not in state]:
        problems.append(f"missing keys: {shown(missing, most=MOST_NAMES)}.")
    if unexpected := [name for name in state if name not in names]:
        problems.append(f"unexpected keys: {shown(unexpected, most=MOST_NAMES)}.")
    if problems:
        raise InvalidInputError(" ".join(problems))
    for name in names:
        value = state[name]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInputError(f"{name} must be a tensor of floating-point numbers, got {got}.")


def shape_of(state: State, name: str, axes: int) -> tuple[int, ...]:
    """Shape of a tensor that a config cannot be told without.

    Raises:
        InvalidInputError: it is missing, or has another number of axes.
    """
    if not isinstance(state.get(name), Tensor):
        raise InvalidInputError(f"missing keys: {name}.")
    shape = tuple(state[name].shape)
    if len(shape) != axes or 0 in shape:
        raise InvalidInputError(f"{name} must have {axes} axes, got shape {shape}.")
    return shape


def side_of(name: str, count: int) -> int:
    """Side of a square grid of so many tokens.

    Raises:
        InvalidInputError: no square; names the tensor that has as many rows.
    """
    side = round(count**0.5)
    if count < 1 or side**2 != count:
        raise InvalidInputError(f"{name} must have a row for each token of a square grid, got {count}.")
    return side


def count_of(state: State, start: str) -> int:
    """How many of `start` + 0, 1, .. there are without a gap."""
    found = map(re.compile(rf"{re.escape(start)}(\d+)[./]").match, state)
    numbers = {int(match[1]) for match in found if match}
    return next(count for count in range(len(numbers) + 1) if count not in numbers)


def heads_of(width: int, known: Mapping[int, int], num_heads: int | None) -> int:
    """Attention heads, which the file does not tell: as given, or those of the published network of this width.

    Raises:
        InvalidInputError: none is given and no published network is as wide.
    """
    if num_heads is not None:
        if num_heads < 1:
            raise InvalidInputError(f"num_heads must be at least 1, got {num_heads}.")
        return num_heads
    if width not in known:
        raise InvalidInputError(f"num_heads must be given: no published network is {width} wide, but {[*known]}.")
    return known[width]


def unwrapped(state: State, wrappers: Iterable[str] = ("module.", "_orig_mod.")) -> dict[str, Any]:
    """The same tensors, names free of what data parallelism and compiling put in front.

    Raises:
        InvalidInputError: two names for one parameter.
    """
    bare: dict[str, Any] = {}
    for full, value in state.items():
        name = full
        while wrapper := next((wrapper for wrapper in wrappers if name.startswith(wrapper)), None):
            name = name.removeprefix(wrapper)
        if name in bare:
            raise InvalidInputError(f"{full} names {name}, which another name has given already.")
        bare[name] = value
    return bare


def write_model(source: str | Path, destination: str | Path, build: Callable[[Path], Model]) -> Model:
    """Write what `build` makes of a file as a folder for `from_pretrained`, whole or not at all.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the destination holds something.
        InvalidInputError: from `build`, with the name of the file in front.
    """
    source, destination = Path(source), Path(destination)
    if not source.is_file():
        raise FileNotFoundError(f"source: no file {source}.")
    check_destination(destination)
    try:
        model = build(source)
    except InvalidInputError as error:
        raise InvalidInputError(f"{source}: {error}") from error
    with written_whole(destination) as folder:
        model.save_pretrained(folder)
    return model


def _make(state: State, made: Made) -> Tensor | None:
    """A parameter; None where a tensor does not have the shape that its layout needs."""
    parts = [state[name] for name in made.names]
    if made.layout is None and len(parts) == 1:
        return parts[0].contiguous()
    try:
        parts = [part if made.layout is None else made.layout(part) for part in parts]
        # Cloned, because tensors that share memory cannot be saved as safetensors.
        return torch.cat(parts, made.axis) if len(parts) > 1 else parts[0].clone(memory_format=torch.contiguous_format)
    except (RuntimeError, IndexError):
        return None
