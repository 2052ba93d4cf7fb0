"""One block of the causal video transformer: attention in space, in time, to text, and an MLP, all modulated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gendiff.nn.attention import MultiHeadAttention
from gendiff.nn.frame_plan import FramePlan
from gendiff.nn.query_groups import token_rows
from gendiff.nn.rotary import rotary_table, rotate
from gendiff.nn.video_cache import CacheView, VideoKVCache


@dataclass
class Pass:
    """What all blocks of one forward share.

    Attributes:
        references: frames whose spatial keys the last frames of a forward without a cache read too, see `FramePlan`.
        columns: rows of the new keys that stand behind the key columns, where these are not simply the new keys.
        cache: keys and values of clean frames; None without one.
        write: whether this pass keeps what it computes: clean frames, which refer to no others in space.
        query_table, key_table: rotary tables; None where positions were added to the input instead.
        position: (T, d) added to the normed input of temporal attention of the first block; None elsewhere.
        mask: of attention over time, (T, K) or, where all tokens attend jointly, (T S, K S); None = all may.
        text: (B, L, c) and its mask (B, 1, 1, L).
    """

    references: Tensor | None
    columns: Tensor | None
    cache: VideoKVCache | None
    write: bool
    query_table: tuple[Tensor, Tensor] | None
    key_table: tuple[Tensor, Tensor] | None
    position: Tensor | None
    mask: Tensor | None
    text: Tensor | None
    text_mask: Tensor | None

    @classmethod
    def make(
        cls,
        source: FramePlan | CacheView,
        *,
        rotary_dim: int | None,
        tokens: int,
        dtype: torch.dtype,
        **fields: object,
    ) -> Pass:
        """Tables, masks and rows of a plan, or of a view of a cache, made once for all blocks."""
        references = columns = None
        if isinstance(source, FramePlan):
            references = source.references if source.references.numel() else None
            if len(source.columns) > len(source.query_positions):
                columns = token_rows(source.columns, tokens)
        tables: list[tuple[Tensor, Tensor] | None] = [None, None]
        if rotary_dim is not None:
            positions = [source.query_positions, source.key_positions]
            tables = [rotary_table(p.repeat_interleave(tokens), rotary_dim, dtype) for p in positions]
        mask = source.mask
        if mask is not None and tokens > 1:
            mask = mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        return cls(references, columns, query_table=tables[0], key_table=tables[1], mask=mask, **fields)  # type: ignore[arg-type]


class CausalVideoBlock(nn.Module):
    """Spatial attention, temporal attention, cross-attention, MLP; adaLN-single modulation (Chen et al. 2024, PixArt).

    Args:
        dim: d.
        num_heads: h.
        mlp_ratio: hidden width of the MLP over d.
        context_dim: width of text; None for no cross-attention.
        qk_norm: RMS-normalise queries and keys of temporal attention.
        joint: one attention over all tokens of all frames instead of one in space and one in time.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, context_dim: int | None, qk_norm: bool, joint: bool
    ) -> None:
        super().__init__()
        self.joint = joint
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn_space = None if joint else MultiHeadAttention(dim, num_heads)
        self.attn_time = MultiHeadAttention(dim, num_heads, qk_norm=qk_norm)
        self.attn_text = MultiHeadAttention(dim, num_heads, context_dim) if context_dim else None
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))
        self.modulation_table = nn.Parameter(torch.zeros(6 if joint else 9, dim))

    def forward(self, x: Tensor, modulation: Tensor, layer: int, walk: Pass, last: bool) -> Tensor | None:
        """One block.

        Args:
            x: tokens (B, T, S, d).
            modulation: (B, T, 9 d), or 6 d for joint attention.
            layer: number of this block.
            walk: what all blocks share.
            last: whether nothing reads this block's result, as in the last block of a pass that writes.

        Returns: (B, T, S, d), or None if `last`.
        """
        shifts = modulation.unflatten(-1, (-1, x.shape[-1])) + self.modulation_table
        terms = list(shifts.unsqueeze(2).unbind(3))  # each (B, T, 1, d)
        if self.attn_space is not None:
            shift, scale, gate = terms[:3]
            del terms[:3]
            x = torch.addcmul(x, gate, self._space(self._modulated(x, shift, scale), layer, walk))
        shift, scale, gate = terms[:3]
        update = self._time(self._modulated(x, shift, scale), layer, walk, last)
        if update is None:
            return None
        x = torch.addcmul(x, gate, update)
        if self.attn_text is not None and walk.text is not None:
            x = x + self._text(x, walk.text, walk.text_mask)
        shift, scale, gate = terms[3:]
        return torch.addcmul(x, gate, self.mlp(self._modulated(x, shift, scale)))

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, self.norm(x), 1 + scale)

    def _space(self, x: Tensor, layer: int, walk: Pass) -> Tensor:
        """Attention among the tokens of each frame; a noisy frame reads those of its references too."""
        attn = self.attn_space
        assert attn is not None
        q, (k, v) = attn.queries(x), attn.keys_values(x)  # (B, T, S, h, d / h)
        if walk.write and walk.cache is not None:
            walk.cache.keep_references(layer, k, v)
        elif walk.cache is not None:
            kept = walk.cache.read_references(layer)
            if kept is not None:
                shape = (-1, x.shape[1], -1, -1, -1)
                k, v = (torch.cat([r.unsqueeze(1).expand(shape), p], 2) for r, p in zip(kept, (k, v), strict=True))
        elif walk.references is not None:
            return attn.to_out(self._space_with_references(q, k, v, walk.references))
        out = attn.attend(*(part.flatten(0, 1) for part in (q, k, v)))
        return attn.to_out(out.unflatten(0, x.shape[:2]))

    def _space_with_references(self, q: Tensor, k: Tensor, v: Tensor, references: Tensor) -> Tensor:
        attn, batch = self.attn_space, len(q)
        assert attn is not None
        first = q.shape[1] - len(references)
        out = []
        if first:
            out.append(attn.attend(*(part[:, :first].flatten(0, 1) for part in (q, k, v))).unflatten(0, (batch, -1)))
        k, v = (torch.cat([part[:, references].flatten(2, 3), part[:, first:]], 2) for part in (k, v))
        joined = attn.attend(q[:, first:].flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        return torch.cat([*out, joined.unflatten(0, (batch, -1))], dim=1)

    def _time(self, x: Tensor, layer: int, walk: Pass, last: bool) -> Tensor | None:
        """Attention over frames: at each site, or jointly over all tokens."""
        attn = self.attn_time
        frames, sites = x.shape[1:3]
        if walk.position is not None and layer == 0:
            x = x + walk.position[:, None]
        k, v = (self._rows(part) for part in attn.keys_values(x))
        if walk.cache is not None:
            k, v = (part.transpose(1, 2) for part in walk.cache.append(layer, k.transpose(1, 2), v.transpose(1, 2)))
        elif walk.columns is not None:
            k, v = k[:, walk.columns], v[:, walk.columns]
        if last:
            return None
        q = self._rows(attn.queries(x))
        if walk.query_table is not None and walk.key_table is not None:
            q, k = rotate(q, walk.query_table), rotate(k, walk.key_table)
        out = attn.to_out(attn.attend(q, k, v, walk.mask))
        if self.joint:
            return out.unflatten(1, (frames, sites))
        return out.unflatten(0, (len(x), sites)).transpose(1, 2)

    def _rows(self, x: Tensor) -> Tensor:
        """(B, T, S, h, d / h) as (B, T S, h, d / h) for joint attention, else (B S, T, h, d / h)."""
        return x.flatten(1, 2) if self.joint else x.transpose(1, 2).flatten(0, 1)

    def _text(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        attn = self.attn_text
        assert attn is not None
        k, v = attn.keys_values(text)
        out = attn.attend(attn.queries(self.norm(x)).flatten(1, 2), k, v, mask)
        return attn.to_out(out).unflatten(1, x.shape[1:3])
