"""Peak memory: of CUDA's allocator, or how far a fresh process grows."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

INTERVAL_S = 0.01


def cuda_peak(run: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """`peak_mem_bytes` of tensors and `peak_mem_reserved_bytes` of the allocator during `run`, weights included."""
    import torch

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return {
        "peak_mem_bytes": torch.cuda.max_memory_allocated(device),
        "peak_mem_reserved_bytes": torch.cuda.max_memory_reserved(device),
        "mem_kind": "cuda_allocated",
    }


def rss_growth(make: Callable[[], Callable[[], Any]], warm: int = 0, timeout_s: float = 1800.0) -> dict[str, Any]:
    """How far resident memory of a new process rises above what it holds when all is loaded, during one call.

    Watched from this process every 10 ms, so that the call cannot hide a peak by keeping Python busy. Memory that
    loading has freed but the process kept is used again without growth, so the figure is a lower bound.

    Args:
        make: picklable (a function of a module, or a `functools.partial` of one); runs in the new process, loads, and
            returns the call to measure.
        warm: calls before the measured one, e.g. 1 where the first one compiles.
        timeout_s: for loading and the call together.

    Raises:
        ImportError: psutil is missing.
        RuntimeError: the process died or failed; its error is in the message.
    """
    import psutil

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(make, warm, _threads(), there), daemon=True)
    child.start()
    there.close()
    try:
        deadline = time.monotonic() + timeout_s
        _receive(here, deadline)
        watched = psutil.Process(child.pid)

        def resident() -> int:
            try:
                return watched.memory_info().rss
            except psutil.Error:  # it died; the pipe will say so
                return 0

        start = peak = resident()
        here.send("go")
        while not here.poll(INTERVAL_S):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the call under the memory watch took more than {timeout_s:.0f} s.")
            peak = max(peak, resident())
        _receive(here, deadline)
        # The child waits until it is told to end, so what it still holds counts too.
        peak = max(peak, resident())
        here.send("end")
    finally:
        child.join(5)
        if child.is_alive():
            child.terminate()
        here.close()
    return {"peak_mem_bytes": peak - start, "mem_kind": "rss_growth"}


def _receive(connection: Connection, deadline: float) -> None:
    if not connection.poll(max(deadline - time.monotonic(), 0)):
        raise RuntimeError("the process under the memory watch did not answer in time.")
    try:
        error = connection.recv()
    except EOFError:
        raise RuntimeError("the process under the memory watch died, perhaps for want of memory.") from None
    if error is not None:
        raise RuntimeError(f"the process under the memory watch failed: {error}")


def _child(make: Callable[[], Callable[[], Any]], warm: int, threads: int | None, connection: Connection) -> None:
    try:
        run = make()
        if threads is not None and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        for _ in range(warm):
            run()
        connection.send(None)
        connection.recv()
        kept = run()
        connection.send(None)
        connection.recv()
        del kept
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def _threads() -> int | None:
    """Of torch, if this process uses it; the other one shall import it only where its work does."""
    return sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
