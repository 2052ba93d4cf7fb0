"""What a run cost: network calls, floating-point operations, seconds, cache bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from typing import Any
from weakref import WeakKeyDictionary

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
    """Counts calls of the networks it wraps, and their FLOPs.

    Counting watches every operation of a call and takes as long again, so each network is counted once for each set of
    input shapes, and remembered for as long as it lives.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.network_calls = 0
        self.flops = 0

    def __call__(self, network: Callable[..., Any], *args: Any, cost_key: Any = None, **kwargs: Any) -> Any:
        """`network(...)`, counted; `cost_key` is what its cost depends on beside shapes."""
        self.network_calls += 1
        known, shapes = _COUNTED.setdefault(network, {}), (cost_key, *_shapes(args, kwargs))
        if shapes in known:
            self.flops += known[shapes]
            return network(*args, **kwargs)
        with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
            result = network(*args, **kwargs)
        known[shapes] = counter.get_total_flops()
        self.flops += known[shapes]
        return result

    def add(self, other: Meter) -> None:
        """Count what `other` counted as well."""
        self.network_calls += other.network_calls
        self.flops += other.flops

    def stats(self, cache_bytes: int = 0, **plan: Any) -> RunStats:
        """The counts so far."""
        seconds = time.perf_counter() - self.start
        return RunStats(self.network_calls, self.flops, seconds, cache_bytes, plan)


_COUNTED: WeakKeyDictionary[Callable[..., Any], dict[tuple, int]] = WeakKeyDictionary()
"""Network -> shapes of its inputs -> FLOPs of one call."""


def _shapes(args: tuple, kwargs: dict[str, Any]) -> tuple:
    """What the cost of a call depends on: shapes of tensors, settings, and how full a cache is."""
    given = [*enumerate(args), *sorted(kwargs.items())]
    return tuple((name, _shape(value)) for name, value in given)


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if value is None or isinstance(value, str | int):
        return value
    if is_dataclass(value):
        return tuple(_shape(part) for part in vars(value).values())
    return getattr(value, "cost_key", None)


def _cpu_attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


# torch's own table misses the CPU kernel of scaled_dot_product_attention and would count it as free.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}
