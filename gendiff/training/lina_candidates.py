"""What a search for interventions has tried: each candidate scored once for each prompt, on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.intervention import Intervention

Point = tuple[float, ...]
"""y in [-1, 1]^(K + 4)."""


class Score(Protocol):
    """Runs a base model under one intervention and lets a verifier judge what comes out."""

    def __call__(self, intervention: Intervention, prompts: Sequence[int], /, *, seeds: Sequence[int]) -> Tensor:
        """Scores (P, S) in [0, 1] of P prompts, given by index, with S seeds each.

        The same seed must mean the same noise for every intervention: candidates are compared pair by pair.
        """
        ...


@dataclass(frozen=True)
class Candidate:
    """One intervention tried on one prompt.

    Attributes:
        y: its point, canonical: where a negative coordinate means 0 it is 0.
        intervention: what it stands for.
        score: mean over the seeds, in [0, 1].
        objective: J = score - c_nfe (NFE / NFE_0 - 1) - c_reg |y|^2.
    """

    y: Point
    intervention: Intervention
    score: float
    objective: float


def nfe_ratio(intervention: Intervention, rows: int = 2) -> float:
    """NFE with the intervention over NFE without, on a linear flow grid s = 1 - u; on others an estimate.

    Prompt and schedule cost nothing. The contrast costs one row in each step whose noise share the window holds, and a
    warp moves more steps into it. The energy's backward pass counts as two forwards.

    Args:
        rows: that the network evaluates without it: 2 with guidance, 1 without.
    """
    if intervention.is_identity:
        return 1.0
    start, stop = intervention.window
    active = intervention.warp.share_before(1 - stop) - intervention.warp.share_before(1 - start)
    return 1 + active * ((intervention.lam > 0) / rows + 2 * (intervention.rho > 0))


def checked_scores(
    scores: Tensor, prompts: Sequence[int], seeds: Sequence[int], intervention: Intervention, number: int
) -> Tensor:
    """The scores (P, S) of candidate `number` in float64 on the CPU, once they are known to be scores.

    Raises:
        ValueError: wrong shape, or NaN or outside [0, 1]; names candidate and prompt.
    """
    expected = (len(prompts), len(seeds))
    if tuple(scores.shape) != expected:
        raise ValueError(
            f"score of candidate {number} ({intervention.to_json()}) must be (prompts, seeds) = {expected}, got "
            f"{tuple(scores.shape)}."
        )
    scores = scores.detach().double().cpu()
    # Written so that a NaN is bad too.
    bad = ~((scores >= 0) & (scores <= 1))
    if bad.any():
        row, column = (int(index) for index in bad.nonzero()[0])
        raise ValueError(
            f"score of candidate {number} ({intervention.to_json()}) at prompt {prompts[row]} must lie in [0, 1], got "
            f"{float(scores[row, column])}."
        )
    return scores


@dataclass
class Evaluations:
    """Scores of candidates, remembered. Prompts that share a candidate share one call of `score`.

    Attributes:
        score: see `Score`.
        box: where candidates lie.
        seeds: the same for all candidates and prompts.
        cost: NFE over NFE_0 of an intervention.
        c_nfe: price of each NFE_0 more.
        c_reg: price of the squared length of the strengths, each over its limit. The window's end is no strength.
        tried: candidates by prompt, each under its point, in the order in which they were first asked for.
    """

    score: Score
    box: ActionBox
    seeds: Sequence[int]
    cost: Callable[[Intervention], float] = nfe_ratio
    c_nfe: float = 0.02
    c_reg: float = 0.01
    tried: dict[int, dict[Point, Candidate]] = field(default_factory=dict)
    calls: int = 0

    def of(self, asked: Sequence[tuple[int, Sequence[float]]]) -> list[Candidate]:
        """Candidates of pairs (prompt, y), scored where they were not yet.

        Raises:
            ValueError: a y outside the box, or scores that are not scores.
        """
        wanted = [(prompt, self._canonical(y)) for prompt, y in asked]
        missing: dict[Point, list[int]] = {}
        for prompt, y in wanted:
            if y not in self.tried.setdefault(prompt, {}):
                prompts = missing.setdefault(y, [])
                if prompt not in prompts:
                    prompts.append(prompt)
        for y, prompts in missing.items():
            intervention = self.box.intervention(y)
            means = self.scores(intervention, prompts, self.seeds).mean(1).tolist()
            price = self.price(intervention)
            for prompt, mean in zip(prompts, means, strict=True):
                self.tried[prompt][y] = Candidate(y, intervention, mean, mean - price)
        return [self.tried[prompt][y] for prompt, y in wanted]

    def identity(self, prompt: int) -> Candidate:
        """The candidate that changes nothing."""
        return self.of([(prompt, self.box.identity)])[0]

    def best(self, prompt: int) -> Candidate:
        """The one with the largest objective; among equals the first tried."""
        return max(self.tried[prompt].values(), key=lambda candidate: candidate.objective)

    def price(self, intervention: Intervention) -> float:
        """What the objective takes off the mean score; 0 for the identity."""
        if intervention.is_identity:
            return 0.0
        squares = sum(value**2 for value in self.box.normalise(intervention)[:-1])
        return self.c_nfe * (self.cost(intervention) - 1) + self.c_reg * squares

    def scores(self, intervention: Intervention, prompts: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Float64 (P, S), straight from `score`, checked.

        Raises:
            ValueError: they are not scores; names candidate and prompt.
        """
        found = self.score(intervention, list(prompts), seeds=list(seeds))
        number, self.calls = self.calls, self.calls + 1
        return checked_scores(found, prompts, seeds, intervention, number)

    def _canonical(self, y: Sequence[float]) -> Point:
        """The point of what y stands for: negative strengths that are cut are 0, and so is a window on nothing."""
        found = self.box.intervention(y)
        return self.box.identity if found.is_identity else self.box.normalise(found)
