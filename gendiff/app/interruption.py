"""Work without an end that a person ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_signals() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM set a mark instead of breaking in; the function it gives says whether one came.

    Only the first is caught. A second one does what it would have done, so that nobody waits for a slow step. Threads
    other than the main one cannot catch signals; there the function says False.
    """
    came: list[int] = []
    before: dict[int, object] = {}

    def restore() -> None:
        while before:
            number, handler = before.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]

    def catch(number: int, frame: object) -> None:
        came.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, catch)
    try:
        yield lambda: bool(came)
    finally:
        restore()
