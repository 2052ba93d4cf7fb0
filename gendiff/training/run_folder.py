"""The folder of a training run: what lies where, and whether a run may start or go on in it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gendiff.files import remove_leftovers, write_whole

from .checkpoint import newest_checkpoint, read_facts
from .recipe import Recipe

# A resumed run may change these; all others would make it a different run.
_FREE_TO_CHANGE = (
    "train.steps",
    "train.threads",
    "train.num_workers",
    "train.log_every",
    "train.tracker",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.save_dtype",
    "preview.every",
    "licence",
)


class RunFolder:
    """Paths of a run: checkpoints/, previews/, tensorboard/, log.jsonl, recipe.yaml and, at the end, final/."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.previews = self.path / "previews"
        self.tensorboard = self.path / "tensorboard"
        self.log = self.path / "log.jsonl"
        self.recipe = self.path / "recipe.yaml"
        self.final = self.path / "final"

    def check(self, recipe: Recipe, world: int, resume: bool) -> None:
        """Refuse to start where a run must not; changes nothing on disk.

        Raises:
            ValueError: the folder cannot be written, holds something and `resume` is off, or holds another run.
        """
        _check_writable(self.path)
        if not resume and self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty: continue the run in it with --resume, or name another folder.")
        checkpoint = newest_checkpoint(self.checkpoints)
        if checkpoint is None:
            return
        facts = read_facts(checkpoint)
        if facts["world"] != world:
            raise ValueError(f"{self.path} was trained with {facts['world']} processes and cannot go on with {world}.")
        # Read again, so that what could not be chosen when the run was started has its default.
        _check_unchanged(Recipe.from_dict(facts["recipe"]).to_dict(), recipe.to_dict(), self.path)
        if facts["step"] > recipe.train.steps:
            raise ValueError(f"{self.path} is at step {facts['step']} already, past train.steps={recipe.train.steps}.")

    def create(self, recipe: Recipe) -> None:
        """Make the folders, clear what a killed write left, store the recipe."""
        for folder in (self.path, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        write_whole(self.recipe, recipe.to_yaml())

    def newest(self) -> Path | None:
        """The checkpoint to continue from."""
        return newest_checkpoint(self.checkpoints)


def _check_writable(path: Path) -> None:
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror or error}.") from error


def _check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    old, new = _flat(before), _flat(now)
    for key in sorted(old.keys() | new.keys()):
        if key not in _FREE_TO_CHANGE and old.get(key) != new.get(key):
            raise ValueError(
                f"{path} was started with {key}={old.get(key)!r}, the recipe now says {new.get(key)!r}: "
                f"--resume continues only the same run."
            )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
