"""How a session makes its next chunk, and how frames become part of its past."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gendiff.samplers.guidance import guided
from gendiff.samplers.loop import sample
from gendiff.samplers.rollout import frame_noise

from .causal_video_chunk import VideoChunk
from .causal_video_condition import Condition
from .causal_video_frames import decode_frames
from .causal_video_past import Past, visible_frames
from .causal_video_rollout import Rollout
from .causal_video_snapshot import Generators, SessionSnapshot, fingerprint, listed
from .stats import Meter, RunStats

if TYPE_CHECKING:
    from .causal_video import CausalVideoPipeline


class VideoState:
    """All state of a batch of videos that grows. `CausalVideoSession` is how people use it.

    Args:
        pipe: whose networks it uses; a pipeline can serve many sessions.
        rollout: how to go on.
        condition: of the videos.
        negative: the condition that guidance moves away from; None where there is nothing to guide.
        guidance_scale: 1 is off.
        generator: one, or one for each video.
        first_frame: index of the first frame.

    Attributes:
        given: the frames that the video was started with, as its first chunk; None if from nothing.
    """

    def __init__(
        self,
        pipe: CausalVideoPipeline,
        rollout: Rollout,
        condition: Condition,
        negative: Condition | None,
        guidance_scale: float,
        generator: Generators,
        first_frame: int = 0,
    ) -> None:
        self.pipe, self.rollout, self.generator = pipe, rollout, generator
        self.batch = condition.batch
        self.device, self.dtype = pipe._execution_device, pipe.transformer.dtype
        self.given: VideoChunk | None = None
        self._scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        nothing = torch.empty(self.batch, 0, *pipe.latent_shape, device=self.device, dtype=self.dtype)
        self._past = Past(pipe.transformer, rollout, (condition, negative), guidance_scale, nothing)
        self._next_frame, self._chunks = first_frame, 0
        self._whole = True  # whether the last chunk is whole, which `block_causal` needs to go on
        self._meter = Meter()

    @property
    def num_frames(self) -> int:
        """Index of the next frame: all frames so far, given ones included."""
        return self._next_frame

    @property
    def cache_bytes(self) -> int:
        """Bytes that the key/value caches hold now; the same however long the video, once the window is full."""
        return self._past.nbytes

    @property
    def guidance_scale(self) -> float:
        """Strength of guidance from here on; 1 is off."""
        return self._past.guidance_scale

    @property
    def stats(self) -> RunStats:
        """What the session has cost so far."""
        return self._meter.stats(self.cache_bytes, **self._plan())

    def snapshot(self) -> SessionSnapshot:
        """Remember this point; nearly free, as memory is copied only when it is next written to."""
        return SessionSnapshot(
            self._fingerprint(),
            self._past.snapshot(),
            (self._next_frame, self._chunks),
            self._whole,
            tuple(generator.get_state() for generator in listed(self.generator)),
        )

    def restore(self, snapshot: SessionSnapshot) -> None:
        """Return to a point, random numbers included: what is generated then is the same to the last bit.

        Raises:
            ValueError: it was made by another model, or by a session with other choices.
        """
        if snapshot.fingerprint != self._fingerprint():
            raise ValueError(
                f"snapshot has fingerprint {snapshot.fingerprint}, this session {self._fingerprint()}: weights, "
                "config, scheduler, batch and all choices of the rollout must be equal."
            )
        generators = listed(self.generator)
        if len(generators) != len(snapshot.random):
            raise ValueError(f"snapshot has {len(snapshot.random)} generators, this session {len(generators)}.")
        self._take(snapshot)
        for generator, state in zip(generators, snapshot.random, strict=True):
            generator.set_state(state)

    @torch.no_grad()
    def begin(self, frames: Tensor) -> None:
        """Take given frames (B, T, C, H, W) before any other, and remember them as the chunk `given`."""
        before, start = self._mark(), self._next_frame
        self._write_first(frames)
        self.given = self._chunk(frames, decode_frames(frames, self.pipe.vae), start, before, self._mark())

    @torch.no_grad()
    def _advance(self, length: int, on_step_end: Callable[..., Any] | None, progress: Any) -> VideoChunk:
        """One chunk of `length` frames: a walk from noise, then a write."""
        before, start = self._mark(), self._next_frame
        rollout, network = self.rollout, self.pipe.transformer
        if rollout.refresh_every and self._chunks % rollout.refresh_every == 0:
            self._recache()
        # Where noisy frames see each other, a short chunk would be another question: walk a whole one and cut it.
        walked = self._whole_length() if network.sees_whole_chunk else length
        whole = walked == length or network.config["attention_mode"] != "block_causal"
        shape = (self.batch, *self.pipe.latent_shape)
        noise = frame_noise(walked, shape, self.generator, self.device, self.dtype).transpose(1, 2)
        self._scheduler.set_timesteps(rollout.num_inference_steps, device=self.device)
        end = sample(
            guided(*self._past.predictors(range(start, start + walked), self._meter), self.guidance_scale),
            self._scheduler,
            noise * getattr(self._scheduler, "init_noise_sigma", 1.0),
            generator=self.generator,
            on_step_end=on_step_end,
            progress=progress,
        )
        latents = end.to(self.dtype).transpose(1, 2)[:, :length]
        # Decoded before it is written: what fails or is interrupted until then leaves the session as it was.
        pause = time.perf_counter()
        frames = decode_frames(latents, self.pipe.vae)
        pause = time.perf_counter() - pause
        if whole:
            self._write(latents)
        else:
            self._next_frame += length
        self._whole = whole
        seconds, calls, flops = self._mark()
        return self._chunk(latents, frames, start, before, (seconds - pause, calls, flops))

    def _whole_length(self) -> int:
        """Frames of the next chunk, if nothing cuts it short."""
        first = self.pipe.transformer.first_chunk_size
        return self.rollout.chunk_size if len(self._past) else min(first, self.rollout.chunk_size)

    def _mark(self) -> tuple[float, int, int]:
        return time.perf_counter(), self._meter.network_calls, self._meter.flops

    def _chunk(
        self,
        latents: Tensor,
        frames: Tensor,
        start: int,
        before: tuple[float, int, int],
        after: tuple[float, int, int],
    ) -> VideoChunk:
        """The next chunk, with what was spent between two marks."""
        seconds, calls, flops = (now - then for now, then in zip(after, before, strict=True))
        self._chunks += 1
        return VideoChunk(self._chunks - 1, start, frames, latents, seconds, int(calls), int(flops), self.cache_bytes)

    @torch.no_grad()
    def _observe(self, frames: Tensor) -> None:
        """Take frames as the next ones, all or none of them."""
        if not len(self._past):
            return self._write_first(frames)
        pieces = frames.split(self.rollout.chunk_size, dim=1)
        before = self.snapshot() if len(pieces) > 1 else None
        try:
            for piece in pieces:
                self._write(piece)
        except BaseException:
            if before is not None:
                self.restore(before)
            raise

    def _write_first(self, frames: Tensor) -> None:
        """Of more frames than the window holds, the first `sink_frames` and the last ones are written, all at once."""
        self._write(frames, visible_frames(frames.shape[1], self.rollout.context_frames, self.rollout.sink_frames))

    def _write(self, frames: Tensor, kept: list[int] | None = None) -> None:
        """Make the next frames (B, T, C, H, W), or those of them that are `kept`, part of the past."""
        rollout, count = self.rollout, frames.shape[1]
        index = [self._next_frame + i for i in (range(count) if kept is None else kept)]
        frames = frames if kept is None else frames[:, kept]
        if rollout.context_noise:
            shape = (self.batch, *self.pipe.latent_shape)
            noise = frame_noise(frames.shape[1], shape, self.generator, self.device, self.dtype)
            frames = frames + rollout.context_noise * noise
        self._past.write(frames, index, self._meter)
        self._next_frame += count

    @torch.no_grad()
    def _recache(self, conditions: Any = None, guidance_scale: float | None = None) -> None:
        self._past.recache(self._meter, conditions, guidance_scale)

    def _check_whole(self) -> None:
        if not self._whole:
            chunk = self.rollout.chunk_size
            raise ValueError(
                f"num_frames of the call before cut a chunk of {chunk} short, and block_causal attention can only "
                "go on from whole ones: restore a snapshot, or generate whole chunks."
            )

    def _take(self, snapshot: SessionSnapshot) -> None:
        self._past.restore(snapshot.past)
        self._next_frame, self._chunks = snapshot.counts
        self._whole = snapshot.whole

    def _fingerprint(self) -> str:
        made_of = {"batch": self.batch, "dtype": self.dtype}
        return fingerprint(self.pipe.transformer, self._scheduler, self.rollout, **made_of)

    def _plan(self) -> dict[str, Any]:
        return {
            "scheduler": type(self._scheduler).__name__,
            "guidance": self.guidance_scale,
            **asdict(self.rollout),
        }
