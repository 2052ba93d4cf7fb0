"""Three ways to walk the action box: sweep its coordinates, narrow a normal distribution, or learn across prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .lina_candidates import Candidate, Evaluations, Point

SIGNED = (-1.0, -0.5, 0.0, 0.5, 1.0)
UNSIGNED = (0.0, 0.25, 0.5, 0.75, 1.0)
SIGMA_FLOOR = 0.02
"""Least standard deviation of the cross-entropy method, in y: four equal elites must not end the search."""


def grid_values(evaluations: Evaluations, coordinate: int) -> tuple[float, ...]:
    """The five values of y that a sweep tries at a coordinate; those without a negative side start at 0."""
    box = evaluations.box
    return UNSIGNED if box.names[coordinate] in ("lam", "rho", "log_kappa") else SIGNED


def sweep_order(evaluations: Evaluations) -> list[int]:
    """Coordinates that matter: strengths of the latents first, for without one of them the window acts on nothing."""
    names = evaluations.box.names
    first = {"lam": 0, "rho": 1, "s_stop": 2, "log_kappa": 4}
    return sorted(evaluations.box.active, key=lambda index: first.get(names[index], 3))


def grid(evaluations: Evaluations, prompts: Sequence[int], rounds: int = 1) -> None:
    """Sweep one coordinate after the other, every prompt from the best that it has.

    Prompts with the same best so far share their candidates, and so the calls of `score`.
    """
    for prompt in prompts:
        evaluations.tried.setdefault(prompt, {})
    evaluations.of([(prompt, evaluations.box.identity) for prompt in prompts])
    for _ in range(rounds):
        for coordinate in sweep_order(evaluations):
            asked = []
            for prompt in prompts:
                start = evaluations.best(prompt).y
                for value in grid_values(evaluations, coordinate):
                    asked.append((prompt, (*start[:coordinate], value, *start[coordinate + 1 :])))
            evaluations.of(asked)


def cem(
    evaluations: Evaluations,
    prompts: Sequence[int],
    generator: torch.Generator,
    rounds: int = 4,
    population: int = 16,
    elite: int = 4,
    sigma: float = 0.5,
) -> None:
    """Cross-entropy method, for every prompt by itself: draw, keep the best, draw around them.

    The identity is in every population, and the elite is chosen among all that was tried: scores on common seeds do not
    change, so a good candidate of an earlier round stays one.
    """
    box, active = evaluations.box, list(evaluations.box.active)
    # Asked for all prompts at once, so that they share the call.
    evaluations.of([(prompt, box.identity) for prompt in prompts])
    mean = {prompt: torch.zeros(len(active), dtype=torch.float64) for prompt in prompts}
    spread = {prompt: torch.full_like(mean[prompt], sigma) for prompt in prompts}
    for _ in range(rounds):
        asked: list[tuple[int, list[float]]] = []
        for prompt in prompts:
            noise = torch.randn(population - 1, len(active), generator=generator, dtype=torch.float64)
            for row in (mean[prompt] + spread[prompt] * noise).clamp(-1, 1):
                asked.append((prompt, _filled(box.identity, active, row)))
        evaluations.of(asked)
        for prompt in prompts:
            ranked = sorted(evaluations.tried[prompt].values(), key=lambda c: -c.objective)[:elite]
            points = torch.tensor([candidate.y for candidate in ranked], dtype=torch.float64)[:, active]
            # Around the mean that the population was drawn from, not around their own: elites close together on a
            # slope are a step on the way, and a spread of their own would end it there (Hansen 2016, section 3.1).
            spread[prompt] = (points - mean[prompt]).square().mean(0).sqrt().clamp(min=SIGMA_FLOOR)
            mean[prompt] = points.mean(0)


def default_arms(evaluations: Evaluations) -> list[Point]:
    """The identity and every value of every coordinate by itself, the window and the warp together with lam."""
    box, arms = evaluations.box, [evaluations.box.identity]
    lam = box.names.index("lam") if box.lam_max > 0 else None
    for coordinate in sweep_order(evaluations):
        for value in grid_values(evaluations, coordinate):
            arm = list(box.identity)
            arm[coordinate] = value
            arms.append(tuple(arm))
            if lam is not None and box.names[coordinate] in ("s_stop", "log_kappa"):
                arms += [(*arm[:lam], strength, *arm[lam + 1 :]) for strength in UNSIGNED[1:]]
    return list(dict.fromkeys(arms))


def bandit(
    evaluations: Evaluations,
    prompts: Sequence[int],
    generator: torch.Generator,
    features: Tensor,
    arms: Sequence[Point] | None = None,
    rounds: int = 8,
    noise: float = 0.1,
) -> dict[int, Candidate]:
    """Linear Thompson sampling: each arm has a Bayesian linear model of its gain, and prompts learn from each other.

    In a round every prompt draws all arms' gains from their posteriors and pulls the largest; prompts that pull one arm
    share the call of `score`.

    Args:
        features: f (P, F) of the prompts in the order of `prompts`; standardised here, with a constant added.
        arms: points of the box; None = `default_arms`.
        noise: standard deviation of an observed gain around the linear model, in units of J.
    Returns: by prompt, the arm with the largest posterior mean, the identity's gain being 0, as tried on that prompt.

    Raises:
        ValueError: features that are not one finite row for each prompt.
    """
    if features.ndim != 2 or len(features) != len(prompts) or not features.isfinite().all():
        raise ValueError(f"features must be finite ({len(prompts)}, F), got {tuple(features.shape)}.")
    x = features.double()
    x = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-9)
    # Prior: gains of the size of 0.5 in all, whatever the number of features.
    x = 0.5 * torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x / max(x.shape[1], 1) ** 0.5], dim=1)
    identity = evaluations.of([(prompt, evaluations.box.identity) for prompt in prompts])
    points = [tuple(arm) for arm in (default_arms(evaluations) if arms is None else arms)]
    points = [point for point in points if not evaluations.box.intervention(point).is_identity]
    precision = torch.eye(x.shape[1], dtype=x.dtype).repeat(len(points), 1, 1)
    moment = torch.zeros(len(points), x.shape[1], dtype=x.dtype)
    for _ in range(rounds):
        factor = torch.linalg.cholesky(torch.linalg.inv(precision))
        mean = torch.linalg.solve(precision, moment)
        drawn = torch.randn(len(x), len(points), x.shape[1], generator=generator, dtype=x.dtype)
        theta = mean + torch.einsum("aij,paj->pai", factor, drawn)
        pulled = torch.einsum("paf,pf->pa", theta, x).argmax(1).tolist()
        tried = evaluations.of([(prompt, points[arm]) for prompt, arm in zip(prompts, pulled, strict=True)])
        for row, (arm, found, base) in enumerate(zip(pulled, tried, identity, strict=True)):
            precision[arm] += torch.outer(x[row], x[row]) / noise**2
            moment[arm] += x[row] * (found.objective - base.objective) / noise**2
    expected = x @ torch.linalg.solve(precision, moment).T
    asked = [points[row.argmax()] if row.max() > 0 else evaluations.box.identity for row in expected]
    return dict(zip(prompts, evaluations.of(list(zip(prompts, asked, strict=True))), strict=True))


def _filled(identity: Point, active: Sequence[int], values: Tensor) -> list[float]:
    y = list(identity)
    for index, value in zip(active, values.tolist(), strict=True):
        y[index] = value
    return y
