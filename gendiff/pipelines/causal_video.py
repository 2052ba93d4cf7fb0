"""Video chunk after chunk: each is denoised by a walk of its own, and sees only frames that are finished.

After Gao et al., ViD-GPT (arXiv 2406.10981) and Ca2-VDM (arXiv 2411.16375). Keys and values of finished frames depend
neither on later frames nor on the noise level, so they are computed once and shared by all steps of all later chunks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gendiff.models.causal_video import CausalVideoTransformer3DModel
from gendiff.models.causal_wan import CausalWanTransformer3DModel
from gendiff.samplers.loop import State, Step

from .base import GendiffPipeline
from .causal_video_chunk import CausalVideoPipelineOutput, StopRollout, VideoChunk
from .causal_video_condition import Condition, count_videos, make_conditions
from .causal_video_frames import Given, check_given, check_output_type, encode_frames
from .causal_video_rollout import UseCache, check_groups, check_guidance, check_num_frames, check_rollout, check_whole
from .causal_video_session import CausalVideoSession
from .causal_video_snapshot import Generators, SessionSnapshot, check_generator
from .class_labels import names_by_number

__all__ = [
    "CausalVideoPipeline",
    "CausalVideoPipelineOutput",
    "CausalVideoSession",
    "SessionSnapshot",
    "VideoChunk",
]


class CausalVideoPipeline(GendiffPipeline):
    """Videos of any length from a causal transformer and a key/value cache. It holds no state between calls.

    Args:
        transformer: `CausalVideoTransformer3DModel`, or another network with its call, its properties and its config.
        scheduler: any diffusers scheduler that fits what the network predicts; each chunk walks it anew.
        vae: turns frames into latents one by one; None for a network that sees pixels.
        text_encoder: for a network with `cross_attention_dim`; None if embeddings are passed in.
        tokenizer: of `text_encoder`.
        class_names: name of each class; `class_labels` may use them.

    Raises:
        ValueError: names that are not as many as the network's classes.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]  # noqa: RUF012 (diffusers wants a list)
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        transformer: CausalVideoTransformer3DModel | CausalWanTransformer3DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        class_names: Sequence[str] | Mapping[str, str] = (),
    ) -> None:
        super().__init__()
        class_names = names_by_number(class_names)
        if class_names and len(class_names) != transformer.config["num_classes"]:
            raise ValueError(
                f"class_names must be {transformer.config['num_classes']}, as the transformer has classes, got "
                f"{len(class_names)}."
            )
        self.register_modules(
            transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        # As a dict, because diffusers takes a list in the index of a pipeline for a component.
        self.register_to_config(class_names={str(i): name for i, name in enumerate(class_names)})

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, empty for a model without."""
        return list(self.config["class_names"].values())

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a frame as the network sees it."""
        return (self.transformer.config["in_channels"], *self.transformer.frame_size)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a frame in pixels."""
        channels, height, width = self.latent_shape
        if self.vae is None:
            return channels, height, width
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return self.vae.config["in_channels"], height * factor, width * factor

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        video: Any = None,
        num_frames: int = 16,
        chunk_size: int | None = None,
        context_frames: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
        callback_on_chunk_end: Callable[[CausalVideoSession, VideoChunk], Any] | None = None,
        num_videos_per_prompt: int = 1,
        **options: Any,
    ) -> CausalVideoPipelineOutput | tuple[Any, ...]:
        """Generate videos of `num_frames` frames, given ones included.

        Args:
            class_labels: a class or one for each video, by number or name; None for none.
            prompt: text, or one for each video.
            image: first frame of each video; see `given_frames`.
            video: first frames instead, (B, T, C, H, W) in [0, 1].
            num_frames: T of the result, any whole number above the number of given frames.
            chunk_size: l, frames denoised together; None as in training.
            context_frames: W, most finished frames that a chunk sees; None as in training.
            num_inference_steps: N, steps of each chunk's walk.
            guidance_scale: classifier-free guidance, 1 = off, and then it costs nothing.
            generator: one, or one for each video so that it does not depend on its batch mates.
            latents: first frames as the network sees them, instead of `image` or `video`.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns the tuple of the output's fields.
            callback_on_step_end: as in diffusers; a returned {"stop": True} ends the video before this chunk.
            callback_on_chunk_end: called as `callback(session, chunk)`; {"stop": True} ends the video after it.
            num_videos_per_prompt: videos for each class, prompt or given start, next to one another.
            options: further ones of `start`, e.g. use_cache, sink_frames or prompt_embeds.

        Raises:
            ValueError: an argument is out of range; named in the message, before any work.
        """
        check_output_type(output_type)
        if num_frames is None:
            raise ValueError("num_frames must be a whole number, got None; use stream() for a video without end.")
        given = self._check_given(image, video, latents)
        check_num_frames(num_frames, _count(given))
        on_step_end = self._watched(callback_on_step_end, callback_on_step_end_tensor_inputs)
        session = self._start(
            given,
            class_labels=class_labels,
            prompt=prompt,
            chunk_size=chunk_size,
            context_frames=context_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generator,
            num_videos_per_prompt=num_videos_per_prompt,
            **options,
        )
        chunks = list(self._chunks(session, num_frames, on_step_end, callback_on_chunk_end))
        output = session.output(chunks, output_type)
        return output if return_dict else output.to_tuple()

    def stream(
        self,
        num_frames: int | None = None,
        image: Any = None,
        video: Any = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_chunk_end: Callable[[CausalVideoSession, VideoChunk], Any] | None = None,
        **options: Any,
    ) -> Iterator[VideoChunk]:
        """The same video chunk by chunk, as it comes; given frames are the first chunk. Memory does not grow.

        Args:
            num_frames: of the whole video; None never ends.
            image, video, latents: first frames, as of the call.
            callback_on_step_end: as of the call.
            callback_on_chunk_end: as of the call.
            options: of `start`.

        Raises:
            ValueError: as the call, here and not at the first chunk.
        """
        given = self._check_given(image, video, latents)
        if num_frames is not None:
            check_num_frames(num_frames, _count(given))
        on_step_end = self._watched(callback_on_step_end)
        return self._chunks(self._start(given, **options), num_frames, on_step_end, callback_on_chunk_end)

    def start(
        self, image: Any = None, video: Any = None, latents: Tensor | None = None, **options: Any
    ) -> CausalVideoSession:
        """A session: a video that can be continued, forked, fed with observed frames and put under a new condition.

        Args:
            image, video, latents: first frames, as of the call; none to start from nothing.
            options: class_labels, prompt, chunk_size, context_frames, num_inference_steps, guidance_scale, generator
                and num_videos_per_prompt as of the call, and:

                sink_frames: first frames that every chunk goes on to see, 0 .. W - 1 (Xiao et al. 2024).
                use_cache: True; False computes the whole history anew at every step, which is exact and slow, the check
                    of the cache; "window" only its last W frames.
                cache_refresh: "never"; "always" or every k chunks rebuild the cache from the last W frames before a
                    chunk. It removes what leaks through the cache from frames that have left, at the price of a
                    forward over W frames; "always" gives what "window" does.
                layout: of the cache: "dynamic", or "static" for one shape in all calls, as compiled code wants.
                context_noise: standard deviation, 0 .. 1, of noise added once to each frame as it becomes context.
                first_frame: index of the first frame; only cyclic positions notice.
                prompt_embeds, prompt_attention_mask: (B, L, c) and (B, L) instead of `prompt`.
                negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask: what guidance moves away from;
                    the empty text if left out.

        Raises:
            ValueError: as the call.
        """
        return self._start(self._check_given(image, video, latents), **options)

    def _start(
        self,
        given: Given | None,
        class_labels: Any = None,
        prompt: Any = None,
        chunk_size: int | None = None,
        context_frames: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.0,
        generator: Generators | None = None,
        num_videos_per_prompt: int = 1,
        sink_frames: int = 0,
        use_cache: UseCache = True,
        cache_refresh: str | int = "never",
        layout: str = "dynamic",
        context_noise: float = 0.0,
        first_frame: int = 0,
        **text: Any,
    ) -> CausalVideoSession:
        rollout = check_rollout(
            self.transformer,
            self.scheduler,
            chunk_size,
            context_frames,
            sink_frames,
            num_inference_steps,
            use_cache,
            cache_refresh,
            layout,
            context_noise,
        )
        check_whole("first_frame", first_frame, 0)
        copies = check_whole("num_videos_per_prompt", num_videos_per_prompt, 1)
        config = self.transformer.config
        if given is None and not config["p_empty"]:
            raise ValueError("pass image, video or latents: this checkpoint needs at least one given frame.")
        if given is not None:
            check_groups(given.name, len(given), None, self.transformer)
        conditions = (class_labels, prompt, text.get("prompt_embeds"))
        batch = count_videos(None if given is None else len(given.frames), *conditions)
        scale = check_guidance(guidance_scale, any(value is not None for value in conditions))
        generator = check_generator(generator, batch * copies)
        if self.transformer.training:
            warnings.warn("the transformer was in training mode; switched to evaluation.", stacklevel=3)
            self.transformer.eval()
        condition, negative = self._make_conditions(class_labels, prompt, batch, copies, **text)
        self._guidance_scale, self._num_timesteps = scale, rollout.num_inference_steps
        session = CausalVideoSession(self, rollout, condition, negative, scale, generator, first_frame)
        if given is not None:
            frames = encode_frames(given, self.vae, session.device, session.dtype)
            session.begin(frames.repeat_interleave(copies, 0))
        return session

    def _chunks(
        self,
        session: CausalVideoSession,
        num_frames: int | None,
        on_step_end: Callable[[Step, State], State | None] | None,
        on_chunk_end: Callable[[CausalVideoSession, VideoChunk], Any] | None,
    ) -> Iterator[VideoChunk]:
        """The given frames as a chunk, then all others up to `num_frames` in all."""
        given = 0
        try:
            if session.given is not None:
                given = session.given.latents.shape[1]
                yield session.given
            rest = None if num_frames is None else num_frames - given
            yield from session.chunks(rest, on_step_end, on_chunk_end)
        finally:
            self.maybe_free_model_hooks()

    def _check_given(self, image: Any, video: Any, latents: Tensor | None) -> Given | None:
        return check_given(image, video, latents, self.sample_shape, self.latent_shape, encoded=self.vae is None)

    def _make_conditions(
        self, class_labels: Any, prompt: Any, batch: int, copies: int = 1, **text: Any
    ) -> tuple[Condition, Condition | None]:
        encoder = self.tokenizer, self.text_encoder
        config, names = self.transformer.config, self.class_names
        condition, negative = make_conditions(config, names, *encoder, class_labels, prompt, batch, copies, **text)
        place = self._execution_device, self.transformer.dtype
        return condition.to(*place), None if negative is None else negative.to(*place)

    def _watched(
        self, callback: Callable[..., Any] | None, tensor_inputs: Sequence[str] = ("latents",)
    ) -> Callable[[Step, State], State | None] | None:
        """diffusers' callback as `on_step_end`, with {"stop": True} as a way to end."""
        if callback is None:
            return None

        def watch(pipe: Any, index: int, timestep: Any, inputs: dict[str, Any]) -> Any:
            told = callback(pipe, index, timestep, inputs)
            if isinstance(told, Mapping) and told.get("stop"):
                raise StopRollout
            return told

        return self.adapt_callback(watch, list(getattr(callback, "tensor_inputs", tensor_inputs)))


def _count(given: Given | None) -> int:
    return 0 if given is None else len(given)
