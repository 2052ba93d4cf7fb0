"""What this machine can do: matrix products and memory copies, against which figures are read."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from timing import synchronize

from gendiff.errors import InvalidInputError, MetricWarning

GEMM_SIDE = {"cpu": 1024, "cuda": 8192, "mps": 2048}
"""Large enough for a device to reach its best rate."""
COPY_BYTES = 1 << 28
"""256 MiB, several times any last-level cache."""
FAST_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of /proc/cpuinfo, x86 and Arm, with which products in bfloat16 are not emulated."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def calibrate(device: str | torch.device = "cpu", dtype: str = "float32", seconds: float = 1.0) -> dict[str, float]:
    """Rates of the machine with the current threads and TF32 setting, each measured for `seconds`.

    Returns: `gemm_fp32_gflops` (square product), `copy_gbs` (bytes read and written, 10^9/s) and, for another
        `dtype`, `gemm_{dtype}_gflops`, which is what a run in that type is held against. Medians.
    """
    device = torch.device(device)
    rates = {"gemm_fp32_gflops": gemm_gflops(device, torch.float32, seconds), "copy_gbs": copy_gbs(device, seconds)}
    if dtype != "float32":
        rates[f"gemm_{dtype}_gflops"] = gemm_gflops(device, DTYPES[dtype], seconds)
    return rates


def gemm_gflops(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """10^9 floating-point operations a second of a square matrix product; 1 multiply-add = 2."""
    side = GEMM_SIDE.get(device.type, 1024)
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / _seconds_each(lambda: torch.mm(left, right, out=out), device, seconds) / 1e9


def copy_gbs(device: torch.device, seconds: float) -> float:
    """10^9 bytes a second, read and written, of a copy that fits no cache."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _seconds_each(lambda: target.copy_(source), device, seconds) / 1e9


def gemm_rate(calibration: Mapping[str, float], dtype: str) -> float | None:
    """The calibrated product rate in `dtype`; None if it was not measured."""
    return calibration.get("gemm_fp32_gflops" if dtype == "float32" else f"gemm_{dtype}_gflops")


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the first core as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(named, ()))


def simd() -> str:
    """The vector instructions torch uses, with the bfloat16 extensions of the CPU: "AVX512 avx512_bf16"."""
    extra = [flag for flag in FAST_BF16_FLAGS if flag in cpu_flags()]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *extra])


def resolve_dtype(name: str, device: str) -> str:
    """The dtype meant by "auto", or `name` itself, with a warning where it would be emulated.

    "auto" is bfloat16 where the hardware multiplies in it, float32 elsewhere: on a CPU without AVX512-BF16 or AMX,
    half-precision products and convolutions run some 100 times slower than float32.

    Raises:
        InvalidInputError: not a known name.
    """
    if name not in ("auto", *DTYPES):
        raise InvalidInputError(f"dtype must be one of auto, {', '.join(DTYPES)}, got {name!r}.")
    kind = torch.device(device).type
    if kind == "cpu":
        fast = bool(cpu_flags().intersection(FAST_BF16_FLAGS))
    else:
        fast = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return "bfloat16" if fast else "float32"
    if name != "float32" and kind == "cpu" and not (fast and name == "bfloat16"):
        warnings.warn(f"this CPU has no {name} products; figures in {name} are those of emulation.", MetricWarning, 2)
    return name


def _seconds_each(step: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Median seconds of `step`, repeated for `seconds` after one warm-up; at least three times."""
    step()
    timings: list[float] = []
    while len(timings) < 3 or sum(timings) < seconds:
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        timings.append(time.perf_counter() - start)
    return statistics.median(timings)
