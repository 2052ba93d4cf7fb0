"""Settings that are the same for all prompts, each chosen on calibration prompts by the score of a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lina_runs import Outcome, Runner
from torch import Tensor, stack

from gendiff.samplers.intervention import Intervention
from gendiff.samplers.warps import WarpSpec

LAMS = (1.0, 2.0, 4.0, 8.0)
STOPS = (0.7, 0.4, 0.2)
"""Ends of the window: the first 3, 6 and 8 of 10 steps."""
ALPHAS = (-0.5, 0.5)
KAPPAS = (1.25, 1.5, 2.0)


def outcome_score(outcome: Outcome) -> float:
    """Half the share of checks passed, half whether all are passed, as `VerifierScore` has it by default."""
    passed: Tensor = stack(list(outcome.checks.values())).float()
    return (0.5 * passed.mean(0) + 0.5 * passed.amin(0)).mean().item()


def fixed_settings(
    runner: Runner, prompts: Sequence[str], seeds: Sequence[int], guidance: float
) -> tuple[dict[str, Intervention], dict[str, float]]:
    """The best contrast, prompt edit, schedule, and the best of all these together.

    Each of the first three intervenes even where that hurts; "all fixed" is the best of them and of their combinations,
    the plain model included, so it is the best fixed setting that calibration knows.

    Args:
        prompts: of calibration.
        seeds: of calibration, the same for all settings.
        guidance: of all settings.

    Returns: interventions by name, and the calibration score of each.
    """
    slots = list(runner.pipe.grammar.slots)
    tried = {
        "contrast": [Intervention(lam=lam, window=(1.0, stop)) for lam in LAMS for stop in STOPS],
        "prompt": [Intervention(alpha={slot: alpha}, window=(1.0, 0.0)) for slot in slots for alpha in ALPHAS],
        "schedule": [Intervention(warp=WarpSpec("moebius", kappa)) for kappa in KAPPAS],
    }
    scores: dict[Intervention, float] = {}

    def best(candidates: Sequence[Intervention]) -> Intervention:
        for one in candidates:
            if one not in scores:
                scores[one] = outcome_score(runner.run(prompts, seeds, guidance, one))
        return max(candidates, key=lambda one: scores[one])

    chosen = {name: best(candidates) for name, candidates in tried.items()}
    contrast, prompt, schedule = chosen["contrast"], chosen["prompt"], chosen["schedule"]
    # What joins a contrast acts in its window.
    together = [
        Intervention(),
        contrast,
        prompt,
        schedule,
        replace(contrast, alpha=prompt.alpha),
        replace(contrast, warp=schedule.warp),
        replace(contrast, alpha=prompt.alpha, warp=schedule.warp),
        replace(prompt, warp=schedule.warp),
    ]
    chosen["all"] = best(together)
    return chosen, {name: scores[one] for name, one in chosen.items()}


def intervention_words(one: Intervention) -> str:
    """An intervention in few words."""
    if one.is_identity:
        return "none"
    parts = [f"alpha {name} {value:+.2g}" for name, value in one.alpha.items() if value]
    parts += [f"{name} {value:.2g}" for name, value in (("lam", one.lam), ("rho", one.rho)) if value]
    if parts:
        parts.append(f"s > {one.window[1]:.2g}")
    if not one.warp.is_identity:
        parts.append(replace(one.warp, parameter=round(one.warp.parameter, 2)).label)
    return ", ".join(parts)
