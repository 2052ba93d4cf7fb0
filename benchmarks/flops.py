"""Floating-point operations of one call, counted once, outside any timed run.

torch's counter knows matrix products, convolutions and most attention kernels. It counts as free what is added here:
the CPU kernel of attention, the fused fast path of `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` (switched
off while counting), Fourier transforms, and products with a vector. Element-wise work, normalisation and softmax stay
uncounted. 1 multiply-add = 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of `run()`.

    Networks compiled by `torch.compile` hide theirs: count before compiling.
    """
    with _without_fast_path(), FlopCounterMode(display=False, custom_mapping=_MAPPING) as counter:
        run()
    return counter.get_total_flops()


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """(rows, inner) x (inner, columns)."""
    return 2 * rows * inner * columns


def conv_flops(
    batch: int, c_in: int, c_out: int, kernel: Sequence[int], out_size: Sequence[int], groups: int = 1
) -> int:
    """A convolution with this kernel and output size."""
    return 2 * batch * math.prod(out_size) * c_out * (c_in // groups) * math.prod(kernel)


def attention_flops(batch: int, heads: int, queries: int, keys: int, dim: int, value_dim: int | None = None) -> int:
    """Scaled dot products and the weighted sum of values; a mask saves nothing, as kernels differ in what they skip."""
    return 2 * batch * heads * queries * keys * (dim + (dim if value_dim is None else value_dim))


def fft_flops(lengths: Sequence[int], batch: int = 1, real: bool = False) -> int:
    """5 n log2 n for n points in all, half for real data on one side (the convention of FFTW's benchFFT)."""
    n = math.prod(lengths)
    return round(batch * (2.5 if real else 5.0) * n * math.log2(n))


@contextmanager
def _without_fast_path() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


# The counter calls these with shapes in place of tensors.


def _cpu_attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _transform(shape: Sequence[int], dims: Sequence[int], real: bool) -> int:
    lengths = [shape[dim] for dim in dims]
    return fft_flops(lengths, math.prod(shape) // max(math.prod(lengths), 1), real)


def _complex_fft(source: Any, dims: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _transform(source, dims, real=False)


def _real_fft(source: Any, dims: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _transform(source, dims, real=True)


def _inverse_real_fft(source: Any, dims: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _transform(out_shape, dims, real=True)


def _matrix_vector(matrix: Any, vector: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


def _add_matrix_vector(bias: Any, matrix: Any, vector: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


_MAPPING = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    torch.ops.aten._fft_c2c: _complex_fft,
    torch.ops.aten._fft_r2c: _real_fft,
    torch.ops.aten._fft_c2r: _inverse_real_fft,
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.dot: _matrix_vector,
    torch.ops.aten.addmv: _add_matrix_vector,
}
