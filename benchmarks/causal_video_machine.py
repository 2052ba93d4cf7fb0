"""What a long stream holds in memory, and how much of the machine's matrix rate the network reaches."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from calibration import DTYPES
from causal_video_runs import VARIANTS, Work, given_frames, ignoring_long_windows, make_pipes
from flops import count_flops
from timing import synchronize
from torch import Tensor

SQUARES = (512, 1024, 2048)
"""Sides of products that show what the machine can do."""
BATCH = 4
"""Clips of the forward whose share of the matrix rate is taken."""


def stream_memory(work: Work, window: int, early: int, late: int) -> dict[str, Any]:
    """Memory of a cached stream after `early` and after `late` frames, one step a chunk, chunks dropped as they come.

    To be asked for before anything large has run in this process: memory that was freed but kept would hide growth.

    Returns: `frames`, and for each: `rss_peak` (highest resident size after a chunk until then; None without psutil),
        `live_bytes` (of all tensors that Python knows then) and, on CUDA, `cuda_peak`.
    """
    pipe, device = make_pipes(work)[False], torch.device(work.device)
    rss = _resident()
    peak, marks = rss() if rss else None, []
    with ignoring_long_windows():
        stream = pipe.stream(
            latents=given_frames(pipe, work, 1),
            class_labels=[0] * work.batch if pipe.class_names else None,
            context_frames=window,
            use_cache=VARIANTS["cached"].use_cache,
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(work.seed),
        )
        for chunk in stream:
            frames = chunk.start + chunk.frames.shape[1]
            del chunk
            synchronize(device)
            peak = max(peak, rss()) if rss and peak is not None else None
            if frames >= (early, late)[len(marks)]:
                marks.append({"frames": frames, "rss_peak": peak, "live_bytes": live_bytes(), **_cuda_peak(device)})
            if len(marks) == 2:
                break
        stream.close()  # type: ignore[attr-defined]  (a generator)
    return {name: [mark[name] for mark in marks] for name in marks[0]}


def live_bytes() -> int:
    """Bytes of all tensors that Python holds; memory shared by several counts once."""
    gc.collect()
    # By type, not isinstance: proxies in other libraries answer to that and warn or load something.
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def matrix_share(work: Work, repeats: int) -> dict[str, Any]:
    """Operations a second of one training-shaped forward, over those of the best matrix product, timed in turn.

    The forward is over W clean frames and a noisy chunk of BATCH clips; the products are squares and the network's own
    (tokens x d by d x d, 3 d and 4 d, and back).

    Returns: `share`, `forward_gflops`, `matrix_gflops`, `matrix_shape`, `forward_s`, `repeats`.
    """
    pipe, device = make_pipes(work)[False], torch.device(work.device)
    network, config, dtype = pipe.transformer, pipe.transformer.config, DTYPES[work.dtype]
    past, frames = config["context_frames"], config["context_frames"] + config["chunk_size"]
    generator = torch.Generator().manual_seed(work.seed)
    channels, height, width = pipe.latent_shape
    clips = torch.randn(BATCH, channels, frames, height, width, generator=generator).to(device, dtype)
    times = torch.full((BATCH,), 500.0, device=device)

    def forward() -> Any:
        with torch.inference_mode():
            return network(clips, times, num_prefix_frames=past)

    dim, tokens = network.dim, BATCH * frames * network.sites
    shapes = [(side, side, side) for side in SQUARES]
    shapes += [(tokens, dim, dim), (tokens, dim, 3 * dim), (tokens, dim, 4 * dim), (tokens, 4 * dim, dim)]
    products = {shape: _product(shape, device, dtype) for shape in shapes}
    flops = count_flops(forward)
    seconds: dict[Any, list[float]] = {name: [] for name in (*shapes, "forward")}
    for _ in range(repeats + 1):
        for name in shapes:
            seconds[name].append(_seconds(products[name], device))
        seconds["forward"].append(_seconds(forward, device))
    typical = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first is a warm-up
    rates = {shape: 2 * shape[0] * shape[1] * shape[2] / typical[shape] / 1e9 for shape in shapes}
    best = max(rates, key=lambda shape: rates[shape])
    reached = flops / typical["forward"] / 1e9
    return {
        "share": reached / rates[best],
        "forward_gflops": reached,
        "matrix_gflops": rates[best],
        "matrix_shape": list(best),
        "forward_s": typical["forward"],
        "repeats": repeats,
    }


def _product(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    rows, inner, columns = shape
    left = torch.ones(rows, inner, device=device, dtype=dtype)
    right = torch.ones(inner, columns, device=device, dtype=dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    return lambda: torch.mm(left, right, out=out)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def _cuda_peak(device: torch.device) -> dict[str, int]:
    return {"cuda_peak": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}


def _resident() -> Callable[[], int] | None:
    """Resident bytes of this process; None without psutil."""
    try:
        import psutil
    except ImportError:
        print("memory of the process is unknown without psutil", file=sys.stderr)
        return None
    process = psutil.Process()
    return lambda: process.memory_info().rss
