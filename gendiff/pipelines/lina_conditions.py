"""What an intervention on a pipeline needs beside its strengths: texts as embeddings, a contrast, an energy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gendiff.samplers.contrast import CausalContrast
from gendiff.samplers.energy import EnergySteering
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.prompt_embeds import PromptEmbeds

from .lina_families import denoisers, encode, text_slots


@dataclass(frozen=True)
class Conditions:
    """Between what an intervention contrasts, and what it turns the prompt into.

    Attributes:
        counterfactual: E-, the prompt with one cause set otherwise; for `lam`.
        factual: E+; None takes what the pipeline itself said of its prompt, which costs nothing.
        prompt: E, the prompt that the pipeline is called with: rows that hold it are the ones `edited` replaces.
        edited: E', of the shape of E; for `alpha`. How it was made of E is the caller's business.
        unconditional: E of no text, only for projections about the guide `v_c - v_u` in pipelines that make no
            unconditional prediction (guidance off, or distilled); it costs one more row a step.
        contrast: how the contrast enters.
        energy: for `rho`.

    Raises:
        ValueError: one of `prompt` and `edited` without the other, or of different shapes.
    """

    counterfactual: PromptEmbeds | None = None
    factual: PromptEmbeds | None = None
    prompt: PromptEmbeds | None = None
    edited: PromptEmbeds | None = None
    unconditional: PromptEmbeds | None = None
    contrast: CausalContrast = field(default_factory=CausalContrast)
    energy: EnergySteering | None = None

    def __post_init__(self) -> None:
        if self.edited is None:
            return
        if self.prompt is None:
            raise ValueError("edited needs prompt, the embeddings that it replaces.")
        old, new = self.prompt.embeds, self.edited.embeds
        if old.shape != new.shape:
            raise ValueError(f"edited must have the shape of prompt, {tuple(old.shape)}, got {tuple(new.shape)}.")

    def check(self, pipe: Any, intervention: Intervention) -> None:
        """See to it that all is there that `intervention` needs under `pipe`.

        Raises:
            ValueError: names what is missing; for a pooled vector also the pipeline's class and argument.
        """
        if intervention.lam and self.counterfactual is None:
            raise ValueError(f"lam = {intervention.lam:g} needs conditions.counterfactual, got None.")
        if any(intervention.alpha.values()) and self.edited is None:
            raise ValueError(f"alpha = {intervention.alpha} needs conditions.prompt and conditions.edited, got None.")
        if intervention.rho and self.energy is None:
            raise ValueError(f"rho = {intervention.rho:g} needs conditions.energy, got None.")
        slots = [text_slots(one) for one in denoisers(pipe)]
        slot = next((one for one in slots if one.pooled is not None), None)
        for name in ("counterfactual", "factual", "unconditional"):
            given = getattr(self, name)
            if slot is not None and given is not None and given.pooled is None:
                raise ValueError(
                    f"{type(pipe).__name__} reads a pooled vector as well: {name} lacks pooled ({slot.argument})."
                )


def prompt_conditions(
    pipe: Any,
    prompt: str | list[str],
    counterfactual_prompt: str | list[str] | None = None,
    *,
    factual_prompt: str | list[str] | None = None,
    contrast: CausalContrast | None = None,
    energy: EnergySteering | None = None,
    **options: Any,
) -> Conditions:
    """Conditions from texts, each encoded as `pipe` encodes its own prompts.

    Args:
        pipe: Stable Diffusion (1, 2, XL, 3), FLUX.1, Wan, PixArt, or a pipeline of gendiff that encodes prompts.
        prompt: what the pipeline will be called with; one text or several.
        counterfactual_prompt: the same with one cause set otherwise, as many texts; None for none.
        factual_prompt: the same with its effects spelled out, as many texts; None takes the prompt, at no cost.
        contrast: how the contrast enters; None for the default.
        energy: for `rho`.
        options: of the pipeline's `encode_prompt`.

    Raises:
        TypeError: the family of `pipe` is unknown.
        ValueError: the texts are not equally many, or an unknown option.
    """
    count = 1 if isinstance(prompt, str) else len(prompt)
    texts = {"counterfactual_prompt": counterfactual_prompt, "factual_prompt": factual_prompt}
    for name, text in texts.items():
        got = count if text is None else 1 if isinstance(text, str) else len(text)
        if got != count:
            raise ValueError(f"{name} must be {count} texts, as many as prompt, got {got}.")
    minus, plus = (None if text is None else encode(pipe, text, **options) for text in texts.values())
    return Conditions(
        counterfactual=minus,
        factual=plus,
        prompt=encode(pipe, prompt, **options),
        contrast=CausalContrast() if contrast is None else contrast,
        energy=energy,
    )
