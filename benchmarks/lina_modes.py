"""ModeWorld, whose network is exact: what guidance, contrast, a schedule and a learned gate do to a wrong prior.

The test asks for every mode once with a wrong prior and once with a right one. The best guidance, the search and the
predictor see other prompts: wrong priors whose shortcut leads to another mode, right ones of another share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from lina_fixed import intervention_words
from lina_statistics import mean_ci
from torch import Tensor

from gendiff.models.lina_predictor import LINAPredictor
from gendiff.oracles.mode_world import SHORTCUT_SHARE, TARGET_SHARE, ModeWorld, encode
from gendiff.samplers.action_box import PRESETS
from gendiff.samplers.contrast import CausalContrast, contrasted
from gendiff.samplers.guidance import guided
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import Predictor, State, Step, sample
from gendiff.samplers.noise_levels import noise_level, noise_share
from gendiff.samplers.remembered import remembered
from gendiff.samplers.warped import warp_scheduler
from gendiff.samplers.warps import WarpSpec
from gendiff.training.lina_diagnose import diagnose
from gendiff.training.lina_inputs import PredictorInputs, labels_of
from gendiff.training.lina_regress import train_predictor
from gendiff.training.lina_search import search_interventions

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
FIXED = (
    (Intervention(lam=1.0, window=(1.0, 0.6)), "none"),
    (Intervention(lam=1.0, window=(1.0, 0.3)), "none"),
    (Intervention(lam=1.0, window=(1.0, 0.0)), "none"),
    (Intervention(lam=1.0, window=(0.3, 0.0)), "none"),
    (Intervention(lam=2.0, window=(1.0, 0.3)), "none"),
    (Intervention(lam=2.0, window=(1.0, 0.3)), "orthogonal"),
)
STEPS = 10
RIGHT = 0.8
"""A prompt whose target comes up at least so often has a right prior; the world's own right prompts state 0.85."""
RIGHT_SHARES = (0.75, 0.95)
"""Of the target, in right prompts of calibration."""
KAPPAS = ((8, 1.0), (8, 2.0), (8, 3.0), (5, 1.0), (5, 5.0))
SEARCH_BLOCK = 16
EPOCHS = 300
"""Of the predictor, at most: nothing tells it when to stop."""
SEARCHED, FRESH, TESTED = range(4), range(100, 104), range(900, 908)
"""Seeds of blocks of samples: of search and choice, of its acceptance, and of all that is reported."""


class Task(NamedTuple):
    """A prompt, the mode it asks for, and the mode that its counterfactual states."""

    text: str
    target: int
    other: int


def tested(world: ModeWorld) -> tuple[list[Task], list[Task]]:
    """The world's own prompts, of a wrong prior and of a right one."""
    modes = range(world.num_modes)
    wrong = [Task(world.prompt(mode), mode, world.shortcut(mode)) for mode in modes]
    return wrong, [Task(world.plain(task.target), *task[1:]) for task in wrong]


def calibrated(world: ModeWorld) -> tuple[list[Task], list[Task]]:
    """Other prompts of both kinds, which are put into the world: pairs of modes that the test does not have."""
    wrong, right = [], []
    for target in range(world.num_modes):
        others = [mode for mode in range(world.num_modes) if mode not in (target, world.shortcut(target))]
        for other in others:
            wrong.append(Task(f"mode {target}, often mode {other}", target, other))
            world.prompts[wrong[-1].text] = _shares(world, {target: TARGET_SHARE, other: SHORTCUT_SHARE})
        for share, other in zip(RIGHT_SHARES, others, strict=False):
            right.append(Task(f"mode {target} at {share}", target, other))
            world.prompts[right[-1].text] = _shares(world, {target: share})
    return wrong, right


def _shares(world: ModeWorld, stated: dict[int, float]) -> list[float]:
    rest = (1 - sum(stated.values())) / (world.num_modes - len(stated))
    return [stated.get(mode, rest) for mode in range(world.num_modes)]


class Modes:
    """Samples of a world under any prompt, guidance and intervention, each from its own fixed noise.

    Args:
        block: samples of one seed.
    """

    def __init__(self, world: ModeWorld, block: int) -> None:
        self.world, self.block = world, block

    def ends(
        self,
        task: Task,
        seeds: Sequence[int],
        scale: float,
        intervention: Intervention | None = None,
        projection: str = "none",
        steps: int = STEPS,
    ) -> tuple[Tensor, float]:
        """Samples (len(seeds) * block, ...) and the network rows that each took."""
        one = intervention or Intervention()
        scheduler = FlowMatchEulerDiscreteScheduler()
        if one.gate:
            scheduler = warp_scheduler(scheduler, one.warp)
        # An even grid that ends at 1 / N: diffusers' own would spend its last step on the last thousandth.
        scheduler.set_timesteps(sigmas=[1 - index / steps for index in range(steps)])
        world, rows = self.world, [0]

        def network(text: str) -> Predictor:
            predict = world.predictor(text, scheduler)

            def counted(x: State, step: Step) -> Tensor:
                rows[0] += 1
                return predict(x, step)

            return remembered(counted)

        empty = network("")
        predict = contrasted(
            guided(network(task.text), empty, scale),
            network(world.factual(task.target)),
            network(world.factual(task.other)),
            contrast=CausalContrast(projection),
            intervention=one,
            share=lambda step: noise_share(noise_level(scheduler, step)),
            unconditional=empty,
        )
        noise = torch.cat([self._noise(seed) for seed in seeds])
        end = sample(predict, scheduler, noise, progress=False)
        return end, float(rows[0])

    def hits(self, task: Task, seeds: Sequence[int], *args: Any, **kwargs: Any) -> tuple[Tensor, float]:
        """Share of samples at the target for each seed (len(seeds),), and the network rows."""
        end, rows = self.ends(task, seeds, *args, **kwargs)
        found = (self.world.nearest(end) == task.target).double()
        return found.view(len(seeds), -1).mean(1), rows

    def inputs(self, tasks: Sequence[Task]) -> PredictorInputs:
        """What a predictor reads: the embedding, and a probe of the network at the first step."""
        world = self.world
        embeds = encode([task.text for task in tasks], world.prompts, world.num_tokens).float()
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[1.0])
        step, noise = Step(0, 1, torch.as_tensor(scheduler.timesteps)[0]), self._noise(0)
        probes = []
        for task in tasks:
            texts = (task.text, "", world.factual(task.target), world.factual(task.other))
            asked, empty, plus, minus = (world.predictor(one, scheduler)(noise, step).flatten(1) for one in texts)
            guide, delta = asked - empty, plus - minus
            size = (guide.norm(dim=1).log().mean(), delta.norm(dim=1).log().mean())
            probes.append(torch.stack([*size, torch.cosine_similarity(guide, delta, dim=1).mean()]))
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
        return PredictorInputs(embeds, mask, torch.zeros(len(embeds), 16), torch.stack(probes).float())

    def _noise(self, seed: int) -> Tensor:
        shape = tuple(self.world.denoiser.config["sample_shape"])
        return torch.randn(self.block, *shape, generator=torch.Generator().manual_seed(seed))


How = Callable[[int], dict[str, Any]]
"""Number of a tested prompt, the wrong ones first -> further arguments of `Modes.hits`."""


def mode_cases(args: Any) -> list[dict[str, Any]]:
    """Target rates by guidance and by intervention, the gate, and schedules.

    Args:
        args: `block`, samples of a seed and prompt; `epochs` of the predictor, at most.
    """
    modes = Modes(ModeWorld(), args.block)
    wrong, right = tested(modes.world)
    search = Modes(modes.world, min(SEARCH_BLOCK, args.block))
    others = calibrated(modes.world)
    base_scale = max(SCALES, key=lambda scale: sum(search.hits(task, SEARCHED, scale)[0].mean() for task in others[0]))
    said = _adaptive(search, others, [*wrong, *right], base_scale, min(args.epochs, EPOCHS))

    def measured(name: str, words: str, scale: float, how: How = lambda _: {}) -> dict[str, Any]:
        return _case(modes, name, words, (wrong, right), scale, how)

    cases = [measured(f"cfg-{scale:g}", f"guidance {scale:g}", scale) for scale in SCALES]
    base = measured("base", f"base* (guidance {base_scale:g}, chosen on other prompts)", base_scale)
    cases.append(base)
    for one, projection in FIXED:
        words = f"contrast, {intervention_words(one)}" + (f", {projection}" if projection != "none" else "")
        if one.window[0] < 1:
            words = f"contrast, lam {one.lam:g}, late: s <= {one.window[0]:g}"
        name = f"contrast-{one.lam:g}-{one.window[0]:g}-{one.window[1]:g}-{projection}"
        how = {"intervention": one, "projection": projection}
        cases.append(measured(name, words, base_scale, lambda _, h=how: h))
    adaptive = measured("adaptive", "**LINA adaptive**", base_scale, lambda i: {"intervention": said[i]})
    for kind, ones, first in (("wrong", said[: len(wrong)], 0), ("right", said[len(wrong) :], len(wrong))):
        shared = {"n": len(ones), "prior": kind}
        rows = range(first, first + len(ones))
        gains = [adaptive["by_prompt"][i] - base["by_prompt"][i] for i in rows]
        shut = sum(one.is_identity for one in ones)
        adaptive["cells"] += [
            {"metric": "gate_shut", "value": shut / len(ones), **shared},
            {"metric": "difference", "value": sum(gains) / len(ones), "ci95": list(mean_ci(gains)), **shared},
            {"metric": "largest_change", "value": max(map(abs, gains)), **shared},
        ]
    return [*cases, adaptive, *schedule_cases(modes, wrong)]


def _case(
    modes: Modes, name: str, words: str, kinds: tuple[list[Task], list[Task]], scale: float, how: How
) -> dict[str, Any]:
    cells, rates = [], []
    for kind, tasks in zip(("wrong", "right"), kinds, strict=True):
        found = [modes.hits(task, TESTED, scale, **how(len(rates) + i)) for i, task in enumerate(tasks)]
        values = [hits.mean().item() for hits, _ in found]
        rates += values
        n = len(tasks) * len(TESTED) * modes.block
        rate = {"metric": "target_rate", "value": sum(values) / len(values), "n": n, "prior": kind}
        cells.append({**rate, "ci95": list(mean_ci(values))})
        cells.append({"metric": "nfe", "value": sum(rows for _, rows in found) / len(found), "n": n, "prior": kind})
    return {"row": f"modes/{name}", "seed": 0, "words": words, "cells": cells, "by_prompt": rates}


def _adaptive(
    modes: Modes, calibration: tuple[list[Task], list[Task]], asked: Sequence[Task], scale: float, epochs: int
) -> list[Intervention]:
    """What a predictor says of tasks that it has not seen."""
    tasks, box = [*calibration[0], *calibration[1]], PRESETS["tiny"].box([])

    def score(one: Intervention, prompts: Sequence[int], /, *, seeds: Sequence[int]) -> Tensor:
        return torch.stack([modes.hits(tasks[i], seeds, scale, one)[0] for i in prompts])

    hard = diagnose(score, len(tasks), SEARCHED, threshold=RIGHT).hard_prompts
    found = search_interventions(score, box, hard, "grid", seeds=SEARCHED, fresh_seeds=FRESH)
    inputs = modes.inputs(tasks)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        predictor = LINAPredictor(inputs.embeds.shape[-1], box.to_dict(), base_model="ModeWorld")
    train_predictor(predictor, inputs, labels_of(found, len(tasks)), epochs=epochs)
    new = modes.inputs(asked)
    with torch.no_grad():
        said = predictor(new.embeds, new.mask, new.graph, new.probe)
    return [
        box.intervention(action) if is_open else Intervention()
        for action, is_open in zip(said.action, said.gate.tolist(), strict=True)
    ]


def schedule_cases(modes: Modes, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """How often a short walk ends at the mode of a fine one from the same noise, and how sharp it is there."""
    seeds = TESTED[:1]
    fine = [modes.world.nearest(modes.ends(task, seeds, 1.0, steps=600)[0]) for task in tasks]
    cases = []
    for steps, kappa in KAPPAS:
        one = Intervention(warp=WarpSpec("moebius", kappa))
        ends = [modes.ends(task, seeds, 1.0, one, steps=steps)[0] for task in tasks]
        same = torch.cat([modes.world.nearest(end) == there for end, there in zip(ends, fine, strict=True)]).double()
        apart = torch.cat([modes.world.distance(end) for end in ends]).square().mean().sqrt().item()
        cells = [
            {"metric": "agreement", "value": same.mean().item(), "n": len(same)},
            {"metric": "distance", "value": apart, "n": len(same), "exact": modes.world.denoiser.config["spread"]},
        ]
        words = f"{steps} steps, kappa {kappa:g}"
        cases.append({"row": f"modes/schedule-{steps}-{kappa:g}", "seed": 0, "words": words, "cells": cells})
    return cases
