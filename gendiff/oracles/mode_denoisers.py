"""Perfect networks that read a prompt embedding: a mixture whose weights, and a Gaussian whose mean, the prompt sets.

Both are models of diffusers with the call of a text-to-image transformer, so that what is written for such pipelines
meets an exact answer. They predict flow velocity, `noise - x_0`, where `x = (1 - s) x_0 + s noise`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class ModeDenoiser(ModelMixin, ConfigMixin):
    """The perfect network for `sum_k pi_k N(M_k, S^2 I)`, where the prompt says pi.

    `log pi` is the mean of the prompt embedding over its tokens, normalised: E of shape (B, L, K).

    Args:
        sample_shape: of one sample, e.g. (C, H, W).
        num_modes: K.
        spread: S, above 0.
        scale: the modes are drawn from `scale * N(0, I)`.
        seed: of that draw.
    """

    @register_to_config
    def __init__(
        self,
        sample_shape: Sequence[int] = (2, 2, 2),
        num_modes: int = 6,
        spread: float = 0.15,
        scale: float = 1.5,
        seed: int = 0,
    ):
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        modes = torch.randn(num_modes, math.prod(sample_shape), generator=generator, device="cpu")
        self.modes = nn.Parameter(scale * modes, requires_grad=False)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Exact velocity.

        Args:
            hidden_states: x, (B, *sample_shape).
            timestep: 1000 s, one number or (B,).
            encoder_hidden_states: E, (B, L, K).
            joint_attention_kwargs: not read; other transformers have it.
            return_dict: False for a tuple.

        Source: Bayes' rule for each mode; p_k = softmax(log pi_k - ||x - (1 - s) M_k||^2 / (2 q^2)).
        """
        fine = torch.promote_types(hidden_states.dtype, torch.float32)
        x, s = hidden_states.flatten(1).to(fine), _share(timestep, hidden_states).to(fine)
        spread = float(self.config["spread"])
        modes, log_pi = self.modes.to(fine), encoder_hidden_states.to(fine).mean(1).log_softmax(-1)
        offset = x[:, None] - (1 - s[..., None]) * modes  # (B, K, D)
        posterior = (log_pi - offset.square().sum(-1) / (2 * _variance(s, spread))).softmax(-1)
        velocity = _velocity(offset, modes, s[..., None], spread)
        return _answer((posterior[..., None] * velocity).sum(1), hidden_states, return_dict)


class LinearDenoiser(ModelMixin, ConfigMixin):
    """The perfect network for `N(W mean(E), S^2 I)`: the mean of the data is linear in the prompt, E (B, L, D).

    Args:
        sample_shape: of one sample, e.g. (C, H, W).
        embed_dim: D.
        spread: S, above 0.
        seed: W is drawn from N(0, 1 / D).
    """

    @register_to_config
    def __init__(self, sample_shape: Sequence[int] = (2, 2, 2), embed_dim: int = 8, spread: float = 0.2, seed: int = 0):
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        weight = torch.randn(math.prod(sample_shape), embed_dim, generator=generator, device="cpu")
        self.weight = nn.Parameter(weight / math.sqrt(embed_dim), requires_grad=False)

    def mean(self, encoder_hidden_states: Tensor) -> Tensor:
        """mu(E) = W mean(E), (B, *sample_shape)."""
        flat = encoder_hidden_states.mean(1) @ self.weight.to(encoder_hidden_states.dtype).mT
        return flat.unflatten(1, tuple(self.config["sample_shape"]))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Exact velocity; arguments as for `ModeDenoiser`, E (B, L, D)."""
        fine = torch.promote_types(hidden_states.dtype, torch.float32)
        x, s = hidden_states.flatten(1).to(fine), _share(timestep, hidden_states).to(fine)
        mean = self.mean(encoder_hidden_states.to(fine)).flatten(1)
        return _answer(_velocity(x - (1 - s) * mean, mean, s, float(self.config["spread"])), hidden_states, return_dict)


def _share(timestep: Tensor, x: Tensor) -> Tensor:
    """s of each sample, (B, 1) or (1, 1)."""
    return torch.as_tensor(timestep, device=x.device).reshape(-1, 1) / 1000


def _variance(s: Tensor, spread: float) -> Tensor:
    """q^2 of one mode's noisy samples."""
    return (1 - s).square() * spread**2 + s.square()


def _velocity(offset: Tensor, mean: Tensor, s: Tensor, spread: float) -> Tensor:
    """E[noise - x_0 | x] of one mode, from `offset = x - (1 - s) mean`; no division by s, so s = 0 has an answer."""
    return offset * (s - (1 - s) * spread**2) / _variance(s, spread) - mean


def _answer(velocity: Tensor, x: Tensor, return_dict: bool) -> Transformer2DModelOutput | tuple[Tensor]:
    sample = velocity.unflatten(1, x.shape[1:]).to(x.dtype)
    return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
