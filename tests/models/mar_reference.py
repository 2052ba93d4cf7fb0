"""MAR for one image at a time, row by row from its equations: what caches and batches are checked against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Rows = dict[int, Tensor]


class Reference:
    """Remembers keys and values of its last full pass, by layer and row."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.prefix = model.num_prefix_rows
        self._encoder: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in model.encoder_blocks]
        self._decoder: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in model.decoder_blocks]

    def full(self, tokens: Tensor, hidden: Tensor, label: int) -> Tensor:
        """z (N, D) of tokens (N, c); the memory is made anew."""
        count = len(tokens)
        for layer in (*self._encoder, *self._decoder):
            layer.clear()
        return self._pass(tokens, hidden, label, list(range(count)), True, keep=True)

    def light(self, tokens: Tensor, hidden: Tensor, label: int, group: list[int], prefix: bool) -> Tensor:
        """z (m, D) of the group alone; nothing is remembered."""
        return self._pass(tokens, hidden, label, group, prefix, keep=False)

    def _pass(self, tokens: Tensor, hidden: Tensor, label: int, group: list[int], prefix: bool, keep: bool) -> Tensor:
        model, first = self.model, self.prefix
        start = [model.class_embed.weight[label] + model.encoder_pos_embed[0, row] for row in range(first)]
        h: Rows = dict(enumerate(start)) if prefix else {}
        for place in group:
            if not hidden[place]:
                h[first + place] = model.token_proj(tokens[place]) + model.encoder_pos_embed[0, first + place]
        h = {row: model.embed_norm(value) for row, value in h.items()}
        h = self._blocks(h, model.encoder_blocks, self._encoder, keep)
        encoded = {row: model.decoder_embed(model.encoder_norm(value)) for row, value in h.items()}
        wanted = [*(range(first) if prefix else ()), *(first + place for place in group)]
        h = {row: encoded.get(row, model.mask_token[0, 0]) + model.decoder_pos_embed[0, row] for row in wanted}
        h = self._blocks(h, model.decoder_blocks, self._decoder, keep)
        rows = [model.decoder_norm(h[first + place]) + model.output_pos_embed[0, place] for place in group]
        return torch.stack(rows)

    def _blocks(self, h: Rows, blocks: Any, memory: list[dict[int, tuple[Tensor, Tensor]]], keep: bool) -> Rows:
        for block, old in zip(blocks, memory, strict=True):
            heads = block.attn.num_heads
            parts = {
                row: block.attn.to_qkv(block.norm1(value)).view(3, heads, -1).unbind(0) for row, value in h.items()
            }
            fresh = {row: (k, v) for row, (_, k, v) in parts.items()}
            if keep:
                old.update(fresh)
            known = list({**old, **fresh}.values())
            keys, values = (torch.stack(part) for part in zip(*known, strict=True))  # (rows, H, D / H)
            result: Rows = {}
            for row, value in h.items():
                scores = (parts[row][0] * keys).sum(dim=2) / keys.shape[2] ** 0.5
                seen = (scores.softmax(dim=0)[..., None] * values).sum(dim=0).flatten()
                value = value + block.attn.to_out(seen)
                x = block.fc1(block.norm2(value))
                x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
                result[row] = value + block.fc2(x)
            h = result
        return h
