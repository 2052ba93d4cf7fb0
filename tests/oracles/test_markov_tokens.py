"""The chain's posteriors against enumeration, and decoders against the chain."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from gendiff.oracles.markov_tokens import MarkovTokens
from gendiff.samplers.loop import sample
from gendiff.samplers.masked import MaskedScheduler
from gendiff.samplers.recap import ReCAPConfig

SNAKE = (0, 1, 3, 2)  # over a 2 x 2 grid


def probabilities(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(dim=-1)


def chain(codes: int = 3, count: int = 4, path: Any = SNAKE, varying: bool = True) -> MarkovTokens:
    shape = (count - 1, codes, codes) if varying else (codes, codes)
    return MarkovTokens(probabilities(codes), probabilities(*shape, seed=1), path, num_tokens=count)


@pytest.mark.parametrize("varying", [True, False])
@pytest.mark.parametrize("path", [None, SNAKE])
def test_joint_law_is_the_product_along_the_path(path: Any, varying: bool):
    data = chain(path=path, varying=varying)
    joint, initial, links = data.joint(), probabilities(3), probabilities(*((3, 3, 3) if varying else (3, 3)), seed=1)
    assert joint.shape == (3, 3, 3, 3) and joint.dtype == torch.float64
    assert float(joint.sum()) == pytest.approx(1, abs=1e-12)
    for tokens in product(range(3), repeat=4):
        a, b, c, d = (tokens[place] for place in (path or range(4)))
        first, second, third = links if varying else (links, links, links)
        assert float(joint[tokens]) == pytest.approx(
            float(initial[a] * first[a, b] * second[b, c] * third[c, d]), rel=1e-12
        )
        assert float(data.log_prob(torch.tensor([tokens])).exp()) == pytest.approx(float(joint[tokens]), rel=1e-12)


@pytest.mark.parametrize("path", [None, SNAKE])
def test_marginals_are_those_of_enumeration(path: Any):
    """Every subset of visible places, with all their values at once."""
    data = chain(path=path)
    joint = data.joint()
    tokens = torch.tensor(list(product(range(3), repeat=4)))
    for visible in product([False, True], repeat=4):
        hidden = ~torch.tensor(visible).expand(81, 4)
        said = data.logits(tokens, hidden)
        assert said.isfinite().all() and said.dtype == torch.float64
        wanted = []
        for row in tokens.tolist():
            for place in range(4):
                rest = joint[tuple(row[i] if visible[i] and i != place else slice(None) for i in range(4))]
                axis = sum(not visible[i] for i in range(place))
                wanted.append(rest.movedim(axis, 0).reshape(3, -1).sum(dim=1))
        expected = torch.stack(wanted).view(81, 4, 3)
        assert torch.allclose(said.exp(), expected / expected.sum(dim=2, keepdim=True), rtol=1e-10, atol=0)


def test_what_is_hidden_is_not_looked_at_and_rows_are_picked():
    data = chain()
    tokens, hidden = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]]), torch.tensor([[True, False, True, True]] * 2)
    said = data.logits(tokens, hidden)
    junk = torch.where(hidden, torch.tensor(77), tokens)
    assert torch.equal(data.logits(junk, hidden), said)
    picked = data.logits(tokens, hidden, torch.tensor([[3, 0], [2, -1]]))
    assert torch.equal(picked[0], said[0, [3, 0]]) and torch.equal(picked[1, 0], said[1, 2])


def test_long_chains_do_not_underflow():
    data = MarkovTokens(probabilities(4), probabilities(4, 4, seed=1), num_tokens=2000)
    tokens = data.sample(2, torch.Generator().manual_seed(0))
    hidden = torch.ones(2, 2000, dtype=torch.bool)
    hidden[0, ::7] = False
    said = data.logits(tokens, hidden)
    assert said.isfinite().all()
    stationary = torch.linalg.matrix_power(probabilities(4, 4, seed=1), 500)[0]
    assert torch.allclose(said[1, -1].exp(), stationary, rtol=1e-10)
    with pytest.raises(ValueError, match="at most 1048576 sequences, got 4 to the power of 2000"):
        data.joint()


def distance_in_errors(data: MarkovTokens, tokens: Tensor) -> float:
    """(chi^2 - its mean) over its standard deviation, for the counts of all sequences; small for the true law."""
    joint = data.joint()
    places = torch.tensor([data.codebook_size**i for i in reversed(range(data.num_tokens))])
    counts = torch.bincount((tokens * places).sum(dim=1), minlength=joint.numel())
    expected = joint.flatten() * len(tokens)
    freedom = joint.numel() - 1
    return (float(((counts - expected).square() / expected).sum()) - freedom) / (2 * freedom) ** 0.5


def test_samples_follow_the_joint_law():
    data = chain()
    tokens = data.sample(20000, torch.Generator().manual_seed(0))
    assert tokens.shape == (20000, 4) and abs(distance_in_errors(data, tokens)) < 4
    assert distance_in_errors(chain(path=None), tokens) > 100  # another law is told apart


def decoded(data: MarkovTokens, steps: int, recap: ReCAPConfig | None = None, **options: Any) -> Tensor:
    generator, batch = torch.Generator().manual_seed(0), 8000
    scheduler = MaskedScheduler("linear", **options)
    scheduler.set_timesteps(steps, [4] * batch, recap)
    nothing = torch.zeros(batch, 4, dtype=torch.long)
    state = scheduler.start(nothing, torch.ones_like(nothing, dtype=torch.bool), generator)
    state = sample(data.predict, scheduler, state, generator=generator, progress=False)
    assert not state.hidden.any()
    return state.tokens


@pytest.mark.parametrize("recap", [None, ReCAPConfig(1), ReCAPConfig(3), ReCAPConfig(2, num_warmup_groups=1)])
@pytest.mark.parametrize("order", ["halton", "random"])
def test_a_token_at_a_time_samples_the_joint_law(order: str, recap: ReCAPConfig | None):
    data = chain()
    assert abs(distance_in_errors(data, decoded(data, 4, recap, order=order))) < 4


def test_several_at_a_time_and_the_surest_first_do_not():
    data = chain()
    assert distance_in_errors(data, decoded(data, 2, order="random")) > 20
    # The surest of the draws is revealed, so which place comes first depends on what was drawn there.
    assert distance_in_errors(data, decoded(data, 4, order="confidence", confidence_temperature=0.0)) > 20


def test_what_is_no_chain_is_refused():
    good = probabilities(3), probabilities(3, 3)
    for arguments, options, message in [
        ((probabilities(2), good[1]), {"num_tokens": 4}, r"got \(2,\) and \(3, 3\)"),
        (good, {}, "must agree on N of at least 1, got {}"),
        (good, {"num_tokens": 3, "path": SNAKE}, "must agree on N"),
        ((good[0], probabilities(3, 3, 3)), {"num_tokens": 3}, "must agree on N"),
        (good, {"path": (0, 1, 1, 2)}, "path must have each of 0 .. 3 once"),
        ((good[0], 2 * good[1]), {"num_tokens": 4}, "transition must be probabilities above 0"),
        ((torch.tensor([0.0, 0.5, 0.5]), good[1]), {"num_tokens": 4}, "initial must be probabilities above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            MarkovTokens(*arguments, **options)
