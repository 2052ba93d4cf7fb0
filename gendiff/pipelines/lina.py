"""Text to image with LINA: a small model of our own, steered by interventions that fit each prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from gendiff.causal.scene_features import CooccurrenceTable
from gendiff.causal.scene_grammar import TemplateGrammar
from gendiff.models.lina_predictor import LINAPredictor
from gendiff.samplers.contrast import CausalContrast
from gendiff.samplers.energy import EnergySteering
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import State, Step

from .base import GendiffPipeline
from .generators import check_generator
from .lina_choice import chosen_interventions
from .lina_output import LINAPipelineOutput
from .lina_prompt import edited_prompts, typed_prompts
from .lina_steered import SteeredPipeline
from .lina_walk import Steering, Told, walk
from .registry import suggest
from .stats import Meter

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class LINAPipeline(GendiffPipeline):
    """Images from prompts of one sentence form, with interventions on embedding, latents and schedule.

    Every prompt is read into a causal scene graph. A predictor says which prompts need an intervention, and which one;
    the others are drawn as the plain model would. For a model of diffusers see `from_pipe`. This is gendiff's
    realisation of LINA (arXiv 2512.13290), whose formulas are not published.

    Args:
        transformer: predicts the flow from a noisy image and a prompt.
        text_encoder: its last hidden states are the prompt embedding.
        tokenizer: whole words to tokens.
        scheduler: any flow-matching scheduler of diffusers.
        predictor: interventions by prompt; None for a model that only knows those it is given.
        grammar: the sentences that the model knows and what follows from them, see `TemplateGrammar`.
        cooccurrence: how often training captions held two values together, JSON of a `CooccurrenceTable`; "" = unknown.
        guidance_scale: what a call uses if it names none; the best of the plain model, so that steering is compared
            with that.
        world: name of the data set whose verifier can judge the images.

    Raises:
        ValueError: the grammar is not one, or the predictor was made for another embedding.
    """

    model_cpu_offload_seq = "text_encoder->transformer"
    _optional_components = ["predictor"]  # noqa: RUF012 (diffusers' name and type)
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerFast,
        scheduler: FlowMatchEulerDiscreteScheduler,
        predictor: LINAPredictor | None = None,
        grammar: Mapping[str, Any] | None = None,
        cooccurrence: str = "",
        guidance_scale: float = 2.0,
        world: str = "",
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            predictor=predictor,
        )
        if grammar is None:
            raise ValueError("grammar is needed: the sentences that the model knows, as TemplateGrammar reads them.")
        self.grammar = TemplateGrammar(grammar)
        self.cooccurrence = CooccurrenceTable.from_json(cooccurrence) if cooccurrence else None
        self.register_to_config(
            grammar=dict(grammar), cooccurrence=cooccurrence, guidance_scale=guidance_scale, world=world
        )
        width = text_encoder.config.hidden_size
        if predictor is not None and predictor.config["embed_dim"] != width:
            raise ValueError(f"predictor reads embeddings of width {predictor.config['embed_dim']}, not {width}.")
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> SteeredPipeline:  # type: ignore[override]
        """LINA around any pipeline of diffusers, which stays as it is; arguments as of `SteeredPipeline`."""
        return SteeredPipeline(pipeline, **kwargs)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, S, S) of an image."""
        config = self.transformer.config
        return (config["in_channels"], config["sample_size"], config["sample_size"])

    @torch.no_grad()
    def encode_prompt(self, prompt: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embedding (B, L, D) of prompts and which tokens are words (B, L) bool: start and padding are not.

        Args:
            prompt: sentences of the grammar, or "" for no prompt.

        Raises:
            ValueError: a sentence that is neither; it says which part does not fit.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        # Written as the grammar writes it: the tokenizer knows no capitals, and drops what it does not know.
        texts = [self.grammar.fill(self.grammar.values(text)) if text else text for text in texts]
        tokens = self.tokenizer(texts, padding="max_length", return_tensors="pt")
        embeds = self.text_encoder(tokens.input_ids.to(self._execution_device)).last_hidden_state
        words = tokens.attention_mask.bool()
        words[:, 0] = False
        return embeds, words.to(embeds.device)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_inference_steps: int = 10,
        guidance_scale: float | None = None,
        intervention: str | Intervention | Sequence[Intervention] | None = None,
        counterfactual_prompt: str | Sequence[str] | None = None,
        contrast: CausalContrast | None = None,
        energy: EnergySteering | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
    ) -> LINAPipelineOutput | tuple[Any, ...]:
        """Draw images.

        Args:
            prompt: one or several sentences of the model's grammar.
            num_inference_steps: steps of the walk; an intervention changes how they are spaced, never their number.
            guidance_scale: classifier-free guidance, 1 = off; None for the model's own.
            intervention: "auto" asks the predictor, "off" draws as the plain model does; or one `Intervention` for all
                prompts or one for each. None is "auto" where there is a predictor, else "off".
            counterfactual_prompt: what the contrast pushes away from, one or one for each prompt; None lets the grammar
                set the cause whose effects matter most to its other value.
            contrast: projection and mask of the contrast; None projects nothing, and acts where the grammar says that
                the contrasted cause and its effects lie.
            energy: what rho steers down; needed where rho > 0.
            num_images_per_prompt: images of each prompt, next to one another.
            generator: one, or one for each image so that an image does not depend on its batch mates.
            latents: noise (B, C, S, S) to start from instead of drawing it.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns the tuple of the output's fields.
            callback_on_step_end: as in diffusers; prompts that share an intervention are walked together, one group
                after the other, and the callback sees the images of one group.

        Raises:
            ValueError: an argument is out of range, or a prompt is no sentence of the grammar; named in the message.
        """
        prompts = typed_prompts(prompt)
        graphs = [self.grammar.parse(text) for text in prompts]
        scale = self.config["guidance_scale"] if guidance_scale is None else guidance_scale
        self._check_run(num_inference_steps, scale, num_images_per_prompt, output_type)
        count = num_images_per_prompt * len(prompts)
        check_generator(generator, count)
        on_step_end = self.adapt_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        others = typed_prompts(counterfactual_prompt, len(prompts)) if counterfactual_prompt is not None else None
        counterfactuals = others or [self.grammar.counterfactual(text) for text in prompts]
        meter = Meter()
        factual, words = self.encode_prompt(prompts)
        away = self.encode_prompt(counterfactuals)[0]
        none = self.encode_prompt([""])[0].expand_as(factual)
        chosen = chosen_interventions(
            intervention, self.predictor, factual, words, graphs, self.cooccurrence, num_inference_steps
        )
        if energy is None and any(one.gate and one.rho for one in chosen):
            raise ValueError("rho above 0 needs energy, which says what to steer to.")
        edited = edited_prompts(self, prompts, factual, words, chosen)
        told = Told(*(part.repeat_interleave(num_images_per_prompt, 0) for part in (factual, edited, away, none)))
        state = self._start(count, generator, latents)
        if contrast is None:
            contrast = CausalContrast(mask=self.grammar.contrast_mask(*self.sample_shape[1:]))
        steering = Steering(scale, contrast, energy)
        self._guidance_scale, self._num_timesteps = scale, num_inference_steps

        end, nfe, schedule = torch.empty_like(state), [0.0] * len(prompts), [[]] * len(prompts)
        groups = _groups(chosen)
        for one, members in groups.items():
            rows = torch.arange(count).view(len(prompts), -1)[members].flatten()
            part = Meter()
            end[rows], shares = walk(
                self._network(part),
                self.scheduler,
                state[rows],
                told.rows(rows.to(factual.device)),
                one,
                steering,
                num_inference_steps=num_inference_steps,
                on_step_end=on_step_end,
                progress=self.progress_bar if len(groups) == 1 else False,
            )
            meter.add(part)
            for i in members:
                nfe[i], schedule[i] = float(part.network_calls), shares
        images = end if output_type == "latent" else self.image_processor.postprocess(end, output_type)
        self.maybe_free_model_hooks()
        intervened = sum(not one.is_identity for one in chosen)
        stats = meter.stats(steps=num_inference_steps, guidance=scale, intervened=intervened)
        output = LINAPipelineOutput(images, chosen, list(graphs), nfe, schedule, stats)
        return output if return_dict else output.to_tuple()

    def _network(self, meter: Meter) -> Callable[[State, Step, Tensor], Tensor]:
        def network(noisy: State, step: Step, embeds: Tensor) -> Tensor:
            return meter(
                self.transformer,
                noisy.to(self.transformer.dtype),
                encoder_hidden_states=embeds,
                timestep=step.timestep.expand(len(noisy)),
                # The last token has read all others: CLIP's text model is causal.
                pooled_projections=embeds[:, -1],
                return_dict=False,
            )[0]

        return network

    def _start(self, count: int, generator: Any, latents: Tensor | None) -> Tensor:
        shape = (count, *self.sample_shape)
        if latents is None:
            return randn_tensor(shape, generator, self._execution_device, self.transformer.dtype)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents must be {shape}, got {tuple(latents.shape)}.")
        return latents.to(self._execution_device, self.transformer.dtype)

    def _check_run(self, steps: Any, scale: Any, images: Any, output_type: str) -> None:
        limit = self.scheduler.config["num_train_timesteps"]
        for name, value, most in (("num_inference_steps", steps, limit), ("num_images_per_prompt", images, math.inf)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                allowed = f"from 1 to {most}" if most < math.inf else "of at least 1"
                raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}.")
        if not 0 <= scale < math.inf:
            raise ValueError(f"guidance_scale must be finite and at least 0, got {scale!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type has {output_type!r}; {suggest(output_type, OUTPUT_TYPES)}")


def _groups(chosen: Sequence[Intervention]) -> dict[Intervention, list[int]]:
    """Prompts by intervention, in the order of their first."""
    groups: dict[Intervention, list[int]] = {}
    for i, one in enumerate(chosen):
        groups.setdefault(one, []).append(i)
    return groups
