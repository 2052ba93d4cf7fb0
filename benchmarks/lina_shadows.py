"""ShadowWorld: what interventions do to prompts of a kind that training left out, and to those it did not.

Two directions: a predictor and all fixed settings are calibrated on one held-out half and tested on the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from arguments import say
from lina_fixed import fixed_settings, intervention_words
from lina_runs import Outcome, Runner, best_of, textures
from lina_statistics import difference_cell

from gendiff.pipelines.lina_choice import chosen_interventions
from gendiff.samplers.contrast import CausalContrast
from gendiff.samplers.intervention import Intervention
from gendiff.training.lina_calibrate import BOX, GUIDANCE_SCALES, calibrate
from gendiff.training.lina_score import VerifierScore
from gendiff.training.lina_search import search_interventions

DIRECTIONS = (("ood-red", "ood-blue"), ("ood-blue", "ood-red"))
"""(calibrated on, tested on)."""
TEST, SECOND, ORACLE, ORACLE_FRESH = 5000, 6000, 7000, 8000
"""First seeds of the test, of its second images, and of the search on the test prompts; none is one of calibration."""
WORDS = {
    "base": "base*",
    "base-steps": "base*, equal NFE (more steps)",
    "best-of-2-equal": "best of 2 at equal NFE (fewer steps; the verifier picks: upper bound)",
    "best-of-2": "best of 2, twice the NFE (the verifier picks: upper bound)",
    "contrast": "uniform contrast, fixed",
    "orthogonal": "the same contrast, its part along guidance taken out",
    "control": "the same strength against a plant elsewhere (control: the wrong cause)",
    "prompt": "prompt only, fixed",
    "schedule": "schedule only, fixed",
    "all": "all fixed (best fixed setting of calibration)",
    "latent-only": "latents alone of LINA adaptive",
    "adaptive": "**LINA adaptive**",
    "oracle": "search on each test prompt (the verifier searches, on other noise)",
}
"""Rows in the order of the table."""
CONTROL = "plant"
"""What `control` contrasts instead of the sun's side, everywhere in the picture."""
FIXED = ("base", "contrast", "prompt", "schedule", "all")
AGAINST = {"base": "difference to base*", "all": "to the best fixed setting"}


@dataclass
class Direction:
    """Outcomes of one direction, on its test half and on training prompts that calibration did not see.

    Attributes:
        rows: row -> (out of distribution, in distribution).
        settings: row -> what it does, in words.
        guidance: scale -> (calibration score, test pap_all).
        scale: of base*.
        report: what calibration says of itself.
    """

    test: str
    prompts: tuple[tuple[str, ...], tuple[str, ...]]
    rows: dict[str, tuple[Outcome, Outcome]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    guidance: dict[float, tuple[float, float]] = field(default_factory=dict)
    scale: float = 1.0
    report: dict[str, Any] = field(default_factory=dict)


def split_training(prompts: Sequence[str], calibration: int, test: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Training prompts for calibration and others for the test; each is a combination of its own.

    Raises:
        ValueError: there are not so many.
    """
    if calibration + test > len(prompts):
        raise ValueError(
            f"others and in-distribution must be at most {len(prompts)} together, got {calibration} and {test}."
        )
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [str(prompts[int(index)]) for index in order[: calibration + test]]
    return chosen[:calibration], chosen[calibration:]


def shadow_directions(pipe: Any, world: Any, args: Any) -> list[Direction]:
    """Both directions, measured.

    Args:
        args: `steps`, `seeds` (images of a prompt), `calibration_seeds`, `others`, `in_distribution` (training prompts
            of calibration and of the test), `prompts` (of each half, None = all), `epochs`.
    """
    runner = Runner(pipe, world, args.steps)
    others, known = split_training(world.prompts("train"), args.others, args.in_distribution)
    found = []
    for calibrated_on, tested_on in DIRECTIONS:
        halves = [world.prompts(name)[: args.prompts] for name in (calibrated_on, tested_on)]
        found.append(
            _direction(runner, Direction(tested_on, (tuple(halves[1]), tuple(known))), halves[0], others, args)
        )
    return found


def _direction(
    runner: Runner, found: Direction, calibration: Sequence[str], others: Sequence[str], args: Any
) -> Direction:
    seeds, test = range(args.calibration_seeds), range(TEST, TEST + args.seeds)
    # As many times more as in the recipe: what a gain is worth is harder to see than where the largest is.
    fresh = range(1000, 1000 + 3 * args.calibration_seeds)
    look = range(2000, 2000 + args.look_seeds)

    def log(line: str) -> None:
        say(f"{found.test}: {line}")

    predictor, report = calibrate(
        runner.pipe,
        runner.world,
        calibration,
        others,
        num_inference_steps=args.steps,
        seeds=seeds,
        fresh_seeds=fresh,
        look_seeds=look,
        epochs=args.epochs,
        log=log,
    )
    found.scale = scale = report.guidance_scale
    found.report = {
        "hard": int(report.diagnosis.hard.sum()),
        "prompts": len(report.diagnosis.hard),
        "accepted": int(report.search.accepted.sum()),
        "held_out": report.fit.held_out,
        "opened": report.fit.opened,
        "gain": report.fit.gain,
    }
    fixed, scores = fixed_settings(runner, calibration, range(args.fixed_seeds), scale)
    log(f"fixed: {', '.join(f'{name} {scores[name]:.3f} ({intervention_words(one)})' for name, one in fixed.items())}")
    auto = [_predicted(runner.pipe, predictor, prompts) for prompts in found.prompts]
    latents = [[replace(one, alpha={}, warp=Intervention().warp) for one in ones] for ones in auto]
    plans: dict[str, Sequence[Any]] = {"base": (None, None)}
    plans |= {name: (one, one) for name, one in fixed.items()}
    plans |= {"latent-only": latents, "adaptive": auto, "oracle": (_searched(runner, found, args), None)}
    for row, (out, known) in plans.items():
        log(row)
        first = runner.run(found.prompts[0], test, scale, out)
        found.rows[row] = (first, first if row == "oracle" else runner.run(found.prompts[1], test, scale, known))
    for row, other in _variants(runner).items():
        log(row)
        first, second = (other.run(prompts, test, scale, fixed["contrast"]) for prompts in found.prompts)
        found.rows[row], found.settings[row] = (first, second), intervention_words(fixed["contrast"])
    for row, one in fixed.items():
        found.settings[row] = f"{intervention_words(one)}; calibration score {scores[row]:.3f}"
    found.settings["base"] = f"guidance {scale:g}"
    for row, ones in (("adaptive", auto[0]), ("latent-only", latents[0])):
        found.settings[row] = _open_words(ones)
    found.settings["oracle"] = _open_words(plans["oracle"][0])
    _equal_rows(runner, found, test, args)
    for one in GUIDANCE_SCALES:
        tested = runner.run(found.prompts[0], test, one)
        found.guidance[one] = (report.guidance[one], tested.scores["pap_all"].mean().item())
    return found


def _variants(runner: Runner) -> dict[str, Runner]:
    """Contrasts that say what the gain is made of."""
    pipe, grammar = runner.pipe, runner.pipe.grammar
    aside = CausalContrast("orthogonal", mask=grammar.contrast_mask(*pipe.sample_shape[1:]))

    def wrong_cause(prompts: list[str]) -> dict[str, Any]:
        others = [grammar.counterfactual(text, CONTROL) for text in prompts]
        return {"counterfactual_prompt": others, "contrast": CausalContrast()}

    return {
        "orthogonal": Runner(pipe, runner.world, runner.steps, lambda _: {"contrast": aside}),
        "control": Runner(pipe, runner.world, runner.steps, wrong_cause),
    }


def _equal_rows(runner: Runner, found: Direction, test: range, args: Any) -> None:
    """The plain model with as many network rows as the dearest steered row has, in one image and in two."""
    rows = 1 if found.scale == 1 else 2
    second = range(SECOND, SECOND + len(test))
    pairs: dict[str, list[Outcome]] = {"base-steps": [], "best-of-2-equal": [], "best-of-2": []}
    words: dict[str, list[str]] = {row: [] for row in pairs}
    for which, prompts in enumerate(found.prompts):
        # Rounded up, in the plain model's favour.
        dearest = max(found.rows[name][which].nfe.mean().item() for name in ("contrast", "all", "adaptive", "base"))
        more, half = math.ceil(dearest / rows), math.ceil(dearest / rows / 2)
        pairs["base-steps"].append(runner.run(prompts, test, found.scale, steps=more))
        for row, steps in (("best-of-2-equal", half), ("best-of-2", args.steps)):
            pairs[row].append(best_of([runner.run(prompts, ones, found.scale, steps=steps) for ones in (test, second)]))
            words[row].append(f"2 x {steps} steps")
        words["base-steps"].append(f"{more} steps")
    # As many on both sets of prompts, or those on held-out and those on training prompts.
    found.settings |= {row: " / ".join(dict.fromkeys(said)) for row, said in words.items()}
    found.rows |= {row: (both[0], both[1]) for row, both in pairs.items()}


def _predicted(pipe: Any, predictor: Any, prompts: Sequence[str]) -> list[Intervention]:
    embeds, words = pipe.encode_prompt(prompts)
    graphs = [pipe.grammar.parse(text) for text in prompts]
    return chosen_interventions("auto", predictor, embeds, words, graphs, pipe.cooccurrence)


def _searched(runner: Runner, found: Direction, args: Any) -> tuple[Intervention, ...]:
    """What the calibration's own search finds for each test prompt, with seeds that the test does not use."""
    score = VerifierScore(
        runner.pipe, runner.world, found.prompts[0], guidance_scale=found.scale, num_inference_steps=args.steps
    )
    result = search_interventions(
        score,
        BOX,
        len(found.prompts[0]),
        "grid",
        seeds=range(ORACLE, ORACLE + args.calibration_seeds),
        fresh_seeds=range(ORACLE_FRESH, ORACLE_FRESH + 2),
    )
    # The best found, accepted or not: nobody is harmed.
    return tuple(winner.intervention for winner in result.winners)


def _open_words(ones: Sequence[Intervention]) -> str:
    opened = [one for one in ones if not one.is_identity]
    differ = len({one.to_json() for one in opened})
    return f"{len(opened)} of {len(ones)} prompts, {differ} different interventions"


def shadow_cases(directions: Sequence[Direction], hops: Mapping[str, int]) -> list[dict[str, Any]]:
    """Cases of both directions and of all their prompts together."""
    cases = []
    columns = [f"pap@{hop}" for hop in sorted(set(hops.values()))] + ["pap_all", "noise"]
    for name, parts in (("pooled", list(directions)), *((one.test, [one]) for one in directions)):
        for row in (row for row in WORDS if row in parts[0].rows):
            settings = parts[0].settings.get(row, "") if len(parts) == 1 else ""
            cells = [cell for which in range(2) for cell in _cells(parts, row, which, columns)]
            cases.append(
                {"row": f"shadows-{name}/{row}", "seed": 0, "cells": cells, "words": WORDS[row], "does": settings}
            )
    for one in directions:
        cells = [
            {
                "metric": "pap_all",
                "value": tested,
                "n": one.rows["base"][0].scores["pap_all"].numel(),
                "guidance": scale,
            }
            | {"calibration": calibrated, "chosen": scale == one.scale}
            for scale, (calibrated, tested) in one.guidance.items()
        ]
        cases.append({"row": f"shadows-{one.test}/guidance", "seed": 0, "cells": cells, "calibration": one.report})
    return cases


def _cells(parts: Sequence[Direction], row: str, which: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    if row == "oracle" and which:
        return []
    split = ("out of distribution", "in distribution")[which]
    ours, bases, fixed = ([part.rows[name][which] for part in parts] for name in (row, "base", "all"))

    def score(outcomes: Sequence[Outcome], name: str) -> torch.Tensor:
        return torch.cat([one.scores[name] for one in outcomes])

    values = {name: score(ours, name) for name in columns}
    values["texture"] = torch.cat([textures(one, base) for one, base in zip(ours, bases, strict=True)])
    images = values["texture"].numel()
    cells = [
        {"metric": name, "value": value.double().mean().item(), "n": images, "split": split}
        for name, value in values.items()
    ]
    nfe = torch.cat([one.nfe for one in ours])
    cells.append({"metric": "nfe", "value": nfe.mean().item(), "n": len(nfe), "split": split})
    cells.append({"metric": "seconds", "value": sum(one.seconds for one in ours) / images, "n": images, "split": split})
    opened = [not one.is_identity for outcome in ours for one in outcome.interventions]
    cells.append({"metric": "steered", "value": sum(opened) / len(opened), "n": len(opened), "split": split})
    if row == "adaptive":
        right, before = values["pap_all"].bool(), score(bases, "pap_all").bool()
        for metric, of in (("repaired", right[~before]), ("broken", ~right[before])):
            if len(of):
                cells.append({"metric": metric, "value": of.double().mean().item(), "n": len(of), "split": split})
    for against, others in (("base", bases), ("all", fixed)):
        if row != against:
            cells.append(difference_cell(values["pap_all"], score(others, "pap_all"), against, split=split))
    return cells
