"""From a trained base model to a predictor of interventions: guidance, diagnosis, search, regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from gendiff.models.lina_predictor import LINAPredictor
from gendiff.pipelines.lina import LINAPipeline
from gendiff.pipelines.lina_choice import graph_features
from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.contrast import CausalContrast
from gendiff.samplers.intervention import Intervention

from .lina_candidates import Evaluations, nfe_ratio
from .lina_diagnose import Diagnosis, diagnose
from .lina_fit import Fit, fit_predictor
from .lina_inputs import PredictorInputs, split_by_combination
from .lina_score import VerifierScore
from .lina_search import SearchResult, search_interventions

GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
# A quarter of the strength in preset "small": where a contrast acts only on what its cause changes, that is enough.
BOX = ActionBox((), lam_max=2.0, kappa_max=2.0, stop_base=0.4, stop_range=0.4)
# Three sets that share no seed: for choosing, for accepting, and for knowing when to stop and when to do nothing.
SEARCH, FRESH, LOOK = range(8), range(1000, 1024), range(2000, 2008)


@dataclass(frozen=True)
class Calibration:
    """How a predictor came about.

    Attributes:
        guidance: score of the plain model by guidance scale, on the calibration prompts.
        guidance_scale: the best of them; everything else was done with it.
        diagnosis: of all prompts, calibration prompts first.
        search: of the hard ones.
        fit: of the predictor.
    """

    guidance: dict[float, float]
    guidance_scale: float
    diagnosis: Diagnosis
    search: SearchResult
    fit: Fit

    def as_markdown(self) -> str:
        """What a model card says of it."""
        scores = ", ".join(f"{scale:g}: {score:.3f}" for scale, score in self.guidance.items())
        accepted = int(self.search.accepted.sum())
        gain = f", with a mean gain of {self.search.gains[self.search.accepted].mean():.3f}" if accepted else ""
        return (
            f"Score of the plain model by guidance scale (mean of the share of checks passed and of all being passed; "
            f"calibration prompts): {scores}. Guidance {self.guidance_scale:g} was kept.\n\n"
            f"Of {len(self.diagnosis.base)} prompts {int(self.diagnosis.hard.sum())} were hard; the search accepted an "
            f"intervention for {accepted}{gain} on seeds it had not seen. {self.fit.as_markdown()}"
        )


def best_guidance(
    pipe: LINAPipeline,
    world: Any,
    prompts: Sequence[str],
    scales: Sequence[float] = GUIDANCE_SCALES,
    seeds: Sequence[int] = SEARCH,
    **options: Any,
) -> dict[float, float]:
    """Mean score of the plain model by guidance scale."""
    found = {}
    for scale in scales:
        score = VerifierScore(pipe, world, prompts, guidance_scale=scale, **options)
        found[scale] = score(Intervention(), range(len(prompts)), seeds=seeds).mean().item()
    return found


def calibrate(
    pipe: LINAPipeline,
    world: Any,
    prompts: Sequence[str],
    others: Sequence[str] = (),
    *,
    box: ActionBox = BOX,
    contrast: CausalContrast | None = None,
    num_inference_steps: int = 10,
    seeds: Sequence[int] = SEARCH,
    fresh_seeds: Sequence[int] = FRESH,
    look_seeds: Sequence[int] = LOOK,
    epochs: int = 3000,
    reads_prompt: bool = False,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[LINAPredictor, Calibration]:
    """Train a predictor for `pipe`, whose weights stay as they are.

    Args:
        pipe: the base model.
        world: its `check` is the verifier.
        prompts: calibration prompts, of the kind that the model gets wrong.
        others: prompts that it mostly gets right, on which the gate is to learn to stay shut.
        box: of interventions; by default contrast, its window and the schedule, in ranges that suit a masked contrast.
        contrast: how the contrast enters.
        num_inference_steps: of every run.
        seeds, fresh_seeds, look_seeds: of the search, of its acceptance and of early stopping.
        epochs: of the regression, at most.
        reads_prompt: whether the predictor reads the prompt's embedding besides its scene graph. Where all `prompts`
            are wrong in one way, such as one colour under one sun, it would learn that colour, and stay shut for what
            is new in the same way; the graph's features say "a pair never seen together" of both.
        seed: of the predictor's weights and the order of prompts.
        log: told what goes on.

    Returns: the predictor and how it came about. Nothing is set on `pipe`.

    Raises:
        ValueError: as the stages.
    """
    options = {"num_inference_steps": num_inference_steps, "contrast": contrast}
    guidance = best_guidance(pipe, world, prompts, seeds=seeds, **options)
    scale = max(guidance, key=lambda one: guidance[one])
    log(f"guidance {scale:g}: {guidance}")
    texts = [*prompts, *others]
    score = VerifierScore(pipe, world, texts, guidance_scale=scale, **options)
    diagnosis = diagnose(score, len(texts), seeds)
    log(f"{len(diagnosis.hard_prompts)} of {len(texts)} prompts are hard")
    prices = Evaluations(score, box, seeds, cost=partial(nfe_ratio, rows=1 if scale == 1 else 2))
    found = search_interventions(
        score, box, diagnosis.hard_prompts, "grid", seeds=seeds, fresh_seeds=fresh_seeds, cost=prices.cost
    )
    log(f"{int(found.accepted.sum())} interventions accepted")
    inputs = predictor_inputs(pipe, texts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        predictor = LINAPredictor(
            inputs.embeds.shape[-1], box.to_dict(), base_model=world.name, reads_prompt=reads_prompt
        )

    @cache
    def plain(asked: tuple[int, ...], seeds: tuple[int, ...]) -> Tensor:
        return score(Intervention(), asked, seeds=seeds)

    def gain(ones: Sequence[Intervention], asked: Sequence[int], seeds: Sequence[int]) -> Tensor:
        apart = score(ones, asked, seeds=seeds) - plain(tuple(asked), tuple(seeds))
        return apart.double().mean(1) - torch.tensor([prices.price(one) for one in ones], dtype=torch.float64)

    fit = fit_predictor(
        predictor,
        inputs,
        found,
        gain,
        _split(pipe, prompts, others, seed),
        look_seeds=look_seeds,
        fresh_seeds=fresh_seeds,
        epochs=epochs,
        seed=seed,
    )
    log(fit.as_markdown().strip())
    return predictor, Calibration(guidance, scale, diagnosis, found, fit)


def predictor_inputs(pipe: LINAPipeline, prompts: Sequence[str]) -> PredictorInputs:
    """What the predictor reads of prompts."""
    embeds, words = pipe.encode_prompt(prompts)
    return PredictorInputs(
        embeds, words, graph_features([pipe.grammar.parse(text) for text in prompts], pipe.cooccurrence)
    )


def _split(pipe: LINAPipeline, prompts: Sequence[str], others: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Numbers of prompts to learn from and to hold out, a quarter of each kind, as hard ones may be few."""
    values = [pipe.grammar.values(text) for text in (*prompts, *others)]
    if min(len(prompts), len(others)) < 2:
        return split_by_combination(values, seed=seed)
    hard, easy = (split_by_combination(part, seed=seed) for part in (values[: len(prompts)], values[len(prompts) :]))
    kept, out = ([*first, *(len(prompts) + row for row in second)] for first, second in zip(hard, easy, strict=True))
    return kept, out
