"""The quantiser of stages: its recursion, its table of convolutions, and that encoding and decoding add up alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gendiff.nn.bands import band_maps, band_radii, lowpasses
from gendiff.nn.residual_quantizer import QuantizedStages, ResidualQuantizer, smoother_of_stages

C, V = 6, 40
TEN = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SHIPPED = [(1, 2, 3, 4, 5, 7), (1, 2, 3, 4, 6, 8), TEN]
DTYPES = [torch.float32, torch.float64]


def make(stages: tuple[int, ...], dtype: torch.dtype = torch.float32, **options) -> ResidualQuantizer:
    torch.manual_seed(0)
    index = smoother_of_stages(len(stages), 4)
    return ResidualQuantizer(stages, C, V, index, **options).to(dtype).requires_grad_(False)


def noise(stages: tuple[int, ...], dtype: torch.dtype = torch.float32, batch: int = 3) -> Tensor:
    size = stages[-1]
    return torch.randn(batch, C, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def plain(quantizer: ResidualQuantizer, f: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """VAR's algorithm 1: what is left of the map is quantised at one scale after another."""
    codes, stages = quantizer.codebook.weight, quantizer.stages
    left, total, tokens, sums = f, torch.zeros_like(f), [], []
    for k, side in enumerate(stages):
        grid = F.adaptive_avg_pool2d(left, side) if k < len(stages) - 1 else left
        chosen = torch.cdist(grid.flatten(2).transpose(1, 2), codes[None]).argmin(dim=-1)
        u = codes[chosen].transpose(1, 2).reshape(len(f), C, side, side)
        if k < len(stages) - 1:
            u = F.interpolate(u, size=f.shape[-2:], mode="bicubic", align_corners=False)
        conv = quantizer.phi[quantizer.smoother_index[k]]
        total = total + (u * 0.5 + conv(u) * 0.5)
        left = f - total
        tokens.append(chosen)
        sums.append(total)
    return tokens, sums


def assert_same(result: QuantizedStages, tokens: list[Tensor], sums: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(result.tokens, tokens, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(result.sums, sums, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stages", SHIPPED)
def test_without_bands_it_is_plain_residual_quantisation_bit_for_bit(stages: tuple[int, ...], dtype: torch.dtype):
    quantizer, f = make(stages, dtype), noise(stages, dtype)
    assert_same(quantizer.quantize(lowpasses(f, None, len(stages))), *plain(quantizer, f))


@pytest.mark.parametrize("spacing", ["linear", "area", "nyquist"])
@pytest.mark.parametrize("stages", SHIPPED)
def test_the_papers_recursion_unrolls_to_lowpass_less_what_was_said(stages: tuple[int, ...], spacing: str):
    quantizer, f, radii = make(stages, torch.float64), noise(stages, torch.float64), band_radii(spacing, stages)
    targets = lowpasses(f, radii, len(stages))
    result = quantizer.quantize(targets)
    left = torch.zeros_like(f)
    for k, band in enumerate(band_maps(f, radii)):
        wanted = left + band  # R_{k-1} + f_k
        said = result.sums[k - 1] if k else torch.zeros_like(f)
        assert (wanted - (targets[k] - said)).abs().max() <= 1e-13
        grid = F.adaptive_avg_pool2d(wanted, stages[k])
        assert (grid - result.grids[k]).abs().max() <= 1e-13
        left = wanted - quantizer.contribution(result.tokens[k], k)
    assert (left - (f - result.sums[-1])).abs().max() <= 1e-13


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stages", SHIPPED)
def test_decoding_adds_up_as_encoding_did(stages: tuple[int, ...], dtype: torch.dtype):
    quantizer = make(stages, dtype)
    result = quantizer.quantize(lowpasses(noise(stages, dtype), band_radii("area", stages), len(stages)))
    assert_same(result, result.tokens, quantizer.sums(result.tokens))
    assert [tuple(codes.shape) for codes in result.tokens] == [(3, side**2) for side in stages]
    assert all(codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < V for codes in result.tokens)
    assert all(total.dtype == dtype for total in result.sums)
    first = quantizer.sums(result.tokens[:2])
    assert len(first) == 2 and torch.equal(first[1], result.sums[1])


@pytest.mark.parametrize("cosine", [False, True])
def test_the_nearest_code_is_the_nearest(cosine: bool):
    quantizer, grid = make((1, 2, 5), torch.float64, cosine=cosine), noise((5,), torch.float64)
    chosen = quantizer.nearest(grid)
    for b in range(3):
        for site in range(25):
            row = grid[b, :, site // 5, site % 5]
            if cosine:
                best = F.cosine_similarity(row[None], quantizer.codebook.weight).argmax()
            else:
                best = (row - quantizer.codebook.weight).square().sum(dim=1).argmin()
            assert chosen[b, site] == best


def test_the_last_stage_is_not_resized_and_tokens_are_row_major():
    quantizer = make((1, 2, 3), smooth_ratio=0.0)
    assert len(quantizer.phi) == 0
    tokens = torch.arange(9)[None]
    said = quantizer.contribution(tokens, 2)
    for site in range(9):
        assert torch.equal(said[0, :, site // 3, site % 3], quantizer.codebook.weight[site])
    assert torch.equal(quantizer.nearest(said), tokens)


def test_a_whole_of_codes_is_said_without_rest():
    """Where a map is exactly what the last stage can say, nothing is left over."""
    quantizer = make((3,), torch.float64, smooth_ratio=0.0)
    f = quantizer.contribution(torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5]]), 0)
    result = quantizer.quantize([f])
    assert torch.equal(result.sums[-1], f)


@pytest.mark.parametrize(
    ("stages", "table"),
    [
        (10, (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)),  # k = 2 and k = 7 are ties that float64 rounding decides
        (6, (0, 0, 1, 2, 3, 3)),
        (4, (0, 1, 2, 3)),
        (3, (0, 1, 2)),
        (1, (0,)),
    ],
)
def test_four_convolutions_are_shared_as_in_published_weights(stages: int, table: tuple[int, ...]):
    assert smoother_of_stages(stages, min(4, stages)) == table


def test_one_convolution_or_one_for_each_stage():
    assert smoother_of_stages(7, 1) == (0,) * 7
    assert smoother_of_stages(7, 7) == tuple(range(7))
    assert smoother_of_stages(10, 2) == (0,) * 5 + (1,) * 5


def test_each_stage_is_smoothed_by_its_own_convolution():
    quantizer = make(TEN)
    tokens = [torch.randint(V, (1, side**2), generator=torch.Generator().manual_seed(side)) for side in TEN]
    before = [quantizer.contribution(codes, k) for k, codes in enumerate(tokens)]
    quantizer.phi[1].weight.data += 1
    changed = [not torch.equal(quantizer.contribution(codes, k), before[k]) for k, codes in enumerate(tokens)]
    assert changed == [False, False, True, True, True, False, False, False, False, False]


def test_the_next_input_is_the_mean_over_windows():
    quantizer, total = make((1, 2, 5, 7)), noise((7,))
    assert torch.equal(quantizer.next_input(total, 3)[1, 9], total[1, :, 1, 2])  # the last stage is not resized
    assert torch.allclose(quantizer.next_input(total, 1)[0, 1], total[0, :, :4, 3:].mean(dim=(1, 2)), atol=1e-6)
    # 7 is no multiple of 5: windows floor(7 i / 5) .. ceil(7 (i + 1) / 5) overlap.
    assert torch.allclose(quantizer.next_input(total, 2)[2, 7], total[2, :, 1:3, 2:5].mean(dim=(1, 2)), atol=1e-6)


def test_sure_weights_say_what_tokens_say():
    quantizer = make((1, 2, 4), torch.float64)
    tokens = torch.randint(V, (2, 4), generator=torch.Generator().manual_seed(0))
    weights = F.one_hot(tokens, V).double()
    assert torch.allclose(quantizer.contribution(weights, 1), quantizer.contribution(tokens, 1), atol=1e-14)
    half = quantizer.contribution(weights / 2, 1) + quantizer.contribution(weights / 2, 1)
    bias = quantizer.phi[quantizer.smoother_index[1]].bias[:, None, None] / 2
    assert torch.allclose(half - bias, quantizer.contribution(tokens, 1), atol=1e-14)


def test_autocast_changes_no_code():
    stages = SHIPPED[0]
    quantizer, f = make(stages), noise(stages)
    result = quantizer.quantize(lowpasses(f, None, len(stages)))
    with torch.autocast("cpu", torch.bfloat16):
        again = quantizer.quantize(lowpasses(f, None, len(stages)))
        assert_same(again, result.tokens, quantizer.sums(result.tokens))
    assert_same(again, result.tokens, result.sums)


def test_sums_stay_in_full_precision_with_half_the_weights():
    stages = SHIPPED[0]
    quantizer = make(stages).to(torch.bfloat16)
    result = quantizer.quantize(lowpasses(noise(stages), None, len(stages)))
    assert all(total.dtype == torch.float32 for total in result.sums) and quantizer.nothing(2).dtype == torch.float32
    assert_same(result, result.tokens, quantizer.sums(result.tokens))


def test_gradients_reach_codes_and_convolutions_but_not_the_map():
    stages = SHIPPED[0]
    quantizer, f = make(stages).requires_grad_(True), noise(stages).requires_grad_()
    result = quantizer.quantize(lowpasses(f, band_radii("area", stages), len(stages)))
    result.sums[-1].square().sum().backward()
    assert f.grad is None
    used = torch.cat([codes.flatten() for codes in result.tokens]).unique()
    moved = quantizer.codebook.weight.grad.abs().sum(dim=1).nonzero().flatten()
    assert torch.equal(moved, used)
    assert all(conv.weight.grad.any() and conv.bias.grad.any() for conv in quantizer.phi)
