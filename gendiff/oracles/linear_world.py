"""LinearWorld: the data's mean is linear in the prompt, and the best edit of every prompt is known.

Data under a prompt embedding E is `N(W mean(E), S^2 I)`. Each prompt has a planted strength alpha*(E), 0 for some, and
is satisfied by samples around `W mean(E')`, with E' the prompt edited by alpha*. So what a search finds and what a
predictor learns can be told right from wrong.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gendiff.oracles.mode_denoisers import LinearDenoiser


class LinearWorld:
    """Prompts, one factor that edits them, and its planted best strength.

    Args:
        embed_dim: D.
        num_tokens: L; the first token is the beginning of text and is never edited.
        spread: S.
        alpha_max: the planted strengths lie within [-alpha_max, alpha_max].
        seed: of W, the factor's direction and the rule that gives alpha*.

    Raises:
        ValueError: fewer than 2 tokens.
    """

    def __init__(
        self, embed_dim: int = 8, num_tokens: int = 4, spread: float = 0.2, alpha_max: float = 1.0, seed: int = 0
    ):
        if num_tokens < 2:
            raise ValueError(f"num_tokens must be at least 2, got {num_tokens}.")
        generator = torch.Generator().manual_seed(seed)
        self.num_tokens, self.embed_dim, self.alpha_max = num_tokens, embed_dim, alpha_max
        self.denoiser = LinearDenoiser(embed_dim=embed_dim, spread=spread, seed=seed)
        direction, rule, gate = torch.randn(3, embed_dim, generator=generator)
        self.direction = direction / direction.square().mean().sqrt()
        self._rule, self._gate = rule / math.sqrt(embed_dim), gate / math.sqrt(embed_dim)

    def prompts(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Embeddings (count, L, D) of unit variance; the tokens of a prompt have a common part that says alpha*."""
        own = torch.randn(count, 1, self.embed_dim, generator=generator)
        tokens = torch.randn(count, self.num_tokens, self.embed_dim, generator=generator)
        return (0.9 * own + math.sqrt(0.19) * tokens).contiguous()

    def edited(self, embeds: Tensor, alpha: Tensor) -> Tensor:
        """E' = E + c_E alpha d on all tokens but the first, c_E the rms of E over them. `alpha`: (B,)."""
        size = embeds[:, 1:].square().mean((1, 2)).sqrt()
        change = (size * alpha.to(embeds))[:, None] * self.direction.to(embeds)
        return torch.cat([embeds[:, :1], embeds[:, 1:] + change[:, None]], 1)

    def best_alpha(self, embeds: Tensor) -> Tensor:
        """The planted alpha*(E), (B,); exactly 0 for the prompts (about half) that are to be left alone."""
        common = embeds.mean(1)
        strength = self.alpha_max * torch.tanh(common @ self._rule.to(embeds))
        return torch.where(common @ self._gate.to(embeds) > 0, strength, 0)

    def target(self, embeds: Tensor) -> Tensor:
        """Mean of the samples that satisfy each prompt, (B, *sample_shape)."""
        return self.denoiser.mean(self.edited(embeds, self.best_alpha(embeds)))

    def score(self, samples: Tensor, embeds: Tensor) -> Tensor:
        """Minus the mean square distance of each sample to its prompt's target, (B,)."""
        return -(samples - self.target(embeds).to(samples)).flatten(1).square().mean(1)

    def expected_score(self, embeds: Tensor, alpha: Tensor) -> Tensor:
        """Mean of `score` over exact samples under the prompt edited by `alpha`, (B,); highest at alpha*."""
        mean = self.denoiser.mean(self.edited(embeds, alpha))
        return self.score(mean, embeds) - self.denoiser.config["spread"] ** 2
