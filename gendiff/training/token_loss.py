"""The loss of a diffusion head: what it says of the noise, and of the variance of a reverse step."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from gendiff.samplers.token_diffusion import signal_shares


@lru_cache(maxsize=1)
def _table() -> Tensor:
    """(1000, 5) float32: signal and noise amplitudes, bounds of the log variance, error of the mean over the noise's.

    The mean of a reverse step errs by beta / sqrt(alpha (1 - signal share)) times what the noise does.
    """
    kept = signal_shares()
    before = torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
    alpha = kept / before
    beta = 1 - alpha
    posterior = beta * (1 - before) / (1 - kept)
    posterior[0] = posterior[1]  # 0, which has no logarithm
    error = beta / (alpha * (1 - kept)).sqrt()
    return torch.stack([kept.sqrt(), (1 - kept).sqrt(), posterior.log(), beta.log(), error], dim=1).float()


def noised(tokens: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Tokens (M, c) with noise (M, c) of times (M,)."""
    row = _table().to(tokens.device)[times]
    return row[:, :1] * tokens + row[:, 1:2] * noise


def head_losses(output: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of each token, means over channels.

    Args:
        output: (M, 2 c) of the head.
        noise: (M, c) in what it was given.
        times: (M,).

    Returns: squared error of the noise (M,), and the variational bound (M,) in bits, which trains the variance alone:
    the divergence of the step that the head describes from the true one. It is 0 at time 0, whose variance no sampler
    uses.

    Source: Nichol & Dhariwal 2021 (improved DDPM), equations 14 to 16.
    """
    said, share = output.float().chunk(2, dim=1)
    errors = said - noise
    row = _table().to(output.device)[times]
    least, most, factor = row[:, 2:3], row[:, 3:4], row[:, 4:5]
    wider = (share + 1) / 2 * (most - least)  # log variance over the least
    squared = errors.detach() * factor
    divergence = 0.5 * (wider - 1 + torch.exp(-wider) * (1 + squared * squared * torch.exp(-least)))
    return errors.square().mean(dim=1), divergence.mean(dim=1).masked_fill(times == 0, 0.0) / math.log(2)
