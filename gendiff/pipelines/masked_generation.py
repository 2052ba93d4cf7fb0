"""Images from hidden tokens, revealed a few at a time: MaskGIT, MAGE, MAR and aMUSEd, with ReCAP or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from diffusers import UVit2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput, logging
from torch import Tensor

from gendiff.models.masked import (  # noqa: F401 (components are found among imported modules)
    amused_tokenizer,
    fsq,
    halton,
    kl_tokenizer,
    mage,
    mar,
    maskgit,
    patch_vq,
    pixel_patches,
    vq_model_tokenizer,
)
from gendiff.samplers.loop import Step
from gendiff.samplers.mask_schedules import check_guidance, check_steps
from gendiff.samplers.masked import MaskedScheduler, MaskedState
from gendiff.samplers.recap import ReCAPConfig

from .amused import AESTHETIC_SCORE, amused_components
from .base import GendiffPipeline
from .class_labels import names_by_number
from .generators import check_generator
from .masked_conditions import class_conditions, class_labels_of, text_conditions, texts_of
from .masked_head import Head
from .masked_start import check_dilation, known_tokens, nothing_known, outside_of, picture_and_mask
from .masked_walk import MaskedWalk
from .recap_models import enabled_recap, masked_network
from .registry import suggest
from .stats import RunStats

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "tokens")


@dataclass
class MaskedGenerationPipelineOutput(BaseOutput):
    """Generated images.

    Attributes:
        images: list of PIL images, array (B, H, W, C) or tensor (B, C, H, W) in [0, 1]; for "tokens" the tokens.
        tokens: (B, N) int64, or (B, N, c).
        class_labels: (B,) int64, the class of each image; -1 = none asked for.
        revealed_at: (B, N) int64, the step at which each token was decided; -1 = it was known.
        stats: what the run cost, and the plan that it followed.
    """

    images: Any
    tokens: Tensor
    class_labels: Tensor
    revealed_at: Tensor
    stats: RunStats


class MaskedGenerationPipeline(GendiffPipeline):
    """Masked generation, from nothing or around what is known of a picture.

    Args:
        transformer: a network over hidden tokens, see `gendiff.models.masked.contract`, or diffusers' `UVit2DModel`.
        image_tokenizer: images to tokens and back.
        scheduler: which tokens are revealed when.
        class_names: name of each class; `class_labels` may use them.
        text_encoder: CLIP's, for a `UVit2DModel`.
        tokenizer: its tokenizer.

    Raises:
        TypeError: the transformer can not be used so.
        ValueError: the components disagree on grid, codes or classes.

    Source: Chang et al. 2022 (MaskGIT), Li et al. 2023 (MAGE), Li et al. 2024 (MAR); Liu et al. 2025 (ReCAP).
    """

    model_cpu_offload_seq = "text_encoder->transformer->image_tokenizer"
    _optional_components: ClassVar[list[str]] = ["text_encoder", "tokenizer"]
    # Their methods are called beside forward, where offload hooks do not reach.
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["image_tokenizer"]
    _callback_tensor_inputs = ("latents", "hidden", "light")

    def __init__(
        self,
        transformer: Any,
        image_tokenizer: Any,
        scheduler: MaskedScheduler,
        class_names: Sequence[str] | Mapping[str, str] = (),
        text_encoder: Any = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        class_names = names_by_number(class_names)
        self.register_modules(transformer=transformer, image_tokenizer=image_tokenizer, scheduler=scheduler)
        self.register_modules(text_encoder=text_encoder, tokenizer=tokenizer)
        # As a dict, because diffusers takes a list in the index of a pipeline for a component.
        self.register_to_config(class_names={str(i): name for i, name in enumerate(class_names)})
        self._check_components(class_names)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @classmethod
    def from_amused(cls, pipeline: Any) -> Self:
        """Around the parts of diffusers' `AmusedPipeline`, none of which is copied.

        Raises:
            TypeError: its transformer or its autoencoder is another class.
            ValueError: they do not fit together.
        """
        return cls(**amused_components(pipeline))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; empty if they have only numbers."""
        return list(self.config["class_names"].values())

    @property
    def num_classes(self) -> int:
        """Classes the transformer knows; 0 if it knows none."""
        return self.transformer.config.get("num_classes", 0)

    @property
    def num_tokens(self) -> int:
        """N."""
        rows, columns = self.image_tokenizer.grid
        return rows * columns

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, S, S) of an image."""
        config = self.image_tokenizer.config
        return (config["in_channels"], config["sample_size"], config["sample_size"])

    @property
    def continuous(self) -> bool:
        """Whether tokens are vectors, which a diffusion head draws."""
        return self.image_tokenizer.codebook_size is None

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str | None] | Tensor | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 16,
        guidance_scale: float = 2.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        recap: ReCAPConfig | None = None,
        unconditional: bool = False,
        image: Any = None,
        mask_image: Any = None,
        mask_dilation: int = 1,
        blend_pixels: bool = False,
        latents: Tensor | None = None,
        num_head_steps: int = 25,
        head_temperature: float | None = None,
        measure_staleness: bool = False,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        micro_conditioning_crop_coord: tuple[int, int] = (0, 0),
        micro_conditioning_aesthetic_score: float = AESTHETIC_SCORE,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
    ) -> MaskedGenerationPipelineOutput | tuple[Any, ...]:
        """Draw images, from nothing or around what is known.

        Args:
            class_labels: a class or one for each image, by number or name; None or -1 in a list: no class for that one.
            num_images_per_prompt: images for each label, next to one another.
            num_inference_steps: T, steps of the walk; no more than an image has hidden tokens.
            guidance_scale: classifier-free guidance, 1 = off, and then it costs nothing; over the steps it goes as the
                scheduler's `guidance_schedule` says.
            generator: one, or one for each image so that an image does not depend on its batch mates.
            recap: where light steps lie; None for what `enable_recap` has set, or none.
            unconditional: draw without a class from a model that knows classes.
            image: PIL image, list of them, or tensor or array (B, C, S, S) in [0, 1], to fill in; one, or one for each
                image drawn.
            mask_image: like `image`, one channel, from 0.5 on = generate anew.
            mask_dilation: rings of tokens around the mask that are generated anew as well, since they encode its edge.
            blend_pixels: put the pixels of `image` back where the mask keeps them.
            latents: (B, N) int64, tokens to start from; V = hidden. They are kept as they are.
            num_head_steps: denoising steps of each continuous token.
            head_temperature: factor of the noise in these steps; None for the scheduler's `sampling_temperature`.
            measure_staleness: compare each light step with a full one, at its price; the plan in `stats` says.
            prompt: a text or several, for a network that reads text.
            negative_prompt: what guidance moves away from; None for the empty text.
            micro_conditioning_crop_coord: as in diffusers' aMUSEd pipeline, in pixels.
            micro_conditioning_aesthetic_score: likewise, from 0 to 10.
            output_type: "pil", "np", "pt" or "tokens".
            return_dict: False returns the tuple of the output's fields.
            callback_on_step_end: as in diffusers, after full and light steps alike; "latents" are the tokens, V where
                hidden, of which it may replace those that are not; "hidden" (B, N) and "light" can be asked for.
            callback_on_step_end_tensor_inputs: as in diffusers.

        Raises:
            ValueError: an argument is out of range; named in the message.
            TypeError: a class that is neither a number nor a name.
            NotFiniteError: the network's logits are not finite.
        """
        network = masked_network(self.transformer)
        recap = enabled_recap(self.transformer) if recap is None else recap
        labels, texts = self._batch(class_labels, prompt, negative_prompt, num_images_per_prompt, unconditional)
        batch, device = len(labels), self._execution_device
        check_generator(generator, batch)
        check_dilation(mask_dilation)
        check_steps(num_inference_steps)
        cooled = self.scheduler.config["sampling_temperature"] if head_temperature is None else head_temperature
        self._check_run(guidance_scale, recap, num_head_steps, cooled, output_type)
        given = picture_and_mask(image, mask_image, self.image_tokenizer, batch, device)
        if given is not None and latents is not None:
            raise ValueError("latents and image both say what is known: give one of them.")
        if blend_pixels and given is None:
            raise ValueError("blend_pixels needs image and mask_image, which say what is put back.")
        callback = self._callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        dtype = self.image_tokenizer.dtype
        if given is not None:
            tokens, hidden = outside_of(*given, self.image_tokenizer, mask_dilation, dtype)
        elif latents is not None:
            tokens, hidden = known_tokens(latents, self.image_tokenizer, batch, device)
        else:
            tokens, hidden = nothing_known(self.image_tokenizer, batch, device, dtype)
        self._guidance_scale = guidance_scale
        conditions = self._conditions(
            labels, texts, guidance_scale != 1, micro_conditioning_crop_coord, micro_conditioning_aesthetic_score
        )
        head = Head(self.transformer.head, num_head_steps, cooled, recap) if self.continuous else None
        walk = MaskedWalk(network, self.scheduler, recap, conditions, guidance_scale, head, measure_staleness)
        with _evaluating(self.transformer):
            walk.run(tokens, hidden, num_inference_steps, generator, callback, self.progress_bar)
        self._num_timesteps = len(self.scheduler.timesteps)
        images = walk.tokens if output_type == "tokens" else self._decode(walk.tokens, given if blend_pixels else None)
        if output_type != "tokens":
            images = self.image_processor.postprocess(images, output_type)
        self.maybe_free_model_hooks()
        output = MaskedGenerationPipelineOutput(images, walk.tokens, labels, walk.revealed_at, walk.stats())
        return output if return_dict else output.to_tuple()

    def _batch(
        self, class_labels: Any, prompt: Any, negative_prompt: Any, per_label: int, unconditional: bool
    ) -> tuple[Tensor, tuple[list[str], list[str]] | None]:
        """Labels (B,) on the CPU, -1 = no class, and texts, where there are any."""
        if not isinstance(self.transformer, UVit2DModel):
            for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
                if text is not None:
                    raise ValueError(f"{name} must be None: the model reads no text, got {text!r:.60}.")
            return class_labels_of(class_labels, per_label, self.class_names, self.num_classes, unconditional), None
        if prompt is None:
            raise ValueError("prompt is missing: the model draws what a text says.")
        nothing = class_labels_of(class_labels, per_label, (), 0)
        texts = texts_of(prompt, negative_prompt, per_label)
        return nothing[:1].repeat(len(texts[0])), texts

    def _conditions(
        self, labels: Tensor, texts: tuple[list[str], list[str]] | None, guided: bool, crop: Any, score: float
    ) -> tuple[Any, Any]:
        """What is wanted, and what guidance moves away from; None where there is nothing to be guided by."""
        if texts is not None:
            side = self.sample_shape[1]
            return text_conditions(self.tokenizer, self.text_encoder, texts, side, guided, crop, score)
        if not self.num_classes:
            return None, None
        return class_conditions(labels.to(self._execution_device), self.transformer.null_class)

    def _check_run(
        self, guidance_scale: float, recap: ReCAPConfig | None, head_steps: int, temperature: float, output_type: str
    ) -> None:
        check_guidance("constant", guidance_scale)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type has {output_type!r}; {suggest(str(output_type), OUTPUT_TYPES)}")
        if isinstance(head_steps, bool) or not isinstance(head_steps, int) or not 2 <= head_steps <= 1000:
            raise ValueError(f"num_head_steps must be a whole number from 2 to 1000, got {head_steps!r}.")
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < 1e6:
            raise ValueError(f"head_temperature must be finite and at least 0, got {temperature!r}.")
        if recap is None:
            return
        if not isinstance(recap, ReCAPConfig):
            raise ValueError(f"recap must be a ReCAPConfig or None, got {type(recap).__name__}.")
        if recap.light_head_steps is not None:
            if not self.continuous:
                raise ValueError(
                    f"light_head_steps must be None: no diffusion head here, got {recap.light_head_steps}."
                )
            if not 2 <= recap.light_head_steps <= head_steps:
                raise ValueError(f"light_head_steps must be 2 to {head_steps}, got {recap.light_head_steps}.")
        if recap.max_staleness is not None and self.continuous:
            raise ValueError("max_staleness must be None: it is measured on logits, and these tokens are vectors.")
        if recap.cache_dtype is not None:
            cached = getattr(torch, recap.cache_dtype)
            if torch.finfo(cached).bits > torch.finfo(self.transformer.dtype).bits:
                logger.warning(f"cache_dtype {recap.cache_dtype} is wider than the network's {self.transformer.dtype}.")

    def _check_components(self, class_names: Sequence[str]) -> None:
        if self.transformer is None or self.image_tokenizer is None:
            return
        network, tokenizer = masked_network(self.transformer), self.image_tokenizer
        if network.num_tokens != self.num_tokens:
            raise ValueError(
                f"transformer and image_tokenizer must agree on the grid, got {network.num_tokens} and "
                f"{self.num_tokens} tokens."
            )
        config = self.transformer.config
        for name in ("codebook_size", "token_channels"):
            a, b = config.get(name), getattr(tokenizer, name)
            if a != b:
                raise ValueError(f"transformer and image_tokenizer must agree on {name}, got {a} and {b}.")
        if self.continuous and self.scheduler.config["order"] == "confidence":
            raise ValueError("scheduler must have order halton or random for continuous tokens, got 'confidence'.")
        if class_names and len(class_names) != self.num_classes:
            raise ValueError(f"class_names must be {self.num_classes}, one for each class, got {len(class_names)}.")

    def _decode(self, tokens: Tensor, given: tuple[Tensor, Tensor] | None) -> Tensor:
        images = self.image_tokenizer.decode(tokens).float().clamp(-1, 1)
        if given is not None:
            pixels, mask = given
            images = images * mask + pixels * (1 - mask)
        return images

    def _callback(self, given: Any, names: Sequence[str]) -> Callable[[Step, MaskedState], MaskedState | None] | None:
        """diffusers' callback as the loop's, which sees tokens with V where they are hidden."""
        held: dict[str, Any] = {"hidden": None, "light": False}
        inner = self.adapt_callback(given, names, held)
        if inner is None:
            return None
        codes = self.image_tokenizer.codebook_size

        def on_step_end(step: Step, state: MaskedState) -> MaskedState | None:
            held["hidden"], held["light"] = state.hidden, self.scheduler.groups[-1][0] != step.index
            shown = state.tokens if codes is None else state.tokens.masked_fill(state.hidden, codes)
            replaced = inner(step, shown)
            if replaced is None or replaced is shown:
                return None
            if replaced.shape != shown.shape or replaced.dtype != shown.dtype:
                raise ValueError(
                    f"latents must be {tuple(shown.shape)} {shown.dtype}, got {tuple(replaced.shape)} {replaced.dtype}."
                )
            known = ~state.hidden if codes is not None else ~state.hidden[..., None]
            if codes is not None and not ((replaced >= 0) & (replaced < codes) | state.hidden).all():
                raise ValueError(f"latents must be from 0 to {codes - 1} where tokens are not hidden.")
            return state._replace(tokens=torch.where(known, replaced, state.tokens))

        return on_step_end


@contextmanager
def _evaluating(transformer: Any) -> Iterator[None]:
    """Without dropout, and afterwards each part as before."""
    modes = [(module, module.training) for module in transformer.modules()]
    transformer.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
