"""Stage A of LINA's training: which prompts the base model fails by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gendiff.samplers.intervention import Intervention

from .lina_candidates import Score, checked_scores


@dataclass(frozen=True)
class Diagnosis:
    """How the base model does.

    Attributes:
        base: r0 (P,), mean score over the seeds, in [0, 1].
        hard: bool (P,), where r0 < threshold. Easy prompts stay in the training of the gate.
    """

    base: Tensor
    hard: Tensor

    @property
    def hard_prompts(self) -> list[int]:
        """Indices of the hard prompts."""
        return self.hard.nonzero().flatten().tolist()


def diagnose(score: Score, num_prompts: int, seeds: Sequence[int] = (0, 1, 2, 3), threshold: float = 0.9) -> Diagnosis:
    """Score the plain base model on every prompt.

    Args:
        score: see `Score`; called once, with the identity.
        num_prompts: P, at least 1.
        seeds: for each prompt.
        threshold: below it a prompt is hard; in [0, 1].

    Raises:
        ValueError: an argument outside its range; scores that are NaN or outside [0, 1], naming the prompt.
    """
    if num_prompts < 1:
        raise ValueError(f"num_prompts must be at least 1, got {num_prompts}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}.")
    if not seeds:
        raise ValueError("seeds must be at least one, got none.")
    prompts = list(range(num_prompts))
    identity = Intervention()
    found = score(identity, prompts, seeds=list(seeds))
    base = checked_scores(found, prompts, seeds, identity, 0).mean(1)
    return Diagnosis(base=base, hard=base < threshold)
