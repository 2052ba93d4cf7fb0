"""VAR's tokenizer and transformer as ours and back, from tensors by name; all configs from names and shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor

from gendiff.convert.tensor_files import shown
from gendiff.convert.var_names import Names, to_ours, to_theirs, tokenizer_names, transformer_names
from gendiff.errors import InvalidInputError
from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.models.next_frequency import NextFrequencyTransformer2DModel
from gendiff.nn.residual_quantizer import smoother_of_stages
from gendiff.nn.stages import check_stages, stage_mask, stage_numbers

HEAD_DIM = 64
"""Width of an attention head in all published models; without normalised queries the file does not tell."""

NORM_GROUPS = 32
"""Of all group norms in VAR's tokenizer; the file does not tell."""

MASK, LEVELS, KEY_BIAS = "attn_bias_for_masking", "lvl_1L", re.compile(r"blocks\.\d+\.attn\.zero_k_bias")
CODE_USE = "quantize.ema_vocab_hit_SV"

TOKENIZER, TRANSFORMER = "a tokenizer of VAR", "a transformer of VAR"

TOKENIZER_SHAPES = (
    "encoder.conv_in.weight",
    "encoder.down.0.block.0.conv1.weight",
    "quantize.embedding.weight",
    "quantize.quant_resi.qresi_ls.0.weight",
)
TRANSFORMER_SHAPES = ("word_embed.weight", "class_emb.weight", "head.weight", "blocks.0.ffn.fc1.weight", LEVELS)
"""What a config cannot be told without."""

State = Mapping[str, Any]
Model = TypeVar("Model", FrequencyVQModel, NextFrequencyTransformer2DModel)


def tokenizer_from_var(state: State, stages: Sequence[int]) -> FrequencyVQModel:
    """VAR's tokenizer.

    Args:
        state: tensors by the names of VAR's code.
        stages: side of each token grid, which the file does not tell: those of the transformer it is used with. One
            tokenizer serves transformers of several resolutions.

    Raises:
        InvalidInputError: keys are missing or too many, or shapes do not fit; says what the file looks like instead.
    """
    bare = {name: value for name, value in state.items() if name != CODE_USE}
    with _hint(state, TOKENIZER):
        _need(bare, TOKENIZER_SHAPES)
        levels = _count(bare, r"encoder\.down\.(\d+)\.")
        channels = [_shape(bare, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
        layers = _count(bare, r"encoder\.down\.0\.block\.(\d+)\.")
        num_phi = _count(bare, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
        size, width = _shape(bare, "quantize.embedding.weight", 2)
        if num_phi > len(stages):
            raise InvalidInputError(f"{num_phi} smoothing convolutions are more than the {len(stages)} stages.")
        config = {
            "sample_size": stages[-1] * 2 ** (levels - 1),
            "in_channels": _shape(bare, "encoder.conv_in.weight", 4)[1],
            "stages": stages,
            "latent_channels": width,
            "codebook_size": size,
            "block_out_channels": channels,
            "layers_per_block": layers,
            "norm_num_groups": NORM_GROUPS,
            "stem": "conv",
            "band_spacing": "none",
            "num_phi": num_phi,
            "phi_index": smoother_of_stages(len(stages), num_phi),
        }
        return _filled(FrequencyVQModel, config, bare, tokenizer_names(channels, layers, num_phi))


def transformer_from_var(state: State) -> NextFrequencyTransformer2DModel:
    """VAR's transformer.

    Args:
        state: tensors by the names of VAR's code. Buffers that follow from the rest are checked and dropped.

    Raises:
        InvalidInputError: keys are missing or too many, shapes do not fit, or a buffer is not what it must be; says
            what the file looks like instead.
    """
    buffers = {name for name in state if name in (MASK, LEVELS) or KEY_BIAS.fullmatch(name)}
    bare = {name: value for name, value in state.items() if name not in buffers}
    with _hint(state, TRANSFORMER):
        _need(state, TRANSFORMER_SHAPES)
        dim, width = _shape(bare, "word_embed.weight", 2)
        layers = _count(bare, r"blocks\.(\d+)\.")
        qk_norm = any(name.endswith(".scale_mul_1H11") for name in bare)
        shared = any(name.endswith(".ada_gss") for name in bare)
        heads = _shape(bare, "blocks.0.attn.scale_mul_1H11", 4)[1] if qk_norm else dim // HEAD_DIM
        if not heads or dim % heads:
            raise InvalidInputError(f"word_embed.weight must be as wide as whole heads, got {dim} for {heads} heads.")
        stages = _stages(state)
        _check_buffers(state, buffers, stages)
        config = {
            "stages": stages,
            "latent_channels": width,
            "codebook_size": _shape(bare, "head.weight", 2)[0],
            "num_classes": _shape(bare, "class_emb.weight", 2)[0] - 1,
            "num_layers": layers,
            "num_attention_heads": heads,
            "attention_head_dim": dim // heads,
            "mlp_ratio": _shape(bare, "blocks.0.ffn.fc1.weight", 2)[0] / dim,
            "qk_norm": qk_norm,
            "shared_adaln": shared,
        }
        return _filled(NextFrequencyTransformer2DModel, config, bare, transformer_names(layers, qk_norm, shared))


def tokenizer_to_var(model: FrequencyVQModel) -> dict[str, Tensor]:
    """A tokenizer's weights by the names of VAR's code, which can load them; its record of code use starts at zero.

    Raises:
        ValueError: a tokenizer that VAR's code cannot express.
    """
    config = model.config
    fixed = {"stem": "conv", "phi_ratio": 0.5, "norm_num_groups": NORM_GROUPS, "cosine_codes": False}
    for name, value in fixed.items():
        if config[name] != value:
            raise ValueError(f"{name} must be {value!r} in a tokenizer of VAR, got {config[name]!r}.")
    stages = config["stages"]
    if list(config["phi_index"]) != list(smoother_of_stages(len(stages), config["num_phi"])):
        raise ValueError(f"phi_index must be the nearest ticks in a tokenizer of VAR, got {config['phi_index']}.")
    names = tokenizer_names(config["block_out_channels"], config["layers_per_block"], config["num_phi"])
    unused = torch.zeros(len(stages), config["codebook_size"])
    return to_theirs(model.state_dict(), names) | {CODE_USE: unused}


def transformer_to_var(model: NextFrequencyTransformer2DModel) -> dict[str, Tensor]:
    """A transformer's weights and what follows from its stages, by the names of VAR's code, which can load them."""
    config = model.config
    names = transformer_names(config["num_layers"], config["qk_norm"], config["shared_adaln"])
    zeros = {f"blocks.{i}.attn.zero_k_bias": torch.zeros(model.dim) for i in range(config["num_layers"])}
    levels = {LEVELS: stage_numbers(model.stages)[None], MASK: _bias(model.stages)}
    return to_theirs(model.state_dict(), names) | zeros | levels


def _filled(cls: type[Model], config: dict[str, Any], state: State, names: Names) -> Model:
    """A network that holds `state`, without a first filling that would be thrown away."""
    try:
        with init_empty_weights(include_buffers=False):
            model = cls(**config)
    except ValueError as error:
        raise InvalidInputError(f"shapes that no such network has: {error}") from error
    own = model.state_dict()
    weights = to_ours(state, names, {name: value.shape for name, value in own.items()})
    # Statistics of training, which VAR keeps elsewhere: as in a new tokenizer.
    kept = {name: value for name, value in own.items() if not value.is_meta}
    model.load_state_dict(weights | kept, assign=True)
    return model.eval()


def _stages(state: State) -> tuple[int, ...]:
    numbers = state[LEVELS].flatten().tolist()
    counts = Counter(numbers)
    sides = [round(counts[number] ** 0.5) for number in sorted(counts)]
    try:
        stages = check_stages(sides)
    except ValueError as error:
        raise InvalidInputError(f"{LEVELS} must tell the stages: {error}") from error
    if numbers != stage_numbers(stages).tolist():
        got = shown(map(str, numbers), most=9)
        raise InvalidInputError(f"{LEVELS} must hold the number of each stage p x p times, in order, got {got}.")
    return stages


def _check_buffers(state: State, buffers: set[str], stages: Sequence[int]) -> None:
    """What is dropped must say what this network takes for granted."""
    _need(state, sorted(buffers))
    for name in sorted(buffers - {LEVELS}):
        value = state[name]
        if name == MASK:
            expected = _bias(stages)
            if tuple(value.shape) != tuple(expected.shape) or not torch.equal(value.to(expected.dtype), expected):
                raise InvalidInputError(f"{MASK} must let each stage see itself and all before it.")
        elif value.any():
            raise InvalidInputError(f"{name} must be zero: keys have no bias.")


def _bias(stages: Sequence[int]) -> Tensor:
    """VAR's form of the stage mask: (1, 1, L, L) float32, 0 = may attend, minus infinity = may not."""
    mask = stage_mask(stages)[None, None]
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


@contextmanager
def _hint(state: State, wanted: str) -> Iterator[None]:
    """Say in an error what the tensors look like, where that is not what was wanted."""
    try:
        yield
    except InvalidInputError as error:
        family = _family(state)
        hint = "" if family in (None, wanted) else f" It looks like {family}, which is another network."
        raise InvalidInputError(f"{error}{hint}") from error


def _family(state: State) -> str | None:
    if any(name.startswith("encoder.conv_blocks.") for name in state):
        return "the tokenizer of LlamaGen and FlexVAR"
    if "word_embed.weight" in state and "blocks.0.attn.mat_qkv.weight" in state:
        # It interpolates its positions, so it knows of no stages.
        is_flexible = "lvl_embed.weight" not in state and LEVELS not in state
        return "a transformer of FlexVAR, without level embedding" if is_flexible else TRANSFORMER
    if "quantize.embedding.weight" in state and "encoder.conv_in.weight" in state:
        has_stages = any(name.startswith("quantize.quant_resi.") for name in state)
        return TOKENIZER if has_stages else "a VQGAN without residual stages"
    return None


def _need(state: State, names: Sequence[str]) -> None:
    if missing := [name for name in names if not isinstance(state.get(name), Tensor)]:
        raise InvalidInputError(f"missing keys: {shown(missing)}.")


def _count(state: State, pattern: str) -> int:
    """How many of 0, 1, .. there are without a gap, of the numbers that `pattern` finds at the start of names."""
    numbers = {int(match[1]) for match in map(re.compile(pattern).match, state) if match}
    return next(count for count in range(len(numbers) + 1) if count not in numbers)


def _shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    _need(state, [name])
    shape = tuple(state[name].shape)
    if len(shape) != axes or 0 in shape:
        raise InvalidInputError(f"{name} must have {axes} axes, got shape {shape}.")
    return shape
