"""Tokens that form a Markov chain: what a perfect network says of hidden ones, given any set of visible ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gendiff.samplers.loop import Step
from gendiff.samplers.masked import MaskedState

MOST_SEQUENCES = 2**20
"""Of a joint law that is written down."""


class MarkovTokens:
    """N tokens of which each depends on the one before it alone. Everything is computed in float64.

    A decoder that asks it for one token at a time, in an order that does not look at what was drawn, samples the joint
    law exactly. One that draws several at a time, or that picks the surest of its draws, does not, and by how much is
    known here.

    Args:
        initial: (V,) probabilities of the first token.
        transition: (V, V) probabilities of the next token (columns) after each (rows), or (N - 1, V, V), one for each
            link of the chain.
        path: the chain's way through the N places, e.g. in a snake over a grid; None for 0 .. N - 1.
        num_tokens: N; None for what `path` or `transition` says.

    Raises:
        ValueError: shapes that do not fit together, numbers that are no probabilities, or a probability of 0, whose
            logits would not be finite.

    Source: the forward-backward algorithm (Rabiner 1989, A tutorial on hidden Markov models, section III).
    """

    def __init__(
        self,
        initial: Tensor,
        transition: Tensor,
        path: Sequence[int] | None = None,
        num_tokens: int | None = None,
    ) -> None:
        codes = len(initial)
        if initial.shape != (codes,) or transition.ndim not in (2, 3) or transition.shape[-2:] != (codes, codes):
            raise ValueError(
                "initial must be (V,) and transition (V, V) or (N - 1, V, V), got "
                f"{tuple(initial.shape)} and {tuple(transition.shape)}."
            )
        sizes = {
            "path": None if path is None else len(path),
            "num_tokens": num_tokens,
            "transition": len(transition) + 1 if transition.ndim == 3 else None,
        }
        known = {name: size for name, size in sizes.items() if size is not None}
        if len(set(known.values())) != 1 or min(known.values()) < 1:
            raise ValueError(f"path, num_tokens and transition must agree on N of at least 1, got {known}.")
        count = next(iter(known.values()))
        if path is not None and sorted(path) != list(range(count)):
            raise ValueError(f"path must have each of 0 .. {count - 1} once, got {list(path)}.")
        self.num_tokens, self.codebook_size = count, codes
        self._initial = _probabilities("initial", initial)
        self._transition = _probabilities("transition", transition).expand(count - 1, codes, codes)
        self._path = torch.arange(count) if path is None else torch.tensor(list(path))

    def logits(self, tokens: Tensor, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Log-probabilities of each place's token given the visible ones at all *other* places.

        At a hidden place that is the exact posterior; at a visible one what the others would have said of it, so that
        all numbers are finite.

        Args:
            tokens: (B, N) int64, 0 .. V - 1; ignored where hidden.
            hidden: (B, N) bool, True = not known.
            rows: (B, m) places to tell of, -1 = padding whose result means nothing; None for all.

        Returns: (B, N, V) or (B, m, V), float64.
        """
        device = tokens.device
        path, links = self._path.to(device), self._transition.to(device)
        codes = torch.nn.functional.one_hot(tokens.masked_fill(hidden, 0)[:, path], self.codebook_size)
        evidence = torch.where(hidden[:, path, None], 1.0, codes.double())  # along the chain
        before = [self._initial.to(device).expand(len(tokens), -1)]  # P(x_i | visible ones before i)
        for link, seen in zip(links, evidence.unbind(dim=1), strict=False):
            before.append(_normalised((before[-1] * seen) @ link))
        after = [torch.ones_like(before[0])]  # P(visible ones behind i | x_i), up to a factor
        for link, seen in zip(links.flip(0), evidence.flip(1).unbind(dim=1), strict=False):
            after.insert(0, _normalised((after[0] * seen) @ link.mT))
        said = _normalised(torch.stack(before, dim=1) * torch.stack(after, dim=1)).log()
        said = said[:, path.argsort()]
        if rows is None:
            return said
        return said.gather(1, rows.clamp(min=0)[..., None].expand(-1, -1, self.codebook_size))

    def predict(self, state: MaskedState, step: Step) -> Tensor:
        """The perfect network as a predictor of the sampling loop: of all places, or of the running group."""
        return self.logits(state.tokens, state.hidden, state.group if state.group.shape[1] else None)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probability (B,) of whole sequences (B, N), float64."""
        chain = tokens.cpu()[:, self._path]
        links = torch.arange(self.num_tokens - 1)
        steps = self._transition.log()[links, chain[:, :-1], chain[:, 1:]]
        return (self._initial.log()[chain[:, 0]] + steps.sum(dim=1)).to(tokens.device)

    def joint(self) -> Tensor:
        """Probability of every sequence: a tensor of N axes of length V.

        Raises:
            ValueError: there are more than 2^20 sequences.
        """
        if self.codebook_size**self.num_tokens > MOST_SEQUENCES:
            raise ValueError(
                f"the joint law is written down for at most {MOST_SEQUENCES} sequences, got {self.codebook_size} to "
                f"the power of {self.num_tokens}."
            )
        axes = [torch.arange(self.codebook_size)] * self.num_tokens
        sequences = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return self.log_prob(sequences.flatten(0, -2)).exp().view(sequences.shape[:-1])

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw sequences (count, N) int64."""
        drawn = [torch.multinomial(self._initial, count, replacement=True, generator=generator)]
        for link in self._transition:
            drawn.append(torch.multinomial(link[drawn[-1]], 1, generator=generator)[:, 0])
        return torch.stack(drawn, dim=1)[:, self._path.argsort()]


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=-1, keepdim=True)


def _probabilities(name: str, values: Tensor) -> Tensor:
    """In float64, summing to one as well as that can."""
    values = values.double()
    sums = values.sum(dim=-1)
    if not (values > 0).all() or not torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-6):
        raise ValueError(f"{name} must be probabilities above 0 that sum to 1 along the last axis.")
    return _normalised(values)
