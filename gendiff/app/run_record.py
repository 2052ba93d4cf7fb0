"""What `gendiff sample` writes into run.json: all that is needed to make the pictures again."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gendiff.pipelines.stats import RunStats

VERSIONS = ("gendiff", "torch", "diffusers", "accelerate", "numpy")


def run_record(task: str, arguments: Mapping[str, Any], stats: RunStats, **more: Any) -> bytes:
    """Content of run.json.

    Args:
        task: name of the task.
        arguments: as typed.
        stats: what the run cost.
        more: further entries, plain values.
    """
    record = {
        "task": task,
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        **more,
        "stats": asdict(stats),
    }
    return (json.dumps(record, indent=2) + "\n").encode()
