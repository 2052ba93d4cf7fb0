"""Files that `flax.serialization.to_bytes` wrote, read without JAX.

They are msgpack with arrays as extension 1: itself msgpack of shape, name of the dtype and bytes, in C order. Arrays of
more than a gigabyte are cut up, and not supported, as no network here has any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendiff.errors import InvalidInputError

ARRAY, SCALAR = 1, 3
CUT_UP = "__msgpack_chunked_array__"
DTYPES = {
    name: getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
}


def read_flax(source: Path) -> dict[str, Tensor]:
    """Tensors by their path in the tree, names joined by "/".

    Raises:
        ImportError: msgpack is not installed.
        InvalidInputError: not such a file, or not a whole one.
    """
    try:
        import msgpack
    except ImportError as error:
        raise ImportError("Flax files need msgpack: pip install 'gendiff[flax]'.") from error

    def array(code: int, data: bytes) -> Tensor:
        if code not in (ARRAY, SCALAR):
            raise InvalidInputError(f"an extension of type {code}, expected arrays alone.")
        shape, dtype, buffer = msgpack.unpackb(data)
        dtype = dtype.decode() if isinstance(dtype, bytes) else dtype
        if dtype not in DTYPES:
            raise InvalidInputError(f"an array of dtype {dtype!r}, expected one of {', '.join(DTYPES)}.")
        if math.prod(shape) * DTYPES[dtype].itemsize != len(buffer):
            raise InvalidInputError(f"an array of shape {tuple(shape)} and {dtype} in {len(buffer)} bytes.")
        if not buffer:
            return torch.empty(shape, dtype=DTYPES[dtype])
        return torch.frombuffer(bytearray(buffer), dtype=DTYPES[dtype]).reshape(shape)

    try:
        # No limits but the file's own size: the defaults are meant for messages from strangers on a wire.
        tree = msgpack.unpackb(source.read_bytes(), ext_hook=array, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"not a whole file of flax.serialization.to_bytes: {error}") from error
    if not isinstance(tree, Mapping):
        raise InvalidInputError(f"expected a tree of parameters, got {type(tree).__name__}.")
    return dict(_leaves(tree, ""))


def _leaves(tree: Mapping[Any, Any], path: str) -> list[tuple[str, Any]]:
    if CUT_UP in tree:
        raise InvalidInputError(f"{path.removesuffix('/')} is an array of more than a gigabyte, in pieces.")
    leaves = []
    for name, value in tree.items():
        leaves += _leaves(value, f"{path}{name}/") if isinstance(value, Mapping) else [(f"{path}{name}", value)]
    return leaves
