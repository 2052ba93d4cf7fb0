"""One way to sample, run on prompts x seeds and judged by a world's verifier; what was run once is remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendiff.data.rendered import from_bytes, to_bytes
from gendiff.metrics.pap import pap_score, residual_noise, texture
from gendiff.samplers.intervention import Intervention

BATCH = 256
"""Images in one call of the pipeline, at most; those of a prompt stay together."""


@dataclass(frozen=True)
class Outcome:
    """What P prompts with S seeds each gave.

    Attributes:
        scores: "pap@0", .., "pap_all", "noise" (residual noise), each (P, S).
        checks: node of the verifier -> bool (P, S).
        images: uint8 (P, S, C, H, W).
        nfe: network rows for each image of a prompt, (P,).
        seconds: wall time of all calls.
        interventions: of each prompt.
    """

    scores: dict[str, Tensor]
    checks: dict[str, Tensor]
    images: Tensor
    nfe: Tensor
    seconds: float
    interventions: tuple[Intervention, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(P, S)."""
        return tuple(self.images.shape[:2])  # type: ignore[return-value]


class Runner:
    """Runs a model under interventions, always from the same noise for the same prompt and seed.

    Args:
        pipe: a `LINAPipeline`.
        world: with `check(images, prompts)` and `hops`.
        steps: of a run, if it names no other number.
        asked: further arguments of the pipeline's call for some prompts.
    """

    def __init__(
        self, pipe: Any, world: Any, steps: int = 10, asked: Callable[[list[str]], dict[str, Any]] = lambda _: {}
    ) -> None:
        self.pipe, self.world, self.steps, self.asked = pipe, world, steps, asked
        self.hops = world.hops
        self._numbers = {prompt: number for number, prompt in enumerate(pipe.grammar.prompts())}
        self._known: dict[tuple[Any, ...], Outcome] = {}

    def run(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float,
        intervention: Intervention | Sequence[Intervention] | None = None,
        steps: int | None = None,
    ) -> Outcome:
        """Images of all prompts and seeds, judged.

        Args:
            intervention: one for all or one for each prompt; None draws as the plain model does.
            steps: None = those of the runner.
        """
        one = Intervention() if intervention is None else intervention
        each = (one,) * len(prompts) if isinstance(one, Intervention) else tuple(one)
        key = (tuple(prompts), tuple(seeds), guidance, each, steps or self.steps)
        if key not in self._known:
            self._known[key] = self._run(*key)
        return self._known[key]

    def score(self, prompts: Sequence[str], guidance: float) -> Callable[..., Tensor]:
        """pap_all as `search_interventions` asks for it: (intervention, indices of `prompts`, seeds=) -> (P, S)."""

        def score(intervention: Intervention, indices: Sequence[int], /, *, seeds: Sequence[int]) -> Tensor:
            chosen = [prompts[index] for index in indices]
            return self.run(chosen, seeds, guidance, intervention).scores["pap_all"]

        return score

    def _run(
        self,
        prompts: tuple[str, ...],
        seeds: tuple[int, ...],
        guidance: float,
        each: tuple[Intervention, ...],
        steps: int,
    ) -> Outcome:
        images, nfe, start = [], [], time.perf_counter()
        at_once = max(BATCH // len(seeds), 1)
        # Prompts that share an intervention share a batch.
        order = sorted(range(len(prompts)), key=lambda row: each[row].to_json())
        for first in range(0, len(prompts), at_once):
            rows = order[first : first + at_once]
            texts = [prompts[row] for row in rows]
            output = self.pipe(
                texts,
                num_inference_steps=steps,
                guidance_scale=guidance,
                intervention=[each[row] for row in rows],
                num_images_per_prompt=len(seeds),
                latents=torch.stack([self._noise(prompts[row], seed) for row in rows for seed in seeds]),
                output_type="pt",
                **self.asked(texts),
            )
            images.append(output.images.cpu())
            nfe += output.nfe
        seconds = time.perf_counter() - start
        back = torch.argsort(torch.tensor(order))
        # Judged are the bytes that one would save.
        saved = to_bytes(torch.cat(images) * 2 - 1).unflatten(0, (len(prompts), len(seeds)))[back]
        scores, checks = judged(self.world, saved, prompts)
        return Outcome(scores, checks, saved, torch.tensor(nfe, dtype=torch.float64)[back], seconds, each)

    def _noise(self, prompt: str, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(1009 * seed + self._numbers[prompt])
        return torch.randn(self.pipe.sample_shape, generator=generator)


def judged(world: Any, images: Tensor, prompts: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores and checks (P, S) of uint8 images (P, S, C, H, W), see `Outcome`."""
    shape = tuple(images.shape[:2])
    flat = from_bytes(images.flatten(0, 1))
    checks = world.check(flat, [prompt for prompt in prompts for _ in range(shape[1])])
    scores = pap_score(checks, world.hops) | {"noise": residual_noise(flat)}
    return tuple({name: value.view(shape) for name, value in part.items()} for part in (scores, checks))  # type: ignore


def textures(outcome: Outcome, base: Outcome) -> Tensor:
    """`gendiff.metrics.pap.texture` of each image against the base image from the same noise, (P, S)."""
    ours, theirs = (from_bytes(one.images.flatten(0, 1)) for one in (outcome, base))
    return texture(ours, theirs).view(outcome.shape)


def best_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Of each prompt and seed the image that passes most checks: what a perfect judge would pick. It costs all."""
    passed = torch.stack([torch.stack([value.float() for value in one.checks.values()]).mean(0) for one in outcomes])
    chosen = passed.argmax(0)

    def picked(values: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(values))
        index = chosen.view(1, *chosen.shape, *[1] * (stacked.ndim - 3)).expand(1, *stacked.shape[1:])
        return stacked.gather(0, index)[0]

    return Outcome(
        {name: picked([one.scores[name] for one in outcomes]) for name in outcomes[0].scores},
        {name: picked([one.checks[name] for one in outcomes]) for name in outcomes[0].checks},
        picked([one.images for one in outcomes]),
        torch.stack([one.nfe for one in outcomes]).sum(0),
        sum(one.seconds for one in outcomes),
        outcomes[0].interventions,
    )
