"""LINA around a pipeline that people already have: called like it, and the pipeline itself stays as it is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gendiff.causal.scene_graph import CausalSceneGraph
from gendiff.models.lina_predictor import LINAPredictor
from gendiff.samplers.contrast import CausalContrast
from gendiff.samplers.energy import EnergySteering
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.prompt_embeds import PromptEmbeds

from .factor_directions import FactorDirections
from .lina_attach import attach
from .lina_choice import chosen_interventions
from .lina_conditions import Conditions
from .lina_families import denoisers, encode, valid_tokens
from .lina_output import LINAPipelineOutput
from .lina_prompt import typed_prompts
from .lina_runs import PER_PROMPT, counting, dealt, joined, result_of, walked


class SteeredPipeline:
    """A diffusers pipeline whose prompts are read, judged and, where they need it, intervened on.

    Every prompt is one call of the pipeline, as each has its own intervention.

    Args:
        pipe: a pipeline that `attach` and `prompt_conditions` know; it is not changed.
        predictor: says which prompts need which intervention; None leaves that to the caller.
        parser: makes a causal scene graph of a prompt: an object with `parse`, or a callable as
            `CausalSceneGraph.from_prompt` takes it; None is the rule-based parser for English.
        directions: of the causal factors in the prompt embedding, for `alpha`; see `encode_texts`.

    Raises:
        TypeError: the pipeline has no denoiser that reads a prompt.
    """

    def __init__(
        self,
        pipe: Any,
        predictor: LINAPredictor | None = None,
        parser: Any = None,
        directions: FactorDirections | None = None,
    ) -> None:
        if not denoisers(pipe):
            raise TypeError(f"{type(pipe).__name__} offers no route: no unet or transformer reads a prompt.")
        self.pipe, self.predictor, self.parser, self.directions = pipe, predictor, parser, directions

    def encode_texts(self, texts: list[str], **options: Any) -> tuple[Tensor, ...]:
        """(E, mask) or (E, mask, pooled) of texts: what `FactorDirections.fit` takes for an encoder."""
        said = encode(self.pipe, texts, **options)
        parts = (said.embeds, valid_tokens(self.pipe, texts, said))
        return parts if said.pooled is None else (*parts, said.pooled)

    def counterfactual(self, prompt: str, node: str | None = None) -> str:
        """The prompt under do(node = another value).

        Args:
            prompt: as the parser reads it.
            node: id of what to change; None asks the parser, if it has a method `counterfactual`, else takes the first
                implied effect, set to absent.

        Raises:
            ValueError: the prompt implies nothing, or the node is unknown or has no other value.
        """
        if node is None and hasattr(self.parser, "counterfactual"):
            return self.parser.counterfactual(prompt)
        graph = CausalSceneGraph.from_prompt(prompt, self.parser)
        return graph.counterfactual_text(_implied_effect(graph) if node is None else node)

    def __call__(
        self,
        prompt: str | Sequence[str],
        intervention: str | Intervention | Sequence[Intervention] | None = None,
        counterfactual_prompt: str | Sequence[str] | None = None,
        factual_prompt: str | Sequence[str] | None = None,
        contrast: CausalContrast | None = None,
        energy: EnergySteering | None = None,
        encode_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> LINAPipelineOutput:
        """Call the pipeline under the interventions its prompts need.

        Args:
            prompt: one or several texts.
            intervention: "auto" asks the predictor, "off" calls the pipeline as it is; or an `Intervention` for all
                prompts or one for each. None is "auto" with a predictor, else "off".
            counterfactual_prompt: what the contrast pushes away from; None for `counterfactual`.
            factual_prompt: what it pushes to; None for the prompt, which costs nothing.
            contrast: how the contrast enters.
            energy: for rho.
            encode_options: for the pipeline's `encode_prompt`; options that its call and its `encode_prompt` share,
                such as `max_sequence_length`, are taken from `kwargs` anyway.
            kwargs: of the pipeline's call. Generators and latents given one for each image are dealt out to prompts.

        Returns: with `nfe`, rows that denoisers evaluated for each image, and `schedule`, the noise shares walked.

        Raises:
            ValueError: as `attach`; a prompt the parser cannot read; alpha without directions.
            TypeError: as `attach` and `prompt_conditions`.
        """
        prompts = typed_prompts(prompt)
        others, factuals = (
            [None] * len(prompts) if text is None else typed_prompts(text, len(prompts))
            for text in (counterfactual_prompt, factual_prompt)
        )
        graphs = [self._graph(text, self._asks(intervention)) for text in prompts]
        options = {**self._shared(kwargs), **(encode_options or {})}
        chosen = self._chosen(intervention, prompts, graphs, options)
        contrast, runs = contrast or CausalContrast(), []
        for text, other, factual, one, own in zip(
            prompts, others, factuals, chosen, dealt(kwargs, len(prompts)), strict=True
        ):
            given = None if one.is_identity else self._conditions(text, other, factual, one, options, contrast, energy)
            # Where nothing is attached, rows are still to be counted.
            with attach(self.pipe, one, given) as run, counting(self.pipe, run.rows is None) as counted:
                out = result_of(self.pipe(text, **{**own, "return_dict": True}))
                rows = run.rows if counted is None else counted.rows
                runs.append((out, (rows or 0) / len(out), walked(self.pipe.scheduler)))
        results, nfe, schedule = zip(*runs, strict=True)
        images = joined(results)
        is_video = "num_frames" in inspect.signature(self.pipe.__call__).parameters
        return LINAPipelineOutput(
            images=None if is_video else images,
            interventions=chosen,
            graphs=graphs,
            nfe=list(nfe),
            schedule=list(schedule),
            frames=images if is_video else None,
        )

    def _asks(self, wanted: Any) -> bool:
        """Whether the predictor is to choose."""
        return self.predictor is not None and (wanted is None or wanted == "auto")

    def _graph(self, prompt: str, needed: bool) -> CausalSceneGraph | None:
        try:
            return CausalSceneGraph.from_prompt(prompt, self.parser)
        except ValueError:
            if needed:
                raise
            return None

    def _chosen(
        self, wanted: Any, prompts: list[str], graphs: list[CausalSceneGraph | None], options: Mapping[str, Any]
    ) -> list[Intervention]:
        known: list[Any] = list(graphs)
        if self.predictor is None or not self._asks(wanted):
            return chosen_interventions(wanted, self.predictor, torch.empty(0), torch.empty(0), known)
        said, device = encode(self.pipe, prompts, **options), self.predictor.device
        words = valid_tokens(self.pipe, prompts, said)
        return chosen_interventions(wanted, self.predictor, said.embeds.to(device), words.to(device), known)

    def _conditions(
        self,
        prompt: str,
        other: str | None,
        factual: str | None,
        one: Intervention,
        options: Mapping[str, Any],
        contrast: CausalContrast,
        energy: EnergySteering | None,
    ) -> Conditions:
        said = encode(self.pipe, prompt, **options)
        minus = plus = edited = None
        if one.lam:
            minus = encode(self.pipe, self.counterfactual(prompt) if other is None else other, **options)
            plus = None if factual is None else encode(self.pipe, factual, **options)
        if any(one.alpha.values()):
            if self.directions is None:
                raise ValueError(f"alpha = {one.alpha} needs directions of its factors; this pipeline was given none.")
            words = valid_tokens(self.pipe, [prompt], said)
            pooled = said.pooled
            if pooled is not None and self.directions.pooled:
                pooled = self.directions.edit_pooled(pooled, one.alpha)
            edited = PromptEmbeds(self.directions.edit(said.embeds, words, one.alpha), pooled, said.mask)
        return Conditions(minus, plus, said, edited, contrast=contrast, energy=energy)

    def _shared(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        known = inspect.signature(self.pipe.encode_prompt).parameters if hasattr(self.pipe, "encode_prompt") else {}
        left_out = ("device", *PER_PROMPT)
        return {
            name: value
            for name, value in kwargs.items()
            if name in known and name not in left_out and "negative" not in name
        }


def _implied_effect(graph: CausalSceneGraph) -> str:
    """The first implied node."""
    implied = graph.implied()
    if not implied:
        raise ValueError(f"{graph.prompt!r} implies nothing to contrast with; give counterfactual_prompt.")
    return implied[0].id
