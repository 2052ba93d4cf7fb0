"""Drawing tokens with a diffusion head: against the equations, and against Gaussians whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gendiff.models.masked.diffusion_head import DiffusionHead
from gendiff.samplers.token_diffusion import TokenScheduler, sample_tokens, signal_shares

CHANNELS, WIDTH = 3, 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_head(dtype: torch.dtype = torch.float64, token_range: float | None = None) -> DiffusionHead:
    torch.manual_seed(0)
    head = DiffusionHead(CHANNELS, WIDTH, 16, 2, token_range)
    for parameter in head.parameters():  # those that start at zero as well
        torch.nn.init.normal_(parameter, std=0.2)
    return head.to(dtype).requires_grad_(False)


def conditions(batch: int = 2, count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(batch, count, WIDTH, generator=generator(seed), dtype=torch.float64)


def shares() -> np.ndarray:
    """Cumulative products of 1 - beta, from the definition of the cosine schedule."""

    def curve(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - curve((i + 1) / 1000) / curve(i / 1000), 0.999) for i in range(1000)]
    return np.cumprod(1 - np.array(betas, dtype=np.float64))


def reference(head, z, z_uncond=None, scale=1.0, times=(), temperature=1.0, seed=0, clip=None) -> Tensor:
    """Ancestral steps with a learned variance, as in Nichol & Dhariwal 2021, on the betas of the times alone."""
    source, kept = generator(seed), shares()
    shape = (z.shape[0], CHANNELS, z.shape[1])
    x = torch.randn(shape, generator=source, dtype=torch.float64).transpose(1, 2)
    for index in reversed(range(len(times))):
        now, before = kept[times[index]], kept[times[index - 1]] if index else 1.0
        beta = 1 - now / before
        said = [
            head(x.reshape(-1, CHANNELS), torch.full((x[..., 0].numel(),), times[index]), part.reshape(-1, WIDTH))
            for part in (z, z_uncond)
            if part is not None
        ]
        noise, share = (part.view(*z.shape[:2], CHANNELS) for part in said[0].chunk(2, dim=1))
        if z_uncond is not None:
            without = said[1][:, :CHANNELS].view_as(noise)
            noise = without + scale * (noise - without)
        clean = (x - math.sqrt(1 - now) * noise) / math.sqrt(now)
        clean = clean if clip is None else clean.clamp(-clip, clip)
        x = (math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * x) / (1 - now)
        if index:
            log_least, log_most = math.log(beta * (1 - before) / (1 - now)), math.log(beta)
            fraction = (share + 1) / 2
            deviation = torch.exp((fraction * log_most + (1 - fraction) * log_least) / 2)
            drawn = torch.randn(shape, generator=source, dtype=torch.float64).transpose(1, 2)
            x = x + temperature * deviation * drawn
    return x


def spaced(count: int) -> list[int]:
    """Steps kept by improved-diffusion's respacing of one section."""
    times, now = [], 0.0
    for _ in range(count):
        times.append(round(now))
        now += 999 / (count - 1)
    return times


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.parametrize("count", [2, 25, 31, 40, 100, 250, 1000])
def test_the_steps_are_those_of_improved_diffusion(count):
    assert TokenScheduler(count).timesteps.tolist() == spaced(count)[::-1]


def test_noise_levels_keep_the_digits_of_float64():
    assert np.allclose(signal_shares().numpy(), shares(), rtol=1e-12, atol=0)
    assert TokenScheduler(10).alphas_cumprod.dtype == torch.float64


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("clip", [None, 1.5])
def test_a_walk_follows_the_equations(temperature, clip):
    head, z = make_head(token_range=clip), conditions()
    drawn = sample_tokens(head, z, num_steps=12, temperature=temperature, generator=generator(3))
    expected = reference(head, z, times=spaced(12), temperature=temperature, seed=3, clip=clip)
    assert drawn.shape == (2, 4, CHANNELS) and close(drawn, expected)


def test_guidance_moves_the_noise_and_leaves_the_variance():
    head, z, none = make_head(token_range=2.0), conditions(), conditions(seed=5)
    for scale in (0.0, 0.5, 3.0):
        drawn = sample_tokens(head, z, none, scale, 12, generator=generator(3))
        assert close(drawn, reference(head, z, none, scale, spaced(12), seed=3, clip=2.0))


class Counted:
    """A head that remembers how many tokens each call had."""

    token_channels, token_range = CHANNELS, 2.0

    def __init__(self):
        self.rows: list[int] = []
        self._head = make_head()

    def __call__(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self._head(x, t, z)


def test_without_guidance_the_other_branch_costs_nothing():
    head, z, none = Counted(), conditions(), conditions(seed=5)
    plain = sample_tokens(head, z, num_steps=6, generator=generator())
    off = sample_tokens(head, z, none, 1.0, 6, generator=generator())
    assert torch.equal(plain, off) and head.rows == [8] * 12
    sample_tokens(head, z, none, 2.0, 6, generator=generator())
    assert head.rows[12:] == [16] * 6


def test_without_temperature_only_the_first_noise_counts():
    head, z = make_head(token_range=2.0), conditions()
    first = [sample_tokens(head, z, num_steps=8, temperature=0.0, generator=generator(seed)) for seed in (0, 0, 1)]
    assert torch.equal(first[0], first[1]) and not close(first[2], first[0], 0.1)
    noisy = sample_tokens(head, z, num_steps=8, generator=generator(0))
    assert not close(noisy, first[0], 1e-3)


def test_the_range_of_tokens_is_kept():
    head, z = make_head(token_range=0.4), conditions()
    drawn = sample_tokens(head, z, num_steps=8, generator=generator())
    assert drawn.abs().max() <= 0.4 + 1e-12
    head.token_range = None
    assert sample_tokens(head, z, num_steps=8, generator=generator()).abs().max() > 1


def test_each_image_has_its_own_draws_whatever_others_want():
    head, z, none = make_head(token_range=2.0), conditions(3, 5), conditions(3, 5, seed=5)
    counts = torch.tensor([5, 2, 0])
    drawn = sample_tokens(head, z, none, 2.0, 6, generator=[generator(b) for b in range(3)], counts=counts)
    assert not drawn[1, 2:].any() and not drawn[2].any()
    for b, count in enumerate(counts.tolist()[:2]):
        one = (z[b : b + 1, :count], none[b : b + 1, :count])
        assert close(drawn[b : b + 1, :count], sample_tokens(head, *one, 2.0, 6, generator=[generator(b)]))
    shared = [sample_tokens(head, z, num_steps=6, generator=generator(9), counts=counts) for _ in range(2)]
    assert torch.equal(*shared) and shared[0][1, :2].any()
    together = sample_tokens(head, z, num_steps=6, generator=generator(9))
    assert torch.equal(together, sample_tokens(head, z, num_steps=6, generator=generator(9), counts=counts * 0 + 5))


def test_the_walk_is_in_float32_whatever_the_head_is_in():
    z = conditions()
    exact = sample_tokens(make_head(token_range=2.0), z, num_steps=6, generator=generator(), temperature=0.0)
    assert exact.dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16):
        drawn = sample_tokens(make_head(dtype, 2.0), z.to(dtype), num_steps=6, generator=generator(), temperature=0.0)
        assert drawn.dtype == torch.float32 and torch.isfinite(drawn).all()


class GaussianHead:
    """The best answer there is for tokens that are Gaussian, with mean z[0] and deviation exp(z[1]) in each channel.

    Then reverse steps are Gaussian too, however long, so a walk of any length draws from the data's distribution.
    """

    token_channels, token_range = CHANNELS, None

    def __init__(self, times: list[int]):
        kept = shares()
        self._rows = {
            now: (kept[now], kept[before] if before is not None else 1.0)
            for now, before in zip(times, [None, *times[:-1]], strict=True)
        }

    def __call__(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        now, before = self._rows[int(t)]
        beta, mean, variance = 1 - now / before, z[:, :1], torch.exp(2 * z[:, 1:2])
        total = now * variance + 1 - now
        noise = math.sqrt(1 - now) * (x - math.sqrt(now) * mean) / total
        least = max(beta * (1 - before) / (1 - now), 1e-20)
        unsure = variance * (1 - now) / total  # of the clean token, given the noisy one
        wanted = least + (math.sqrt(before) * beta / (1 - now)) ** 2 * unsure
        share = 2 * (wanted.log() - math.log(least)) / (math.log(beta) - math.log(least)) - 1
        return torch.cat([noise, share.expand_as(noise)], dim=1)


@pytest.mark.parametrize("count", [5, 25])
def test_gaussian_tokens_come_out_with_the_mean_and_the_variance_that_their_vectors_say(count):
    means, deviations, draws = torch.tensor([-1.5, 0.0, 0.7]), torch.tensor([0.2, 1.0, 0.6]), 4000
    z = torch.stack([means, deviations.log()], dim=1).double().repeat_interleave(draws, dim=0)[None]
    drawn = sample_tokens(GaussianHead(spaced(count)), z, num_steps=count, generator=generator(7))
    drawn = drawn.view(3, draws * CHANNELS)
    for row, mean, deviation in zip(drawn, means.tolist(), deviations.tolist(), strict=True):
        size = len(row)
        assert abs(row.mean().item() - mean) < 4 * deviation / math.sqrt(size)
        assert abs(row.var().item() - deviation**2) < 4 * deviation**2 * math.sqrt(2 / size)
        assert abs(((row - mean) / deviation).pow(3).mean().item()) < 4 * math.sqrt(15 / size)


def test_guided_gaussians_of_one_variance_are_moved_by_the_scale():
    """Noise of Gaussians of one variance is linear in the mean, so guidance draws around u + scale (c - u)."""
    draws = 6000
    z, none = (torch.tensor([[[mean, math.log(0.5)]]]).double().expand(1, draws, 2) for mean in (0.5, 0.2))
    drawn = sample_tokens(GaussianHead(spaced(10)), z, none, 3.0, 10, generator=generator(8)).flatten()
    assert abs(drawn.mean().item() - 1.1) < 4 * 0.5 / math.sqrt(len(drawn))
    assert abs(drawn.var().item() - 0.25) < 4 * 0.25 * math.sqrt(2 / len(drawn))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 1}, "num_steps must be a whole number from 2 to 1000, got 1"),
        ({"num_steps": 1001}, "num_steps must be a whole number from 2 to 1000, got 1001"),
        ({"num_steps": 2.5}, r"num_steps must be a whole number from 2 to 1000, got 2\.5"),
        ({"temperature": -1.0}, r"temperature must be finite and at least 0, got -1\.0"),
        ({"temperature": math.nan}, "temperature must be finite"),
        ({"z_uncond": conditions(), "scale": -1.0}, r"scale must be finite and at least 0, got -1\.0"),
        ({"scale": 2.0}, r"scale must be 1 without z_uncond, got 2\.0"),
        ({"z_uncond": conditions(1)}, r"z_uncond must be \(2, 4, 8\) as z, got \(1, 4, 8\)"),
        ({"z": conditions(2, 0)}, r"z must be \(B, n, D\), none of them 0, got \(2, 0, 8\)"),
        ({"generator": [generator()]}, "generator must be one, or a list of 2, got 1"),
        ({"counts": torch.tensor([1, 5])}, r"counts must be \(2,\) from 0 to 4, got \[1, 5\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_tokens(make_head(), **{"z": conditions(), **arguments})


def test_images_with_their_own_strength_and_count_are_what_they_are_alone():
    head, z, none = make_head(), conditions(3), conditions(3, seed=2)
    scales, counts = torch.tensor([1.0, 2.5, 4.0]), torch.tensor([4, 2, 4])
    each = [generator(seed) for seed in range(3)]
    together = sample_tokens(head, z, none, scales, 4, generator=each, counts=counts)
    for b, (scale, count) in enumerate(zip(scales.tolist(), counts.tolist(), strict=True)):
        own = (part[b : b + 1, :count] for part in (z, none))
        alone = sample_tokens(head, *own, scale, 4, generator=[generator(b)])
        torch.testing.assert_close(together[b, :count], alone[0], rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"scale must be one number, or \(3,\), got \(2,\)"):
        sample_tokens(head, z, none, scales[:2], 4)
