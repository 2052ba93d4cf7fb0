"""A transformer that predicts all tokens of the next stage at once, given the stages before it.

The network of VAR (Tian et al. 2024, arXiv 2404.02905), whose weights load into it. Next-frequency prediction (NFIG,
Huang et al. 2025, arXiv 2503.07076) uses the same network; the tokenizer alone knows of frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from gendiff.models.next_frequency_block import NextFrequencyBlock, modulated
from gendiff.nn.stage_cache import StageCache
from gendiff.nn.stages import check_stages, stage_mask, stage_numbers, token_counts
from gendiff.nn.wide import WideLayerNorm, wide


class NextFrequencyTransformer2DModel(ModelMixin, ConfigMixin):
    """Logits over V codes for each token of a stage.

    It holds no state: a call that goes stage by stage brings its own `StageCache`.

    Args:
        stages: side p_k of each token grid, as in the tokenizer; L = sum of p_k^2.
        latent_channels: C, of the tokenizer.
        codebook_size: V, of the tokenizer.
        num_classes: one more embedding stands for "no class".
        num_layers: blocks.
        num_attention_heads: H.
        attention_head_dim: D / H.
        mlp_ratio: hidden width of the MLP over D.
        qk_norm: normalise queries and keys, see `StageAttention`.
        shared_adaln: one linear layer makes the modulations of all blocks, to which each adds its table.
        drop_path: share of samples that skip a branch of the last block in training, rising linearly from 0; None for
            0.1 depth / 24.
        gate_init: factor of the gates' first weights.

    Raises:
        ValueError: values that do not fit together.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("NextFrequencyBlock",)
    _repeated_blocks = ("NextFrequencyBlock",)
    _skip_keys = ("cache",)
    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos", "pos_start", "lvl_embed", "adaln_table", "log_scale")
    """What a training that decays matrices alone leaves as it is, see `train.decay` of a recipe."""

    @register_to_config
    def __init__(
        self,
        stages: Sequence[int] = (1, 2, 3, 4, 6, 8),
        latent_channels: int = 16,
        codebook_size: int = 256,
        num_classes: int = 10,
        num_layers: int = 4,
        num_attention_heads: int = 4,
        attention_head_dim: int = 32,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        shared_adaln: bool = False,
        drop_path: float | None = None,
        gate_init: float = 1e-3,
    ) -> None:
        super().__init__()
        self.stages = check_stages(stages)
        counts = {"num_classes": num_classes, "num_layers": num_layers, "num_attention_heads": num_attention_heads}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}.")
        self.register_to_config(stages=list(self.stages))
        self.counts = token_counts(self.stages)
        self.dim = dim = num_attention_heads * attention_head_dim
        self.word_embed = nn.Linear(latent_channels, dim)
        self.condition_embedder = nn.Embedding(num_classes + 1, dim)
        self.pos_start = nn.Parameter(torch.empty(1, self.counts[0], dim))
        self.pos = nn.Parameter(torch.empty(1, sum(self.counts), dim))
        self.lvl_embed = nn.Embedding(len(self.stages), dim)
        # Not named like the config's entry, which would be found in its place.
        self.adaln: nn.Linear | None = nn.Linear(dim, 6 * dim) if shared_adaln else None
        if drop_path is None:
            drop_path = 0.1 * num_layers / 24
        rates = [drop_path * layer / max(num_layers - 1, 1) for layer in range(num_layers)]
        self.blocks = nn.ModuleList(
            NextFrequencyBlock(dim, num_attention_heads, mlp_ratio, qk_norm, shared_adaln, rate) for rate in rates
        )
        self.head_norm = WideLayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.head_adaln = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, codebook_size)
        # Follow from the stages: not part of a checkpoint.
        self.register_buffer("_levels", stage_numbers(self.stages), persistent=False)
        self._mask: Tensor | None = None
        self.gradient_checkpointing = False
        self._initialise(gate_init)

    def _initialise(self, gate_init: float) -> None:
        """As in VAR: gates all but closed, so that training starts from a network that passes its input on."""
        std, depth = math.sqrt(1 / (3 * self.dim)), len(self.blocks)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_start, std=std)
        nn.init.trunc_normal_(self.pos, std=std)
        gates = torch.cat([torch.full((2,), gate_init), torch.full((4,), 0.5)])
        with torch.no_grad():
            self.head.weight *= 0.02
            self.head_adaln.weight *= 0.5
            for block in self.blocks:
                assert isinstance(block, NextFrequencyBlock)
                block.attn.to_out.weight /= math.sqrt(2 * depth)
                block.fc2.weight /= math.sqrt(2 * depth)
                if block.adaln is not None:
                    block.adaln.weight *= gates.repeat_interleave(self.dim)[:, None]
                elif block.adaln_table is not None:
                    block.adaln_table.mul_(gates[:, None])

    def make_cache(self) -> StageCache:
        """An empty cache for one batch, to be handed to `forward` for stages 0, 1, .. in order."""
        return StageCache(len(self.blocks), sum(self.counts))

    def forward(
        self, inputs: Tensor | None, class_labels: Tensor, cache: StageCache | None = None, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Logits of all stages at once, as in training, or with a cache of the next stage alone.

        Each stage sees itself and those before it; with a cache all that is there, so no mask is needed.

        Args:
            inputs: (B, n_1 + .. + n_k, C), what stages 1 .. k read, see `FrequencyVQModel.tokens_to_inputs`; with a
                cache (B, n_k, C), what the next stage reads. None for stage 0.
            class_labels: (B,) int64 from 0 to num_classes, which stands for none. With a cache they are read at stage 0
                alone.
            cache: from `make_cache`; the stage is written to it. A call that fails leaves it as it was.
            return_dict: False for a tuple.

        Returns: logits (B, n_0 + .. + n_k, V), with a cache (B, n_k, V), float32; float64 in a float64 model.

        Raises:
            ValueError: the rows are not those of whole stages, or of the stage that comes next; or inputs and labels
                do not fit together.
        """
        self._check(inputs, class_labels)
        if cache is None:
            first, stop = 0, self._stop(inputs)
            modulations = self._modulations(class_labels)
            # A stage alone sees all of itself.
            mask = None if inputs is None else self._stage_mask()[:stop, :stop]
        else:
            first, stop = self._next_stage(inputs, cache)
            if cache.modulations is None:
                cache.modulations = self._modulations(class_labels)
            modulations, mask = cache.modulations, None
        h = (
            self._embed(inputs, class_labels, first)
            + self.pos[:, first:stop]
            + self.lvl_embed(self._levels[first:stop])
        )
        try:
            logits = self._predict(h, modulations, mask, cache)
        except BaseException:
            if cache is not None:
                cache.keys_values.rollback()
            raise
        if cache is not None:
            cache.keys_values.commit()
        return Transformer2DModelOutput(sample=logits) if return_dict else (logits,)

    def _check(self, inputs: Tensor | None, class_labels: Tensor) -> None:
        if class_labels.ndim != 1:
            raise ValueError(f"class_labels must be (B,), got {tuple(class_labels.shape)}.")
        batch, width = len(class_labels), self.config["latent_channels"]
        if inputs is not None and (inputs.ndim != 3 or inputs.shape[0] != batch or inputs.shape[2] != width):
            raise ValueError(f"inputs must be ({batch}, rows, {width}), got {tuple(inputs.shape)}.")

    def _ends(self) -> list[int]:
        """L_k = n_0 + .. + n_k for each stage."""
        return list(accumulate(self.counts))

    def _stop(self, inputs: Tensor | None) -> int:
        """Tokens of the stages that `inputs` make up, stage 0 included."""
        given = 0 if inputs is None else inputs.shape[1]
        allowed = [end - self.counts[0] for end in self._ends()]
        if given not in allowed:
            raise ValueError(f"inputs must have the rows of whole stages, one of {allowed}, got {given}.")
        return self.counts[0] + given

    def _next_stage(self, inputs: Tensor | None, cache: StageCache) -> tuple[int, int]:
        """First token of the stage that comes next in the cache, and the one behind its last."""
        stage = ([0, *self._ends()]).index(cache.length)
        if stage == len(self.counts):
            raise ValueError(f"the cache holds all {stage} stages already; a new call needs a new cache.")
        expected = None if stage == 0 else self.counts[stage]
        got = None if inputs is None else inputs.shape[1]
        if got != expected:
            raise ValueError(f"inputs of stage {stage} must have {expected} rows, got {got}.")
        return cache.length, cache.length + self.counts[stage]

    def _embed(self, inputs: Tensor | None, class_labels: Tensor, first: int) -> Tensor:
        """(B, T, D): stage 0 is made of the condition, later ones of what they read."""
        parts = []
        if first == 0:
            parts.append(self.condition_embedder(class_labels)[:, None] + self.pos_start)
        if inputs is not None:
            parts.append(self.word_embed(inputs.to(self.word_embed.weight.dtype)))
        return parts[0] if len(parts) == 1 else torch.cat([part.to(self.pos.dtype) for part in parts], dim=1)

    def _stage_mask(self) -> Tensor:
        if self._mask is None or self._mask.device != self.pos.device:
            with torch.inference_mode(False):
                self._mask = stage_mask(self.stages).to(self.pos.device)
        return self._mask

    def _modulations(self, class_labels: Tensor) -> list[Tensor]:
        """What each block and the head make of the condition: (B, 1, 6, D) for a block, (B, 1, 2, D) for the head."""
        active = F.silu(self.condition_embedder(class_labels))
        shared = active if self.adaln is None else self.adaln(active).unflatten(-1, (1, 6, -1))
        blocks = [block.modulation(shared) for block in self._typed_blocks()]
        return [*blocks, self.head_adaln(active).unflatten(-1, (1, 2, -1))]

    def _predict(self, h: Tensor, modulations: list[Tensor], mask: Tensor | None, cache: StageCache | None) -> Tensor:
        for layer, block in enumerate(self._typed_blocks()):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                again: Any = self._gradient_checkpointing_func
                h = again(block, h, modulations[layer], mask, layer, cache)
            else:
                h = block(h, modulations[layer], mask, layer, cache)
        scale, shift = modulations[-1].unbind(dim=2)
        logits = self.head(modulated(h, self.head_norm, scale, shift))
        return logits.to(wide(logits.dtype))

    def _typed_blocks(self) -> list[NextFrequencyBlock]:
        return [block for block in self.blocks if isinstance(block, NextFrequencyBlock)]
