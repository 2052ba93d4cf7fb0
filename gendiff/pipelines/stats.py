"""What a run cost: network calls, floating-point operations, seconds, cache bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@dataclass(frozen=True)
class RunStats:
    """Cost of one pipeline call.

    Attributes:
        network_calls: forward passes of the denoising network, whatever their batch.
        flops: floating-point operations of those passes; 1 multiply-add = 2.
        seconds: wall time from the start of the call.
        cache_bytes: largest size of key/value caches, 0 without any.
        plan: the choices the run followed, e.g. scheme and number of steps.
    """

    network_calls: int
    flops: int
    seconds: float
    cache_bytes: int = 0
    plan: dict[str, Any] = field(default_factory=dict)


class Meter:
    """Counts calls of the networks it wraps. FLOPs are counted on the first call of each input shape only."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.network_calls = 0
        self.flops = 0
        self._flops_by_shape: dict[tuple[int, ...], int] = {}

    def __call__(self, network: Callable[..., Any], sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """`network(sample, ...)`, counted."""
        self.network_calls += 1
        shape = tuple(sample.shape)
        if shape in self._flops_by_shape:
            self.flops += self._flops_by_shape[shape]
            return network(sample, *args, **kwargs)
        with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
            result = network(sample, *args, **kwargs)
        self._flops_by_shape[shape] = counter.get_total_flops()
        self.flops += counter.get_total_flops()
        return result

    def stats(self, cache_bytes: int = 0, **plan: Any) -> RunStats:
        """The counts so far."""
        seconds = time.perf_counter() - self.start
        return RunStats(self.network_calls, self.flops, seconds, cache_bytes, plan)


def _cpu_attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


# torch's own table misses the CPU kernel of scaled_dot_product_attention and would count it as free.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}
