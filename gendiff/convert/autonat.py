"""Checkpoints of AutoNAT (Ni et al. 2024, arXiv 2406.05478) as `MaskGITTransformer2DModel` with long skips.

AutoNAT-L was published by LeapLabTHU/ImprovedNAT under the MIT licence, as `nnet_ema.pth`. Nothing is bundled.
docs/masked.md says how far a converted model was compared with the original code.
"""

from __future__ import annotations

from pathlib import Path

from gendiff.convert.tensor_files import read_tensors
from gendiff.convert.tensor_table import (
    Made,
    State,
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
from gendiff.models.masked.maskgit import MaskGITTransformer2DModel

HEADS = {768: 8}
"""By width; the file does not tell."""


def autonat_from_state(state: State, num_heads: int | None = None) -> MaskGITTransformer2DModel:
    """The network, from tensors by the names of the original code.

    The head's bias of the hidden token is dropped with its logit.

    Args:
        state: tensors by name.
        num_heads: None for those of the published network of this width.

    Raises:
        InvalidInputError: keys are missing or too many, or shapes do not fit.
    """
    vocabulary, dim = shape_of(state, "token_emb.word_embeddings.weight", 2)
    half, skips = count_of(state, "in_blocks."), "out_blocks.0.skip_linear.weight" in state
    heads = heads_of(dim, HEADS, num_heads)
    if dim % heads:
        raise InvalidInputError(f"num_heads must divide the width {dim}, got {heads}.")
    positions = "token_emb.position_embeddings.weight"
    has_bias = any(name.endswith(".attn.qkv.bias") for name in state)
    config = {
        "sample_size": side_of(positions, shape_of(state, positions, 2)[0]),
        "codebook_size": vocabulary - 1,
        "num_classes": shape_of(state, "context_embed.word_embeddings.weight", 2)[0] - 1,
        "num_layers": 2 * half + 1,
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "mlp_ratio": shape_of(state, "mid_block.mlp.fc1.weight", 2)[0] / dim,
        "norm": "pre",
        "long_skips": skips,
        "qkv_bias": has_bias,
        "norm_eps": 1e-5,
        "class_norm": True,
        "embed_norm_eps": 1e-6,
    }
    return filled(MaskGITTransformer2DModel, config, state, _table(half, skips, has_bias))


def convert(source: str | Path, destination: str | Path, num_heads: int | None = None) -> MaskGITTransformer2DModel:
    """Write a checkpoint as a folder for `MaskGITTransformer2DModel.from_pretrained`. The tensors keep their dtype.

    Args:
        source: a `.pth` or `.pt` file, read without running code from it, or `.safetensors`.
        destination: folder to write, whole or not at all; it must not exist, or be empty.
        num_heads: see `autonat_from_state`.

    Returns: the network that was written.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the destination holds something.
        UnsafeFileError: the file cannot be read without running code from it.
        InvalidInputError: it is not such a checkpoint; the message names the keys.
    """
    return write_model(source, destination, lambda file: autonat_from_state(unwrapped(read_tensors(file)), num_heads))


def _table(half: int, skips: bool, qkv_bias: bool) -> dict[str, Made]:
    names = with_bias(
        {
            "embed_norm": "token_emb.LayerNorm",
            "class_embed_norm": "context_embed.LayerNorm",
            "norm_out": "norm",
            "head_dense": "mlm_layer.fc",
            "head_norm": "mlm_layer.ln",
        }
    )
    names["word_embed.weight"] = "token_emb.word_embeddings.weight"
    names["class_embed.weight"] = "context_embed.word_embeddings.weight"
    theirs = [*(f"in_blocks.{i}" for i in range(half)), "mid_block", *(f"out_blocks.{i}" for i in range(half))]
    layers = {"norm1": "norm1", "norm2": "norm2", "attn.to_out": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    for index, block in enumerate(theirs):
        names |= with_bias({f"blocks.{index}.{a}": f"{block}.{b}" for a, b in layers.items()})
        names |= {f"blocks.{index}.attn.to_qkv.weight": f"{block}.attn.qkv.weight"}
        if qkv_bias:
            names |= {f"blocks.{index}.attn.to_qkv.bias": f"{block}.attn.qkv.bias"}
    if skips:
        names |= with_bias({f"skips.{index}": f"out_blocks.{index}.skip_linear" for index in range(half)})
    table = same(names)
    positions = ("context_embed.position_embeddings.weight", "token_emb.position_embeddings.weight")
    table["pos_embed"] = Made(positions, lambda value: value[None], axis=1)
    table["head_bias"] = Made(("mlm_layer.bias",), lambda bias: bias[0, 0, :-1])
    return table
