"""Checkpoints of Halton-MaskGIT (Besnier et al. 2025, arXiv 2503.17076) as `HaltonTransformer2DModel`.

Published as llvictorll/Halton-MaskGIT on the Hugging Face hub under the MIT licence. Nothing is bundled.
docs/masked.md says how far a converted model was compared with the original code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from gendiff.convert.tensor_files import read_tensors
from gendiff.convert.tensor_table import (
    Made,
    State,
    check_keys,
    count_of,
    filled,
    heads_of,
    same,
    shape_of,
    side_of,
    unwrapped,
    with_bias,
    write_model,
)
from gendiff.errors import InvalidInputError
from gendiff.models.masked.halton import HaltonTransformer2DModel

HEADS = {384: 6, 512: 6, 768: 12, 1024: 16, 1152: 16}
"""By width; the file does not tell, as queries are normalised over all heads together."""

TIED = ("head.weight", "tok_emb.weight")


def halton_from_state(state: State, num_heads: int | None = None) -> HaltonTransformer2DModel:
    """The network, from tensors by the names of the original code.

    The head's logit for "hidden", which is never drawn, loses its bias.

    Args:
        state: tensors by name.
        num_heads: None for those of the published network of this width.

    Raises:
        InvalidInputError: keys are missing or too many, shapes do not fit, or the head is not tied to the embeddings.
    """
    if "in_proj.weight" in state:
        raise InvalidInputError("in_proj.weight: networks that join 2 x 2 tokens into one row are not supported.")
    vocabulary, dim = shape_of(state, "tok_emb.weight", 2)
    _check_tied(state)
    layers = count_of(state, "transformer.layers.")
    inner = shape_of(state, "transformer.layers.0.attn.wq.weight", 2)[0]
    heads = heads_of(dim, HEADS, num_heads)
    if inner % heads:
        raise InvalidInputError(f"num_heads must divide the {inner} numbers of all heads, got {heads}.")
    registers = shape_of(state, "reg_tokens.weight", 2)[0] if "reg_tokens.weight" in state else 0
    config = {
        "sample_size": side_of("pos_emb.weight", shape_of(state, "pos_emb.weight", 2)[0]),
        "codebook_size": vocabulary - 1,
        "num_classes": shape_of(state, "cls_emb.weight", 2)[0] - 1,
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": inner // heads,
        "hidden_size": dim,
        "mlp_dim": shape_of(state, "transformer.layers.0.ff.w1.weight", 2)[0],
        "num_registers": registers,
    }
    bare = {name: value for name, value in state.items() if name != "head.weight"}
    return filled(HaltonTransformer2DModel, config, bare, _table(layers, bool(registers)))


def convert(source: str | Path, destination: str | Path, num_heads: int | None = None) -> HaltonTransformer2DModel:
    """Write a checkpoint as a folder for `HaltonTransformer2DModel.from_pretrained`. The tensors keep their dtype.

    Args:
        source: a `.pth` or `.pt` file with `model_state_dict`, read without running code from it, or `.safetensors`.
        destination: folder to write, whole or not at all; it must not exist, or be empty.
        num_heads: see `halton_from_state`.

    Returns: the network that was written.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the destination holds something.
        UnsafeFileError: the file cannot be read without running code from it.
        InvalidInputError: it is not such a checkpoint; the message names the keys.
    """

    def build(file: Path) -> HaltonTransformer2DModel:
        content = read_tensors(file)
        inner = content.get("model_state_dict")
        return halton_from_state(unwrapped(inner if isinstance(inner, Mapping) else content), num_heads)

    return write_model(source, destination, build)


def _table(layers: int, registers: bool) -> dict[str, Made]:
    names = {"word_embed": "tok_emb", "class_embed": "cls_emb", "norm_out": "last_norm.norm_final"}
    weights = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()}
    table = same(weights | {"norm_out.bias": "last_norm.norm_final.bias"} | with_bias({"adaln_out": "last_norm.mlp.1"}))
    table["pos_embed"] = Made(("pos_emb.weight",), lambda value: value[None])
    table["head_bias"] = Made(("head.bias",), lambda value: value[:-1])
    if registers:
        table["registers"] = Made(("reg_tokens.weight",), lambda value: value[None])
    for layer in range(layers):
        ours, theirs = f"blocks.{layer}", f"transformer.layers.{layer}"
        table |= same(with_bias({f"{ours}.adaln": f"{theirs}.mlp.1"}))
        names = {"norm1": "ln1", "norm2": "ln2", "attn.to_out": "attn.wo", "down": "ff.w2"}
        table |= same({f"{ours}.{a}.weight": f"{theirs}.{b}.weight" for a, b in names.items()})
        table[f"{ours}.attn.to_qkv.weight"] = Made(tuple(f"{theirs}.attn.w{part}.weight" for part in "qkv"))
        table[f"{ours}.gate_up.weight"] = Made((f"{theirs}.ff.w1.weight", f"{theirs}.ff.w3.weight"))
    return table


def _check_tied(state: State) -> None:
    check_keys({name: state[name] for name in ("head.weight", "tok_emb.weight") if name in state}, TIED)
    if not torch.equal(*(state[name] for name in TIED)):
        raise InvalidInputError("head.weight must be tok_emb.weight again, it holds other numbers.")
