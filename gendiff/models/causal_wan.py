"""The Wan 2.1 video transformer with attention that looks only backwards in time, and a cache of clean frames.

It runs the weights of models distilled or tuned from Wan (Wan team 2025, arXiv 2503.20314) to generate chunk after
chunk, such as Self-Forcing (Huang et al., arXiv 2506.08009). Parameters bear the names of diffusers'
`WanTransformer3DModel`, and with `attention_mode="full"` it computes what that model computes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding
from torch import Tensor, nn

from gendiff.models.causal_wan_block import CausalWanBlock, WanPass
from gendiff.nn.causal_call import check_causal_call, frame_times
from gendiff.nn.frame_plan import ATTENTION_MODES, FramePlan, prefix_plan
from gendiff.nn.video_cache import VideoKVCache
from gendiff.nn.wide import WideLayerNorm, wide


class CausalWanTransformer3DModel(ModelMixin, ConfigMixin):
    """Predicts the flow (noise minus data) of a chunk of latent frames, given clean frames before it and a text.

    It holds no state, see `CausalVideoTransformer3DModel`, whose calling convention it shares. Positions in time are
    ranks among the visible frames: keys are rotated after the cache. Without sinks this equals the published models,
    which rotate by frame number before it; a sink stays close instead of drifting away.

    Args:
        sample_size: side of a square latent frame, or (height, width).
        in_channels: C, of the result too.
        patch_size: (1, ph, pw); a frame has S = (H / ph)(W / pw) tokens.
        num_layers: blocks D.
        num_attention_heads: h.
        attention_head_dim: d / h; even.
        ffn_dim: hidden width of the MLPs.
        freq_dim: width of the sines that embed a timestep.
        cross_attention_dim: width of text embeddings.
        eps: of all norms.
        attention_mode: how the frames of one chunk see each other, one of `ATTENTION_MODES`.
        chunk_size: l, frames denoised together in training.
        context_frames: W, most clean frames before a chunk in training.
        pos: "rope", positions by rank.
        prefix_references: 0; joint attention sees all tokens of the past anyway.
        num_classes: 0; there is text instead.
        p_empty: share of training clips without any clean frame; above 0, videos can start from nothing.

    Raises:
        ValueError: values that do not fit together.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("CausalWanBlock",)
    _repeated_blocks = ("CausalWanBlock",)
    # A list: diffusers would take a tuple for one name.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["time_embedder", "scale_shift_table", "norm2"]  # type: ignore[assignment]
    _skip_layerwise_casting_patterns = ("patch_embedding", "condition_embedder", "norm")
    _skip_keys = ("kv_cache",)

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = (60, 104),
        in_channels: int = 16,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_layers: int = 30,
        num_attention_heads: int = 12,
        attention_head_dim: int = 128,
        ffn_dim: int = 8960,
        freq_dim: int = 256,
        cross_attention_dim: int = 4096,
        eps: float = 1e-6,
        attention_mode: str = "block_causal",
        chunk_size: int = 3,
        context_frames: int = 18,
        pos: str = "rope",
        prefix_references: int = 0,
        num_classes: int = 0,
        p_empty: float = 1.0,
    ) -> None:
        super().__init__()
        _check_config(dict(self.config))
        dim = num_attention_heads * attention_head_dim
        patch = (patch_size[0], patch_size[1], patch_size[2])
        self.dim = dim
        self.sites = self._grid(*self.frame_size)[0] * self._grid(*self.frame_size)[1]
        self.patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=patch, stride=patch)
        self.condition_embedder = WanTimeTextImageEmbedding(dim, freq_dim, 6 * dim, cross_attention_dim)
        self.blocks = nn.ModuleList(CausalWanBlock(dim, ffn_dim, num_attention_heads, eps) for _ in range(num_layers))
        self.norm_out = WideLayerNorm(dim, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, in_channels * patch[1] * patch[2])
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.gradient_checkpointing = False

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of a latent frame."""
        size = self.config["sample_size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def sees_whole_chunk(self) -> bool:
        """Whether the noisy frames of a chunk see each other in both directions."""
        return self.config["attention_mode"] != "frame_causal"

    @property
    def first_chunk_size(self) -> int:
        """Frames of the first chunk of a video from nothing: as many as of any other, as Self-Forcing trains it."""
        return self.config["chunk_size"]

    @property
    def time_period(self) -> None:
        """None: positions are ranks, which have no period."""
        return None

    def make_cache(self, window: int, chunk: int, sinks: int = 0, layout: str = "dynamic") -> VideoKVCache:
        """An empty cache for one batch of videos with frames of `frame_size`, see `VideoKVCache`.

        Raises:
            ValueError: the network cannot use a cache, or a number out of its range.
        """
        if self.config["attention_mode"] == "full":
            raise ValueError("attention_mode is 'full': bidirectional attention cannot be cached; use use_cache=False.")
        return VideoKVCache(self.config["num_layers"], window, chunk, sinks, tokens=self.sites, layout=layout)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        num_prefix_frames: int = 0,
        frame_index: Tensor | None = None,
        plan: FramePlan | None = None,
        kv_cache: VideoKVCache | None = None,
        cache_mode: str = "none",
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor | None]:
        """Prediction for each frame.

        Args:
            hidden_states: latents (B, C, T, H, W); clean frames come before noisy ones. Without a cache, H and W may
                differ from `frame_size`.
            timestep: (B,) or (B, T) in 0 .. 1000; 0 for clean frames.
            encoder_hidden_states: text (B, L, c). Wan was trained on texts padded to 512 tokens with zeros that count.
            encoder_attention_mask: (B, L), True or 1 = a token that counts; None = all.
            class_labels: must be None.
            num_prefix_frames: P, how many frames at the start are clean; their timestep is 0 whatever is given.
            frame_index: (T,) int64; not needed, positions being ranks.
            plan: who sees whom, for a forward without a cache; None for `num_prefix_frames` and one noisy chunk.
            kv_cache: clean frames before these ones; the caller commits or rolls back what this forward appends.
            cache_mode: "none"; "read": the frames are noisy; "write": they are clean, and only their keys and values
                are wanted, so the forward ends where the last block has them. In "block_causal", write a chunk at a
                time.
            return_dict: False for a tuple.

        Returns: `.sample` (B, C, T, H, W), or None for "write".

        Raises:
            ValueError: arguments that do not fit together.
        """
        batch, _, frames, height, width = hidden_states.shape
        check_causal_call(frames, num_prefix_frames, frame_index, plan, kv_cache, cache_mode)
        text = self._check_inputs(hidden_states, encoder_hidden_states, class_labels, kv_cache)
        dtype, write, mode = hidden_states.dtype, cache_mode == "write", self.config["attention_mode"]
        times = frame_times(timestep, batch, frames, num_prefix_frames)
        embedding, modulation, text, _ = self.condition_embedder(
            times.flatten(), text.to(dtype), timestep_seq_len=frames
        )
        source = plan
        if kv_cache is not None:
            source = kv_cache.view(frames, mode == "block_causal" if write else self.sees_whole_chunk)
        elif source is None:
            source = prefix_plan(frames, num_prefix_frames, mode, 0)
        assert source is not None
        mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()[:, None, None]
        grid = self._grid(height, width)
        walk = WanPass.make(source, kv_cache, grid, self.config["attention_head_dim"], text, mask)
        x: Any = self.patch_embedding(hidden_states).flatten(3).permute(0, 2, 3, 1).contiguous()  # (B, T, S, d)
        modulation = modulation.unflatten(2, (6, -1))
        checkpointed = self._gradient_checkpointing_func if torch.is_grad_enabled() else None
        for layer, block in enumerate(self.blocks):
            last = write and layer == len(self.blocks) - 1
            if self.gradient_checkpointing and checkpointed is not None:
                x = checkpointed(block, x, modulation, layer, walk, last)
            else:
                x = block(x, modulation, layer, walk, last)
        if x is not None:
            terms = self.scale_shift_table[:, None] + embedding.to(wide(dtype))[:, :, None]  # (B, T, 2, d)
            shift, scale = terms.unsqueeze(2).unbind(3)
            x = self._to_frames(self.proj_out((self.norm_out(x) * (1 + scale) + shift).to(dtype)), grid)
        return Transformer2DModelOutput(sample=x) if return_dict else (x,)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a frame."""
        _, rows, columns = self.config["patch_size"]
        return height // rows, width // columns

    def _to_frames(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, T, S, ph pw C) to (B, C, T, H, W)."""
        _, rows, columns = self.config["patch_size"]
        patches = x.unflatten(3, (rows, columns, -1)).unflatten(2, grid)  # (B, T, H / ph, W / pw, ph, pw, C)
        return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)

    def _check_inputs(
        self, hidden_states: Tensor, text: Tensor | None, class_labels: Tensor | None, kv_cache: VideoKVCache | None
    ) -> Tensor:
        """The text, which there must be."""
        _, channels, _, height, width = hidden_states.shape
        config = self.config
        if kv_cache is not None and config["attention_mode"] == "full":
            raise ValueError("kv_cache cannot be used with attention_mode 'full': bidirectional attention has no past.")
        if class_labels is not None:
            raise ValueError("class_labels must be None: this network knows texts, not classes.")
        _, rows, columns = config["patch_size"]
        if channels != config["in_channels"] or height % rows or width % columns:
            raise ValueError(
                f"hidden_states must have {config['in_channels']} channels and sides that patches of {rows} x {columns}"
                f" divide, got {tuple(hidden_states.shape)}."
            )
        if kv_cache is not None and kv_cache.tokens != (height // rows) * (width // columns):
            raise ValueError(
                f"hidden_states must have frames of {kv_cache.tokens} tokens as in kv_cache, got {height} x {width}."
            )
        if text is None or text.ndim != 3 or text.shape[2] != config["cross_attention_dim"]:
            got = None if text is None else tuple(text.shape)
            raise ValueError(f"encoder_hidden_states must be (B, L, {config['cross_attention_dim']}), got {got}.")
        return text


def _check_config(config: dict[str, Any]) -> None:
    if config["attention_mode"] not in ATTENTION_MODES:
        raise ValueError(
            f"attention_mode must be one of {', '.join(ATTENTION_MODES)}, got {config['attention_mode']!r}."
        )
    size, patch = config["sample_size"], config["patch_size"]
    if len(patch) != 3 or patch[0] != 1:
        raise ValueError(f"patch_size must be (1, height, width): a token is of one frame, got {patch}.")
    sides = (size, size) if isinstance(size, int) else size
    if len(sides) != 2 or any(side < 1 or side % step for side, step in zip(sides, patch[1:], strict=True)):
        raise ValueError(f"sample_size must be (height, width) that patches of {patch[1:]} divide, got {size}.")
    if config["attention_head_dim"] % 2:
        raise ValueError(f"attention_head_dim must be even, got {config['attention_head_dim']}.")
    for name in ("chunk_size", "context_frames", "num_layers"):
        if config[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {config[name]}.")
    for name, value in {"pos": "rope", "prefix_references": 0, "num_classes": 0}.items():
        if config[name] != value:
            raise ValueError(f"{name} must be {value} for this network, got {config[name]}.")
