"""A tokenizer, and what is trained beside it, where the trainer expects a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn


class BareTokenizer:
    """Modules by name of which the first is the tokenizer; saved, it is that model's own folder, without an index.

    Args:
        components: None stands for a module that is not there; all but the first are not saved.
    """

    def __init__(self, components: Mapping[str, Any]) -> None:
        self.components: dict[str, Any] = {name: part for name, part in components.items() if part is not None}

    @property
    def model(self) -> Any:
        """The tokenizer."""
        return next(iter(self.components.values()))

    def to(self, *args: Any, **kwargs: Any) -> BareTokenizer:
        """Move all of them."""
        for module in self.components.values():
            assert isinstance(module, nn.Module)
            module.to(*args, **kwargs)
        return self

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors."""
        self.model.save_pretrained(folder, safe_serialization=safe_serialization)

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """There is no bar."""
