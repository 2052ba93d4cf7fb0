"""Images in K steps, coarse to fine: each step all tokens of one stage, of a frequency band or of a scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from torch import Tensor

from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.models.next_frequency import NextFrequencyTransformer2DModel
from gendiff.samplers.guidance import guided_jointly
from gendiff.samplers.loop import Predictor, sample
from gendiff.samplers.next_frequency import (
    Codes,
    NextFrequencyScheduler,
    check_filters,
    check_temperature,
    guidance_by_stage,
)

from .base import GendiffPipeline
from .class_labels import class_numbers, names_by_number
from .generators import check_generator
from .images import to_tensor
from .known_stages import Known, known_stages
from .registry import suggest
from .stage_checks import with_checked_codes
from .stage_walk import StageWalk
from .stats import Meter, RunStats

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

SLACK = 5e-4
"""How far outside [0, 1] rounding may put a pixel."""


@dataclass
class NextFrequencyPipelineOutput(BaseOutput):
    """Generated images.

    Attributes:
        images: list of PIL images, array (B, H, W, C) or tensor (B, C, H, W) in [0, 1]; for "latent" the sum of
            decoded stages (B, C, N, N).
        class_labels: (B,) int64, the class of each image; -1 = none asked for.
        tokens: for each stage walked, (B, n_k) int64; with `smooth`, weights over all codes (B, n_k, V).
        stats: what the run cost.
    """

    images: Any
    class_labels: Tensor
    tokens: list[Tensor]
    stats: RunStats


class NextFrequencyPipeline(GendiffPipeline):
    """Next-frequency and next-scale prediction: the two differ in how their tokenizer encodes, and in nothing here.

    Args:
        vqvae: tokenizer.
        transformer: predicts the tokens of a stage from those before it.
        scheduler: draws them.
        class_names: name of each class; `class_labels` may use them.

    Raises:
        ValueError: the components disagree on stages, codes, width or classes.

    Source: Huang et al. 2025 (NFIG, arXiv 2503.07076); Tian et al. 2024 (VAR, arXiv 2404.02905).
    """

    model_cpu_offload_seq = "transformer->vqvae"
    # Its methods are called beside forward, where offload hooks do not reach.
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["vqvae"]
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        vqvae: FrequencyVQModel,
        transformer: NextFrequencyTransformer2DModel,
        scheduler: NextFrequencyScheduler,
        class_names: Sequence[str] | Mapping[str, str] = (),
    ) -> None:
        super().__init__()
        class_names = names_by_number(class_names)
        self.register_modules(vqvae=vqvae, transformer=transformer, scheduler=scheduler)
        # As a dict, because diffusers takes a list in the index of a pipeline for a component.
        self.register_to_config(class_names={str(i): name for i, name in enumerate(class_names)})
        self._check_components(class_names)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; empty if they have only numbers."""
        return list(self.config["class_names"].values())

    @property
    def num_classes(self) -> int:
        """Classes the transformer knows; the number itself stands for "no class"."""
        return self.transformer.config["num_classes"]

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.vqvae.stages)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, S, S) of an image."""
        config = self.vqvae.config
        return (config["in_channels"], config["sample_size"], config["sample_size"])

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str | None] | Tensor | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float = 2.5,
        guidance_schedule: str | Sequence[float] = "linear",
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_stages: int | None = None,
        image: Any = None,
        mask_image: Any = None,
        keep_stages: int | None = None,
        strength: float | None = None,
        blend_pixels: bool = False,
        smooth: bool = False,
        use_cache: bool = True,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
    ) -> NextFrequencyPipelineOutput | tuple[Any, ...]:
        """Draw images, from nothing or from what is kept of `image`.

        Args:
            class_labels: a class or one for each image, by number or name; None, -1 or `num_classes`: no class.
            num_images_per_prompt: images for each label, next to one another.
            guidance_scale: classifier-free guidance, 1 = off, and then it costs nothing.
            guidance_schedule: "linear": from 1 at the first stage to `guidance_scale` at the last (VAR's cfg is
                `guidance_scale - 1`); "constant"; or a number for each stage.
            top_k: codes that may be drawn at each token, 0 = all; None for the scheduler's.
            top_p: share of the probability that may be drawn, 0 = all; None for the scheduler's.
            temperature: above 1 draws more evenly.
            generator: one, or one for each image so that an image does not depend on its batch mates.
            num_stages: stop after so many stages, a preview: the same picture, coarser.
            image: PIL image, list of them, or tensor or array (B, C, S, S) in [0, 1], to start from; one, or one for
                each label and picture of it.
            mask_image: like `image`, one channel, 1 = generate anew, 0 = keep.
            keep_stages: take the first so many stages from `image`; with bands, a known range of its frequencies.
            strength: instead of `keep_stages`, the share of stages to generate anew.
            blend_pixels: put the pixels of `image` back where the mask keeps them; tokens reach beyond its edge.
            smooth: mix codes instead of drawing one, for the eye only.
            use_cache: False computes the earlier stages anew at every step: the same images, slower.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns the tuple of the output's fields.
            callback_on_step_end: as in diffusers; "latents" are the codes of all stages done, of which it may replace
                those of the latest.
            callback_on_step_end_tensor_inputs: as in diffusers.

        Raises:
            ValueError: an argument is out of range; named in the message.
            TypeError: a class that is neither a number nor a name.
        """
        labels = class_numbers(
            class_labels, num_images_per_prompt, self.class_names, self.num_classes, null=self.num_classes
        )
        weights = guidance_by_stage(guidance_scale, guidance_schedule, self.num_stages)
        check_generator(generator, len(labels))
        self._check_run(top_k, top_p, temperature, output_type)
        self.scheduler.set_timesteps(num_stages, device=self._execution_device)
        given, mask = self._given(image, mask_image, len(labels))
        kept = self._kept(given, mask, keep_stages, strength, blend_pixels)
        on_step_end = self.adapt_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        count = len(self.scheduler.timesteps)
        self._guidance_scale, self._num_timesteps = guidance_scale, count
        guiding = any(weight != 1 for weight in weights[:count])
        meter = Meter()
        known: Known | None = None
        if given is not None:
            known = known_stages(self.vqvae.encode(given).tokens, self.vqvae.stages, kept, mask)
        conditions = labels.where(labels >= 0, self.num_classes).to(self._execution_device)
        if guiding:
            conditions = torch.cat([conditions, torch.full_like(conditions, self.num_classes)])
        walk = StageWalk(self.vqvae, self.transformer, conditions, len(labels), use_cache, meter)
        predict: Predictor = guided_jointly(walk, lambda step: weights[step.index]) if guiding else walk
        codes: Codes = sample(
            predict,
            self.scheduler,
            (),
            generator=generator,
            on_step_end=with_checked_codes(on_step_end, self.vqvae),
            progress=self.progress_bar,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            smooth=smooth,
            known=known,
        )
        walk.advance(codes)
        images = walk.total if output_type == "latent" else self._decode(walk.total, given, mask, blend_pixels)
        if output_type != "latent":
            images = self.image_processor.postprocess(images, output_type)
        self.maybe_free_model_hooks()
        stats = meter.stats(
            walk.cache_bytes,
            scheduler=type(self.scheduler).__name__,
            stages=list(self.vqvae.stages[:count]),
            guidance=weights[:count],
            keep_stages=kept,
        )
        output = NextFrequencyPipelineOutput(images, labels, list(codes), stats)
        return output if return_dict else output.to_tuple()

    def _decode(self, total: Tensor, given: Tensor | None, mask: Tensor | None, blend: bool) -> Tensor:
        images = self.vqvae.decode(f_hat=total)
        if blend and given is not None and mask is not None:
            images = images * mask + given.to(images) * (1 - mask)
        return images

    def _given(self, image: Any, mask_image: Any, batch: int) -> tuple[Tensor | None, Tensor | None]:
        """The image (B, C, S, S) in [-1, 1] and the mask (B, 1, S, S) in [0, 1], where there are any."""
        if image is None:
            if mask_image is not None:
                raise ValueError("mask_image needs image: without one there is nothing to keep.")
            return None, None
        pixels = self._batch("image", image, batch, self.sample_shape[0])
        if mask_image is None:
            return pixels, None
        return pixels, (self._batch("mask_image", mask_image, batch, channels=1) + 1) / 2

    def _batch(self, name: str, image: Any, batch: int, channels: int) -> Tensor:
        """(B, channels, S, S) in [-1, 1]."""
        pixels = to_tensor(image, channels, self.sample_shape[1], name, SLACK)
        if len(pixels) not in (1, batch):
            raise ValueError(f"{name} must be one, or one for each of {batch} images, got {len(pixels)}.")
        return pixels.expand(batch, -1, -1, -1).to(self._execution_device, self.vqvae.dtype).contiguous()

    def _kept(
        self, given: Tensor | None, mask: Tensor | None, keep_stages: int | None, strength: float | None, blend: bool
    ) -> int:
        """How many stages are kept whole."""
        if keep_stages is not None and strength is not None:
            raise ValueError(f"keep_stages {keep_stages} and strength {strength} say the same thing: give one of them.")
        if given is None:
            for name, value in (("keep_stages", keep_stages), ("strength", strength), ("blend_pixels", blend or None)):
                if value is not None:
                    raise ValueError(f"{name} needs image: without one there is nothing to keep.")
            return 0
        if blend and mask is None:
            raise ValueError("blend_pixels needs mask_image, which says where.")
        if strength is not None:
            if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
                raise ValueError(f"strength must be from 0 to 1, got {strength!r}.")
            return math.floor(self.num_stages * (1 - strength) + 0.5)
        if keep_stages is None:
            if mask is None:
                raise ValueError("image needs keep_stages, strength or mask_image, which say what of it is kept.")
            return 0
        whole = isinstance(keep_stages, int) and not isinstance(keep_stages, bool)
        if not whole or not 0 <= keep_stages <= self.num_stages:
            raise ValueError(f"keep_stages must be a whole number from 0 to {self.num_stages}, got {keep_stages!r}.")
        return keep_stages

    def _check_run(self, top_k: int | None, top_p: float | None, temperature: float, output_type: str) -> None:
        filters = (0 if top_k is None else top_k, 0.0 if top_p is None else top_p)
        check_filters(*filters, self.transformer.config["codebook_size"])
        check_temperature(temperature)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type has {output_type!r}; {suggest(str(output_type), OUTPUT_TYPES)}")

    def _check_components(self, class_names: Sequence[str]) -> None:
        tokenizer, transformer = self.vqvae.config, self.transformer.config
        for name in ("stages", "codebook_size", "latent_channels"):
            a, b = tokenizer[name], transformer[name]
            if (list(a) != list(b)) if name == "stages" else a != b:
                raise ValueError(f"vqvae and transformer must agree on {name}, got {a} and {b}.")
        if list(self.scheduler.config["stages"]) != list(tokenizer["stages"]):
            raise ValueError(
                f"scheduler and vqvae must agree on stages, got {self.scheduler.config['stages']} and "
                f"{tokenizer['stages']}."
            )
        if class_names and len(class_names) != self.num_classes:
            raise ValueError(f"class_names must be {self.num_classes}, one for each class, got {len(class_names)}.")
