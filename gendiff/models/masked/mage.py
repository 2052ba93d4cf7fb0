"""MAGE: an encoder of visible and hidden tokens, and a decoder that says what the hidden ones are."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from gendiff.models.masked.checks import check_call, check_counts
from gendiff.models.masked.contract import light_inputs
from gendiff.nn.mage_cache import MAGECache
from gendiff.nn.row_block import RowBlock
from gendiff.nn.row_cache import Layout
from gendiff.nn.wide import wide


class MAGETransformer2DModel(ModelMixin, ConfigMixin):
    """Logits over V codes for each of N tokens; a class embedding is the one prefix row.

    In training the encoder may leave out a part of the hidden tokens; the decoder reads all.

    Args:
        sample_size: side of the token grid; N is its square.
        codebook_size: V.
        num_classes: C; 0, as published, for a model that knows no classes. One more embedding stands for "no class".
        num_encoder_layers: blocks of the encoder.
        num_decoder_layers: blocks of the decoder.
        num_attention_heads: H of the encoder.
        attention_head_dim: D / H of the encoder.
        decoder_num_attention_heads: None for the encoder's.
        decoder_attention_head_dim: None for the encoder's.
        mlp_ratio: hidden width of an MLP over D.
        dropout: in training.

    Raises:
        ValueError: a count below 1, or of classes below 0.

    Source: Li et al. 2023 (MAGE, arXiv 2211.09117).
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ("RowBlock",)
    _repeated_blocks = ("RowBlock",)
    _skip_keys = ("cache",)

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        codebook_size: int = 64,
        num_classes: int = 0,
        num_encoder_layers: int = 4,
        num_decoder_layers: int = 2,
        num_attention_heads: int = 4,
        attention_head_dim: int = 32,
        decoder_num_attention_heads: int | None = None,
        decoder_attention_head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        heads = num_attention_heads if decoder_num_attention_heads is None else decoder_num_attention_heads
        head_dim = attention_head_dim if decoder_attention_head_dim is None else decoder_attention_head_dim
        check_counts(
            sample_size=sample_size,
            codebook_size=codebook_size,
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=num_decoder_layers,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            decoder_num_attention_heads=heads,
            decoder_attention_head_dim=head_dim,
        )
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f"num_classes must be a whole number of at least 0, got {num_classes!r}.")
        self.num_tokens = sample_size**2
        self.mask_id = codebook_size
        self.dim, self.decoder_dim = dim, decoder_dim = num_attention_heads * attention_head_dim, heads * head_dim
        self.word_embed = nn.Embedding(codebook_size + 1, dim)  # the last row stands for a hidden token
        self.class_embed = nn.Embedding(num_classes + 1, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.num_tokens, dim))
        self.embed_norm = nn.LayerNorm(dim, eps=1e-6)
        self.embed_dropout = nn.Dropout(dropout)
        self.encoder_blocks = _blocks(num_encoder_layers, dim, num_attention_heads, mlp_ratio, dropout)
        self.encoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, 1 + self.num_tokens, decoder_dim))
        self.decoder_blocks = _blocks(num_decoder_layers, decoder_dim, heads, mlp_ratio, dropout)
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.head_dense = nn.Linear(decoder_dim, dim)
        self.head_norm = nn.LayerNorm(dim)
        self.head_bias = nn.Parameter(torch.zeros(codebook_size))
        self._initialise()

    @property
    def num_prefix_rows(self) -> int:
        """P: rows before the N image rows."""
        return 1

    @property
    def null_class(self) -> int:
        """The class that stands for none."""
        return self.config["num_classes"]

    def make_cache(
        self, recompute_prefix: bool = True, layout: Layout = "in_place", dtype: torch.dtype | None = None
    ) -> MAGECache:
        """An empty cache for one batch and one condition; arguments as of `RowCache`."""
        layers, rows = (len(self.encoder_blocks), len(self.decoder_blocks)), self.num_prefix_rows + self.num_tokens
        return MAGECache(layers, rows, self.num_prefix_rows, recompute_prefix, layout, dtype)

    def forward(
        self,
        tokens: Tensor,
        hidden: Tensor,
        class_labels: Tensor | None = None,
        cache: MAGECache | None = None,
        rows: Tensor | None = None,
        return_dict: bool = True,
        dropped: Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Logits of all tokens, or of `rows` alone with all others read from the cache.

        Args:
            tokens: (B, N) int64, 0 .. V - 1; ignored where hidden.
            hidden: (B, N) bool, True = not known yet.
            class_labels: (B,) int64 from 0 to C, which stands for none; None for none at all.
            cache: from `make_cache`. Without `rows` it is filled anew, with them their rows of it are overwritten.
                A call that fails leaves a cache that must be filled anew.
            rows: (B, m) int64 image positions, in any order, -1 = padding whose result means nothing.
            return_dict: False for a tuple.
            dropped: (B, N) bool, hidden tokens that the encoder leaves out, as many of each image; for training.

        Returns: logits (B, N, V) or (B, m, V), float32; float64 in a float64 model.

        Raises:
            ValueError: shapes that do not fit together, rows without a filled cache, or dropped tokens that are
                visible, not as many in each image, or beside a cache.
        """
        check_call(tokens, hidden, class_labels, self.num_tokens, cache, rows)
        if rows is not None and (cache is None or not cache.filled):
            raise ValueError("rows need a cache that a full pass has filled.")
        kept = None if dropped is None else _kept(dropped, hidden, cache)
        if class_labels is None:
            class_labels = torch.full((len(tokens),), self.null_class, device=tokens.device)
        encoder = None if cache is None else cache.encoder
        ids, positions, key_rows = light_inputs(tokens.masked_fill(hidden, self.mask_id), encoder, rows)
        if cache is not None and rows is None:
            cache.decoder.begin()
        embedded = self._encode(ids, class_labels, positions, kept, cache, key_rows)
        unknown = hidden if positions is None else hidden.gather(1, positions)
        h = self._decode(embedded, unknown, positions, kept, cache, key_rows)
        h = self.head_norm(F.gelu(self.head_dense(h)))
        # As published, the head does not train the embeddings that it compares with.
        logits = F.linear(h, self.word_embed.weight[: self.mask_id].detach(), self.head_bias)
        logits = logits.to(wide(logits.dtype))
        return Transformer2DModelOutput(sample=logits) if return_dict else (logits,)

    def _encode(
        self,
        ids: Tensor,
        class_labels: Tensor,
        positions: Tensor | None,
        kept: Tensor | None,
        cache: MAGECache | None,
        key_rows: Tensor | None,
    ) -> Tensor:
        """The class row, if the pass computes it, and the rows of tokens, as the decoder takes them.

        Args:
            ids: (B, R) tokens, V = hidden.
            class_labels: (B,).
            positions: (B, R) of the image; None for all.
            kept: (B, K) places that are not dropped; None for all.
            cache: of the pass.
            key_rows: from `RowCache.key_rows`; None in a full pass.

        Returns: (B, P' + R or K, decoder's D).
        """
        image = self.word_embed(ids) + self._at(self.pos_embed, positions)
        if kept is not None:
            image = image.gather(1, kept[..., None].expand(-1, -1, self.dim))
        h = image
        if key_rows is None or (cache is not None and cache.recompute_prefix):
            h = torch.cat([self.class_embed(class_labels)[:, None] + self.pos_embed[:, :1], image], dim=1)
        h = self.embed_dropout(self.embed_norm(h))
        remembered = None if cache is None else cache.encoder
        for layer, block in enumerate(self.encoder_blocks):
            h = block(h, layer, remembered, key_rows)
        if remembered is not None:
            remembered.commit()
        return self.decoder_embed(self.encoder_norm(h))

    def _decode(
        self,
        embedded: Tensor,
        unknown: Tensor,
        positions: Tensor | None,
        kept: Tensor | None,
        cache: MAGECache | None,
        key_rows: Tensor | None,
    ) -> Tensor:
        """Rows of tokens (B, R, decoder's D), before the head.

        Args:
            embedded: from `_encode`.
            unknown: (B, R) bool, where the class row is shown instead.
            positions: see `_encode`, and so for the others.
        """
        count = unknown.shape[1] if kept is None else kept.shape[1]
        prefix, shown = embedded[:, :-count], embedded[:, -count:]
        if prefix.shape[1]:
            class_row = prefix
            if cache is not None:
                cache.class_row = prefix.detach()
        else:  # a light pass that leaves the prefix as the full one had it
            assert cache is not None and cache.class_row is not None
            class_row = cache.class_row
        if kept is not None:
            places = kept[..., None].expand(-1, -1, self.decoder_dim)
            shown = class_row.expand(-1, self.num_tokens, -1).to(shown.dtype).scatter(1, places, shown)
        h = torch.where(unknown[..., None], class_row, shown) + self._at(self.decoder_pos_embed, positions)
        if prefix.shape[1]:
            h = torch.cat([prefix + self.decoder_pos_embed[:, :1], h], dim=1)
        remembered = None if cache is None else cache.decoder
        for layer, block in enumerate(self.decoder_blocks):
            h = block(h, layer, remembered, key_rows)
        if remembered is not None:
            remembered.commit()
        return self.decoder_norm(h[:, prefix.shape[1] :])

    def _at(self, table: Tensor, positions: Tensor | None) -> Tensor:
        image = table[0, 1:]
        return image if positions is None else image[positions]

    def _initialise(self) -> None:
        """Xavier weights of layers and normal ones of standard deviation 0.02 of embeddings, as published."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for parameter in (self.word_embed.weight, self.class_embed.weight, self.pos_embed, self.decoder_pos_embed):
            nn.init.normal_(parameter, std=0.02)


def _blocks(count: int, dim: int, heads: int, mlp_ratio: float, dropout: float) -> Any:
    return nn.ModuleList(RowBlock(dim, heads, mlp_ratio, dropout=dropout) for _ in range(count))


def _kept(dropped: Tensor, hidden: Tensor, cache: MAGECache | None) -> Tensor:
    """(B, K) places that are not dropped, in order."""
    if cache is not None:
        raise ValueError("dropped is for training and must be None beside a cache.")
    if dropped.shape != hidden.shape or dropped.dtype != torch.bool:
        raise ValueError(f"dropped must be {tuple(hidden.shape)} bool, got {tuple(dropped.shape)} {dropped.dtype}.")
    counts = dropped.sum(dim=1)
    if (dropped & ~hidden).any() or (counts != counts[0]).any() or counts[0] == hidden.shape[1]:
        raise ValueError(
            "dropped must be hidden tokens, as many of each image and not all, got "
            f"{counts.tolist()}, visible ones among them: {(dropped & ~hidden).sum(dim=1).tolist()}."
        )
    return (~dropped).nonzero()[:, 1].view(len(dropped), -1)
