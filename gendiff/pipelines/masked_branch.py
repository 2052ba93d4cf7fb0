"""What a network says at each step of a walk over hidden tokens, and what it remembers from full to light ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gendiff.samplers.loop import Step
from gendiff.samplers.masked import MaskedScheduler
from gendiff.samplers.masked_state import MaskedState, staleness, waiting
from gendiff.samplers.recap import ReCAPConfig

from .stats import Meter


class Branch:
    """A predictor: one network under one condition, with a cache of its own.

    Args:
        network: see `MaskedModel`.
        condition: what it is handed.
        scheduler: says which steps are full, and which of those are followed by light ones.
        recap: how the cache is made.
        meter: counts the network's calls.

    Attributes:
        calls: full and light calls by kind, and the rows computed in each.
    """

    def __init__(
        self, network: Any, condition: Any, scheduler: MaskedScheduler, recap: ReCAPConfig | None, meter: Meter
    ) -> None:
        self._network, self._condition, self._scheduler = network, condition, scheduler
        self._recap, self._meter = recap, meter
        self._cache: Any = None
        self.calls: dict[str, list[int]] = {"full": [], "light": []}

    @property
    def cache_bytes(self) -> int:
        """Bytes held now."""
        return 0 if self._cache is None else self._cache.nbytes

    def __call__(self, state: MaskedState, step: Step) -> Tensor:
        """Logits or features of all N places (B, N, ...), or of the running group (B, m, ...)."""
        if state.group.shape[1]:
            return self._ask(state, self._cache, state.group)
        # A full step that no light one follows has nothing to remember.
        followed = self._scheduler.group_stop(step.index) > step.index + 1
        return self._ask(state, self._made() if followed else None, None)

    def whole(self, state: MaskedState) -> Tensor:
        """What the network says of all places with nothing reused; not counted."""
        return self._network(state.tokens, state.hidden, self._condition, return_dict=False)[0]

    def _made(self) -> Any:
        # One for the whole walk: each full pass empties it and writes to the same memory.
        if self._cache is None:
            assert self._recap is not None
            dtype = None if self._recap.cache_dtype is None else getattr(torch, self._recap.cache_dtype)
            self._cache = self._network.make_cache(self._recap.recompute_prefix, self._recap.layout, dtype)
        return self._cache

    def _ask(self, state: MaskedState, cache: Any, rows: Tensor | None) -> Tensor:
        # Some networks compute visible tokens alone, so that shapes do not tell what a pass costs.
        cost = getattr(self._network, "cost_key", None)
        said = self._meter(
            self._network,
            state.tokens,
            state.hidden,
            self._condition,
            cache=cache,
            rows=rows,
            return_dict=False,
            cost_key=None if cost is None else cost(state.hidden, rows),
        )[0]
        prefix = self._network.num_prefix_rows
        if rows is None:
            self.calls["full"].append(prefix + self._network.num_tokens)
        else:
            assert self._recap is not None
            self.calls["light"].append(rows.shape[1] + (prefix if self._recap.recompute_prefix else 0))
        return said


class StalenessProbe:
    """Measures at each light step how far its answer is from that of a full pass, and passes the answer on.

    Attributes:
        measured: for each light step its number, the mean Kullback-Leibler divergence from the full answer in nats,
            and how often both have the same best token, over rows of the group that are still hidden; for features of
            continuous tokens instead the size of the difference over that of the full answer.
    """

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self.measured: list[dict[str, float]] = []

    def __call__(self, state: MaskedState, step: Step) -> Tensor:
        said = self._branch(state, step)
        if state.group.shape[1]:
            self._measure(said, state, step)
        return said

    def _measure(self, said: Tensor, state: MaskedState, step: Step) -> None:
        counted = waiting(state)
        if not counted.any():
            return
        index = state.group.clamp(min=0)[..., None].expand(-1, -1, said.shape[2])
        full = self._branch.whole(state).gather(1, index)
        if state.tokens.is_floating_point():
            off = (said - full)[counted].norm() / full[counted].norm().clamp(min=1e-12)
            self.measured.append({"step": step.index, "relative_change": float(off)})
            return
        kl, same = staleness(full.float().log_softmax(-1), said.float().log_softmax(-1), counted)
        rows = counted.sum(dim=1)
        weights = rows / rows.sum()
        self.measured.append(
            {"step": step.index, "kl": float((kl * weights).sum()), "top1_agreement": float((same * weights).sum())}
        )
