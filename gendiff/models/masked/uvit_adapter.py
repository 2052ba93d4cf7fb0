"""ReCAP for diffusers' `UVit2DModel` (aMUSEd): the same weights, called as any network over hidden tokens."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UVit2DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from gendiff.models.masked.checks import check_call
from gendiff.models.masked.contract import light_inputs
from gendiff.models.masked.text_condition import TextCondition
from gendiff.models.masked.uvit_cache import UVitCache
from gendiff.models.masked.uvit_constants import BlockConstants, LayerConstants, Pair, uvit_constants
from gendiff.nn.attention import DispatchedAttention
from gendiff.nn.row_cache import Layout
from gendiff.nn.wide import wide

_attend = DispatchedAttention()


class UVitAdapter:
    """A `UVit2DModel` behind the contract of `MaskedModel`; it has no weights of its own and changes none.

    Convolutions and the norm over the whole grid mix places, so embedding, down block and up block are computed in
    full at every pass. The transformer between them, five sixths of the work, is computed for some cells alone, and
    the head, which looks at one place at a time, for the asked tokens alone. Where the down block halves the grid, a
    cell stands for 2 x 2 tokens and is computed if any of them is asked for.

    Args:
        transformer: used as it is.
        grid: rows and columns of tokens; None for the square that it was trained on.
        mask_id: stands for a hidden token in its input; None for the last one, as in aMUSEd.

    Raises:
        ValueError: a grid that cannot be halved where the network does so, or an id outside of its vocabulary.

    Source: Patil et al. 2024 (aMUSEd, arXiv 2401.01808); the light pass is of this project.
    """

    def __init__(
        self, transformer: UVit2DModel, grid: tuple[int, int] | None = None, mask_id: int | None = None
    ) -> None:
        config: Any = transformer.config
        rows, columns = (config["sample_size"],) * 2 if grid is None else grid
        self._stride = 2 if config["downsample"] else 1
        if min(rows, columns) < 1 or rows % self._stride or columns % self._stride:
            raise ValueError(f"grid must be positive multiples of {self._stride}, got {(rows, columns)}.")
        if mask_id is not None and not 0 <= mask_id < config["vocab_size"]:
            raise ValueError(f"mask_id must be from 0 to {config['vocab_size'] - 1}, got {mask_id!r}.")
        if bool(config["downsample"]) != bool(config["upsample"]):
            raise ValueError("transformer must give as many tokens as it gets, got only one of downsample, upsample.")
        self.transformer = transformer
        self.grid = (rows, columns)
        self.num_tokens = rows * columns
        self.mask_id = config["vocab_size"] - 1 if mask_id is None else mask_id
        self.codebook_size: int = config["codebook_size"]
        self._parts: Any = transformer  # its submodules, which type checkers take for tensors

    @property
    def num_prefix_rows(self) -> int:
        """P: there are none."""
        return 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.transformer.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.transformer.device

    def make_cache(
        self, recompute_prefix: bool = True, layout: Layout = "in_place", dtype: torch.dtype | None = None
    ) -> UVitCache:
        """An empty cache for one batch and one condition; arguments as of `UVitCache`."""
        cells = self.num_tokens // self._stride**2
        return UVitCache(len(self._parts.transformer_layers), cells, recompute_prefix, layout, dtype)

    def cost_key(self, hidden: Tensor, rows: Tensor | None = None) -> int:
        """Cells that the transformer computes in such a pass: where the grid is halved, not known from shapes alone.

        Args:
            hidden: as of a call.
            rows: as of a call.
        """
        return self.num_tokens // self._stride**2 if rows is None else self._cells(rows).shape[1]

    def __call__(
        self,
        tokens: Tensor,
        hidden: Tensor,
        condition: TextCondition,
        cache: UVitCache | None = None,
        rows: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Logits of all tokens, or of `rows` alone with the transformer's other cells as the cache has them.

        Args:
            tokens: (B, N) int64, 0 .. V - 1, row after row of the grid; ignored where hidden.
            hidden: (B, N) bool, True = not known yet.
            condition: of the batch. What the text gives is kept in the cache for as long as the same object comes.
            cache: from `make_cache`. Without `rows` it is filled anew, with them their cells of it are overwritten.
                A call that fails leaves a cache that must be filled anew.
            rows: (B, m) int64 token positions, in any order, -1 = padding whose result means nothing.
            return_dict: False for a tuple.

        Returns: logits (B, N, V) or (B, m, V), float32; float64 in a float64 model.

        Raises:
            ValueError: shapes that do not fit together, or rows without a filled cache; groups with different numbers
                of cells in a cache of layout "concat".
        """
        filled = cache is not None and cache.keys_values.length > 0
        check_call(tokens, hidden, None, self.num_tokens, cache if filled else None, rows)
        if not isinstance(condition, TextCondition) or len(condition) != len(tokens):
            raise ValueError(f"condition must be a TextCondition of {len(tokens)} texts, got {condition!r:.60}.")
        hook = getattr(self.transformer, "_hf_hook", None)
        if hook is not None:  # offloaded weights come when a model's forward is called, which is not called here
            hook.pre_forward(self.transformer)
        parts, model = self._parts, self.transformer
        constants = uvit_constants(model, condition) if cache is None else cache.constants(model, condition)
        grid = parts.embed(tokens.masked_fill(hidden, self.mask_id).unflatten(1, self.grid))
        grid = _block(parts.down_block, grid, constants.down)
        # Norms of the grid come before rows are picked: theirs are sums in float32, whose order hangs on the layout.
        h = parts.project_to_hidden_norm(_flat(grid))
        h, _, key_rows = light_inputs(h, cache, None if rows is None else self._cells(rows))
        h = parts.project_to_hidden(h)
        for number, layer in enumerate(parts.transformer_layers):
            h = _layer(layer, h, constants.layers[number], number, cache, key_rows)
        h = parts.project_from_hidden(parts.project_from_hidden_norm(h))
        if cache is not None:
            cache.commit()
            h = cache.merged(h, key_rows)
        grid = _block(parts.up_block, _grid(h, grid), constants.up)
        head = parts.mlm_layer
        grid = head.layer_norm(head.conv1(grid).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if rows is not None:  # a column of tokens: what is left looks at one at a time
            index = rows.clamp(min=0)[:, None].expand(-1, grid.shape[1], -1)
            grid = grid.flatten(2).gather(2, index)[..., None]
        logits = head.conv2(grid).flatten(2).transpose(1, 2)
        logits = logits.to(wide(logits.dtype))
        return Transformer2DModelOutput(sample=logits) if return_dict else (logits,)

    def _cells(self, rows: Tensor) -> Tensor:
        """Cells (B, c) of the transformer's grid that hold tokens `rows` (B, m), each once, -1 = padding."""
        if self._stride == 1:
            return rows
        width, count = self.grid[1], self.num_tokens // self._stride**2
        cell = rows // width // self._stride * (width // self._stride) + rows % width // self._stride
        held = torch.zeros(len(rows), count + 1, dtype=torch.bool, device=rows.device)
        held.scatter_(1, torch.where(rows >= 0, cell, count), True)
        held = held[:, :count]
        most = int(held.sum(dim=1).max())
        present, order = held.to(torch.uint8).sort(dim=1, descending=True, stable=True)
        return torch.where(present.bool(), order, -1)[:, :most]


def _flat(grid: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h w, C)."""
    return grid.permute(0, 2, 3, 1).flatten(1, 2)


def _grid(h: Tensor, like: Tensor) -> Tensor:
    """(B, h w, C) to (B, C, h, w) with the sides of `like`."""
    return h.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _modulated(x: Tensor, pair: Pair) -> Tensor:
    scale, shift = pair
    return x * scale + shift


def _attention(attention: Any, x: Tensor, keys_values: Pair) -> Tensor:
    """Rows (B, R, D) over keys and values (B, K, H, D / H), with an `Attention`'s own projections."""
    heard = _attend(attention.to_q(x).unflatten(-1, (attention.heads, -1)), *keys_values, None)
    return attention.to_out[1](attention.to_out[0](heard.flatten(2)))


def _layer(
    layer: Any, h: Tensor, constants: LayerConstants, number: int, cache: UVitCache | None, rows: Tensor | None
) -> Tensor:
    """A transformer layer, a `BasicTransformerBlock`, over rows (B, R, D)."""
    first, second, third = constants.modulations
    x, own = _modulated(layer.norm1.norm(h), first), layer.attn1
    k, v = (project(x).unflatten(-1, (own.heads, -1)) for project in (own.to_k, own.to_v))
    if cache is not None:
        k, v = (part.transpose(1, 2) for part in cache.update(number, k.transpose(1, 2), v.transpose(1, 2), rows))
    h = _attention(own, x, (k, v)) + h
    h = _attention(layer.attn2, _modulated(layer.norm2.norm(h), second), constants.text) + h
    return layer.ff(_modulated(layer.norm3.norm(h), third)) + h


def _block(block: Any, grid: Tensor, constants: BlockConstants) -> Tensor:
    """A down or an up block, a `UVitBlock`, over a grid (B, C, h, w)."""
    if block.downsample is not None:
        grid = block.downsample(grid)
    texts = iter(constants.texts)
    for res, attention, pair in zip(block.res_blocks, block.attention_blocks, constants.modulations, strict=True):
        rows = _flat(_res_block(res, grid, pair))
        rows = _attention(attention.attn1, attention.norm1(rows), next(texts)) + rows
        rows = _attention(attention.attn2, attention.norm2(rows), next(texts)) + rows
        grid = _grid(rows, grid)
    return grid if block.upsample is None else block.upsample(grid)


def _res_block(res: Any, grid: Tensor, pair: Pair) -> Tensor:
    """A `ConvNextBlock`: (B, C, h, w) to the same."""
    x = res.norm(res.depthwise(grid).permute(0, 2, 3, 1))
    x = res.channelwise_norm(res.channelwise_act(res.channelwise_linear_1(x)))
    x = res.channelwise_dropout(res.channelwise_linear_2(x)) + grid.permute(0, 2, 3, 1)
    return _modulated(x, pair).permute(0, 3, 1, 2)
