"""The command that runs now, as it was typed: what records say of how they came about."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextvars import ContextVar

_TYPED: ContextVar[str | None] = ContextVar("typed", default=None)


def remember(arguments: Sequence[str]) -> None:
    """Say what was typed after `gendiff`."""
    _TYPED.set(shlex.join(["gendiff", *arguments]))


def command_line() -> str:
    """What was typed; of a program that calls this package from Python, how that was started."""
    return _TYPED.get() or shlex.join(sys.argv)
