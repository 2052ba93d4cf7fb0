"""Walks over hidden tokens without a network: an oracle that answers by formula, and what each step left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gendiff.samplers.loop import Step, sample
from gendiff.samplers.masked import MaskedScheduler, MaskedState
from gendiff.samplers.recap import ReCAPConfig

N, V = 16, 7
ORDERS = ["confidence", "halton", "random"]
PLANS = [None, (1, 0), (2, 1), (20, 0)]
SIZES = [[16, 16, 16], [16, 3, 9], [0, 5, 2]]

Oracle = Callable[[Tensor, Tensor], Tensor]
"""Tokens (B, N) and hidden (B, N) to logits (B, N, V)."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hiding(counts: list[int], total: int, seed: int = 3) -> Tensor:
    """(B, N) bool with so many hidden places in each row."""
    ranks = torch.rand(len(counts), total, generator=seeded(seed)).argsort(dim=1).argsort(dim=1)
    return ranks < torch.tensor(counts)[:, None]


def reading(total: int, codes: int, spread: float = 1.0, seed: int = 0) -> Oracle:
    """Logits that depend on every visible token and on its place; what lies at hidden places does not matter."""
    table = spread * torch.randn(total, codes, total, codes, generator=seeded(seed), dtype=torch.float64)

    def answer(tokens: Tensor, hidden: Tensor) -> Tensor:
        seen = torch.nn.functional.one_hot(tokens.clamp(0, codes - 1), codes).double()
        seen = seen * (~hidden[..., None]) + hidden[..., None] / codes
        return torch.einsum("bjw,ivjw->biv", seen, table).float()

    return answer


@dataclass
class Walk:
    """States before each step and after the last one, and what was said at each step."""

    states: list[MaskedState] = field(default_factory=list)
    said: list[Tensor] = field(default_factory=list)
    counts: Tensor = field(default_factory=lambda: torch.empty(0))
    groups: list[list[int]] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> Tensor:
        return self.states[-1].tokens


def walk(
    scheduler: MaskedScheduler,
    oracle: Oracle,
    hidden: Tensor,
    steps: int,
    recap: ReCAPConfig | None = None,
    generator: Any = None,
    tokens: Tensor | None = None,
) -> Walk:
    """Light steps hear what the oracle says of the tokens as they are, so that nothing is stale."""
    record = Walk(counts=scheduler.set_timesteps(steps, hidden.sum(dim=1), recap))
    tokens = torch.zeros(hidden.shape, dtype=torch.long) if tokens is None else tokens
    record.states.append(scheduler.start(tokens, hidden, generator))

    def predict(state: MaskedState, step: Step) -> Tensor:
        said = oracle(state.tokens, state.hidden)
        if state.group.shape[1]:
            said = said.gather(1, state.group.clamp(min=0)[..., None].expand(-1, -1, said.shape[2]))
        record.said.append(said)
        return said

    def keep(step: Step, state: MaskedState) -> None:
        record.states.append(state)

    sample(predict, scheduler, record.states[0], generator=generator, on_step_end=keep, progress=False)
    record.groups, record.changes = scheduler.groups, scheduler.changes
    return record


ORACLE = reading(N, V)
"""Of N tokens of V codes."""


def config(plan: tuple[int, int] | None, **options: Any) -> ReCAPConfig | None:
    return None if plan is None else ReCAPConfig(num_light_steps=plan[0], num_warmup_groups=plan[1], **options)


def known(seed: int = 1, batch: int = 3) -> Tensor:
    return torch.randint(0, V, (batch, N), generator=seeded(seed))


def check_walk(record: Walk, hidden: Tensor, tokens: Tensor) -> None:
    """What holds of every walk, whatever the order and the plan; a bound on staleness may end groups early."""
    counts = record.counts
    assert torch.equal(counts.sum(dim=1), hidden.sum(dim=1)), "all of them are revealed"
    assert len(record.states) == counts.shape[1] + 1
    assert [step for group in record.groups for step in group] == list(range(counts.shape[1]))
    last = record.states[-1]
    assert not last.hidden.any() and last.group.shape[1] == 0
    assert ((last.tokens >= 0) & (last.tokens < V)).all()
    assert torch.equal(last.tokens[~hidden], tokens[~hidden]), "known tokens stay"
    firsts = {group[0] for group in record.groups}
    for t, (before, after) in enumerate(pairwise(record.states)):
        new = before.hidden & ~after.hidden
        assert torch.equal(new.sum(dim=1), counts[:, t])
        assert not (after.hidden & ~before.hidden).any()
        assert torch.equal(after.tokens[~before.hidden], before.tokens[~before.hidden]), "revealed tokens stay"
        assert (before.group.shape[1] == 0) == (t in firsts)
        if t not in firsts:
            for b in range(len(new)):
                left = [place for place in before.group[b].tolist() if place >= 0 and before.hidden[b, place]]
                assert sorted(left[: int(counts[b, t])]) == new[b].nonzero().flatten().tolist(), "in rank order"
    for group in record.groups:
        state = record.states[group[0] + 1]
        if len(group) > 1:
            sizes = (state.group >= 0).sum(dim=1)
            assert (sizes >= counts[:, group].sum(dim=1)).all()
            assert record.changes or torch.equal(sizes, counts[:, group].sum(dim=1))
            for row in state.group.tolist():
                places = [place for place in row if place >= 0]
                assert len(set(places)) == len(places) and places == row[: len(places)], "padding comes last"
            assert all(torch.equal(record.states[step + 1].group, state.group) for step in group[:-1])
        assert record.states[group[-1] + 1].group.shape[1] == 0
