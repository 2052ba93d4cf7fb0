"""What else the machine was doing: load and runnable tasks, and when a figure supports no claim."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

NOISY_BELOW = 0.85
"""Share of the promised CPU time below which a row is noisy. A busy neighbour, or threads that only wait, lower it."""


def load() -> dict[str, Any]:
    """`average` over the last minute and `runnable` tasks of the machine; None where the system does not tell."""
    average = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    try:
        fields = Path("/proc/loadavg").read_text(encoding="ascii").split()
        runnable = int(fields[3].partition("/")[0])
    except (OSError, IndexError, ValueError):
        runnable = None
    return {"average": average, "runnable": runnable}
