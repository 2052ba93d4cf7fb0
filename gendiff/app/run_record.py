"""What `gendiff sample` writes into run.json: all that is needed to make the pictures again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gendiff.metrics.conditions import versions
from gendiff.pipelines.stats import RunStats


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
        "versions": versions(),
        **more,
        "stats": asdict(stats),
    }
    return (json.dumps(record, indent=2) + "\n").encode()
