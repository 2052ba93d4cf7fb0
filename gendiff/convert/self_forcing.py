"""Checkpoints of Self-Forcing and its relatives as `CausalWanTransformer3DModel`.

These are Wan 2.1 text-to-video transformers tuned to generate chunk after chunk, saved under the names of Wan's own
code. What is checked here: every name, every shape and the structure of the file. That the published weights give the
published videos was not verified.

Licences of what is out there, which the converted weights keep (look at each before use; nothing is bundled):

| weights | licence |
|---|---|
| gdhe17/Self-Forcing: `self_forcing_dmd.pt`, `ode_init.pt` | CC BY-NC-SA 4.0 by its card; the code is Apache-2.0 |
| zhuhz22/Causal-Forcing | see its model card; the code is Apache-2.0 |
| Efficient-Large-Model/LongLive-1.3B | see its model card |
| tianweiy/CausVid | CC BY-NC-SA 4.0 |
| TencentARC/RollingForcing | academic use only |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendiff.convert.tensor_files import check_destination, read_tensors, shown
from gendiff.errors import InvalidInputError
from gendiff.files import written_whole
from gendiff.models.causal_wan import CausalWanTransformer3DModel

HEAD_DIM = 128
"""Width of an attention head in all Wan 2.1 models; the file does not tell."""

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""What sharding, activation checkpointing and compilation put into names."""

OUTSIDE_BLOCKS = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
# Wan's code numbers norms by kind, diffusers' in order of use: the norm before attention to text is the second.
IN_BLOCK = {
    **{f"self_attn.{old}": f"attn1.{new}" for old, new in ATTENTION.items()},
    **{f"cross_attn.{old}": f"attn2.{new}" for old, new in ATTENTION.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
IMAGE_NAMES = re.compile(r"img_emb\.|\.(k_img|v_img|norm_k_img)\.")


def convert_state_dict(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same tensors under the names of diffusers' Wan transformer.

    Args:
        state: tensors by the names of Wan's code, with or without `model.` in front and `WRAPPERS` anywhere.

    Raises:
        InvalidInputError: names that a Wan text-to-video transformer does not have, two names for one parameter, or
            something that is no tensor of floating-point numbers.
    """
    converted: dict[str, Tensor] = {}
    unexpected = []
    for name, value in state.items():
        renamed = _rename(_unwrap(name))
        if renamed is None:
            unexpected.append(name)
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInputError(f"{name} must be a tensor of floating-point numbers, got {got}.")
        if renamed in converted:
            raise InvalidInputError(f"{name} names the parameter {renamed}, which another name has given already.")
        converted[renamed] = value
    if unexpected:
        hint = " It is of an image-to-video model; only text-to-video ones are supported."
        is_image = any(IMAGE_NAMES.search(name) for name in unexpected)
        raise InvalidInputError(f"unexpected keys: {shown(unexpected)}.{hint if is_image else ''}")
    return converted


def infer_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `CausalWanTransformer3DModel` that names and shapes tell.

    Args:
        weights: as from `convert_state_dict`.

    Raises:
        InvalidInputError: a key that is needed is missing, or a shape that no such model has.
    """
    patch = _shape(weights, "patch_embedding.weight", 5)
    dim = patch[0]
    if dim % HEAD_DIM:
        raise InvalidInputError(f"patch_embedding must have a multiple of {HEAD_DIM} channels (heads), got {dim}.")
    if patch[2] != 1:
        raise InvalidInputError(f"patch_embedding must take one frame at a time, got kernel {patch[2:]}.")
    blocks = {int(match[1]) for match in map(BLOCK.match, weights) if match}
    return {
        "in_channels": patch[1],
        "patch_size": patch[2:],
        "num_layers": max(blocks, default=0) + 1,
        "num_attention_heads": dim // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "ffn_dim": _shape(weights, "blocks.0.ffn.net.0.proj.weight", 2)[0],
        "freq_dim": _shape(weights, "condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "cross_attention_dim": _shape(weights, "condition_embedder.text_embedder.linear_1.weight", 2)[1],
    }


def build_model(weights: Mapping[str, Tensor], chunk_size: int = 3) -> CausalWanTransformer3DModel:
    """A network that holds `weights`, without a copy of them.

    Args:
        weights: as from `convert_state_dict`.
        chunk_size: latent frames denoised together in training, which the file does not tell.

    Raises:
        InvalidInputError: keys are missing or shapes do not fit together.
    """
    config = infer_config(weights)
    # Self-Forcing trains on 21 latent frames: the last chunk looks back at all the others.
    with torch.device("meta"):
        model = CausalWanTransformer3DModel(**config, chunk_size=chunk_size, context_frames=max(21 - chunk_size, 1))
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if missing := [name for name in expected if name not in weights]:
        raise InvalidInputError(f"missing keys (by diffusers' names): {shown(missing)}.")
    if unexpected := [name for name in weights if name not in expected]:
        raise InvalidInputError(f"unexpected keys (by diffusers' names): {shown(unexpected)}.")
    wrong = [
        f"{name} {tuple(weights[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if tuple(weights[name].shape) != shape
    ]
    if wrong:
        raise InvalidInputError(f"shapes that do not fit: {shown(wrong, '; ')}.")
    model.load_state_dict({name: value.contiguous() for name, value in weights.items()}, assign=True)
    return model.eval()


def convert(
    source: str | Path, destination: str | Path, key: str = "generator_ema", chunk_size: int = 3
) -> CausalWanTransformer3DModel:
    """Write a published checkpoint as a folder for `CausalWanTransformer3DModel.from_pretrained`.

    The tensors keep their dtype. The VAE, the text encoder and the scheduler are Wan's and are not in the file. The
    published few-step models draw new noise at each of four steps, with timesteps shifted by 5, which in diffusers is
    `FlowMatchEulerDiscreteScheduler(shift=5.0, stochastic_sampling=True)`.

    Args:
        source: a `.pt` or `.pth` file, read without running code from it, or `.safetensors`.
        destination: folder to write, whole or not at all; it must not exist, or be empty.
        key: which of the networks in the file: its name at the top, or before the first dot of its parameters. A file
            without such names holds one network, which is taken.
        chunk_size: latent frames denoised together in training: 3 for most, 1 for frame-wise models.

    Returns: the network that was written.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: the destination holds something.
        UnsafeFileError: the file cannot be read without running code from it.
        InvalidInputError: it is not such a checkpoint; the message names the keys.
    """
    source, destination = Path(source), Path(destination)
    if not source.is_file():
        raise FileNotFoundError(f"source: no file {source}.")
    check_destination(destination)
    try:
        model = build_model(convert_state_dict(_select(read_tensors(source), key)), chunk_size)
    except InvalidInputError as error:
        raise InvalidInputError(f"{source}: {error}") from error
    with written_whole(destination) as folder:
        model.save_pretrained(folder)
    return model


def _select(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The tensors of the network `key`, or of the only one."""
    if isinstance(content.get(key), Mapping):
        return content[key]
    chosen = {name.removeprefix(f"{key}."): value for name, value in content.items() if name.startswith(f"{key}.")}
    if chosen:
        return chosen
    nested = [name for name, value in content.items() if isinstance(value, Mapping)]
    flat = {name.split(".")[0] for name in content if name.startswith(("generator", "critic"))}
    if networks := nested or sorted(flat):
        raise InvalidInputError(f"no key {key!r}; it has {shown(networks)}.")
    return content


def _unwrap(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("model.")


def _rename(name: str) -> str | None:
    """The name in diffusers' code of a parameter in Wan's; None if it has no such parameter."""
    if name == "head.modulation":
        return "scale_shift_table"
    if match := BLOCK.fullmatch(name):
        number, rest = match.groups()
        if rest == "modulation":
            return f"blocks.{number}.scale_shift_table"
        module, _, parameter = rest.rpartition(".")
        renamed = IN_BLOCK.get(module)
        prefix = f"blocks.{number}."
    else:
        module, _, parameter = name.rpartition(".")
        renamed, prefix = OUTSIDE_BLOCKS.get(module), ""
    return None if renamed is None or parameter not in ("weight", "bias") else f"{prefix}{renamed}.{parameter}"


def _shape(weights: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in weights:
        raise InvalidInputError(f"missing key (by diffusers' names): {name}.")
    shape = tuple(weights[name].shape)
    if len(shape) != dims:
        raise InvalidInputError(f"{name} must have {dims} dimensions, got shape {shape}.")
    return shape
