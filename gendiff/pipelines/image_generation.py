"""Images by class from a plain diffusion model: the baseline that every other method is measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from gendiff.samplers.guidance import guided
from gendiff.samplers.loop import Predictor, Step, sample

from .base import GendiffPipeline
from .class_labels import class_numbers, names_by_number
from .registry import suggest
from .stats import Meter, RunStats

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class ImageGenerationPipelineOutput(BaseOutput):
    """Generated images.

    Attributes:
        images: list of PIL images, array (B, H, W, C) or tensor (B, C, H, W) in [0, 1]; for "latent" the end of the
            walk itself, in about [-1, 1].
        class_labels: (B,) int64, the class of each image; -1 = none asked for.
        stats: what the run cost.
    """

    images: Any
    class_labels: Tensor
    stats: RunStats


class ImageGenerationPipeline(GendiffPipeline):
    """Diffusion in pixels, with a class or without.

    Args:
        unet: `UNet2DModel`; with `num_class_embeds` one above the number of classes, the last one stands for "no
            class", as in classifier-free guidance (Ho & Salimans 2022).
        scheduler: any diffusers scheduler that fits the network's prediction type; swap it freely,
            `pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`.
        class_names: name of each class; `class_labels` may use them.

    Raises:
        ValueError: the network's number of classes does not fit the names.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDIMScheduler | DPMSolverMultistepScheduler,
        class_names: Sequence[str] | Mapping[str, str] = (),
    ) -> None:
        super().__init__()
        class_names = names_by_number(class_names)
        self.register_modules(unet=unet, scheduler=scheduler)
        # As a dict, because diffusers takes a list in the index of a pipeline for a component.
        self.register_to_config(class_names={str(i): name for i, name in enumerate(class_names)})
        embeddings = unet.config["num_class_embeds"]
        if (embeddings or 1) != len(class_names) + 1:
            raise ValueError(
                f"unet must have num_class_embeds = {len(class_names) + 1}, one for each of {len(class_names)} class "
                f"names and one for none, got {embeddings}."
            )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, empty for an unconditional model."""
        return list(self.config["class_names"].values())

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, S, S) of an image."""
        config = self.unet.config
        return (config["in_channels"], config["sample_size"], config["sample_size"])

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
    ) -> ImageGenerationPipelineOutput | tuple[Any, ...]:
        """Draw images.

        Args:
            class_labels: a class or one for each image, by number or name; None or -1: no class.
            num_images_per_prompt: images for each label, next to one another; without labels, their number.
            num_inference_steps: steps of the walk.
            guidance_scale: classifier-free guidance, 1 = off, and then it costs nothing.
            generator: one, or one for each image so that an image does not depend on its batch mates.
            latents: noise (B, C, S, S) to start from instead of drawing it.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns the tuple of the output's fields.
            callback_on_step_end: as in diffusers.

        Raises:
            ValueError: an argument is out of range; named in the message.
        """
        labels = class_numbers(class_labels, num_images_per_prompt, self.class_names, len(self.class_names))
        self._check_run(num_inference_steps, guidance_scale, output_type, labels)
        state = self._start(len(labels), generator, latents)
        on_step_end = self.adapt_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._guidance_scale = guidance_scale
        meter = Meter()
        self.scheduler.set_timesteps(num_inference_steps, device=state.device)
        self._num_timesteps = len(self.scheduler.timesteps)
        end = sample(
            guided(
                self._conditioned(labels, meter), self._conditioned(torch.full_like(labels, -1), meter), guidance_scale
            ),
            self.scheduler,
            state * self.scheduler.init_noise_sigma,
            generator=generator,
            on_step_end=on_step_end,
            progress=self.progress_bar,
        )
        images = end if output_type == "latent" else self.image_processor.postprocess(end, output_type)
        self.maybe_free_model_hooks()
        stats = meter.stats(scheduler=type(self.scheduler).__name__, steps=num_inference_steps, guidance=guidance_scale)
        output = ImageGenerationPipelineOutput(images, labels, stats)
        return output if return_dict else output.to_tuple()

    def _conditioned(self, labels: Tensor, meter: Meter) -> Predictor:
        """What the network says of a noisy image, given its class; -1 = none."""
        # Without a class embedding the network takes no labels at all.
        none = len(self.class_names)
        condition = labels.where(labels >= 0, none).to(self._execution_device) if none else None

        def predict(noisy: Tensor, step: Step) -> Tensor:
            noisy = noisy.to(self.unet.dtype)
            return meter(self.unet, noisy, step.timestep, class_labels=condition, return_dict=False)[0]

        return predict

    def _start(
        self, count: int, generator: torch.Generator | list[torch.Generator] | None, latents: Tensor | None
    ) -> Tensor:
        shape = (count, *self.sample_shape)
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"generator must hold one generator for each of {count} images, got {len(generator)}.")
        if latents is None:
            return randn_tensor(shape, generator, self._execution_device, self.unet.dtype)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents must be {shape}, got {tuple(latents.shape)}.")
        return latents.to(self._execution_device, self.unet.dtype)

    def _check_run(self, steps: int, guidance_scale: float, output_type: str, labels: Tensor) -> None:
        limit = self.scheduler.config["num_train_timesteps"]
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= limit:
            raise ValueError(f"num_inference_steps must be a whole number from 1 to {limit}, got {steps!r}.")
        if not guidance_scale >= 0:
            raise ValueError(f"guidance_scale must be at least 0, got {guidance_scale!r}.")
        if guidance_scale != 1 and (labels < 0).all():
            raise ValueError(
                f"guidance_scale {guidance_scale:g} needs class_labels: without a class there is nothing to guide to."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type has {output_type!r}; {suggest(output_type, OUTPUT_TYPES)}")
