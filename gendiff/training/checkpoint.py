"""Training checkpoints on disk: each is there whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from gendiff.files import LEFTOVER, written_whole

STATE_FILE, FACTS_FILE = "state.pt", "checkpoint.json"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step and remove all but the `keep` newest.

    Args:
        folder: of all checkpoints of the run.
        step: optimiser steps done.
        state: tensors and plain values, nested at will.
        facts: JSON values about the run, to be read without loading the state.
        keep: how many checkpoints remain, this one included.
    Returns: the checkpoint's folder.
    """
    path = folder / f"step-{step:08d}"
    with written_whole(path) as partial:
        torch.save(state, partial / STATE_FILE)
        (partial / FACTS_FILE).write_text(json.dumps({"step": step, **facts}, indent=2), encoding="utf-8")
    for old in _complete(folder)[:-keep]:
        # First out of sight, so that a kill in between leaves no half of a checkpoint under its name.
        gone = old.with_name(f"{LEFTOVER}{old.name}")
        old.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, None if there is none."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Step and facts of a checkpoint."""
    return json.loads((checkpoint / FACTS_FILE).read_text(encoding="utf-8"))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint, on the CPU; never runs code from the file.

    Raises:
        ValueError: the file is damaged or holds more than tensors and plain values.
    """
    try:
        return torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{checkpoint / STATE_FILE} cannot be loaded: {error}") from error


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / FACTS_FILE).is_file())
