"""Stage B of LINA's training: the intervention that helps each prompt, if one does, found by trying.

gendiff's realisation of LINA; how the authors find theirs is not published. A search overfits its seeds and its
verifier, so the winner must show its gain again on seeds that no candidate has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor

from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.intervention import Intervention

from .lina_candidates import Candidate, Evaluations, Score, nfe_ratio
from .lina_search_methods import bandit, cem, grid

Method = Literal["grid", "cem", "bandit"]


@dataclass(frozen=True)
class SearchResult:
    """What a search found for P prompts.

    Attributes:
        prompts: their indices, in the order of all below.
        labels: the winner where it was accepted, `Intervention(gate=False)` where not.
        actions: y (P, K + 4) of the labels, 0 where the identity won.
        accepted: bool (P,).
        gains: (P,), mean gain in J of the winner over the identity on fresh seeds; 0 where the identity won.
        lower: (P,), lower confidence bound of that gain; a winner is accepted where it is above 0.
        winners: best candidates on the seeds of the search, accepted or not.
        candidates: for each prompt all that was tried, the identity first.
        calls: of `score`.
    """

    prompts: tuple[int, ...]
    labels: tuple[Intervention, ...]
    actions: Tensor
    accepted: Tensor
    gains: Tensor
    lower: Tensor
    winners: tuple[Candidate, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    calls: int


def search_interventions(
    score: Score,
    box: ActionBox,
    prompts: int | Sequence[int],
    method: Method = "grid",
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    fresh_seeds: Sequence[int] = (1000, 1001, 1002, 1003),
    c_nfe: float = 0.02,
    c_reg: float = 0.01,
    cost: Callable[[Intervention], float] = nfe_ratio,
    confidence: float = 0.9,
    seed: int = 0,
    features: Tensor | None = None,
    **options: Any,
) -> SearchResult:
    """Find for each prompt what maximises J(a) = mean score - c_nfe (NFE / NFE_0 - 1) - c_reg |a / a_max|^2.

    Args:
        score: `score(intervention, prompts, seeds=...)` gives (P, S) in [0, 1]; see `Score`.
        box: where to search.
        prompts: how many there are, or the indices of those to search for, usually the hard ones.
        method: "grid" sweeps one coordinate after the other, 5 values each, from the best so far, and prompts share
            what they have in common; "cem" is the cross-entropy method for each prompt by itself (population 16, elite
            4, 4 rounds, sigma 0.5); "bandit" is linear Thompson sampling over fixed arms, which learns across prompts.
        seeds: of the search, the same for every candidate.
        fresh_seeds: of the acceptance; at least two, none of them in `seeds`.
        c_nfe: price of doubling the NFE.
        c_reg: price of one strength at its limit.
        cost: NFE / NFE_0 of an intervention.
        confidence: of the one-sided paired bound, in [0.5, 1).
        seed: of the search's own draws.
        features: (P, F) of the prompts; "bandit" only.
        options: of the method, as `grid`, `cem` and `bandit` in `lina_search_methods` name them.

    Raises:
        ValueError: an argument that cannot be used; scores that are NaN or outside [0, 1], naming candidate and prompt.
    """
    indices = list(range(prompts)) if isinstance(prompts, int) else [int(index) for index in prompts]
    _check(indices, method, seeds, fresh_seeds, confidence, features)
    evaluations = Evaluations(score, box, seeds, cost, c_nfe, c_reg)
    generator = torch.Generator().manual_seed(seed)
    if method == "bandit":
        assert features is not None
        chosen = bandit(evaluations, indices, generator, features, **options)
        winners = [chosen[prompt] for prompt in indices]
    else:
        if method == "cem":
            cem(evaluations, indices, generator, **options)
        else:
            grid(evaluations, indices, **options)
        winners = [evaluations.best(prompt) for prompt in indices]
    gains, lower = _judge(evaluations, indices, winners, fresh_seeds, confidence)
    accepted = lower > 0
    identity = Intervention(gate=False)
    good = accepted.tolist()
    points = [winner.y if yes else box.identity for winner, yes in zip(winners, good, strict=True)]
    return SearchResult(
        prompts=tuple(indices),
        labels=tuple(w.intervention if yes else identity for w, yes in zip(winners, good, strict=True)),
        actions=torch.tensor(points, dtype=torch.float32).reshape(len(indices), len(box.names)),
        accepted=accepted,
        gains=gains,
        lower=lower,
        winners=tuple(winners),
        candidates=tuple(tuple(evaluations.tried[prompt].values()) for prompt in indices),
        calls=evaluations.calls,
    )


def lower_bound(gains: Tensor, confidence: float = 0.9) -> Tensor:
    """One-sided lower confidence bound (P,) of the mean of paired gains (P, S), by Student's t.

    Raises:
        ValueError: fewer than two gains for a prompt.
    """
    count = gains.shape[1]
    if count < 2:
        raise ValueError(f"a bound needs at least 2 paired gains for each prompt, got {count}.")
    return gains.mean(1) - _student_t(confidence, count - 1) * gains.std(1) / math.sqrt(count)


def _judge(
    evaluations: Evaluations,
    prompts: Sequence[int],
    winners: Sequence[Candidate],
    fresh: Sequence[int],
    confidence: float,
) -> tuple[Tensor, Tensor]:
    """Mean gain and its lower bound, both (P,), on fresh seeds; 0 where the identity won, which is not run again."""
    gains, lower = (torch.zeros(len(prompts), dtype=torch.float64) for _ in range(2))
    groups: dict[Intervention, list[int]] = {}
    for row, winner in enumerate(winners):
        if not winner.intervention.is_identity:
            groups.setdefault(winner.intervention, []).append(row)
    rows = [row for group in groups.values() for row in group]
    if not rows:
        return gains, lower
    identity = evaluations.box.intervention(evaluations.box.identity)
    base = dict(zip(rows, evaluations.scores(identity, [prompts[row] for row in rows], fresh), strict=True))
    for intervention, group in groups.items():
        found = evaluations.scores(intervention, [prompts[row] for row in group], fresh)
        paired = found - torch.stack([base[row] for row in group]) - evaluations.price(intervention)
        gains[group], lower[group] = paired.mean(1), lower_bound(paired, confidence)
    return gains, lower


def _student_t(confidence: float, dof: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else Fisher's expansion, good to 2e-3 at 0.9."""
    if dof == 1:
        return math.tan(math.pi * (confidence - 0.5))
    if dof == 2:
        centred = 2 * confidence - 1
        return centred * math.sqrt(2 / (1 - centred**2))
    z = NormalDist().inv_cdf(confidence)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / dof**power for power, term in enumerate(terms))


def _check(
    prompts: list[int],
    method: str,
    seeds: Sequence[int],
    fresh: Sequence[int],
    confidence: float,
    features: Tensor | None,
) -> None:
    if method not in ("grid", "cem", "bandit"):
        raise ValueError(f"method must be one of grid, cem, bandit, got {method!r}.")
    if len(set(prompts)) != len(prompts) or any(index < 0 for index in prompts):
        raise ValueError(f"prompts must be indices that differ, none negative, got {prompts}.")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must differ and be at least one, got {list(seeds)}.")
    if len(set(fresh)) < 2 or len(set(fresh)) != len(fresh) or set(fresh) & set(seeds):
        raise ValueError(f"fresh_seeds must be at least 2 that differ and none of seeds, got {list(fresh)}.")
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must lie in [0.5, 1), got {confidence}.")
    if (features is not None) != (method == "bandit"):
        raise ValueError(f"features are for method 'bandit', which needs them; got method {method!r}.")
