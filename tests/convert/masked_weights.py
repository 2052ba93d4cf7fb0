"""Weights of other people's networks over hidden tokens, from their names, and what their code made of them.

`masked_outputs.npz` was made once by the code of valeoai/Halton-MaskGIT (MIT licence), google-research/maskgit
(Apache-2.0), LeapLabTHU/ImprovedNAT (MIT) and LTH14/mar (MIT), on weights and inputs from here, which that code loaded
by name without a key missing or too many. Every parameter is random, gates and norms too.
"""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

KINDS = ("halton", "maskgit", "autonat", "mar")
B, SIDE, N, V, C, D = 3, 4, 16, 24, 5, 32
CHANNELS, BUFFERS, WIDTH = 4, 3, 24
HEADS = {"halton": 3, "maskgit": 4, "autonat": 4, "mar": 2}
LABELS = torch.tensor([3, 0, 4])
HIDDEN = torch.tensor([[(7 * i + 3 * b) % 5 < 3 for i in range(N)] for b in range(B)])


@cache
def outputs() -> dict[str, Tensor]:
    """What their code computed: logits (B, N, V) by kind; for "mar" z (B, N, D), and noise and variance of its head."""
    with np.load(Path(__file__).with_name("masked_outputs.npz")) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def numbers(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1, 1) from raw bits of a generator, which are the same in all versions of numpy."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    found = (raw >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return torch.from_numpy(found.reshape(shape))


def tokens() -> Tensor:
    """(B, N) int64."""
    return ((numbers("tokens", (B, N)) + 1) / 2 * V).long()


def vectors() -> Tensor:
    """(B, N, c), continuous tokens."""
    return 2 * numbers("vectors", (B, N, CHANNELS))


def head_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Noisy tokens (20, c), times and conditions (20, D)."""
    return 2 * numbers("x", (20, CHANNELS)), torch.arange(20) * 52, 2 * numbers("z", (20, D))


def state_dict(kind: str) -> dict[str, Tensor]:
    """All that their code saves, by its names."""
    state = {name: _value(f"{kind} {name}", shape) for name, shape in SHAPES[kind]().items()}
    if kind == "halton":
        state["head.weight"] = state["tok_emb.weight"]
    return state


def _value(name: str, shape: tuple[int, ...]) -> Tensor:
    last = name.replace("/", ".").split(".")[-1]
    if len(shape) == 1 and last in ("weight", "scale"):
        return 1 + 0.4 * numbers(name, shape)
    if last == "bias":
        return 0.3 * numbers(name, shape)
    if "emb" in name or "token" in name or "latent" in name:
        return 0.3 * numbers(name, shape)
    fan = shape[0] if last == "kernel" else shape[1]  # of Flax, whose matrices are the other way round
    return numbers(name, shape) * (3 / fan) ** 0.5


def _layer(name: str, rows: int, columns: int | None = None, bias: bool = True) -> dict[str, tuple[int, ...]]:
    weight = (rows,) if columns is None else (rows, columns)
    return {f"{name}.weight": weight} | ({f"{name}.bias": (rows,)} if bias else {})


def _halton() -> dict[str, tuple[int, ...]]:
    inner = HEADS["halton"] * (D // HEADS["halton"])  # 30 of 32
    shapes = {"cls_emb.weight": (C + 1, D), "tok_emb.weight": (V + 1, D), "pos_emb.weight": (N, D)}
    for i in range(2):
        block = f"transformer.layers.{i}"
        shapes |= _layer(f"{block}.mlp.1", 6 * D, D)
        shapes |= _layer(f"{block}.ln1", D, bias=False) | _layer(f"{block}.ln2", D, bias=False)
        for part in "qkv":
            shapes |= _layer(f"{block}.attn.w{part}", inner, D, bias=False)
        shapes |= _layer(f"{block}.attn.wo", D, inner, bias=False)
        shapes |= _layer(f"{block}.ff.w1", 256, D, bias=False) | _layer(f"{block}.ff.w3", 256, D, bias=False)
        shapes |= _layer(f"{block}.ff.w2", D, 256, bias=False)
    shapes |= _layer("last_norm.norm_final", D) | _layer("last_norm.mlp.1", 2 * D, D)
    return shapes | {"head.bias": (V + 1,), "reg_tokens.weight": (2, D)}


def _maskgit() -> dict[str, tuple[int, ...]]:
    heads, width, hidden = HEADS["maskgit"], D // HEADS["maskgit"], 3 * D

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}/scale": (D,), f"{name}/bias": (D,)}

    def dense(name: str, inputs: int, rows: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}/kernel": (inputs, rows), f"{name}/bias": (rows,)}

    shapes: dict[str, tuple[int, ...]] = {
        "Embed_0/word_embeddings/embedding": (V + C + 1, D),
        "Embed_0/position_embeddings/embedding": (N + 1, D),
        **norm("Embed_0/embeddings_ln"),
        **dense("MlmLayer_0/mlm_dense", D, D),
        **norm("MlmLayer_0/mlm_ln"),
        "MlmLayer_0/mlm_bias/bias": (V + C + 1,),
    }
    for i in range(2):
        block = f"TransformerLayer_{i}"
        attention = f"{block}/Attention_0/self_attention"
        for part in ("query", "key", "value"):
            shapes |= {f"{attention}/{part}/kernel": (D, heads, width), f"{attention}/{part}/bias": (heads, width)}
        shapes |= {f"{attention}/out/kernel": (heads, width, D), f"{attention}/out/bias": (D,)}
        shapes |= norm(f"{block}/Attention_0/attention_output_ln") | norm(f"{block}/Mlp_0/layer_output_ln")
        shapes |= dense(f"{block}/Mlp_0/intermediate_output", D, hidden) | dense(
            f"{block}/Mlp_0/layer_output", hidden, D
        )
    return shapes


def _vit_block(name: str, qkv_bias: bool) -> dict[str, tuple[int, ...]]:
    shapes = _layer(f"{name}.norm1", D) | _layer(f"{name}.norm2", D)
    shapes |= _layer(f"{name}.attn.qkv", 3 * D, D, qkv_bias) | _layer(f"{name}.attn.proj", D, D)
    return shapes | _layer(f"{name}.mlp.fc1", 4 * D, D) | _layer(f"{name}.mlp.fc2", D, 4 * D)


def _autonat() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, words, rows in (("token_emb", V + 1, N), ("context_embed", C + 1, 1)):
        shapes |= {f"{name}.word_embeddings.weight": (words, D), f"{name}.position_embeddings.weight": (rows, D)}
        shapes |= _layer(f"{name}.LayerNorm", D)
    for i in range(2):
        shapes |= _vit_block(f"in_blocks.{i}", qkv_bias=False) | _vit_block(f"out_blocks.{i}", qkv_bias=False)
        shapes |= _layer(f"out_blocks.{i}.skip_linear", D, 2 * D)
    shapes |= _vit_block("mid_block", qkv_bias=False) | _layer("norm", D)
    return shapes | _layer("mlm_layer.fc", D, D) | _layer("mlm_layer.ln", D) | {"mlm_layer.bias": (1, 1, V + 1)}


def _mar() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "class_emb.weight": (C, D),
        "fake_latent": (1, D),
        "mask_token": (1, 1, D),
        "encoder_pos_embed_learned": (1, N + BUFFERS, D),
        "decoder_pos_embed_learned": (1, N + BUFFERS, D),
        "diffusion_pos_embed_learned": (1, N, D),
        **_layer("z_proj", D, CHANNELS),
        **_layer("z_proj_ln", D),
        **_layer("encoder_norm", D),
        **_layer("decoder_embed", D, D),
        **_layer("decoder_norm", D),
    }
    for i in range(2):
        shapes |= _vit_block(f"encoder_blocks.{i}", qkv_bias=True)
    shapes |= _vit_block("decoder_blocks.0", qkv_bias=True)
    net = "diffloss.net"
    shapes |= _layer(f"{net}.time_embed.mlp.0", WIDTH, 256) | _layer(f"{net}.time_embed.mlp.2", WIDTH, WIDTH)
    shapes |= _layer(f"{net}.cond_embed", WIDTH, D) | _layer(f"{net}.input_proj", WIDTH, CHANNELS)
    for i in range(2):
        block = f"{net}.res_blocks.{i}"
        shapes |= _layer(f"{block}.in_ln", WIDTH) | _layer(f"{block}.adaLN_modulation.1", 3 * WIDTH, WIDTH)
        shapes |= _layer(f"{block}.mlp.0", WIDTH, WIDTH) | _layer(f"{block}.mlp.2", WIDTH, WIDTH)
    shapes |= _layer(f"{net}.final_layer.linear", 2 * CHANNELS, WIDTH)
    return shapes | _layer(f"{net}.final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)


SHAPES = {"halton": _halton, "maskgit": _maskgit, "autonat": _autonat, "mar": _mar}
