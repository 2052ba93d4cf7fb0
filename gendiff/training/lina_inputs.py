"""What LINA's predictor reads and what it is to learn, for P prompts at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gendiff.models.lina_predictor import LINAPredictor

from .lina_search import SearchResult


@dataclass(frozen=True)
class PredictorInputs:
    """Inputs of `LINAPredictor` for P prompts.

    Attributes:
        embeds: (P, L, D).
        mask: bool (P, L).
        graph: (P, 16), or packed graphs (P, M, 17 + M).
        probe: (P, 3) or None.

    Raises:
        ValueError: they speak of different numbers of prompts.
    """

    embeds: Tensor
    mask: Tensor
    graph: Tensor
    probe: Tensor | None = None

    def __post_init__(self) -> None:
        counts = {"embeds": len(self.embeds), "mask": len(self.mask), "graph": len(self.graph)}
        if self.probe is not None:
            counts["probe"] = len(self.probe)
        if len(set(counts.values())) != 1:
            raise ValueError(f"inputs must have one row for each prompt, got {counts}.")

    def __len__(self) -> int:
        return len(self.embeds)

    def rows(self, index: Tensor | Sequence[int]) -> PredictorInputs:
        """Those of some prompts, in the order of `index`."""
        at = torch.as_tensor(index, device=self.embeds.device)
        probe = None if self.probe is None else self.probe[at]
        return PredictorInputs(self.embeds[at], self.mask[at], self.graph[at], probe)

    def to(self, device: torch.device | str) -> PredictorInputs:
        """The same on a device."""
        probe = None if self.probe is None else self.probe.to(device)
        return PredictorInputs(self.embeds.to(device), self.mask.to(device), self.graph.to(device), probe)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """As a predictor's `forward` takes them."""
        return self.embeds, self.mask, self.graph, self.probe

    def said_by(self, predictor: nn.Module) -> tuple[Tensor, Tensor]:
        """Action y (P, K + 4) and gate logits (P,)."""
        return predictor(*self.parts)

    def features(self, dim: int = 4) -> Tensor:
        """f (P, F) for a bandit: leading principal components of the mean embedding, then 16 features and the probe.

        A linear model for each arm has few rows to learn from, so the D numbers of an embedding are too many for it.

        Raises:
            ValueError: packed graphs, which have no features.
        """
        if self.graph.ndim != 2:
            raise ValueError(f"features need graphs as (P, 16), got {tuple(self.graph.shape)}.")
        valid = self.mask.unsqueeze(-1).float()
        mean = (self.embeds.float() * valid).sum(1) / valid.sum(1).clamp(min=1)
        left, strength, _ = torch.linalg.svd(mean - mean.mean(0), full_matrices=False)
        parts = [(left * strength)[:, :dim], self.graph.float()]
        return torch.cat(parts if self.probe is None else [*parts, self.probe.float()], dim=1)


@dataclass(frozen=True)
class PredictorLabels:
    """What the predictor is to say of P prompts.

    Attributes:
        action: y (P, K + 4) of the accepted interventions; what stands in other rows is not read.
        accepted: bool (P,): the gate is to be open.
        tried: for each prompt all candidates, y (C_p, K + 4) and how much each is better than the identity in J (C_p,);
            for the loss "rwr". A prompt that was not searched has (0, K + 4).
    """

    action: Tensor
    accepted: Tensor
    tried: tuple[tuple[Tensor, Tensor], ...] = ()

    def rows(self, index: Sequence[int]) -> PredictorLabels:
        """Those of some prompts, in the order of `index`."""
        at = torch.as_tensor(index)
        return PredictorLabels(
            self.action[at], self.accepted[at], tuple(self.tried[i] for i in at.tolist() if self.tried)
        )


def labels_of(result: SearchResult, num_prompts: int) -> PredictorLabels:
    """Labels of all prompts, of which those that were not searched for need no intervention.

    Args:
        result: of `search_interventions`.
        num_prompts: P, more than the largest index in `result`.

    Raises:
        ValueError: too few prompts.
    """
    if num_prompts <= max(result.prompts, default=-1):
        raise ValueError(f"num_prompts must be above {max(result.prompts)}, which was searched; got {num_prompts}.")
    width = result.actions.shape[1]
    action, accepted = torch.zeros(num_prompts, width), torch.zeros(num_prompts, dtype=torch.bool)
    tried = [(torch.zeros(0, width), torch.zeros(0))] * num_prompts
    action[list(result.prompts)] = result.actions
    accepted[list(result.prompts)] = result.accepted
    for prompt, candidates in zip(result.prompts, result.candidates, strict=True):
        # The identity comes first.
        gains = torch.tensor([c.objective - candidates[0].objective for c in candidates])
        tried[prompt] = (torch.tensor([c.y for c in candidates]), gains)
    return PredictorLabels(action, accepted, tuple(tried))


def split_by_combination(
    values: Sequence[Mapping[str, str]], keys: Sequence[str] | None = None, held_out: float = 0.25, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Indices of prompts to train on and of prompts to hold out, which share no combination of factors.

    Splitting by seed would ask the predictor for prompts that it has learned.

    Args:
        values: the factors of each prompt, by name.
        keys: factors whose combination counts, None = all.
        held_out: share of the combinations that is held out, in (0, 1); at least one, and not all.
        seed: of the draw.

    Raises:
        ValueError: an unknown key, a share outside (0, 1), or fewer than two combinations.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie in (0, 1), got {held_out}.")
    for row, factors in enumerate(values):
        if missing := [key for key in keys or () if key not in factors]:
            raise ValueError(f"prompt {row} has no factor {missing[0]!r}; it has {', '.join(factors)}.")
    chosen = [tuple((key, f[key]) for key in (sorted(f) if keys is None else keys)) for f in values]
    combinations = sorted(set(chosen))
    if len(combinations) < 2:
        raise ValueError(f"values must have at least 2 combinations of factors to split, got {len(combinations)}.")
    order = torch.randperm(len(combinations), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(max(round(held_out * len(combinations)), 1), len(combinations) - 1)
    out = {combinations[index] for index in order[:count]}
    return (
        [row for row, combination in enumerate(chosen) if combination not in out],
        [row for row, combination in enumerate(chosen) if combination in out],
    )


def check_labels(predictor: LINAPredictor, inputs: PredictorInputs, labels: PredictorLabels) -> None:
    """See to it that labels fit inputs and predictor.

    Raises:
        ValueError: they do not.
    """
    expected = (len(inputs), predictor.num_actions)
    if tuple(labels.action.shape) != expected or tuple(labels.accepted.shape) != expected[:1]:
        raise ValueError(
            f"labels must be action {expected} and accepted {expected[:1]}, got {tuple(labels.action.shape)} and "
            f"{tuple(labels.accepted.shape)}."
        )
    wanted = labels.action[labels.accepted.bool()]
    if not (wanted.abs() <= 1).all():
        raise ValueError("labels.action must lie in [-1, 1] where accepted, got a value that does not.")
