"""Cases of growing batch until more gains nothing or does not fit."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from arguments import say
from calls import Call, Work, compile_network, fresh_run, make_call, network_of
from flops import count_flops
from harness import as_tensor, measure, network_seconds, network_times
from memory import cuda_peak, rss_growth

from gendiff.errors import InvalidInputError

LEAST_GAIN = 0.05
"""A larger batch must raise images/s by this share over the best before, or the sweep ends."""
MEMORY_SHARE = 0.8
"""Of the memory that is free, which the next batch may be expected to take."""


def sweep(
    pipe: Any, work: Work, args: argparse.Namespace, calibration: dict[str, float], known: dict[str, Any]
) -> tuple[list[dict[str, Any]], str]:
    """Cases of growing batch, and why there are no more.

    Args:
        args: `batches`, `warmup`, `repeats`, `budget`, `memory`.
        known: fields that all cases share.

    Raises:
        InvalidInputError: not even the first batch fits.
    """
    cases: list[dict[str, Any]] = []
    first = args.batches[0]
    try:
        counted = cost_of(pipe, work, first)
        compile_network(pipe, work)
        for batch in args.batches:
            if cases and (reason := too_large(cases[-1], batch, work.device)):
                return cases, reason
            cost = counted if batch == first else None
            if cost is None and work.compile_mode:
                # A compiled network hides its operations; they grow with the batch alone.
                cost = {**counted, "flops": counted["flops"] * batch // first}
            case = {**known, **measure_batch(pipe, work, batch, args, calibration, cost or cost_of(pipe, work, batch))}
            best = max((old["images_per_s"] for old in cases), default=0.0)
            cases.append(case)
            say(f"batch {batch}: {case['images_per_s']:.3g} images/s{', noisy' if case['noisy'] else ''}")
            if case["images_per_s"] < best * (1 + LEAST_GAIN):
                return cases, f"batch {batch} gains less than {LEAST_GAIN:.0%}"
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        failed = args.batches[len(cases)]
        if not cases:
            raise InvalidInputError(f"batch {failed} does not fit into memory; choose smaller --batches.") from None
        return cases, f"batch {failed} does not fit into memory"
    return cases, f"batch {args.batches[-1]} was the last one asked for"


def cost_of(pipe: Any, work: Work, batch: int) -> dict[str, Any]:
    """Network calls of one run, seconds in them, and operations; of the network before compilation."""
    call = make_call(pipe, work, batch)
    call.before()
    call.run()  # lazy set-up must not count as network time
    call.before()
    times = network_times(call.run, network_of(pipe), work.device)
    call.before()
    return {"nfe": len(times), "network_s": network_seconds(times), "flops": count_flops(call.run)}


def measure_batch(
    pipe: Any,
    work: Work,
    batch: int,
    args: argparse.Namespace,
    calibration: dict[str, float],
    cost: dict[str, Any],
) -> dict[str, Any]:
    """One case: times, operations, memory."""
    call = make_call(pipe, work, batch)
    figures = measure(
        call.run,
        batch=batch,
        device=work.device,
        dtype=work.dtype,
        calibration=calibration,
        before=call.before,
        nfe=cost["nfe"],
        flops=cost["flops"],
        compiled=bool(work.compile_mode),
        warmup=args.warmup,
        min_repeats=args.repeats,
        max_repeats=max(args.repeats, 1000),
        budget_s=args.budget,
    )
    call.before()
    images = as_tensor(call.run())
    steps = "" if work.steps is None else f"/s{work.steps}"
    return {
        "id": f"{type(pipe).__name__}/{work.name}/b{batch}{steps}",
        "shape": None if images is None else list(images.shape[1:]),
        **({"frames": images.shape[1]} if images is not None and images.ndim == 5 else {}),
        **figures,
        # Taken before compilation, so it says nothing of a compiled network.
        "network_s": None if work.compile_mode else cost["network_s"],
        **(memory_of(call, work, batch) if args.memory else {}),
    }


def memory_of(call: Call, work: Work, batch: int) -> dict[str, Any]:
    """Peak memory of one call, or nothing where it cannot be told."""
    device = torch.device(work.device)
    if device.type == "cuda":
        call.before()
        return cuda_peak(call.run, device)
    if device.type != "cpu":
        return {}
    try:
        return rss_growth(partial(fresh_run, work, batch), warm=1 if work.compile_mode else 0)
    except RuntimeError as error:
        say(f"batch {batch}: memory is unknown: {error}")
        return {}


def too_large(last: dict[str, Any], batch: int, device: str) -> str | None:
    """Why a batch should not be tried on a CPU, where running out of memory may end the process instead of a call."""
    if torch.device(device).type != "cpu" or last.get("peak_mem_bytes") is None:
        return None
    import psutil

    expected = last["peak_mem_bytes"] * batch / last["batch"]
    free = psutil.virtual_memory().available
    if expected <= MEMORY_SHARE * free:
        return None
    return f"batch {batch} would take about {expected / 2**20:.0f} MiB of {free / 2**20:.0f} MiB free"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU's allocator has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
