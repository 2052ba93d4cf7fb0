"""A video transformer whose attention over time looks only backwards, so that clean frames are computed once.

After Gao et al., ViD-GPT (arXiv 2406.10981) and Ca2-VDM (arXiv 2411.16375), with two additions: rotary positions over
what is visible, and one joint attention over all tokens as an alternative layout.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from gendiff.models.causal_video_block import CausalVideoBlock, Pass
from gendiff.nn.causal_call import check_causal_call, frame_times
from gendiff.nn.frame_plan import ATTENTION_MODES, FramePlan, prefix_plan
from gendiff.nn.video_cache import VideoKVCache

POSITIONS = ("rope", "cyclic")
LAYOUTS = ("factorized", "joint")


class CausalVideoTransformer3DModel(ModelMixin, ConfigMixin):
    """Predicts the noise, velocity or flow of a chunk of frames, given clean frames before it.

    It holds no state: what it may look back at is a `FramePlan` over frames in the same forward, or a `VideoKVCache`
    that belongs to the caller.

    Args:
        sample_size: side of a square frame as the network sees it (pixels, or latents of a VAE), or (height, width).
        in_channels: C.
        patch_size: p; a frame has S = (H / p)(W / p) tokens.
        num_layers: blocks D.
        num_attention_heads: h.
        attention_head_dim: d / h; even.
        mlp_ratio: hidden width of the MLP over d.
        attention_mode: how the frames of one chunk see each other, one of `ATTENTION_MODES`.
        attention_layout: "factorized": in space, then over time at each site; "joint": over all tokens at once.
        pos: "rope": ranks of what is visible, rotated after the cache; "cyclic": a sine table with a period, added to
            the input of the first block's temporal attention and so part of what is cached.
        chunk_size: l, frames denoised together in training.
        context_frames: W, most clean frames before a chunk in training.
        prefix_references: P', clean frames whose tokens a noisy frame reads in spatial attention too.
        qk_norm: RMS-normalise queries and keys of temporal attention.
        num_classes: classes a video may have; one more embedding stands for none. 0 = no classes.
        cross_attention_dim: width of text embeddings; None = no text.
        p_empty: share of training clips without any clean frame; above 0, videos can start from nothing.

    Raises:
        ValueError: values that do not fit together.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("CausalVideoBlock",)
    _repeated_blocks = ("CausalVideoBlock",)
    _skip_keys = ("kv_cache",)

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 1,
        patch_size: int = 4,
        num_layers: int = 6,
        num_attention_heads: int = 6,
        attention_head_dim: int = 32,
        mlp_ratio: float = 4.0,
        attention_mode: str = "frame_causal",
        attention_layout: str = "factorized",
        pos: str = "rope",
        chunk_size: int = 4,
        context_frames: int = 13,
        prefix_references: int = 2,
        qk_norm: bool = False,
        num_classes: int = 0,
        cross_attention_dim: int | None = None,
        p_empty: float = 0.1,
    ) -> None:
        super().__init__()
        _check_config(dict(self.config))
        dim, joint = num_attention_heads * attention_head_dim, attention_layout == "joint"
        height, width = self.frame_size
        self.dim, self.num_modulations = dim, 6 if joint else 9
        self.grid = (height // patch_size, width // patch_size)
        self.sites = self.grid[0] * self.grid[1]
        self.patch_in = nn.Linear(in_channels * patch_size**2, dim)
        table = get_2d_sincos_pos_embed(dim, self.grid, output_type="pt").reshape(1, 1, self.sites, dim)
        self.site_embedding = nn.Parameter(table.float())
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(256, dim)
        self.class_embedding = nn.Embedding(num_classes + 1, dim) if num_classes else None
        self.text_proj = nn.Linear(cross_attention_dim, dim) if cross_attention_dim else None
        self.modulation = nn.Linear(dim, self.num_modulations * dim)
        text_dim = dim if cross_attention_dim else None
        self.blocks = nn.ModuleList(
            CausalVideoBlock(dim, num_attention_heads, mlp_ratio, text_dim, qk_norm, joint) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Parameter(torch.zeros(2, dim))
        self.patch_out = nn.Linear(dim, in_channels * patch_size**2)
        self.gradient_checkpointing = False
        self._start_as_identity()

    def _start_as_identity(self) -> None:
        """Zero the gates, the head and the results of cross-attention: training starts from a network that says 0."""
        zeroed: list[nn.Module] = [self.modulation, self.patch_out]
        zeroed += [block.attn_text.to_out for block in self._blocks() if block.attn_text is not None]
        for linear in zeroed:
            assert isinstance(linear, nn.Linear)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of a frame as the network sees it."""
        size = self.config["sample_size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def sees_whole_chunk(self) -> bool:
        """Whether the noisy frames of a chunk see each other in both directions."""
        return self.config["attention_mode"] != "frame_causal"

    @property
    def first_chunk_size(self) -> int:
        """Frames of the first chunk of a video from nothing: training starts clips with one that stands alone."""
        return 1

    @property
    def time_period(self) -> int | None:
        """L_tpe = W + l, after which cyclic positions repeat; None for rotary ones, which have no period."""
        return self.config["context_frames"] + self.config["chunk_size"] if self.config["pos"] == "cyclic" else None

    def make_cache(self, window: int, chunk: int, sinks: int = 0, layout: str = "dynamic") -> VideoKVCache:
        """An empty cache for one batch of videos, see `VideoKVCache`.

        Raises:
            ValueError: the network cannot use a cache, or a number out of its range.
        """
        if self.config["attention_mode"] == "full":
            raise ValueError("attention_mode is 'full': bidirectional attention cannot be cached; use use_cache=False.")
        joint = self.config["attention_layout"] == "joint"
        return VideoKVCache(
            self.config["num_layers"],
            window,
            chunk,
            sinks,
            tokens=self.sites if joint else 1,
            references=self.config["prefix_references"],
            sites=self.sites,
            layout=layout,
        )

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
            hidden_states: (B, C, T, H, W); clean frames come before noisy ones.
            timestep: (B,) or (B, T); 0 for clean frames.
            encoder_hidden_states: text (B, L, c).
            encoder_attention_mask: (B, L), True or 1 = a token that counts.
            class_labels: (B,) int64; `num_classes` = none.
            num_prefix_frames: P, how many frames at the start are clean; their timestep is 0 whatever is given.
            frame_index: (T,) int64, frames from the start of the video; only cyclic positions need it. None takes the
                positions of the plan, or counts on from the cache.
            plan: who sees whom, for a forward without a cache; None for `num_prefix_frames` and one noisy chunk.
            kv_cache: clean frames before these ones; the caller commits or rolls back what this forward appends.
            cache_mode: "none"; "read": the frames are noisy; "write": they are clean, and only their keys and values
                are wanted, so the forward ends where the last block has them.
            return_dict: False for a tuple.

        Returns: `.sample` (B, C, T, H, W), or None for "write".

        Raises:
            ValueError: arguments that do not fit together.
        """
        self._check_inputs(hidden_states, timestep, encoder_hidden_states, encoder_attention_mask, class_labels)
        batch, _, frames = hidden_states.shape[:3]
        check_causal_call(frames, num_prefix_frames, frame_index, plan, kv_cache, cache_mode)
        device, dtype = hidden_states.device, hidden_states.dtype
        write, config = cache_mode == "write", self.config
        times = frame_times(timestep, batch, frames, num_prefix_frames)
        embedding = self._embed(times, class_labels, dtype)
        modulation = self.modulation(nn.functional.silu(embedding))
        if kv_cache is not None:
            whole = config["attention_mode"] == "block_causal" if write else self.sees_whole_chunk
            source = kv_cache.view(frames, whole, device)
        else:
            mode, references = config["attention_mode"], config["prefix_references"]
            source = plan or prefix_plan(frames, num_prefix_frames, mode, references).to(device)
        counted = source.query_positions if isinstance(source, FramePlan) else source.frames
        walk = Pass.make(
            source,
            rotary_dim=config["attention_head_dim"] if config["pos"] == "rope" else None,
            tokens=self.sites if config["attention_layout"] == "joint" else 1,
            dtype=dtype,
            cache=kv_cache,
            write=write,
            position=self._cycle(frame_index if frame_index is not None else counted, dtype),
            text=None if self.text_proj is None else self._text(encoder_hidden_states, dtype),
            text_mask=None if encoder_attention_mask is None else encoder_attention_mask.bool()[:, None, None],
        )
        x: Any = self.patch_in(self._to_patches(hidden_states)) + self.site_embedding
        for layer, block in enumerate(self._blocks()):
            last = write and layer == len(self.blocks) - 1
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, modulation, layer, walk, last)  # type: ignore[misc]
            else:
                x = block(x, modulation, layer, walk, last)
        if x is not None:
            shift, scale = (embedding[:, :, None, None] + self.modulation_out).unbind(3)
            x = self._to_frames(self.patch_out(torch.addcmul(shift, self.norm_out(x), 1 + scale)))
        return Transformer2DModelOutput(sample=x) if return_dict else (x,)

    def _blocks(self) -> list[CausalVideoBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _embed(self, times: Tensor, class_labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B, T) timesteps and the class as (B, T, d)."""
        embedding = self.time_embedding(self.time_proj(times.flatten()).to(dtype)).unflatten(0, times.shape)
        if self.class_embedding is not None:
            if class_labels is None:
                class_labels = torch.full((len(times),), self.config["num_classes"], device=times.device)
            embedding = embedding + self.class_embedding(class_labels)[:, None]
        return embedding

    def _text(self, text: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        assert self.text_proj is not None
        return None if text is None else self.text_proj(text.to(dtype))

    def _cycle(self, frame_index: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Row frame_index mod L_tpe of a sine table, (T, d); None where positions are rotary."""
        if self.time_period is None:
            return None
        positions = (frame_index % self.time_period).double()[:, None]
        frequencies = 10_000.0 ** -(torch.arange(self.dim // 2, device=frame_index.device).double() * 2 / self.dim)
        return torch.cat([(positions * frequencies).sin(), (positions * frequencies).cos()], dim=1).to(dtype)

    def _to_patches(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, T, S, C p p)."""
        patches = nn.functional.pixel_unshuffle(x.transpose(1, 2), self.config["patch_size"])
        return patches.flatten(3).transpose(2, 3)

    def _to_frames(self, x: Tensor) -> Tensor:
        """(B, T, S, C p p) to (B, C, T, H, W)."""
        patches = x.transpose(2, 3).unflatten(3, self.grid)
        return nn.functional.pixel_shuffle(patches, self.config["patch_size"]).transpose(1, 2)

    def _check_inputs(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        text: Tensor | None,
        text_mask: Tensor | None,
        class_labels: Tensor | None,
    ) -> None:
        shape, frame = tuple(hidden_states.shape), (self.config["in_channels"], *self.frame_size)
        if len(shape) != 5 or (shape[1], *shape[3:]) != frame or not shape[2]:
            raise ValueError(f"hidden_states must be (B, {frame[0]}, T, {frame[1]}, {frame[2]}), T >= 1, got {shape}.")
        batch, frames = shape[0], shape[2]
        if tuple(timestep.shape) not in ((), (1,), (batch,), (batch, frames)):
            raise ValueError(f"timestep must be ({batch},) or ({batch}, {frames}), got {tuple(timestep.shape)}.")
        if class_labels is not None and (self.class_embedding is None or class_labels.shape != (batch,)):
            allowed = f"({batch},)" if self.class_embedding is not None else "None, num_classes is 0"
            raise ValueError(f"class_labels must be {allowed}, got shape {tuple(class_labels.shape)}.")
        width = self.config["cross_attention_dim"]
        if text is not None and (width is None or text.ndim != 3 or (len(text), text.shape[2]) != (batch, width)):
            allowed = "None, cross_attention_dim is None" if width is None else f"({batch}, L, {width})"
            raise ValueError(f"encoder_hidden_states must be {allowed}, got shape {tuple(text.shape)}.")
        if text_mask is not None and (text is None or text_mask.shape != text.shape[:2]):
            allowed = "None, without encoder_hidden_states" if text is None else str(tuple(text.shape[:2]))
            raise ValueError(f"encoder_attention_mask must be {allowed}, got shape {tuple(text_mask.shape)}.")


def _check_config(config: dict[str, Any]) -> None:
    allowed = {"attention_mode": ATTENTION_MODES, "attention_layout": LAYOUTS, "pos": POSITIONS}
    for name, values in allowed.items():
        if config[name] not in values:
            raise ValueError(f"{name} must be one of {', '.join(values)}, got {config[name]!r}.")
    counts = ("in_channels", "patch_size", "num_layers", "num_attention_heads", "chunk_size", "context_frames")
    least = dict.fromkeys(counts, 1) | {"attention_head_dim": 2, "prefix_references": 0, "num_classes": 0}
    for name, low in least.items():
        if config[name] < low:
            raise ValueError(f"{name} must be at least {low}, got {config[name]}.")
    size, patch = config["sample_size"], config["patch_size"]
    sides = [size] if isinstance(size, int) else list(size)
    if len(sides) > 2 or any(side < 1 or side % patch for side in sides):
        raise ValueError(f"sample_size must be a side or (height, width), multiples of patch_size {patch}, got {size}.")
    if config["attention_head_dim"] % 2:
        raise ValueError(f"attention_head_dim must be even, got {config['attention_head_dim']}.")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if width % 4:
        raise ValueError(f"num_attention_heads x attention_head_dim must be a multiple of 4, got {width}.")
    if not 0 <= config["p_empty"] <= 1:
        raise ValueError(f"p_empty must be in [0, 1], got {config['p_empty']}.")
    if config["attention_layout"] == "joint" and config["prefix_references"]:
        raise ValueError(
            f"prefix_references must be 0 with joint attention, which sees all tokens of the past anyway, got "
            f"{config['prefix_references']}."
        )
