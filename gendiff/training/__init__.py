"""One trainer for all methods, one objective per method, and recipes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .methods import Method, register_method
    from .recipe import Recipe, builtin_recipes, load_recipe
    from .trainer import TrainingStopped, train

_HOMES = {
    "Method": "methods",
    "Recipe": "recipe",
    "TrainingStopped": "trainer",
    "builtin_recipes": "recipe",
    "load_recipe": "recipe",
    "register_method": "methods",
    "train": "trainer",
}

__all__ = ["Method", "Recipe", "TrainingStopped", "builtin_recipes", "load_recipe", "register_method", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
