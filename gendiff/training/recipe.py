"""Recipes: everything that decides a training run, read from YAML and checked before any work starts."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from .methods import method_names

BUILTIN_RECIPES = Path(__file__).parent / "recipes"


def _number(default: Any, at_least: float = 0, below: float = math.inf) -> Any:
    return field(default=default, metadata={"at_least": at_least, "below": below})


def _choice(default: str, *allowed: str) -> Any:
    return field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True)
class LossTerm:
    """Weight of one term of the loss.

    Attributes:
        weight: factor of the term in the sum.
        warmup: (start, share): the factor rises linearly from start * weight to weight over that share of the steps.
    """

    weight: float = 1.0
    warmup: tuple[float, float] | None = None

    def at(self, progress: float) -> float:
        """The factor when a share `progress` in [0, 1] of the steps is done."""
        if self.warmup is None:
            return self.weight
        start, share = self.warmup
        risen = min(1.0, progress / share) if share > 0 else 1.0
        return self.weight * (start + (1 - start) * risen)


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast, how often.

    Attributes:
        steps: optimiser steps.
        batch_size: samples in a micro-batch of one process.
        gradient_accumulation: micro-batches in a step.
        learning_rate: peak rate of AdamW.
        betas: of AdamW, how slowly its means of gradients and of their squares change.
        lr_schedule: a name that `diffusers.optimization.get_scheduler` knows.
        lr_warmup_steps: steps over which the rate rises from 0; not used by "constant".
        lr_final: share of the peak that "cosine", "linear" and "polynomial" end at.
        weight_decay: of AdamW.
        decay: what it shrinks: "all", or "matrices" alone, not biases, scales and what a model excepts.
        max_grad_norm: gradients are scaled down to this norm; 0 = never.
        ema_decay: of the averaged weights that are previewed and saved; 0 = save the trained weights themselves.
        mixed_precision: "no", "bf16" or "fp16".
        checkpoint_every: steps between checkpoints; 0 = only at the end.
        keep_checkpoints: how many of the newest are kept.
        log_every: steps between log lines.
        tracker: "tensorboard" or "none".
        num_workers: processes that load data; 0 = the training process itself.
        save_dtype: of the final weights, "float32" or "float16".
        threads: of torch on the CPU; 0 = as many as torch chooses.
        channels_last: keep convolution weights in that memory format, faster on most devices.
    """

    steps: int = _number(1000, at_least=1)
    batch_size: int = _number(64, at_least=1)
    gradient_accumulation: int = _number(1, at_least=1)
    learning_rate: float = _number(3e-4)
    betas: tuple[float, float] = _number((0.9, 0.999), below=1)
    lr_schedule: str = _choice(
        "constant_with_warmup",
        *("constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial"),
    )
    lr_warmup_steps: int = _number(0)
    lr_final: float = _number(0.0, below=1)
    weight_decay: float = _number(0.0)
    decay: str = _choice("all", "all", "matrices")
    max_grad_norm: float = _number(1.0)
    ema_decay: float = _number(0.999, below=1)
    mixed_precision: str = _choice("no", "no", "bf16", "fp16")
    checkpoint_every: int = _number(500)
    keep_checkpoints: int = _number(2, at_least=1)
    log_every: int = _number(50, at_least=1)
    tracker: str = _choice("none", "none", "tensorboard")
    num_workers: int = _number(0)
    save_dtype: str = _choice("float32", "float32", "float16")
    threads: int = _number(0)
    channels_last: bool = False


@dataclass(frozen=True)
class PreviewSettings:
    """When pictures are made from the averaged weights.

    Attributes:
        every: steps between previews; 0 = none.
    """

    every: int = _number(0)


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        name: of the model that comes out.
        task: which method.
        seed: of initial weights, data order and all noise.
        data: arguments of `gendiff.data.load_dataset`, `name` among them; the training split is meant.
        models: arguments by component, checked by the method when it builds them.
        losses: weights of the terms that the objective returns.
        objective: further arguments of the method's objective, e.g. {drop_unlabelled_condition: true}.
        train: see `TrainSettings`.
        preview: see `PreviewSettings`.
        licence: of the trained weights, an SPDX identifier.
    """

    name: str
    task: str
    losses: Mapping[str, LossTerm]
    seed: int = _number(0)
    data: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    train: TrainSettings = field(default_factory=TrainSettings)
    preview: PreviewSettings = field(default_factory=PreviewSettings)
    licence: str = "apache-2.0"

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Recipe:
        """Check a recipe as read from YAML.

        Raises:
            ValueError: an unknown or missing key, or a value of a wrong type or range; names its dotted path.
        """
        recipe = _read(cls, given, "")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", recipe.name):
            raise ValueError(f"name must be letters, digits, '.', '_' and '-', got {recipe.name!r}.")
        if recipe.task not in method_names():
            hint = _nearest(recipe.task, method_names())
            raise ValueError(f"task must be one of {', '.join(method_names())}, got {recipe.task!r}.{hint}")
        if not recipe.losses:
            raise ValueError("losses must name at least one term.")
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` takes them."""
        plain = dataclasses.asdict(self)
        plain["train"]["betas"] = list(self.train.betas)
        plain["losses"] = {
            name: term.weight if term.warmup is None else {"weight": term.weight, "warmup": list(term.warmup)}
            for name, term in self.losses.items()
        }
        return plain

    def to_yaml(self) -> str:
        """The recipe as a file."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def builtin_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    return tuple(sorted(path.stem for path in BUILTIN_RECIPES.glob("*.yaml")))


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a YAML file, or the name of a built-in recipe.
        overrides: changes like "train.steps=100"; the value is read as YAML.

    Raises:
        ValueError: no such recipe, not YAML, or anything `Recipe.from_dict` refuses.
    """
    path = Path(source)
    if not path.is_file():
        builtin = BUILTIN_RECIPES / f"{source}.yaml"
        if not builtin.is_file():
            hint = _nearest(str(source), builtin_recipes())
            known = ", ".join(builtin_recipes()) or "none"
            raise ValueError(f"no recipe {str(source)!r}: neither a file nor a built-in recipe ({known}).{hint}")
        path = builtin
    try:
        given = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} must hold keys and values at the top level, got {_shown(given)}.")
    for override in overrides:
        _override(given, override)
    return Recipe.from_dict(given)


def _override(given: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    *parents, key = path.strip().split(".")
    if not equals or not all((*parents, key)):
        raise ValueError(f"an override must look like train.steps=100, got {override!r}.")
    table = given
    for depth, parent in enumerate(parents):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ValueError(f"cannot set {path}: {'.'.join(parents[: depth + 1])} is {_shown(table)}.")
    try:
        table[key] = read_yaml(value)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of {override!r} is not YAML.") from error


def check_arguments(where: str, given: Mapping[str, Any], accepted: Callable | Iterable[str]) -> None:
    """Check keys against what may be given, before anything is built.

    Args:
        where: dotted path of `given` in the recipe, for the message.
        given: the arguments.
        accepted: a callable, whose parameters are the accepted keys and must all be given if they have no default;
            or the accepted keys themselves.

    Raises:
        ValueError: an unknown key (names the nearest known one), or a missing one.
    """
    required: list[str] = []
    if callable(accepted):
        parameters = inspect.signature(accepted).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return
        named = [p for p in parameters if p.name != "self" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        required = [p.name for p in named if p.default is p.empty]
        accepted = [p.name for p in named]
    accepted = list(accepted)
    prefix = f"{where}." if where else ""
    for key in given:
        if key not in accepted:
            hint = _nearest(str(key), accepted)
            raise ValueError(f"unknown key {prefix}{key}.{hint} Known: {', '.join(accepted)}.")
    for key in required:
        if key not in given:
            raise ValueError(f"{prefix}{key} is missing.")


def _read(cls: type, given: Any, path: str) -> Any:
    """Build a dataclass of this module from a mapping, checking every value."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{path} must be keys and values, got {_shown(given)}.")
    check_arguments(path, given, cls)
    hints = get_type_hints(cls)
    prefix = f"{path}." if path else ""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    return cls(**{key: _value(fields[key], hints[key], value, f"{prefix}{key}") for key, value in given.items()})


def _value(spec: dataclasses.Field, kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _read(kind, value, path)  # type: ignore[arg-type]
    if path == "losses":
        return {name: _loss(term, f"losses.{name}") for name, term in _table(value, path).items()}
    if path in ("data", "models", "objective"):
        table = _table(value, path)
        return {k: dict(_table(v, f"models.{k}")) for k, v in table.items()} if path == "models" else dict(table)
    if kind in (int, float):
        return check_number(value, kind, path, **spec.metadata)
    if kind == tuple[float, float]:
        return _pair(value, path, "two numbers", **spec.metadata)
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{path} must be true or false, got {_shown(value)}.")
    if kind is str and not isinstance(value, str):
        raise ValueError(f"{path} must be text, got {_shown(value)}.")
    allowed = spec.metadata.get("allowed")
    if allowed and value not in allowed:
        raise ValueError(f"{path} must be one of {', '.join(allowed)}, got {value!r}.{_nearest(str(value), allowed)}")
    return value


def _loss(value: Any, path: str) -> LossTerm:
    if not isinstance(value, Mapping):
        return LossTerm(check_number(value, float, path))
    check_arguments(path, value, LossTerm)
    weight = check_number(value.get("weight", 1.0), float, f"{path}.weight")
    warmup = value.get("warmup")
    if warmup is None:
        return LossTerm(weight)
    start, share = _pair(warmup, f"{path}.warmup", "[start factor, share of the steps]")
    if share > 1:
        raise ValueError(f"{path}.warmup: the share of the steps must be in [0, 1], got {share:g}.")
    return LossTerm(weight, (start, share))


def _pair(value: Any, path: str, what: str, at_least: float = 0, below: float = math.inf) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{path} must be {what}, got {_shown(value)}.")
    first, second = (float(check_number(number, float, path, at_least, below)) for number in value)
    return first, second


def check_number(value: Any, kind: type, path: str, at_least: float = 0, below: float = math.inf) -> int | float:
    """`value`, if it is an int or, where `kind` is float, any number from `at_least` to under `below`.

    Raises:
        ValueError: it is not; names `path`, its place in the recipe.
    """
    wrong_type = isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float))
    if wrong_type or not (at_least <= value < below):
        noun = "an integer" if kind is int else "a number"
        limit = f" and below {below:g}" if math.isfinite(below) else ""
        raise ValueError(f"{path} must be {noun} of at least {at_least:g}{limit}, got {_shown(value)}.")
    return kind(value)


def check_share(value: Any, path: str) -> None:
    """Raise ValueError, which names `path` in the recipe, unless `value` is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{path} must be a number from 0 to 1, got {_shown(value)}.")


def _table(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{path} must be keys and values, got {_shown(value)}.")
    return value


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-4` is a number, `no` is a word, a key given twice is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool",)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Plain values from YAML text.

    Raises:
        yaml.YAMLError: not YAML, or a key given twice.
    """
    return yaml.load(text, Loader=_Loader)
