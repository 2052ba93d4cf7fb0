"""What a `UVit2DModel` makes of the text alone: no token changes it, so a walk needs it once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UVit2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor
from torch.nn import functional as F

from gendiff.models.masked.text_condition import TextCondition

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BlockConstants:
    """Of a convolutional block.

    Attributes:
        modulations: 1 + scale and shift (B, 1, 1, C) of each residual block.
        texts: keys and values (B, T, H, C / H) of each attention, two to a residual block.
    """

    modulations: list[Pair]
    texts: list[Pair]


@dataclass(frozen=True)
class LayerConstants:
    """Of a transformer layer.

    Attributes:
        modulations: 1 + scale and shift (B, 1, D) of its three norms.
        text: keys and values (B, T, H, D / H) of its cross-attention.
    """

    modulations: list[Pair]
    text: Pair


@dataclass(frozen=True)
class UVitConstants:
    """Of the whole network."""

    down: BlockConstants
    layers: list[LayerConstants]
    up: BlockConstants

    @property
    def nbytes(self) -> int:
        """Bytes held; the two of a pair may be views of one tensor, which are counted each for its own part."""
        pairs = [pair for block in (self.down, self.up) for pair in (*block.modulations, *block.texts)]
        pairs += [pair for layer in self.layers for pair in (*layer.modulations, layer.text)]
        return sum(part.nbytes for pair in pairs for part in pair)


def uvit_constants(model: UVit2DModel, condition: TextCondition) -> UVitConstants:
    """All that depends on the condition only, by the equations of `UVit2DModel`.

    Args:
        model: holds the weights.
        condition: of the batch.
    """
    parts: Any = model  # its submodules, which type checkers take for tensors
    text = parts.encoder_proj_layer_norm(parts.encoder_proj(condition.encoder_hidden_states))
    frequencies = get_timestep_embedding(
        condition.micro_conds.flatten(),
        model.config["micro_cond_encode_dim"],
        flip_sin_to_cos=True,
        downscale_freq_shift=0,
    )
    pooled = torch.cat([condition.pooled_text_emb, frequencies.reshape(len(condition), -1)], dim=1)
    vector = F.silu(parts.cond_embed(pooled.to(model.dtype)).to(text.dtype))
    return UVitConstants(
        _block(parts.down_block, text, vector),
        [
            LayerConstants(
                [_modulation(norm.linear(vector), 1) for norm in (layer.norm1, layer.norm2, layer.norm3)],
                _keys_values(layer.attn2, text),
            )
            for layer in parts.transformer_layers
        ],
        _block(parts.up_block, text, vector),
    )


def _block(block: Any, text: Tensor, vector: Tensor) -> BlockConstants:
    texts = []
    for attention in block.attention_blocks:
        mapped = text if attention.kv_mapper is None else attention.kv_mapper(F.silu(text))
        texts += [_keys_values(attention.attn1, mapped), _keys_values(attention.attn2, mapped)]
    return BlockConstants([_modulation(res.cond_embeds_mapper(vector), 2) for res in block.res_blocks], texts)


def _modulation(both: Tensor, axes: int) -> Pair:
    """1 + scale and shift from (B, 2 C), with so many axes of length 1 before the channels."""
    scale, shift = both.unflatten(1, (2,) + (1,) * axes + (-1,)).unbind(dim=1)
    return 1 + scale, shift


def _keys_values(attention: Any, text: Tensor) -> Pair:
    k, v = (project(text).unflatten(-1, (attention.heads, -1)) for project in (attention.to_k, attention.to_v))
    return k, v
