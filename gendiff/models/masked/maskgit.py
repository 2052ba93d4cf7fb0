"""MaskGIT: logits of hidden tokens from the visible ones and a class, all at once."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from gendiff.models.masked.checks import check_call, check_counts
from gendiff.models.masked.contract import light_inputs
from gendiff.nn.row_block import RowBlock
from gendiff.nn.row_cache import Layout, RowCache
from gendiff.nn.wide import wide


class MaskGITTransformer2DModel(ModelMixin, ConfigMixin):
    """Logits over V codes for each of N tokens; a class embedding is the one prefix row.

    Args:
        sample_size: side of the token grid; N is its square.
        codebook_size: V.
        num_classes: C; one more embedding stands for "no class".
        num_layers: blocks.
        num_attention_heads: H.
        attention_head_dim: D / H.
        mlp_ratio: hidden width of an MLP over D.
        norm: "post", as published, or "pre".
        long_skips: each block of the second half also reads what the block as far from the end as it is from the
            middle gave (U-ViT, Bao et al. 2023).
        qkv_bias: queries, keys and values have a bias.
        norm_eps: of all norms.
        dropout: in training.
        gelu: "none" or "tanh", how it is approximated; the published MaskGIT has tanh.
        class_norm: the class row has a norm of its own before the blocks, as in AutoNAT, not that of the tokens.
        embed_norm_eps: of the norms before the blocks; None for `norm_eps`.

    Raises:
        ValueError: a count below 1, or an unknown norm or gelu.

    Source: Chang et al. 2022 (MaskGIT, arXiv 2202.04200); U-ViT blocks as in Ni et al. 2024 (AutoNAT).
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
        num_classes: int = 10,
        num_layers: int = 6,
        num_attention_heads: int = 4,
        attention_head_dim: int = 32,
        mlp_ratio: float = 4.0,
        norm: str = "pre",
        long_skips: bool = False,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        gelu: str = "none",
        class_norm: bool = False,
        embed_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        check_counts(
            sample_size=sample_size, codebook_size=codebook_size, num_classes=num_classes, num_layers=num_layers
        )
        if norm not in ("pre", "post"):
            raise ValueError(f"norm must be pre or post, got {norm!r}.")
        if gelu not in ("none", "tanh"):
            raise ValueError(f"gelu must be none or tanh, got {gelu!r}.")
        embed_eps = norm_eps if embed_norm_eps is None else embed_norm_eps
        self.num_tokens = sample_size**2
        self.dim = dim = num_attention_heads * attention_head_dim
        self.mask_id = codebook_size
        self.word_embed = nn.Embedding(codebook_size + 1, dim)  # the last row stands for a hidden token
        self.class_embed = nn.Embedding(num_classes + 1, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.num_tokens, dim))
        self.embed_norm = nn.LayerNorm(dim, eps=embed_eps)
        # Not named like the config's entry, which would be found in its place.
        self.class_embed_norm = nn.LayerNorm(dim, eps=embed_eps) if class_norm else None
        self.embed_dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            RowBlock(dim, num_attention_heads, mlp_ratio, qkv_bias, norm, norm_eps, dropout, gelu)
            for _ in range(num_layers)
        )
        self.skips = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(num_layers // 2 if long_skips else 0))
        self.norm_out = nn.LayerNorm(dim, eps=norm_eps) if norm == "pre" else nn.Identity()
        self.head_dense = nn.Linear(dim, dim)
        self.head_norm = nn.LayerNorm(dim, eps=norm_eps)
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
    ) -> RowCache:
        """An empty cache for one batch and one condition; arguments as of `RowCache`."""
        rows = self.num_prefix_rows + self.num_tokens
        return RowCache(len(self.blocks), rows, self.num_prefix_rows, recompute_prefix, layout, dtype)

    def forward(
        self,
        tokens: Tensor,
        hidden: Tensor,
        class_labels: Tensor,
        cache: RowCache | None = None,
        rows: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Logits of all tokens, or of `rows` alone with all others read from the cache.

        Args:
            tokens: (B, N) int64, 0 .. V - 1; ignored where hidden.
            hidden: (B, N) bool, True = not known yet.
            class_labels: (B,) int64 from 0 to C, which stands for none.
            cache: from `make_cache`. Without `rows` it is filled anew, with them their rows of it are overwritten.
                A call that fails leaves a cache that must be filled anew.
            rows: (B, m) int64 image positions, in any order, -1 = padding whose result means nothing.
            return_dict: False for a tuple.

        Returns: logits (B, N, V) or (B, m, V), float32; float64 in a float64 model.

        Raises:
            ValueError: shapes that do not fit together, or rows without a filled cache.
        """
        check_call(tokens, hidden, class_labels, self.num_tokens, cache, rows)
        ids, positions, key_rows = light_inputs(tokens.masked_fill(hidden, self.mask_id), cache, rows)
        image = self.embed_norm(self.word_embed(ids) + self._positions(positions))
        if rows is None or (cache is not None and cache.recompute_prefix):
            prefix = self.class_embed(class_labels)[:, None] + self.pos_embed[:, :1]
            norm = self.embed_norm if self.class_embed_norm is None else self.class_embed_norm
            h = torch.cat([norm(prefix), image], dim=1)
        else:
            h = image
        h = self._blocks(self.embed_dropout(h), cache, key_rows)
        h = self.norm_out(h[:, -ids.shape[1] :])
        h = self.head_norm(F.gelu(self.head_dense(h), approximate=self.config["gelu"]))
        logits = F.linear(h, self.word_embed.weight[: self.mask_id], self.head_bias)
        logits = logits.to(wide(logits.dtype))
        return Transformer2DModelOutput(sample=logits) if return_dict else (logits,)

    def _positions(self, positions: Tensor | None) -> Tensor:
        image = self.pos_embed[0, 1:]
        return image if positions is None else image[positions]

    def _blocks(self, h: Tensor, cache: RowCache | None, rows: Tensor | None) -> Tensor:
        count, kept = len(self.blocks), []
        for layer, block in enumerate(self.blocks):
            partner = layer - (count - len(self.skips))
            if partner >= 0:
                h = self.skips[partner](torch.cat([h, kept.pop()], dim=-1))
            h = block(h, layer, cache, rows)
            if layer < len(self.skips):
                kept.append(h)
        if cache is not None:
            cache.commit()
        return h

    def _initialise(self) -> None:
        """Normal weights of standard deviation 0.02, as published."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
