"""One measured case: timings, memory, operations and what they say, as a result file holds it."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from calibration import gemm_rate
from flops import count_flops
from noise import load
from timing import Timing, summary, synchronize, time_runs
from torch import Tensor, nn

COUNT = object()
"""Count the operations here; a compiled network must have been counted before it was compiled."""


def measure(
    run: Callable[[], Any],
    *,
    batch: int = 1,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    calibration: Mapping[str, float] | None = None,
    before: Callable[[], Any] | None = None,
    nfe: int | None = None,
    flops: Any = COUNT,
    compiled: bool = False,
    **stop: Any,
) -> dict[str, Any]:
    """Time `run`, count its operations outside the clock, and put both into the fields of a case.

    Args:
        run: the whole work on `batch` samples; returns its images (anything `as_tensor` takes), or anything else, and
            then `output_sha256` is None.
        calibration: of `calibration.calibrate`; without it `utilisation` is None.
        before: called before each run, outside the clock, e.g. to seed generators again.
        nfe: network calls of one run, if known.
        flops: operations of one run, None for unknown; left out, they are counted.
        compiled: whether the first run compiles; its time beyond a usual run is then `compile_s`.
        stop: `warmup`, `min_repeats`, `max_repeats`, `precision`, `budget_s` of `timing.time_runs`.
    """
    load_before = load()
    timing = time_runs(run, device=device, before=before, **stop)
    load_after = load()
    if flops is COUNT:
        if before is not None:
            before()
        flops = count_flops(run)
    return {
        **figures(timing, batch, dtype, calibration, nfe, flops, compiled),
        "load_before": load_before,
        "load_after": load_after,
    }


def figures(
    timing: Timing,
    batch: int,
    dtype: str = "float32",
    calibration: Mapping[str, float] | None = None,
    nfe: int | None = None,
    flops: int | None = None,
    compiled: bool = False,
) -> dict[str, Any]:
    """What follows from timed runs of `batch` samples; see `measure`."""
    spread = summary(timing.timings_s)
    p50 = spread["p50"]
    achieved = flops / p50 / 1e9 if flops else None
    rate = gemm_rate(calibration, dtype) if calibration else None
    return {
        "batch": batch,
        "nfe": nfe,
        "warmup": len(timing.warmup_s),
        "repeats": len(timing.timings_s),
        "timings_s": timing.timings_s,
        **spread,
        "precise": timing.precise,
        "images_per_s": batch / p50,
        "s_per_image": p50 / batch,
        "ms_per_nfe": 1e3 * p50 / nfe if nfe else None,
        "compile_s": max(timing.warmup_s[0] - p50, 0.0) if compiled and timing.warmup_s else None,
        "flops_per_sample": flops / batch if flops else None,
        "achieved_gflops": achieved,
        "utilisation": achieved / rate if achieved and rate else None,
        "cpu_share": timing.cpu_share,
        "cpu_shares": timing.cpu_shares,
        "noisy": timing.noisy,
        "output_sha256": output_sha256(timing.output),
    }


def network_times(run: Callable[[], Any], network: nn.Module, device: str | torch.device = "cpu") -> list[float]:
    """Seconds of each call of `network` in one `run`.

    Hooks would break a compiled graph: ask before compiling.
    """
    device = torch.device(device)
    starts: list[float] = []
    seconds: list[float] = []

    def enter(*_: Any) -> None:
        synchronize(device)
        starts.append(time.perf_counter())

    def leave(*_: Any) -> None:
        synchronize(device)
        seconds.append(time.perf_counter() - starts.pop())

    hooks = [network.register_forward_pre_hook(enter), network.register_forward_hook(leave)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seconds


def network_seconds(times: Sequence[float]) -> float | None:
    """Seconds in the network: calls x their median, because a pipeline may count operations in the first; None if
    it was not called.
    """
    return len(times) * statistics.median(times) if times else None


def as_tensor(output: Any) -> Tensor | None:
    """The images in what a pipeline returned, (B, C, H, W) or as they are; None if there are none."""
    for name in ("images", "frames"):
        output = getattr(output, name, output)
    if isinstance(output, tuple) and output:
        output = output[0]
    if isinstance(output, list) and output and hasattr(output[0], "convert"):  # PIL
        output = np.stack([np.asarray(picture) for picture in output])
    if isinstance(output, np.ndarray):
        tensor = torch.from_numpy(output)
        return tensor.movedim(-1, 1) if tensor.ndim == 4 else tensor
    return output if isinstance(output, Tensor) else None


def output_sha256(output: Any) -> str | None:
    """Hash of the very values of the images, their shape and type; None if there are none."""
    tensor = as_tensor(output)
    if tensor is None:
        return None
    tensor = tensor.detach().cpu().contiguous()
    head = f"{tensor.dtype} {tuple(tensor.shape)}\0".encode()
    return hashlib.sha256(head + tensor.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
