"""Directions of causal factors in the prompt embedding, and the edit of a prompt along them.

A factor's direction is what a text encoder makes of two texts that differ in that factor alone. That prompt embeddings
hold physics and texture apart is a finding of LINA (arXiv 2512.13290); how to use it is gendiff's realisation. The
edit acts on continuous attributes in the whole run; on the reference world (a small DiT trained to convergence) it did
not help, so its strengths are 0 unless a search has found others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gendiff.files import written_whole

from .factor_fitting import Pairs, difference, finished, given, selected, texture_bases, unit
from .prompt_encoding import encoder_of

Encode = Callable[[list[str]], tuple[Tensor, ...]]
"""Texts to E (B, L, D), mask bool (B, L) and, where there is one, the pooled vector (B, P)."""
Strengths = Mapping[str, float | Tensor]
"""By factor, in units of the embedding's rms: a number, or (B,) where each prompt has its own."""
WEIGHTS_FILE, CONFIG_FILE = "directions.safetensors", "directions.json"


@dataclass(frozen=True)
class FactorDirections:
    """Directions of rms 1 in the space of prompt embeddings; see `fit`.

    Attributes:
        directions: by factor, float32 (L, D), token by token, or (D,), the same for every token.
        texture: orthonormal basis (D, r) of what texture moves; no direction has a component in it.
        pooled: by factor, float32 (P,), directions of the pooled vector; empty unless asked for.
        skip: positions that are never edited, such as that of the BOS token.
    """

    directions: Mapping[str, Tensor]
    texture: Tensor
    pooled: Mapping[str, Tensor] = field(default_factory=dict)
    skip: tuple[int, ...] = (0,)

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the factors in order."""
        return tuple(self.directions)

    @classmethod
    def fit(
        cls,
        encode: Encode | Any,
        pairs: Mapping[str, Pairs],
        texture_pairs: Pairs = (),
        *,
        positions: Literal["auto", "tokens", "mean"] = "auto",
        orthogonal: bool = False,
        max_rank: int = 8,
        energy: float = 0.9,
        skip: Sequence[int] = (0,),
        pooled: bool = False,
    ) -> FactorDirections:
        """Measure directions on pairs of texts.

        Args:
            encode: see `Encode`; or a pipeline, whose `encode_prompt` is used.
            pairs: by factor, pairs (states the effect correctly, counterfactual) that differ in the factor alone; the
                mean over templates that differ in other factors cancels their noise, so give four or more.
            texture_pairs: pairs that differ in texture alone; what they span is taken out of every direction.
            positions: "tokens" keeps a direction for each token, which all texts of a factor must then have equally
                many of; "mean" takes the mean over the tokens, for texts of different length, where a difference token
                by token is mostly one of positions; "auto" chooses for each factor.
            orthogonal: Gram-Schmidt between the factors, in the order of `pairs`; needs "tokens" or "mean".
            max_rank: of the texture basis at most, at least 1.
            energy: share of the texture differences that the basis must hold, in (0, 1].
            skip: positions that are never edited; () where texts have no BOS token.
            pooled: fit directions of the pooled vector as well.

        Raises:
            ValueError: an argument outside its range, texts of a factor that encode alike, or that "tokens" cannot
                align, or a direction that is nothing but texture or a sum of earlier ones.
        """
        if not pairs or any(not templates for templates in pairs.values()):
            raise ValueError("pairs must name at least one factor, each with at least one pair of texts.")
        if positions not in ("auto", "tokens", "mean"):
            raise ValueError(f"positions must be 'auto', 'tokens' or 'mean', got {positions!r}.")
        if orthogonal and positions == "auto":
            raise ValueError("orthogonal needs positions 'tokens' or 'mean', as directions must have one shape.")
        if max_rank < 1 or not 0 < energy <= 1:
            raise ValueError(f"max_rank must be at least 1 and energy in (0, 1], got {max_rank} and {energy}.")
        reader, kept = encoder_of(encode), tuple(skip)
        found = {name: difference(name, reader, texts, positions, kept) for name, texts in pairs.items()}
        texture, pooled_texture = texture_bases(reader, texture_pairs, max_rank, energy, kept, pooled)
        directions = finished({name: rows for name, (rows, _, _) in found.items()}, texture, orthogonal)
        scaled = {name: unit(d, found[name][1]) for name, d in directions.items()}
        vectors: dict[str, Tensor] = {}
        if pooled:
            raw = {name: given(name, vector) for name, (_, _, vector) in found.items()}
            vectors = {n: unit(d, None) for n, d in finished(raw, pooled_texture, orthogonal).items()}
        return cls(scaled, texture.float(), vectors, kept)

    def edit(
        self, embeds: Tensor, mask: Tensor, alpha: Strengths, renorm: bool = False, tokens: Tensor | None = None
    ) -> Tensor:
        """E + rms(E) * sum of alpha_k d_k at the chosen tokens; all other rows are those of E bit for bit.

        Never edit rows of the unconditional prompt with it.

        Args:
            embeds: E (B, L, D).
            mask: bool (B, L), True where a token is valid.
            alpha: strengths by factor; linear.
            renorm: give each edited token its old norm back, which is no longer linear.
            tokens: bool (B, L) that narrows the choice, None = all valid tokens but `skip`.
        Returns: (B, L, D) in E's dtype; E itself where every strength is 0.

        Raises:
            ValueError: unknown factor, strength that is not finite, or a shape that does not fit.
        """
        alpha = self._known(alpha, len(embeds))
        if not alpha:
            return embeds
        self._fits(embeds, mask, tokens, alpha)
        chosen = selected(mask.bool().to(embeds.device), self.skip)
        chosen = chosen if tokens is None else chosen & tokens.bool().to(embeds.device)
        wide, shift = embeds.float(), torch.zeros((), device=embeds.device)
        moved = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
        for name, strength in alpha.items():
            strength = strength.to(embeds.device)
            shift = shift + strength.view(-1, 1, 1) * self.directions[name].to(embeds.device)
            moved = moved | (strength != 0)
        edited = wide + _rms(wide, mask.bool().to(embeds.device)).view(-1, 1, 1) * shift
        if renorm:
            before, after = wide.norm(dim=-1, keepdim=True), edited.norm(dim=-1, keepdim=True)
            edited = edited * (before / after.clamp(min=1e-12))
        return torch.where((chosen & moved[:, None]).unsqueeze(-1), edited.to(embeds.dtype), embeds)

    def edit_pooled(self, vector: Tensor, alpha: Strengths) -> Tensor:
        """The same for the pooled vector (B, P); itself where every strength is 0.

        Raises:
            ValueError: fitted without `pooled`, a wrong width, or as in `edit`.
        """
        alpha = self._known(alpha, len(vector))
        if not alpha:
            return vector
        if not self.pooled:
            raise ValueError("edit_pooled needs directions that were fitted with pooled=True.")
        width = len(next(iter(self.pooled.values())))
        if vector.ndim != 2 or vector.shape[1] != width:
            raise ValueError(f"vector must be (B, {width}), got {tuple(vector.shape)}.")
        wide, shift = vector.float(), torch.zeros((), device=vector.device)
        moved = torch.zeros(len(vector), dtype=torch.bool, device=vector.device)
        for name, strength in alpha.items():
            strength = strength.to(vector.device)
            shift = shift + strength[:, None] * self.pooled[name].to(vector.device)
            moved = moved | (strength != 0)
        edited = wide + wide.square().mean(1, keepdim=True).sqrt() * shift
        return torch.where(moved[:, None], edited.to(vector.dtype), vector)

    def save(self, folder: str | Path) -> None:
        """Write the folder: weights as safetensors, the rest as JSON; whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        tensors = {f"directions.{index}": d.contiguous() for index, d in enumerate(self.directions.values())}
        tensors |= {f"pooled.{index}": d.contiguous() for index, d in enumerate(self.pooled.values())}
        config = {"factors": list(self.factors), "pooled": bool(self.pooled), "skip": list(self.skip)}
        with written_whole(Path(folder)) as partial:
            save_file({**tensors, "texture": self.texture.contiguous()}, partial / WEIGHTS_FILE)
            (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> FactorDirections:
        """Inverse of `save`.

        Raises:
            OSError: a file is missing.
        """
        config = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors, names = load_file(Path(folder) / WEIGHTS_FILE), config["factors"]
        directions = {name: tensors[f"directions.{index}"] for index, name in enumerate(names)}
        pooled = {name: tensors[f"pooled.{index}"] for index, name in enumerate(names)} if config["pooled"] else {}
        return cls(directions, tensors["texture"], pooled, tuple(config["skip"]))

    def _known(self, alpha: Strengths, count: int) -> dict[str, Tensor]:
        """Strengths float32 (B,) of the factors that move anything."""
        if unknown := [name for name in alpha if name not in self.directions]:
            raise ValueError(f"alpha has unknown factor {unknown[0]!r}; known factors: {', '.join(self.factors)}.")
        strengths = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in alpha.items()}
        for name, value in strengths.items():
            if value.ndim > 1 or (value.ndim == 1 and len(value) != count) or not value.isfinite().all():
                raise ValueError(f"alpha of {name!r} must be one finite number or ({count},), got {alpha[name]!r}.")
        return {name: value.expand(count) for name, value in strengths.items() if value.any()}

    def _fits(self, embeds: Tensor, mask: Tensor, tokens: Tensor | None, alpha: Mapping[str, Tensor]) -> None:
        width = next(iter(self.directions.values())).shape[-1]
        if embeds.ndim != 3 or embeds.shape[2] != width:
            raise ValueError(f"embeds must be (B, L, {width}), got {tuple(embeds.shape)}.")
        for name, value in (("mask", mask), ("tokens", tokens)):
            if value is not None and value.shape != embeds.shape[:2]:
                raise ValueError(f"{name} must be {tuple(embeds.shape[:2])}, got {tuple(value.shape)}.")
        for name in alpha:
            direction = self.directions[name]
            if direction.ndim == 2 and len(direction) != embeds.shape[1]:
                raise ValueError(
                    f"embeds must have {len(direction)} tokens for {name!r}, whose direction was fitted token by "
                    f"token, got {embeds.shape[1]}."
                )


def _rms(embeds: Tensor, mask: Tensor) -> Tensor:
    """Rms (B,) of E over valid tokens."""
    squares = (embeds.square().mean(2) * mask).sum(1)
    return (squares / mask.sum(1).clamp(min=1)).sqrt()
