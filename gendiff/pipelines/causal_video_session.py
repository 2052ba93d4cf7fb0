"""A video in the making: it can be continued, forked, fed with observed frames and put under a new condition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gendiff.samplers.rollout import chunk_lengths

from .causal_video_chunk import CausalVideoPipelineOutput, StopRollout, VideoChunk, join_chunks
from .causal_video_frames import check_output_type, encode_frames
from .causal_video_rollout import check_groups, check_guidance, check_num_frames
from .causal_video_snapshot import Generators, check_generator, copied
from .causal_video_state import VideoState
from .stats import Meter


class CausalVideoSession(VideoState):
    """A batch of videos that grows chunk by chunk. Made by `CausalVideoPipeline.start`; it owns all state of the call.

    Interrupt it anywhere: a chunk that is not finished is dropped, and what was finished before stays.

    Attributes:
        given: the frames that the video was started with, as its first chunk; None if from nothing.
        num_frames: index of the next frame.
        cache_bytes: that the key/value caches hold now.
        guidance_scale: from here on.
        stats: what it has cost so far.
    """

    def generate(
        self, num_frames: int, guidance_scale: float | None = None, output_type: str = "pt"
    ) -> CausalVideoPipelineOutput:
        """Go on for `num_frames` frames.

        Args:
            num_frames: new frames.
            guidance_scale: from here on; None for no change.
            output_type: as of the pipeline.

        Returns: `CausalVideoPipelineOutput` with the new frames only, and what they cost.

        Raises:
            ValueError: a bad number; guidance in a session that was started without; a chunk that was cut short
                before, where attention needs whole ones.
        """
        check_num_frames(num_frames, 0)
        check_output_type(output_type)
        chunks = self.chunks(num_frames)
        if guidance_scale is not None:
            self._set_guidance(guidance_scale)
        before, self._meter = self._meter, Meter()
        try:
            return self.output(list(chunks), output_type)
        finally:
            before.add(self._meter)
            self._meter = before

    def output(self, chunks: list[VideoChunk], output_type: str = "pt") -> CausalVideoPipelineOutput:
        """Chunks of this session as one video, of any `output_type` of the pipeline."""
        shapes = self.pipe.sample_shape, self.pipe.latent_shape
        frames, latents = (torch.empty(self.batch, 0, *s, device=self.device, dtype=self.dtype) for s in shapes)
        return join_chunks(chunks, output_type, self.stats, (frames, latents))

    def chunks(
        self,
        num_frames: int | None = None,
        on_step_end: Callable[..., Any] | None = None,
        on_chunk_end: Callable[[CausalVideoSession, VideoChunk], Any] | None = None,
        progress: Any = None,
    ) -> Iterator[VideoChunk]:
        """Generate chunk after chunk; None never ends. What was finished stays part of the video, come what may.

        Args:
            num_frames: new frames; the last chunk is shorter where they do not divide.
            on_step_end: as of `sample`, at every step of every chunk; may raise `StopRollout`.
            on_chunk_end: called as `on_chunk_end(session, chunk)` before the chunk is handed out; a returned
                {"stop": True} makes it the last.
            progress: wraps the timesteps of each chunk.

        Raises:
            ValueError: the last chunk was cut short, and attention can only go on from whole ones.
        """
        self._check_whole()
        return self._roll_out(num_frames, on_step_end, on_chunk_end, progress or self.pipe.progress_bar)

    def append(self, video: Any = None, image: Any = None, latents: Tensor | None = None) -> None:
        """Take observed frames as the next ones of the videos.

        Args:
            video: (B, T, C, H, W) in [0, 1], or what else the pipeline takes.
            image: one frame for each video.
            latents: (B, T, C, H, W) as the network sees frames, instead.

        Raises:
            ValueError: none or several of them, another batch, shape or kind of numbers, or on another accelerator
                than the session; a number of frames that `block_causal` attention cannot take.
        """
        for name, value in {"video": video, "image": image, "latents": latents}.items():
            if isinstance(value, Tensor) and value.device.type not in ("cpu", self.device.type):
                raise ValueError(f"{name} must be on {self.device}, as the session is, or the cpu, got {value.device}.")
        given = self.pipe._check_given(image, video, latents)
        if given is None:
            raise ValueError("append needs one of video, image and latents, got none.")
        if len(given.frames) != self.batch:
            raise ValueError(
                f"{given.name} must keep the session's batch of {self.batch} videos, got {len(given.frames)}."
            )
        self._check_whole()
        check_groups(given.name, len(given), 0 if len(self._past) else None, self.pipe.transformer)
        self._observe(encode_frames(given, self.pipe.vae, self.device, self.dtype))

    def set_condition(
        self,
        class_labels: Any = None,
        prompt: Any = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        recache: bool = True,
    ) -> None:
        """Go on under another class or text.

        Args:
            class_labels: as of the pipeline.
            prompt: as of the pipeline.
            prompt_embeds: as of the pipeline.
            prompt_attention_mask: as of the pipeline.
            recache: compute what is cached anew under the new condition, as if the last W frames had always had it
                (LongLive's recache); False keeps the inertia of keys and values made under the old one.

        Raises:
            ValueError: another batch size, or a condition that the model does not take.
        """
        text = {"prompt_embeds": prompt_embeds, "prompt_attention_mask": prompt_attention_mask}
        condition, negative = self.pipe._make_conditions(class_labels, prompt, self.batch, 1, **text)
        conditions = condition, self._past.conditions[1] or negative
        if recache:
            self._recache(conditions)
        else:
            self._past.change_conditions(conditions)

    def recache(self, guidance_scale: float | None = None) -> None:
        """Build the caches anew from the last W clean frames; also the way to take up guidance in the middle.

        Args:
            guidance_scale: from here on; None for no change.

        Raises:
            ValueError: a bad number, or there is no condition to guide to.
        """
        if guidance_scale is not None:
            guidance_scale = check_guidance(guidance_scale, self._past.conditions[1] is not None)
        self._recache(guidance_scale=guidance_scale)

    def fork(self, generator: Generators | None = None) -> CausalVideoSession:
        """Another session with the same past, whose future is its own.

        Args:
            generator: of its future; None for copies of this session's, which give the same future.

        Raises:
            ValueError: not one generator, or one for each video.
        """
        chosen = copied(self.generator) if generator is None else check_generator(generator, self.batch)
        condition, negative = self._past.conditions
        other = CausalVideoSession(self.pipe, self.rollout, condition, negative, self.guidance_scale, chosen)
        other._take(self.snapshot())
        return other

    def _roll_out(
        self,
        num_frames: int | None,
        on_step_end: Callable[..., Any] | None,
        on_chunk_end: Callable[[CausalVideoSession, VideoChunk], Any] | None,
        progress: Any,
    ) -> Iterator[VideoChunk]:
        for length in chunk_lengths(num_frames, self.rollout.chunk_size, self._whole_length()):
            try:
                chunk = self._advance(length, on_step_end, progress)
            except StopRollout:
                return
            told = on_chunk_end(self, chunk) if on_chunk_end is not None else None
            yield chunk
            if isinstance(told, Mapping) and told.get("stop"):
                return

    def _set_guidance(self, guidance_scale: float) -> None:
        past = self._past
        scale = check_guidance(guidance_scale, past.conditions[1] is not None)
        if scale != 1 and len(past.branches) == 1:
            raise ValueError(
                f"guidance_scale {scale:g}: the session has no unconditional cache, as it was started with 1; start a "
                "new one or call recache(guidance_scale=...)."
            )
        past.guidance_scale = scale
