"""What would this image look like had a variable been different? Abduct, act, predict."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from gendiff.causal.graph import CausalGraph
from gendiff.causal.intervention import check_interventions
from gendiff.causal.labels import embed, unembed, unembed_all
from gendiff.models.causal_encoder import CausalEncoder
from gendiff.models.causal_mechanisms import CausalMechanisms
from gendiff.models.latent_projection import LatentProjection
from gendiff.models.patch_unet import PatchUNet2DModel
from gendiff.samplers.guidance import guided
from gendiff.samplers.inversion import SCHEMES, forward_of, inverse_of
from gendiff.samplers.loop import Predictor, Step, sample

from .abduction import AbductedState
from .base import GendiffPipeline
from .images import to_tensor
from .stats import Meter, RunStats

GUIDANCE_MODES = ("factual", "affected", "uncond")
NOISES = ("abducted", "random")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class CounterfactualPipelineOutput(BaseOutput):
    """Result of an intervention.

    Attributes:
        images: list of PIL images, array (B, H, W, C) or tensor (B, C, H, W) in [0, 1], as `output_type` says.
        factual, counterfactual: raw value (B,) of each variable as the factors have it, before and after.
        state: the abducted state, to ask further questions.
        latents: the sampler's end, (B, C, H, W) in about [-1, 1] before clamping; for "edict" the pair
            (2, B, C, H, W), which is what undoing an intervention exactly needs.
        stats: what the run cost.
    """

    images: Any
    factual: dict[str, Tensor]
    counterfactual: dict[str, Tensor]
    state: AbductedState
    latents: Tensor
    stats: RunStats


class CounterfactualPipeline(GendiffPipeline):
    """Counterfactual images by a causal diffusion autoencoder.

    Args:
        encoder: image to causal noise and style.
        mechanisms: causal noise to causal factors, along the graph.
        projection: factors and style to the decoder's condition.
        unet: decoder, called as `unet(x, timestep, class_labels=condition)`.
        scheduler: noise levels of the decoder; `prediction_type="v_prediction"` keeps inversion well-conditioned.

    Raises:
        ValueError: the components do not fit one another, or the schedule cannot be inverted.

    Source: Komanduri et al. 2024, "Causal Diffusion Autoencoders", arXiv 2404.17735.
    """

    model_cpu_offload_seq = "encoder->projection->unet"
    # Its methods are called beside forward, where offload hooks do not reach.
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["mechanisms"]
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        encoder: CausalEncoder,
        mechanisms: CausalMechanisms,
        projection: LatentProjection,
        unet: PatchUNet2DModel | UNet2DModel,
        scheduler: DDIMScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            encoder=encoder, mechanisms=mechanisms, projection=projection, unet=unet, scheduler=scheduler
        )
        self._check_components()
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @property
    def graph(self) -> CausalGraph:
        """The causal graph of the checkpoint."""
        return self.mechanisms.graph

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, S, S) of an image."""
        config = self.unet.config
        return (config["in_channels"], config["sample_size"], config["sample_size"])

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        interventions: Mapping[str, Any] | None = None,
        guidance_scale: float = 1.0,
        guidance_mode: str = "factual",
        num_inference_steps: int = 50,
        inversion: str = "edict",
        noise: str = "abducted",
        labels: Mapping[str, Any] | None = None,
        allow_extrapolation: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
    ) -> CounterfactualPipelineOutput | tuple[Any, ...]:
        """Show `image` as it would look under `interventions`.

        Args:
            image: PIL image, list of them, or tensor or array (B, C, S, S) in [0, 1].
            interventions: raw value, or one for each image, by variable name; several are one joint intervention.
                None or empty gives the reconstruction.
            guidance_scale: 1 = off; above 1 amplifies what `guidance_mode` contrasts with.
            guidance_mode: "factual" contrasts with the image as it is, "affected" with the intervened variables and
                their descendants dropped, "uncond" with everything dropped.
            num_inference_steps: steps of abduction, and as many of prediction.
            inversion: "edict" (exact, two network calls a step), "ddim" or "fixed_point".
            noise: "abducted" keeps the image's own decoder noise; "random" draws it, which samples from the
                interventional distribution instead of answering about this image.
            labels: known raw values of the image by name; they replace what the encoder sees.
            allow_extrapolation: warn instead of raising for values outside the training range.
            generator: for `noise="random"` only; a list gives each image its own.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns the tuple of the output's fields.
            callback_on_step_end: as in diffusers, called at each step of the prediction; for "edict" its latents are
                the pair (2, B, C, H, W).

        Raises:
            InterventionError: an intervention or label does not fit the graph.
            ValueError: any other argument is out of range; named in the message.
        """
        pixels = self._check_image(image)
        self._check_run(num_inference_steps, inversion, noise)
        self._check_output(output_type, generator, len(pixels))
        self._check_guidance(guidance_scale, guidance_mode)
        do = check_interventions(self.graph, interventions or {}, len(pixels), allow_extrapolation=allow_extrapolation)
        on_step_end = self.adapt_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        meter = Meter()
        if noise == "abducted":
            state = self._abduct(pixels, num_inference_steps, inversion, labels, meter)
        else:
            drawn = self._draw_noise(pixels, generator, inversion)
            state = self._encode(pixels, labels, drawn, inversion, num_inference_steps)
        output = self._predict(state, do, guidance_scale, guidance_mode, output_type, meter, on_step_end)
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def abduct(
        self,
        image: Any,
        num_inference_steps: int = 50,
        inversion: str = "edict",
        labels: Mapping[str, Any] | None = None,
    ) -> AbductedState:
        """Find the noise, causal and of the decoder, that explains `image`. Arguments as in `__call__`; no guidance."""
        pixels = self._check_image(image)
        self._check_run(num_inference_steps, inversion, "abducted")
        return self._abduct(pixels, num_inference_steps, inversion, labels, Meter())

    @torch.no_grad()
    def predict(
        self,
        state: AbductedState,
        interventions: Mapping[str, Any],
        guidance_scale: float = 1.0,
        guidance_mode: str = "factual",
        allow_extrapolation: bool = False,
        output_type: str = "pil",
    ) -> CounterfactualPipelineOutput:
        """Answer one question about an abducted image. Arguments as in `__call__`.

        Raises:
            ValueError: the state does not belong to this pipeline's graph, image shape or schedule.
        """
        state.check_shapes(self.graph, self.encoder.config["style_dim"], self.sample_shape)
        self._check_run(state.num_inference_steps, state.scheme, "abducted")
        self._check_output(output_type, None, state.batch_size)
        self._check_guidance(guidance_scale, guidance_mode)
        do = check_interventions(self.graph, interventions, state.batch_size, allow_extrapolation=allow_extrapolation)
        return self._predict(state, do, guidance_scale, guidance_mode, output_type, Meter(), None)

    def reconstruct(self, state: AbductedState, output_type: str = "pil") -> CounterfactualPipelineOutput:
        """Decode an abducted image as it is: `predict` with an empty intervention."""
        return self.predict(state, {}, output_type=output_type)

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 8,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> CounterfactualPipelineOutput:
        """Draw new images: causal noise as the training data has it, through the graph, with fresh decoder noise.

        Classes are drawn as classes: a categorical root takes the value its noise is nearest to.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self._check_run(num_inference_steps, "ddim", "random")
        self._check_output(output_type, generator, batch_size)
        meter, device, dtype = Meter(), self._execution_device, self._state_dtype
        widths = (self.graph.dim, self.encoder.config["style_dim"])
        draw, style = randn_tensor((batch_size, sum(widths)), generator, device, dtype).split(widths, dim=1)
        # eigh, not Cholesky: the noise of a deterministic effect has no variance at all.
        values, vectors = torch.linalg.eigh(self.mechanisms.noise_cov.to(dtype))
        u = self.mechanisms.noise_mean.to(dtype) + draw * values.clamp(min=0).sqrt() @ vectors.T
        for name in self.graph.roots:
            block = self.graph.slices[name]
            if self.graph[name].kind != "continuous":
                u[:, block] = embed(self.graph[name], unembed(self.graph[name], u[:, block]))
        noise = randn_tensor((batch_size, *self.sample_shape), generator, device, dtype)
        z = self.mechanisms(u)
        state = AbductedState(u, z, style, noise, "ddim", num_inference_steps, self.graph)
        return self._predict(state, {}, 1.0, "factual", output_type, meter, None)

    def _abduct(
        self,
        pixels: Tensor,
        num_inference_steps: int,
        inversion: str,
        labels: Mapping[str, Any] | None,
        meter: Meter,
    ) -> AbductedState:
        state = self._encode(pixels, labels, pixels, inversion, num_inference_steps)
        scheduler = inverse_of(self.scheduler, inversion)
        scheduler.set_timesteps(num_inference_steps, device=pixels.device)
        # All schemes but ddim move a pair; it starts as two copies of the image.
        start = pixels if inversion == "ddim" else (pixels, pixels)
        predict = self._conditioned(self.projection(state.z, state.style), meter)
        noise = sample(predict, scheduler, start, progress=self.progress_bar)
        if inversion == "edict":
            noise = torch.stack(noise)
        elif inversion == "fixed_point":
            noise = noise[0]
        return replace(state, noise=noise)

    def _encode(
        self, pixels: Tensor, labels: Mapping[str, Any] | None, noise: Tensor, scheme: str, num_inference_steps: int
    ) -> AbductedState:
        known = check_interventions(self.graph, labels or {}, len(pixels), allow_extrapolation=True)
        posterior = self.encoder(pixels.to(self.encoder.dtype))
        u, style = posterior.mean.to(pixels), posterior.style_mean.to(pixels)
        z = self.mechanisms(u)
        if known:
            for name, values in known.items():
                z[:, self.graph.slices[name]] = embed(self.graph[name], values.to(z))
            u = self.mechanisms.inverse(z)
        return AbductedState(u, z, style, noise, scheme, num_inference_steps, self.graph)

    def _predict(
        self,
        state: AbductedState,
        do: Mapping[str, Tensor],
        guidance_scale: float,
        guidance_mode: str,
        output_type: str,
        meter: Meter,
        on_step_end: Callable[[Step, Any], Any] | None,
    ) -> CounterfactualPipelineOutput:
        self._guidance_scale = guidance_scale
        z = self.mechanisms.intervene(state.u, state.z, do)
        positive = self._conditioned(self.projection(z, state.style), meter)
        negative = self._contrast(state, z, do, guidance_mode, meter)
        scheduler = forward_of(self.scheduler, state.scheme)
        scheduler.set_timesteps(state.num_inference_steps, device=state.noise.device)
        self._num_timesteps = len(scheduler.timesteps)
        latents = sample(
            guided(positive, negative, guidance_scale),
            scheduler,
            tuple(state.noise) if state.scheme == "edict" else state.noise,
            on_step_end=_stacked(on_step_end),
            progress=self.progress_bar,
        )
        latents = torch.stack(tuple(latents)) if state.scheme == "edict" else latents
        pixels = latents[0] if state.scheme == "edict" else latents
        return CounterfactualPipelineOutput(
            images=latents if output_type == "latent" else self.image_processor.postprocess(pixels, output_type),
            factual=unembed_all(self.graph, state.z),
            counterfactual=unembed_all(self.graph, z),
            state=state,
            latents=latents,
            stats=meter.stats(scheme=state.scheme, num_inference_steps=state.num_inference_steps),
        )

    def _conditioned(self, condition: Tensor, meter: Meter) -> Predictor:
        """The decoder under one condition (B, E). Half-precision weights still move a float32 state."""

        def predict(x: Tensor, step: Step) -> Tensor:
            network_input = x.to(self.unet.dtype)
            prediction = meter(
                self.unet, network_input, step.timestep, class_labels=condition.to(self.unet.dtype), return_dict=False
            )
            return prediction[0].to(x.dtype)

        return predict

    def _contrast(
        self, state: AbductedState, z: Tensor, do: Mapping[str, Tensor], guidance_mode: str, meter: Meter
    ) -> Predictor:
        """The predictor that guidance moves away from."""
        if guidance_mode == "factual":
            return self._conditioned(self.projection(state.z, state.style), meter)
        affected = {*do, *(self.graph.descendants(*do) if do else ())}
        blocks = [*self.graph.names, None] if state.style.shape[1] else self.graph.names
        kept = [guidance_mode == "affected" and name not in affected for name in blocks]
        keep = torch.tensor(kept, device=z.device).expand(len(z), -1)
        return self._conditioned(self.projection(z, state.style, keep), meter)

    def _draw_noise(
        self, pixels: Tensor, generator: torch.Generator | list[torch.Generator] | None, inversion: str
    ) -> Tensor:
        noise = randn_tensor(tuple(pixels.shape), generator, pixels.device, pixels.dtype)
        return torch.stack([noise, noise]) if inversion == "edict" else noise

    @property
    def _state_dtype(self) -> torch.dtype:
        """float32, or float64 where the weights are: EDICT's mixing enlarges the rounding of anything smaller."""
        return torch.float64 if self.unet.dtype == torch.float64 else torch.float32

    def _check_components(self) -> None:
        channels, size = self.sample_shape[:2]
        dims = [variable.dim for variable in self.graph.variables]
        encoder, projection, width = self.encoder.config, self.projection.config, self.unet.config["block_out_channels"]
        expected = {
            "encoder.sample_size": (encoder["sample_size"], size),
            "encoder.in_channels": (encoder["in_channels"], channels),
            "encoder.latent_dim": (encoder["latent_dim"], self.graph.dim),
            "projection.block_dims": (list(projection["block_dims"]), dims),
            "projection.style_dim": (projection["style_dim"], encoder["style_dim"]),
            "projection.embed_dim": (projection["embed_dim"], 4 * width[0]),
        }
        for name, (got, wanted) in expected.items():
            if got != wanted:
                raise ValueError(f"{name} must be {wanted} to fit the other components, got {got}.")
        factor = 2 ** (len(width) - 1)
        if size % factor:
            raise ValueError(f"the image side must be a multiple of {factor} for {len(width)} levels, got {size}.")
        inverse_of(self.scheduler, "ddim")  # refuses a schedule that has no inverse

    def _check_image(self, image: Any) -> Tensor:
        pixels = to_tensor(image, self.sample_shape[0], self.sample_shape[1])
        if self.unet.dtype in (torch.float16, torch.bfloat16):
            warnings.warn(
                f"weights are {self.unet.dtype}; the sampler's state stays float32, where inversion is accurate.",
                stacklevel=3,
            )
        return pixels.to(self._execution_device, self._state_dtype)

    def _check_run(self, num_inference_steps: int, inversion: str, noise: str) -> None:
        limit = self.scheduler.config["num_train_timesteps"]
        if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
            raise ValueError(f"num_inference_steps must be a whole number, got {num_inference_steps!r}.")
        if not 1 <= num_inference_steps <= limit:
            raise ValueError(f"num_inference_steps must lie in 1..{limit}, got {num_inference_steps}.")
        if inversion not in SCHEMES:
            raise ValueError(f"inversion must be one of {', '.join(SCHEMES)}, got {inversion!r}.")
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}.")

    def _check_output(
        self, output_type: str, generator: torch.Generator | list[torch.Generator] | None, batch_size: int
    ) -> None:
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"generator: expected one or a list of {batch_size}, got a list of {len(generator)}.")

    def _check_guidance(self, guidance_scale: float, guidance_mode: str) -> None:
        if guidance_mode not in GUIDANCE_MODES:
            raise ValueError(f"guidance_mode must be one of {', '.join(GUIDANCE_MODES)}, got {guidance_mode!r}.")
        needed = {"uncond": "p_uncond", "affected": "p_block"}.get(guidance_mode)
        if needed and self.projection.config[needed] == 0:
            raise ValueError(f"guidance_mode={guidance_mode!r} needs a model trained with {needed} > 0.")
        if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
            raise ValueError(f"guidance_scale must be finite and at least 0, got {guidance_scale}.")


def _stacked(on_step_end: Callable[[Step, Any], Any] | None) -> Callable[[Step, Any], Any] | None:
    """Callbacks written for diffusers expect one tensor."""
    if on_step_end is None:
        return None
    return lambda step, state: on_step_end(step, torch.stack(state) if isinstance(state, tuple) else state)
