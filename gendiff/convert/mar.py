"""Checkpoints of MAR (Li et al. 2024, arXiv 2406.11838) as `MARTransformer2DModel`.

Published by LTH14/mar under the MIT licence as `checkpoint-last.pth` of MAR-B, -L and -H, and in jadechoghari/mar on
the Hugging Face hub as `mar-base.safetensors`, `mar-large.safetensors` and `mar-huge.safetensors`. Nothing is bundled.
docs/masked.md says how far a converted model was compared with the original code.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch

from gendiff.convert.tensor_files import read_tensors, shown
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
from gendiff.models.masked.mar import MARTransformer2DModel

HEADS = {768: 12, 1024: 16, 1280: 16}
"""By width; the file does not tell."""

HALVES = ("encoder", "decoder")


def mar_from_state(state: State, num_heads: int | None = None) -> MARTransformer2DModel:
    """The network and its diffusion head, from tensors by the names of the original code.

    Args:
        state: tensors by name.
        num_heads: None for those of the published network of this width.

    Raises:
        InvalidInputError: keys are missing or too many, or shapes do not fit.
    """
    dim, channels = shape_of(state, "z_proj.weight", 2)
    heads = heads_of(dim, HEADS, num_heads)
    if dim % heads:
        raise InvalidInputError(f"num_heads must divide the width {dim}, got {heads}.")
    output = "diffusion_pos_embed_learned"
    tokens = shape_of(state, output, 3)[1]
    layers = {half: count_of(state, f"{half}_blocks.") for half in HALVES}
    head_layers = count_of(state, "diffloss.net.res_blocks.")
    config = {
        "sample_size": side_of(output, tokens),
        "token_channels": channels,
        "num_classes": shape_of(state, "class_emb.weight", 2)[0],
        "num_encoder_layers": layers["encoder"],
        "num_decoder_layers": layers["decoder"],
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "mlp_ratio": shape_of(state, "encoder_blocks.0.mlp.fc1.weight", 2)[0] / dim,
        "num_buffer_rows": shape_of(state, "encoder_pos_embed_learned", 3)[1] - tokens,
        "head_width": shape_of(state, "diffloss.net.input_proj.weight", 2)[0],
        "head_layers": head_layers,
        "dropout": 0.1,
    }
    return filled(MARTransformer2DModel, config, state, _table(layers, head_layers))


def convert(
    source: str | Path, destination: str | Path, key: str = "model_ema", num_heads: int | None = None
) -> MARTransformer2DModel:
    """Write a checkpoint as a folder for `MARTransformer2DModel.from_pretrained`. The tensors keep their dtype.

    Args:
        source: a `.pth` or `.pt` file, read without running code from it, or `.safetensors`.
        destination: folder to write, whole or not at all; it must not exist, or be empty.
        key: which network of a file that holds several.
        num_heads: see `mar_from_state`.

    Returns: the network that was written.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the destination holds something.
        UnsafeFileError: the file cannot be read without running code from it.
        InvalidInputError: it is not such a checkpoint, or has no network `key`; the message names the keys.
    """

    def build(file: Path) -> MARTransformer2DModel:
        # The published files also hold the settings of their training, as a `Namespace`: attributes, no code.
        with torch.serialization.safe_globals([Namespace]):
            content = read_tensors(file)
        return mar_from_state(unwrapped(_select(content, key)), num_heads)

    return write_model(source, destination, build)


def _select(content: Mapping[str, object], key: str) -> Mapping[str, object]:
    inner = content.get(key)
    if isinstance(inner, Mapping):
        return inner
    if networks := [name for name, value in content.items() if name.startswith("model") and isinstance(value, Mapping)]:
        raise InvalidInputError(f"key must be one of {shown(networks)}, got {key!r}.")
    return content


def _table(layers: Mapping[str, int], head_layers: int) -> dict[str, Made]:
    net = "diffloss.net"
    names = {
        "token_proj": "z_proj",
        "embed_norm": "z_proj_ln",
        "encoder_norm": "encoder_norm",
        "decoder_embed": "decoder_embed",
        "decoder_norm": "decoder_norm",
        "head.time_in": f"{net}.time_embed.mlp.0",
        "head.time_out": f"{net}.time_embed.mlp.2",
        "head.condition_embed": f"{net}.cond_embed",
        "head.input_proj": f"{net}.input_proj",
        "head.modulation_out": f"{net}.final_layer.adaLN_modulation.1",
        "head.proj_out": f"{net}.final_layer.linear",
    }
    parts = {"norm1": "norm1", "attn.to_qkv": "attn.qkv", "attn.to_out": "attn.proj", "norm2": "norm2"}
    parts |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    for half in HALVES:
        for index in range(layers[half]):
            block = f"{half}_blocks.{index}"
            names |= {f"{block}.{ours}": f"{block}.{theirs}" for ours, theirs in parts.items()}
    parts = {"norm": "in_ln", "fc1": "mlp.0", "fc2": "mlp.2", "modulation": "adaLN_modulation.1"}
    for index in range(head_layers):
        names |= {f"head.blocks.{index}.{a}": f"{net}.res_blocks.{index}.{b}" for a, b in parts.items()}
    tables = {f"{half}_pos_embed": f"{half}_pos_embed_learned" for half in HALVES}
    tables |= {"output_pos_embed": "diffusion_pos_embed_learned", "mask_token": "mask_token"}
    return {**same(with_bias(names) | tables), "class_embed.weight": Made(("class_emb.weight", "fake_latent"))}
