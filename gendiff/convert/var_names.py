"""Names of VAR's parameters beside ours, both ways.

A table maps each of their names to one of ours, or to three: attention in their tokenizer makes queries, keys and
values by one 1x1 convolution, in diffusers' by three linear layers. All else is the same tensor under another name; a
1x1 convolution that is a linear layer in diffusers has two axes of one more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gendiff.convert.tensor_files import shown
from gendiff.errors import InvalidInputError

Names = dict[str, tuple[str, ...]]

ENCODER, DECODER = "encoder", "decoder"


def transformer_names(num_layers: int, qk_norm: bool, shared_adaln: bool) -> Names:
    """For a transformer of so many blocks."""
    names = {"pos_start": "pos_start", "pos_1LC": "pos"}
    weights = {"class_emb": "condition_embedder", "lvl_embed": "lvl_embed"}
    linears = {"word_embed": "word_embed", "head_nm.ada_lin.1": "head_adaln", "head": "head"}
    if shared_adaln:
        linears["shared_ada_lin.1"] = "adaln"
    for block in (f"blocks.{layer}" for layer in range(num_layers)):
        names |= {f"{block}.attn.{bias}": f"{block}.attn.{bias}" for bias in ("q_bias", "v_bias")}
        weights[f"{block}.attn.mat_qkv"] = f"{block}.attn.to_qkv"
        linears |= {f"{block}.attn.proj": f"{block}.attn.to_out"}
        linears |= {f"{block}.ffn.{layer}": f"{block}.{layer}" for layer in ("fc1", "fc2")}
        if qk_norm:
            names[f"{block}.attn.scale_mul_1H11"] = f"{block}.attn.log_scale"
        if shared_adaln:
            names[f"{block}.ada_gss"] = f"{block}.adaln_table"
        else:
            linears[f"{block}.ada_lin.1"] = f"{block}.adaln"
    names |= {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in weights.items()}
    names |= dict(_with_bias(linears))
    return {theirs: (ours,) for theirs, ours in names.items()}


def tokenizer_names(channels: Sequence[int], layers_per_block: int, num_phi: int) -> Names:
    """For a tokenizer of so many channels at each level and so many residual blocks at each level of the encoder."""
    layers = {name: name for name in ("quant_conv", "post_quant_conv")}
    layers |= {f"quantize.quant_resi.qresi_ls.{index}": f"quantizer.phi.{index}" for index in range(num_phi)}
    attentions: dict[str, str] = {}
    last = len(channels) - 1
    for half in (ENCODER, DECODER):
        layers |= {f"{half}.{layer}": f"{half}.{layer}" for layer in ("conv_in", "conv_out")}
        layers[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        for index in range(2):
            layers |= _resnet(f"{half}.mid.block_{index + 1}", f"{half}.mid_block.resnets.{index}", shortcut=False)
        attentions[f"{half}.mid.attn_1"] = f"{half}.mid_block.attentions.0"
        for level, width in enumerate(channels):
            if half == ENCODER:
                before = channels[max(level - 1, 0)]
                theirs, ours, count = f"encoder.down.{level}", f"encoder.down_blocks.{level}", layers_per_block
                resize, is_end = ("downsample", "downsamplers"), level == last
            else:
                # Their levels are numbered from the image, diffusers' blocks in order of use.
                before = channels[min(level + 1, last)]
                theirs, ours, count = f"decoder.up.{level}", f"decoder.up_blocks.{last - level}", layers_per_block + 1
                resize, is_end = ("upsample", "upsamplers"), level == 0
            for index in range(count):
                shortcut = index == 0 and before != width
                layers |= _resnet(f"{theirs}.block.{index}", f"{ours}.resnets.{index}", shortcut)
                if level == last:
                    attentions[f"{theirs}.attn.{index}"] = f"{ours}.attentions.{index}"
            if not is_end:
                layers[f"{theirs}.{resize[0]}.conv"] = f"{ours}.{resize[1]}.0.conv"
    for theirs, ours in attentions.items():
        layers |= {f"{theirs}.norm": f"{ours}.group_norm", f"{theirs}.proj_out": f"{ours}.to_out.0"}
    names: Names = {"quantize.embedding.weight": ("quantizer.codebook.weight",)}
    names |= {theirs: (ours,) for theirs, ours in _with_bias(layers)}
    for theirs, ours in attentions.items():
        for kind in ("weight", "bias"):
            names[f"{theirs}.qkv.{kind}"] = tuple(f"{ours}.to_{part}.{kind}" for part in "qkv")
    return names


def to_ours(state: Mapping[str, Tensor], names: Names, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Tensors by our names.

    Args:
        state: by theirs.
        names: theirs to ours.
        shapes: of our parameters.

    Raises:
        InvalidInputError: keys are missing or too many, shapes do not fit, or a value is no tensor of numbers.
    """
    problems = []
    if missing := [name for name in names if name not in state]:
        problems.append(f"missing keys: {shown(missing)}.")
    if unexpected := [name for name in state if name not in names]:
        problems.append(f"unexpected keys: {shown(unexpected)}.")
    if problems:
        raise InvalidInputError(" ".join(problems))
    converted, wrong = {}, []
    for theirs, ours in names.items():
        value = state[theirs]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInputError(f"{theirs} must be a tensor of floating-point numbers, got {got}.")
        expected = (sum(shapes[name][0] for name in ours), *shapes[ours[0]][1:])
        axes = len(expected)
        if tuple(value.shape[:axes]) != expected or any(size != 1 for size in value.shape[axes:]):
            wrong.append(f"{theirs} {tuple(value.shape)}, expected {expected}")
            continue
        # Cloned, because tensors that are parts of one cannot be saved as safetensors.
        parts = value.reshape(expected).split([shapes[name][0] for name in ours])
        converted |= dict(zip(ours, (part.clone() for part in parts) if len(ours) > 1 else parts, strict=True))
    if wrong:
        raise InvalidInputError(f"shapes that do not fit: {shown(wrong, '; ')}.")
    return {name: value.contiguous() for name, value in converted.items()}


def to_theirs(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Tensors by their names, from ours; attention weights of the tokenizer as 1x1 convolutions again."""
    converted = {}
    for theirs, ours in names.items():
        parts = [state[name] for name in ours]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        if theirs.endswith((".qkv.weight", ".proj_out.weight")):
            value = value[:, :, None, None]
        converted[theirs] = value
    return converted


def _resnet(theirs: str, ours: str, shortcut: bool) -> dict[str, str]:
    layers = {f"{theirs}.{layer}": f"{ours}.{layer}" for layer in ("norm1", "conv1", "norm2", "conv2")}
    return layers | ({f"{theirs}.nin_shortcut": f"{ours}.conv_shortcut"} if shortcut else {})


def _with_bias(layers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for theirs, ours in layers.items():
        for kind in ("weight", "bias"):
            yield f"{theirs}.{kind}", f"{ours}.{kind}"
