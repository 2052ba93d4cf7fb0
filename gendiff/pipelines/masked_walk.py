"""A walk over hidden tokens: which branches are asked at each step, how they are combined, and what it all cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gendiff.samplers.guidance import Strength, guided, is_off
from gendiff.samplers.loop import Predictor, Step, sample
from gendiff.samplers.masked import MaskedScheduler, MaskedState
from gendiff.samplers.recap import ReCAPConfig

from .masked_branch import Branch, StalenessProbe
from .masked_head import Head, HeadPredictor
from .stats import Meter, RunStats


class MaskedWalk:
    """One call's way from hidden tokens to known ones.

    Args:
        network: see `gendiff.models.masked.contract.MaskedModel`.
        scheduler: reveals tokens.
        recap: where light steps lie; None for none.
        conditions: the wanted one, and the one that guidance moves away from.
        scale: of guidance; 1 = off.
        head: draws continuous tokens; None for discrete ones.
        measure_staleness: compare light steps with full ones.

    Attributes:
        tokens: (B, N) or (B, N, c), after `run`.
        revealed_at: (B, N) int64, the step that decided each token, -1 = it was known.
    """

    def __init__(
        self,
        network: Any,
        scheduler: MaskedScheduler,
        recap: ReCAPConfig | None,
        conditions: tuple[Any, Any],
        scale: float,
        head: Head | None = None,
        measure_staleness: bool = False,
    ) -> None:
        self._scheduler, self._recap, self._scale, self._head = scheduler, recap, scale, head
        self._meter = Meter()
        self._positive, self._negative = (
            Branch(network, condition, scheduler, recap, self._meter) for condition in conditions
        )
        self._guidable = conditions[1] is not None
        self._probe = StalenessProbe(self._positive) if measure_staleness else None
        self._cache_bytes = 0
        self._counts = torch.zeros(0, 0, dtype=torch.long)
        self._weights: list[Strength] = []
        self.tokens = self.revealed_at = torch.empty(0)

    def run(
        self,
        tokens: Tensor,
        hidden: Tensor,
        num_steps: int,
        generator: Any,
        on_step_end: Callable[[Step, MaskedState], MaskedState | None] | None,
        progress: Any,
    ) -> None:
        """Decide all hidden tokens (B, N); where none is hidden, the network is not asked.

        Raises:
            ValueError: a "concat" layout, and images hide different numbers of tokens.
        """
        self.tokens, self.revealed_at = tokens, torch.full(hidden.shape, -1, device=hidden.device)
        self._counts = self._scheduler.set_timesteps(num_steps, hidden.sum(dim=1), self._recap, hidden.device)
        if not len(self._scheduler.timesteps):
            return
        used = self._scheduler.recap
        if used is not None and used.layout == "concat" and not (self._counts == self._counts[0]).all():
            raise ValueError("layout must be in_place where images hide different numbers of tokens, got 'concat'.")
        self._weights = self._scheduler.guidance(self._scale) if self._guidable else [1.0] * self._counts.shape[1]

        def at_end(step: Step, state: MaskedState) -> MaskedState | None:
            new = hidden & ~state.hidden & (self.revealed_at < 0)
            self.revealed_at = self.revealed_at.masked_fill(new, step.index)
            self._cache_bytes = max(self._cache_bytes, self._positive.cache_bytes + self._negative.cache_bytes)
            return None if on_step_end is None else on_step_end(step, state)

        state = sample(
            self._predictor(generator),
            self._scheduler,
            self._scheduler.start(tokens, hidden, generator),
            generator=generator,
            on_step_end=at_end,
            progress=progress,
        )
        self.tokens = state.tokens

    def _predictor(self, generator: Any) -> Predictor:
        positive: Predictor = self._positive if self._probe is None else self._probe
        negative = self._negative if not all(map(is_off, self._weights)) else None
        if self._head is not None:
            return HeadPredictor(positive, negative, self._weight, self._keep, self._scheduler, self._head, generator)
        return positive if negative is None else guided(positive, negative, self._weight, self._keep)

    def _weight(self, step: Step) -> Strength:
        return self._weights[step.index]

    def _keep(self, step: Step) -> bool:
        """Whether the step's group has a guided step yet to come, which will read the other branch's cache."""
        later = self._weights[step.index + 1 : self._scheduler.group_stop(step.index)]
        return not all(map(is_off, later))

    def stats(self) -> RunStats:
        """What the walk cost: the network's calls; FLOPs of network and head together."""
        network, head = self._meter.flops, 0 if self._head is None else self._head.meter.flops
        plan: dict[str, Any] = {
            "scheduler": type(self._scheduler).__name__,
            "revealed": self._counts.tolist(),
            "groups": self._scheduler.groups,
            "guidance": [one.tolist() if isinstance(one, Tensor) else one for one in self._weights],
            "calls": {"conditional": self._positive.calls, "unconditional": self._negative.calls},
            "flops": {"network": network, "head": head},
        }
        if self._recap is not None:
            plan["recap"] = self._recap.to_dict()
        if self._recap is not None and self._recap.max_staleness is not None:
            plan["measured_change"] = self._scheduler.changes
        if self._probe is not None:
            plan["staleness"] = self._probe.measured
        return replace(self._meter.stats(self._cache_bytes, **plan), flops=network + head)
