"""Halton-MaskGIT: logits of hidden tokens from the visible ones, with the class in adaptive norms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from gendiff.models.masked.checks import check_call, check_counts
from gendiff.models.masked.contract import light_inputs
from gendiff.nn.halton_block import HaltonBlock, ShiftedRMSNorm
from gendiff.nn.modulated_row_cache import ModulatedRowCache
from gendiff.nn.row_cache import Layout
from gendiff.nn.wide import wide


class HaltonTransformer2DModel(ModelMixin, ConfigMixin):
    """Logits over V codes for each of N tokens. The class is in the norms, so that registers are the only prefix rows.

    Args:
        sample_size: side of the token grid; N is its square.
        codebook_size: V.
        num_classes: C; one more embedding stands for "no class".
        num_layers: blocks.
        num_attention_heads: H.
        attention_head_dim: width of a head.
        hidden_size: width D of rows; None for H heads side by side. (The published small model has 6 heads of 85 in
            512.)
        mlp_dim: hidden width of an MLP; None for 8 D / 3, rounded up to a multiple of 256.
        num_registers: P, learned rows without a position that take part in attention; may be 0.
        dropout: in training.

    Raises:
        ValueError: a count out of range.

    Source: Besnier et al. 2025 (Halton scheduler for MaskGIT, arXiv 2503.17076).
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ("HaltonBlock",)
    _repeated_blocks = ("HaltonBlock",)
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
        hidden_size: int | None = None,
        mlp_dim: int | None = None,
        num_registers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim = num_attention_heads * attention_head_dim if hidden_size is None else hidden_size
        mlp_dim = 256 * math.ceil(8 * dim // 3 / 256) if mlp_dim is None else mlp_dim
        check_counts(
            sample_size=sample_size,
            codebook_size=codebook_size,
            num_classes=num_classes,
            num_layers=num_layers,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            hidden_size=dim,
            mlp_dim=mlp_dim,
        )
        if isinstance(num_registers, bool) or not isinstance(num_registers, int) or num_registers < 0:
            raise ValueError(f"num_registers must be a whole number of at least 0, got {num_registers!r}.")
        self.num_tokens = sample_size**2
        self.mask_id = codebook_size
        self.word_embed = nn.Embedding(codebook_size + 1, dim)  # the last row stands for a hidden token
        self.class_embed = nn.Embedding(num_classes + 1, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_tokens, dim))
        self.registers = nn.Parameter(torch.empty(1, num_registers, dim)) if num_registers else None
        self.blocks = nn.ModuleList(
            HaltonBlock(dim, num_attention_heads, attention_head_dim, mlp_dim, dropout) for _ in range(num_layers)
        )
        self.adaln_out = nn.Linear(dim, 2 * dim)
        self.norm_out = ShiftedRMSNorm(dim, bias=True)
        self.head_bias = nn.Parameter(torch.zeros(codebook_size))
        self._initialise()

    @property
    def num_prefix_rows(self) -> int:
        """P: rows before the N image rows."""
        return self.config["num_registers"]

    @property
    def null_class(self) -> int:
        """The class that stands for none."""
        return self.config["num_classes"]

    def make_cache(
        self, recompute_prefix: bool = True, layout: Layout = "in_place", dtype: torch.dtype | None = None
    ) -> ModulatedRowCache:
        """An empty cache for one batch and one condition; arguments as of `RowCache`."""
        rows = self.num_prefix_rows + self.num_tokens
        return ModulatedRowCache(len(self.blocks), rows, self.num_prefix_rows, recompute_prefix, layout, dtype)

    def forward(
        self,
        tokens: Tensor,
        hidden: Tensor,
        class_labels: Tensor,
        cache: ModulatedRowCache | None = None,
        rows: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Logits of all tokens, or of `rows` alone with all others read from the cache.

        Args:
            tokens: (B, N) int64, 0 .. V - 1; ignored where hidden.
            hidden: (B, N) bool, True = not known yet.
            class_labels: (B,) int64 from 0 to C, which stands for none.
            cache: from `make_cache`. Without `rows` it is filled anew, with them their rows of it are overwritten.
                What the norms make of the labels is computed in its first pass alone, as long as the labels stay.
                A call that fails leaves a cache that must be filled anew.
            rows: (B, m) int64 image positions, in any order, -1 = padding whose result means nothing.
            return_dict: False for a tuple.

        Returns: logits (B, N, V) or (B, m, V), float32; float64 in a float64 model.

        Raises:
            ValueError: shapes that do not fit together, or rows without a filled cache.
        """
        check_call(tokens, hidden, class_labels, self.num_tokens, cache, rows)
        ids, positions, key_rows = light_inputs(tokens.masked_fill(hidden, self.mask_id), cache, rows)
        if cache is None:
            modulations = self._modulations(class_labels)
        else:
            modulations = cache.modulations(class_labels, lambda: self._modulations(class_labels))
        h = self.word_embed(ids) + (self.pos_embed if positions is None else self.pos_embed[0, positions])
        if self.registers is not None and (rows is None or (cache is not None and cache.recompute_prefix)):
            h = torch.cat([self.registers.expand(len(h), -1, -1), h], dim=1)
        for layer, block in enumerate(self.blocks):
            h = block(h, modulations[layer], layer, cache, key_rows)
        if cache is not None:
            cache.commit()
        shift, scale = modulations[-1].unbind(dim=2)
        h = torch.addcmul(shift, self.norm_out(h[:, -ids.shape[1] :]), scale + 1)
        # The published head has a logit for "hidden" too, which must never be drawn.
        logits = F.linear(h, self.word_embed.weight[: self.mask_id], self.head_bias)
        logits = logits.to(wide(logits.dtype))
        return Transformer2DModelOutput(sample=logits) if return_dict else (logits,)

    def _modulations(self, class_labels: Tensor) -> Sequence[Tensor]:
        """(B, 1, 6, D) of each block, and (B, 1, 2, D), shift and scale of the last norm."""
        condition = F.silu(self.class_embed(class_labels))
        own = [block.modulation(condition) for block in self.blocks if isinstance(block, HaltonBlock)]
        return [*own, self.adaln_out(condition).unflatten(-1, (1, 2, -1))]

    def _initialise(self) -> None:
        """As published: Xavier weights, embeddings of standard deviation 0.02, gates of blocks closed."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for parameter in (self.pos_embed, self.registers):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)
        for block in self.blocks:
            if isinstance(block, HaltonBlock):
                nn.init.zeros_(block.adaln.weight)
                # Several matrices in one: each is filled as it would be alone.
                for part in (*block.attn.to_qkv.weight.chunk(3), *block.gate_up.weight.chunk(2)):
                    nn.init.xavier_uniform_(part)
