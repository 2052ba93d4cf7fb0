"""MAR: an encoder of the visible tokens, a decoder of all, and a small diffusion network for each continuous token."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from gendiff.models.masked.checks import check_call, check_counts
from gendiff.models.masked.diffusion_head import DiffusionHead
from gendiff.nn.mar_cache import MARCache
from gendiff.nn.row_block import RowBlock
from gendiff.nn.row_cache import Layout


class MARTransformer2DModel(ModelMixin, ConfigMixin):
    """A vector z for each of N continuous tokens, from which `head` makes the token.

    Args:
        sample_size: side of the token grid; N is its square.
        token_channels: c of a token.
        num_classes: C; one more embedding stands for "no class".
        num_encoder_layers: blocks over prefix and visible rows.
        num_decoder_layers: blocks over all P + N rows.
        num_attention_heads: H.
        attention_head_dim: D / H.
        mlp_ratio: hidden width of an MLP over D.
        num_buffer_rows: P, prefix rows that all start from the class embedding.
        head_width: w of the diffusion network.
        head_layers: its residual blocks.
        token_range: tokens lie in [-token_range, token_range]; None where unknown. Sampling clips to it.
        dropout: in training.

    Raises:
        ValueError: a count below 1, or a range that is not positive.

    Source: Li et al. 2024 (MAR, arXiv 2406.11838); all details as in its released weights.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ("RowBlock", "DiffusionHead")
    _repeated_blocks = ("RowBlock",)
    _skip_keys = ("cache",)

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        token_channels: int = 16,
        num_classes: int = 10,
        num_encoder_layers: int = 3,
        num_decoder_layers: int = 3,
        num_attention_heads: int = 4,
        attention_head_dim: int = 32,
        mlp_ratio: float = 4.0,
        num_buffer_rows: int = 8,
        head_width: int = 192,
        head_layers: int = 3,
        token_range: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(
            sample_size=sample_size,
            token_channels=token_channels,
            num_classes=num_classes,
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=num_decoder_layers,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            num_buffer_rows=num_buffer_rows,
        )
        self.num_tokens = sample_size**2
        self.dim = dim = num_attention_heads * attention_head_dim
        rows = num_buffer_rows + self.num_tokens
        self.class_embed = nn.Embedding(num_classes + 1, dim)  # the last row stands for no class
        self.token_proj = nn.Linear(token_channels, dim)
        self.encoder_pos_embed = nn.Parameter(torch.empty(1, rows, dim))
        self.embed_norm = nn.LayerNorm(dim, eps=1e-6)
        self.encoder_blocks = _blocks(num_encoder_layers, dim, num_attention_heads, mlp_ratio, dropout)
        self.encoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_embed = nn.Linear(dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, rows, dim))
        self.decoder_blocks = _blocks(num_decoder_layers, dim, num_attention_heads, mlp_ratio, dropout)
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.output_pos_embed = nn.Parameter(torch.empty(1, self.num_tokens, dim))
        self._initialise()
        self.head = DiffusionHead(token_channels, dim, head_width, head_layers, token_range)

    @property
    def num_prefix_rows(self) -> int:
        """P: rows before the N image rows."""
        return self.config["num_buffer_rows"]

    @property
    def null_class(self) -> int:
        """The class that stands for none."""
        return self.config["num_classes"]

    def make_cache(
        self, recompute_prefix: bool = True, layout: Layout = "in_place", dtype: torch.dtype | None = None
    ) -> MARCache:
        """An empty cache for one batch and one condition; arguments as of `RowCache`."""
        layers = (len(self.encoder_blocks), len(self.decoder_blocks))
        return MARCache(layers, self.num_tokens, self.num_prefix_rows, recompute_prefix, layout, dtype)

    def cost_key(self, hidden: Tensor, rows: Tensor | None = None) -> int:
        """Tokens that the encoder computes in such a pass: it depends on values in `hidden`, not on shapes alone.

        Args:
            hidden: as of `forward`.
            rows: as of `forward`.
        """
        return int(_visible(hidden, rows).sum(dim=1).max())

    def forward(
        self,
        tokens: Tensor,
        hidden: Tensor,
        class_labels: Tensor,
        cache: MARCache | None = None,
        rows: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Vectors of all tokens, or of `rows` alone with all others read from the cache.

        Args:
            tokens: (B, N, c); ignored where hidden.
            hidden: (B, N) bool, True = not known yet.
            class_labels: (B,) int64 from 0 to C, which stands for none.
            cache: from `make_cache`. Without `rows` it is filled anew, with them their rows of it are overwritten.
                A call that fails leaves a cache that must be filled anew.
            rows: (B, m) int64 image positions, in any order, -1 = padding whose result means nothing. They hold all
                tokens that were revealed since the last full pass.
            return_dict: False for a tuple.

        Returns: z (B, N, D) or (B, m, D), in the model's dtype.

        Raises:
            ValueError: shapes that do not fit together, or rows without a filled cache.
        """
        check_call(tokens, hidden, class_labels, self.num_tokens, cache, rows)
        channels = self.config["token_channels"]
        if tokens.ndim != 3 or tokens.shape[2] != channels:
            raise ValueError(f"tokens must be (B, {self.num_tokens}, {channels}), got {tuple(tokens.shape)}.")
        if rows is not None and (cache is None or not cache.filled):
            raise ValueError("rows need a cache that a full pass has filled.")
        # Entries of the visible tokens among those that the decoder computes, the latter in their order.
        entries, shown = _leading(_visible(hidden, rows))
        positions = None if rows is None else rows.clamp(min=0)
        visible = entries if positions is None else positions.gather(1, entries)
        encoded = self._encode(tokens, visible, shown, class_labels, cache, light=rows is not None)
        z = self._decode(encoded, entries, shown, positions, hidden.shape[0], cache, rows)
        return Transformer2DModelOutput(sample=z) if return_dict else (z,)

    def _encode(
        self,
        tokens: Tensor,
        visible: Tensor,
        shown: Tensor | None,
        class_labels: Tensor,
        cache: MARCache | None,
        light: bool,
    ) -> Tensor | None:
        """Prefix rows, if the pass computes them, and tokens at `visible` (B, R), as (B, P' + R, D); None for no row.

        Args:
            tokens: (B, N, c).
            visible: image positions.
            shown: (B, R) bool, False = padding; None where there is none.
            class_labels: (B,).
            cache: of the pass.
            light: only what is new is computed.
        """
        prefix = self.num_prefix_rows if not light or (cache is not None and cache.recompute_prefix) else 0
        batch, count = visible.shape
        if prefix + count == 0:
            return None
        picked = tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[2]))
        h = self.token_proj(picked.to(self.token_proj.weight.dtype))
        h = h + self.encoder_pos_embed[0][self.num_prefix_rows + visible]
        if prefix:
            h = torch.cat([self.class_embed(class_labels)[:, None] + self.encoder_pos_embed[:, :prefix], h], dim=1)
        h = self.embed_norm(h)
        remembered, scattered = None if cache is None else cache.encoder, None
        if light and remembered is not None:
            mask = remembered.seen(shown, count)
            scattered = torch.arange(prefix, device=visible.device).repeat(batch, 1)
        else:
            seen = None if shown is None else torch.cat([shown.new_ones(batch, prefix), shown], dim=1)
            mask = None if seen is None else seen[:, None, None]
            if remembered is not None:
                fewest = count if shown is None else int(shown.sum(dim=1).min())
                remembered.begin(count, fewest, seen)
        try:
            for layer, block in enumerate(self.encoder_blocks):
                h = block(h, layer, remembered, scattered, mask)
            if remembered is not None and not light:
                remembered.keys_values.commit()
        finally:
            # So that the next light pass stands on what the full pass wrote.
            if remembered is not None:
                remembered.keys_values.rollback()
        return self.encoder_norm(h)

    def _decode(
        self,
        encoded: Tensor | None,
        entries: Tensor,
        shown: Tensor | None,
        positions: Tensor | None,
        batch: int,
        cache: MARCache | None,
        rows: Tensor | None,
    ) -> Tensor:
        """z (B, n, D) of all tokens, or of those at `positions` (B, n).

        Args:
            encoded: from `_encode`.
            entries: (B, R), which of the n tokens its rows stand for.
            shown: see `_encode`.
            positions: of the image; None for all.
            batch: B.
            cache: of the pass.
            rows: as of `forward`.
        """
        count = self.num_tokens if positions is None else positions.shape[1]
        where = slice(None) if positions is None else positions
        embedded = None if encoded is None else self.decoder_embed(encoded)
        # One row more than needed takes what padding writes.
        h = self.mask_token.expand(batch, count + 1, -1)
        prefix = 0
        if embedded is not None:
            prefix = embedded.shape[1] - entries.shape[1]
            target = entries if shown is None else entries.masked_fill(~shown, count)
            target = target[..., None].expand(-1, -1, self.dim)
            h = h.to(embedded.dtype).scatter(1, target, embedded[:, prefix:])
        h = h[:, :count] + self.decoder_pos_embed[0, self.num_prefix_rows :][where]
        if embedded is not None and prefix:
            h = torch.cat([embedded[:, :prefix] + self.decoder_pos_embed[:, :prefix], h], dim=1)
        key_rows, remembered = None, None if cache is None else cache.decoder
        if remembered is not None and rows is None:
            remembered.begin()
        elif remembered is not None and rows is not None:
            key_rows = remembered.key_rows(rows)
        for layer, block in enumerate(self.decoder_blocks):
            h = block(h, layer, remembered, key_rows)
        if remembered is not None:
            remembered.commit()
        return self.decoder_norm(h[:, prefix:]) + self.output_pos_embed[0][where]

    def _initialise(self) -> None:
        """Xavier weights of layers and normal ones of standard deviation 0.02 of embeddings, as published."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        tables = (self.encoder_pos_embed, self.decoder_pos_embed, self.output_pos_embed)
        for parameter in (self.class_embed.weight, self.mask_token, *tables):
            nn.init.normal_(parameter, std=0.02)


def _blocks(count: int, dim: int, heads: int, mlp_ratio: float, dropout: float) -> Any:
    return nn.ModuleList(RowBlock(dim, heads, mlp_ratio, dropout=dropout) for _ in range(count))


def _visible(hidden: Tensor, rows: Tensor | None) -> Tensor:
    """Which tokens, or which of `rows` (B, m), are known."""
    return ~hidden if rows is None else (rows >= 0) & ~hidden.gather(1, rows.clamp(min=0))


def _leading(chosen: Tensor) -> tuple[Tensor, Tensor | None]:
    """Places of the True ones of each row, in order.

    Args:
        chosen: (B, n) bool.

    Returns: places (B, R), R the most of any row, and (B, R) bool, False = padding, or None where there is none.
    """
    counts = chosen.sum(dim=1)
    most, fewest = int(counts.max()), int(counts.min())
    places = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return places, None if fewest == most else torch.arange(most, device=chosen.device) < counts[:, None]
