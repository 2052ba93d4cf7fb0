"""Weights of VAR's models as a function of their names, so that a fixture need only hold what its code made of them.

`var_outputs.npz` was made once by the code of FoundationVision/VAR (MIT licence), on weights and images from here:
names and shapes of its state dicts, and what its tokenizer (ch 32, C 8, V 64) and transformers (depth 3, D 192, 3
heads, 10 classes, stages 1, 2, 3, 4) computed. Every parameter is random, gates and norms too, and logits have a
standard deviation of about 1. Its seed is one where no choice of a code is close: the nearest two differ by 0.002.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

STAGES = (1, 2, 3, 4)
TEN_STAGES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
KINDS = ("own-cosine", "own-plain", "shared-cosine", "shared-plain")
LABELS = (3, 10)


@cache
def outputs() -> dict[str, Tensor]:
    """What VAR's code computed."""
    with np.load(Path(__file__).with_name("var_outputs.npz")) as file:
        arrays = {name: file[name] for name in file.files if name not in ("names", "seed")}
    return {name: torch.from_numpy(a.astype(np.int64) if a.dtype == np.int16 else a) for name, a in arrays.items()}


@cache
def layout() -> tuple[int, dict[str, dict[str, Any]]]:
    """Seed of the weights; for the tokenizer and each kind of transformer, shape and dtype by VAR's names."""
    with np.load(Path(__file__).with_name("var_outputs.npz")) as file:
        return int(file["seed"]), json.loads(file["names"].tobytes())


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1, 1) from raw bits of a generator, which are the same in all versions of numpy."""
    raw = np.random.PCG64([layout()[0], zlib.crc32(name.encode())]).random_raw(int(np.prod(shape)))
    numbers = (raw >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return torch.from_numpy(numbers.reshape(shape))


def images() -> Tensor:
    """(2, 3, 64, 64) in [-1, 1): squares of four pixels."""
    return uniform("image", (2, 3, 16, 16)).repeat_interleave(4, 2).repeat_interleave(4, 3)


def latent_map() -> Tensor:
    """(1, 8, 16, 16), what a tokenizer of ten stages is given to quantise."""
    return uniform("map", (1, 8, 16, 16)) * 1.5


def state_dict(part: str) -> dict[str, Tensor]:
    """All that VAR's code saves, for "tokenizer" or one of `KINDS`."""
    return dict(_state_dict(part))


@cache
def _state_dict(part: str) -> dict[str, Tensor]:
    return {name: _value(name, tuple(shape), dtype) for name, (shape, dtype) in layout()[1][part].items()}


def _value(name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    levels = torch.arange(len(STAGES)).repeat_interleave(torch.tensor(STAGES) ** 2)
    if name == "lvl_1L":
        return levels[None]
    if name == "attn_bias_for_masking":
        return torch.zeros(shape).masked_fill(levels[:, None] < levels, -torch.inf)
    if name.endswith("zero_k_bias") or name == "quantize.ema_vocab_hit_SV":
        return torch.zeros(shape)
    spread, middle = _spread(name, shape)
    assert dtype == "float32"
    return uniform(name, shape) * np.float32(spread) + np.float32(middle)


def _spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Half the width of the interval that a parameter's numbers are drawn from, and its middle."""
    if "norm" in name:
        return 0.3, float(name.endswith("weight"))
    if name.endswith("scale_mul_1H11"):
        return 0.7, 1.4
    if name == "quantize.embedding.weight":
        return 1.0, 0.0
    if "quant_resi" in name:
        return (0.3 if name.endswith("weight") else 0.1), 0.0
    if "ada_gss" in name:
        return 0.5, 0.0
    if name.endswith("bias"):
        return 0.2, 0.0
    if name in ("pos_start", "pos_1LC", "class_emb.weight", "lvl_embed.weight"):
        return 0.6, 0.0
    return float(np.sqrt(np.float32(3.0 / int(np.prod(shape[1:]))))), 0.0
