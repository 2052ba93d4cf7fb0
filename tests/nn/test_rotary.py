from __future__ import annotations

import math

import pytest
import torch

from gendiff.nn.rotary import rotary_table, rotate


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    return rotate(x, rotary_table(torch.tensor([position]), x.shape[-1], x.dtype))


def test_rotation_multiplies_pairs_as_complex_numbers():
    x, positions = draw(2, 3, 4, 6), torch.tensor([0, 5, 11])
    got = rotate(x, rotary_table(positions, 6, torch.float64, theta=50.0))
    angles = positions[:, None] * 50.0 ** (-2.0 * torch.arange(3).double() / 6)
    expected = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(got, torch.cat([expected.real, expected.imag], -1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shift", [1, 17, 10_000])
def test_products_depend_on_distance_alone(shift):
    q, k = draw(1, 1, 2, 8), draw(1, 1, 2, 8, seed=1)
    near = (turned(q, 9) * turned(k, 4)).sum(-1)
    torch.testing.assert_close((turned(q, 9 + shift) * turned(k, 4 + shift)).sum(-1), near, rtol=0, atol=1e-10)
    assert (near - (turned(q, 9) * turned(k, 5)).sum(-1)).abs().min() > 1e-3
    torch.testing.assert_close(turned(q, 9).norm(), q.norm(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_angles_stay_exact_far_from_the_start(dtype):
    position, dim = 10_000_019, 8  # a float32 angle would be off by about 1 radian
    cos, sin = rotary_table(torch.tensor([position]), dim, dtype)
    assert cos.dtype == sin.dtype == dtype
    assert cos.shape == sin.shape == (1, dim)
    angles = [position * 10_000.0 ** (-2 * i / dim) for i in range(dim // 2)] * 2
    bound = max(1e-8, torch.finfo(dtype).eps)
    for i, angle in enumerate(angles):
        assert abs(float(cos[0, i]) - math.cos(angle)) <= bound
        assert abs(float(sin[0, i]) - math.sin(angle)) <= bound


def test_dtype_is_kept_and_position_zero_turns_nothing():
    for dtype in (torch.float32, torch.bfloat16):
        x = draw(1, 1, 1, 4, dtype=torch.float32).to(dtype)
        assert turned(x, 3).dtype == dtype
        assert torch.equal(turned(x, 0), x)
