"""The pipeline of `gendiff.oracles.mode_world`, written as diffusers' own are: it knows nothing of interventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from gendiff.oracles.mode_denoisers import LinearDenoiser, ModeDenoiser
from gendiff.samplers.loop import State, Step, sample


def encode(prompts: Sequence[str], shares: Mapping[str, Sequence[float]], num_tokens: int) -> Tensor:
    """Embeddings (B, L, K): every token says log pi.

    Raises:
        ValueError: a prompt that the world does not have.
    """
    if unknown := [prompt for prompt in prompts if prompt not in shares]:
        raise ValueError(f"prompt {unknown[0]!r} is none of the world's: {', '.join(map(repr, shares))}.")
    return torch.tensor([list(shares[prompt]) for prompt in prompts]).log()[:, None].repeat(1, num_tokens, 1)


@dataclass
class ModeWorldPipelineOutput(BaseOutput):
    """Samples, (B, *sample_shape)."""

    images: Tensor


class ModeWorldPipeline(DiffusionPipeline):
    """A plain text-to-image pipeline in the manner of diffusers', classifier-free guidance in one batched call.

    It walks its scheduler itself, as the pipelines do that interventions are to be attached to from outside.

    Args:
        transformer: called with `hidden_states`, `timestep`, `encoder_hidden_states`.
        scheduler: of flow matching.
        prompts: shares of the modes by prompt; without any, calls need embeddings. (An argument without default
            would be taken for a component.)
        num_tokens: L of an embedding.
    """

    model_cpu_offload_seq = "transformer"
    _guidance_scale: float = 1.0
    _num_timesteps: int = 0

    if TYPE_CHECKING:
        # diffusers decorates it with torch.compiler.disable, which hides its signature from type checkers.
        def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any: ...

    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds")

    def __init__(
        self,
        transformer: ModeDenoiser | LinearDenoiser,
        scheduler: FlowMatchEulerDiscreteScheduler,
        prompts: dict[str, list[float]] | None = None,
        num_tokens: int = 4,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(prompts=prompts or {}, num_tokens=num_tokens)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_images_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (B, L, K) of prompts and, under guidance, of negative prompts; each repeated, prompt-major."""
        given = prompt_embeds if prompt_embeds is not None else self._encode(prompt)
        count = len(given)
        negative = None
        if do_classifier_free_guidance:
            texts = negative_prompt or ""
            texts = [texts] * count if isinstance(texts, str) else texts
            negative = negative_prompt_embeds if negative_prompt_embeds is not None else self._encode(texts)
            if len(negative) != count:
                raise ValueError(f"negative_prompt has {len(negative)} entries, prompt {count}.")
            negative = negative.to(device).repeat_interleave(num_images_per_prompt, 0)
        return given.to(device).repeat_interleave(num_images_per_prompt, 0), negative

    def _encode(self, prompt: str | list[str] | None) -> Tensor:
        if prompt is None:
            raise ValueError("pass prompt or prompt_embeds, got neither.")
        texts = [prompt] if isinstance(prompt, str) else prompt
        return encode(texts, self.config["prompts"], self.config["num_tokens"]).to(self.transformer.dtype)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 10,
        sigmas: list[float] | None = None,
        guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ModeWorldPipelineOutput | tuple[Tensor]:
        """Draw samples; arguments as those of diffusers' pipelines.

        Args:
            prompt: one or several of the world's prompts.
            sigmas: noise shares instead of `num_inference_steps` even ones, e.g. `[1 - i / N for i in range(N)]`.
            guidance_scale: 1 is off.
            output_type: "pt" or "latent"; there is no decoder, so both are the samples.

        Returns: `images`, (B, *sample_shape).

        Raises:
            ValueError: an unknown prompt or output type, a callback input that is not offered, prompt and embeddings
                both given.
        """
        if output_type not in ("pt", "latent"):
            raise ValueError(f"output_type must be pt or latent, got {output_type!r}.")
        if prompt is not None and prompt_embeds is not None:
            raise ValueError("prompt and prompt_embeds are both given; choose one.")
        if unknown := [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]:
            raise ValueError(f"callback input {unknown[0]!r} is none of {', '.join(self._callback_tensor_inputs)}.")
        self._guidance_scale = guidance_scale
        device = self._execution_device
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            negative_prompt,
            self.do_classifier_free_guidance,
            num_images_per_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            device,
        )
        shape = (len(prompt_embeds), *self.transformer.config["sample_shape"])
        if negative_prompt_embeds is not None:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=prompt_embeds.dtype)
        state = latents.to(device)
        if sigmas is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        self._num_timesteps = len(self.scheduler.timesteps)

        def predict(x: State, step: Step) -> Tensor:
            model_input = torch.cat([x] * 2) if self.do_classifier_free_guidance else x
            prediction = self.transformer(
                hidden_states=model_input,
                timestep=step.timestep.expand(len(model_input)),
                encoder_hidden_states=prompt_embeds,
                joint_attention_kwargs=joint_attention_kwargs,
                return_dict=False,
            )[0]
            if not self.do_classifier_free_guidance:
                return prediction
            unconditional, conditional = prediction.chunk(2)
            return unconditional + guidance_scale * (conditional - unconditional)

        def on_step_end(step: Step, x: State) -> State | None:
            nonlocal prompt_embeds
            if callback_on_step_end is None:
                return None
            tensors = {"latents": x, "prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
            asked = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
            answer = callback_on_step_end(self, step.index, step.timestep, asked)
            prompt_embeds = answer.get("prompt_embeds", prompt_embeds)
            return answer.get("latents", x)

        state = sample(predict, self.scheduler, state, on_step_end=on_step_end, progress=self.progress_bar)
        self.maybe_free_model_hooks()
        return ModeWorldPipelineOutput(images=state) if return_dict else (state,)
