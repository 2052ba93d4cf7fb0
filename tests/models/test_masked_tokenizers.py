"""Tokenizers of masked generation: what they encode they decode, saved ones come back, bad images are refused."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_tokenizers import ALL, HALVES, cast, fsq, generator, images, patch_vq, pixel_patches, shown
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.models.masked.fsq import FSQTokenizer
from gendiff.models.masked.patch_vq import PatchVQTokenizer
from gendiff.models.masked.pixel_patches import PixelPatchTokenizer
from gendiff.training.patch_centres import fit_patches


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_interface_is_the_same_for_all(name: str):
    tokenizer = ALL[name]()
    x = shown(tokenizer)
    tokens = tokenizer.encode(x)
    rows, columns = tokenizer.grid
    if tokenizer.codebook_size is None:
        assert tokens.shape == (3, rows * columns, tokenizer.token_channels) and tokens.dtype == torch.float32
    else:
        assert tokenizer.token_channels is None and tokens.shape == (3, rows * columns) and tokens.dtype == torch.int64
        assert tokens.min() >= 0 and tokens.max() < tokenizer.codebook_size and len(tokens.unique()) > 3
    assert tokenizer.decode(tokens).shape == x.shape
    again = tokenizer.encode(x[1:2])
    assert torch.equal(again, tokens[1:2]) if tokenizer.codebook_size else (again - tokens[1:2]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_a_saved_one_comes_back(name: str, tmp_path):
    tokenizer = ALL[name]()
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    x = shown(tokenizer)
    tokens = tokenizer.encode(x)
    assert torch.equal(loaded.encode(x), tokens) and torch.equal(loaded.decode(tokens), tokenizer.decode(tokens))
    assert loaded.grid == tokenizer.grid and loaded.codebook_size == tokenizer.codebook_size


@pytest.mark.parametrize("name", ALL)
def test_images_of_another_shape_are_refused(name: str):
    tokenizer = ALL[name]()
    channels, side = tokenizer.config["in_channels"], tokenizer.config["sample_size"]
    for shape in [(2, channels + 1, side, side), (2, channels, side + 1, side + 1), (2, channels, side, side + 4)]:
        with pytest.raises(ValueError, match="images"):
            tokenizer.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="images"):
        tokenizer.encode(torch.zeros(channels, side, side))


def test_patches_lie_where_they_should():
    """By loops: token r * columns + c is the patch at row r and column c of the padded image."""
    tokenizer = patch_vq(side=10, channels=2, patch=4, padding=1)
    x = images(2, 2, 10)
    padded = torch.full((2, 2, 12, 12), -1.0)
    padded[:, :, 1:11, 1:11] = x
    patches, tokens = tokenizer.patches(x), tokenizer.encode(x)
    for row in range(3):
        for column in range(3):
            patch = padded[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            assert torch.equal(patches[:, 3 * row + column], patch)
            gaps = (patch[:, None] - tokenizer.codebook).square().sum(dim=2)
            assert torch.equal(tokens[:, 3 * row + column], gaps.argmin(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("padding", [0, 2])
def test_patch_tokens_survive_the_round_trip_in_any_dtype(padding: int, dtype: torch.dtype):
    tokenizer = patch_vq(side=12, channels=2, patch=4, padding=padding)
    tokens = torch.randint(8, (4, math.prod(tokenizer.grid)), generator=generator())
    half = cast(tokenizer, dtype)
    decoded = half.decode(tokens)
    assert decoded.dtype == dtype and torch.equal(decoded.float(), tokenizer.decode(tokens))
    inner = torch.ones(tokenizer.grid, dtype=torch.bool)
    if padding:  # patches at the edge lost the part that was cut away
        inner[[0, -1]] = inner[:, [0, -1]] = False
    noisy = decoded + (0.1 * images(4, 2, 12)).to(dtype)
    assert torch.equal(half.encode(noisy)[:, inner.flatten()], tokens[:, inner.flatten()])


def test_a_patch_of_darkest_pixels_stands_for_padding():
    tokenizer = PatchVQTokenizer(4, 1, 4, 2, padding=4)
    tokenizer.codebook.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 16))
    assert tokenizer.encode(torch.ones(1, 1, 4, 4)).tolist() == [[1, 1, 1, 1, 0, 1, 1, 1, 1]]


def flat_patches(codes: int, copies: int, noise: float = 0.0) -> list[dict[str, Tensor]]:
    """Images of 2 x 2 patches, each one of `codes` centres plus noise."""
    centres = torch.randn(codes, 1, 2, 2, generator=generator(5)).clamp(-1, 1)
    chosen = torch.cat([torch.arange(codes)] * copies).view(-1, 2, 2)
    grid = centres[chosen].permute(0, 3, 1, 4, 2, 5).reshape(len(chosen), 1, 4, 4)
    grid = grid + noise * torch.randn(grid.shape, generator=generator(6))
    return [{"image": image} for image in grid]


def test_centres_are_found_and_the_same_seed_finds_the_same():
    data = flat_patches(codes=8, copies=40, noise=0.02)
    first, second = (PatchVQTokenizer(4, 1, 2, 8) for _ in range(2))
    fit_patches(first, data, seed=3)
    fit_patches(second, data, seed=3)
    assert torch.equal(first.codebook, second.codebook)
    x = torch.stack([item["image"] for item in data])
    error = (first.decode(first.encode(x)) - x).square().mean().sqrt()
    assert 0.01 < error < 0.03  # the noise; a single centre lost would cost ten times as much
    assert len(first.encode(x).unique()) == 8


def test_more_centres_than_different_patches_are_refused():
    data = flat_patches(codes=8, copies=4)
    fit_patches(PatchVQTokenizer(4, 1, 2, 8), data)
    tokenizer = PatchVQTokenizer(4, 1, 2, 9)
    with pytest.raises(InvalidInputError, match=r"codebook_size must be at most 8.*got 9"):
        fit_patches(tokenizer, data)
    assert not tokenizer.codebook.any()


def test_pixel_patches_lose_nothing():
    tokenizer, x = pixel_patches(), images(3, 2, 10)
    tokens = tokenizer.encode(x)
    assert (tokenizer.decode(tokens) - x).abs().max() <= 1e-6
    assert tokens.abs().max() <= tokenizer.token_range
    padded = torch.full((3, 2, 12, 12), -1.0)
    padded[:, :, 1:11, 1:11] = x
    expected = (padded[:, :, 4:8, 8:12].flatten(1) - tokenizer.mean) / tokenizer.scale
    assert torch.equal(tokens[:, 5], expected)  # row 1, column 2 of 3


@pytest.mark.parametrize("levels", [(2,), (5, 4, 3), (8, 6, 5), (3, 3, 3, 3)])
def test_fsq_numbers_are_a_mixed_radix(levels: tuple[int, ...]):
    tokenizer = fsq(levels=levels)
    ids = torch.arange(tokenizer.codebook_size)
    digits = tokenizer.ids_to_digits(ids)
    assert tokenizer.codebook_size == math.prod(levels) == len(digits.unique(dim=0))
    assert digits.min() == 0 and torch.equal(digits.amax(dim=0) + 1, torch.tensor(levels))
    assert torch.equal(tokenizer.digits_to_ids(digits), ids)
    assert torch.equal(digits[:, 0], ids % levels[0])  # the first is the fastest


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@torch.no_grad()
def test_fsq_rounds_what_the_encoder_gives_by_hand(dtype: torch.dtype):
    tokenizer = cast(fsq(), dtype)
    latents: list[Tensor] = []
    tokenizer.encoder.register_forward_hook(lambda module, args, output: latents.append(output))
    tokens = tokenizer.encode(images(4, 3, 12).to(dtype))
    ids, radix = torch.zeros(4, 16, dtype=torch.long), 1
    used = []
    for channel, levels in enumerate((5, 4, 3)):
        half = (levels - 1) / 2
        value = half + half * 1.001 * torch.tanh(latents[0][:, channel].double()).flatten(1)
        distance = (value[..., None] - torch.arange(levels)).abs()
        best = distance.topk(2, dim=-1, largest=False)
        sure = best.values[..., 1] - best.values[..., 0] > 1e-4  # not a tie in float32
        assert sure.all()
        used.append(best.indices[..., 0].unique().numel())
        ids, radix = ids + radix * best.indices[..., 0], radix * levels
    assert torch.equal(tokens, ids) and used == [5, 4, 3]


def test_fsq_gradients_pass_the_rounding():
    tokenizer = fsq().double()
    kept: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        tensor.retain_grad()
        kept[name] = tensor

    x = images(2, 3, 12).double()
    expected_y = tokenizer.decode(tokenizer.encode(x))
    tokenizer.encoder.register_forward_hook(lambda module, args, output: keep("latents", output))
    tokenizer.decoder.register_forward_pre_hook(lambda module, args: keep("codes", args[0]))
    y = tokenizer(x)
    assert (y - expected_y).abs().max() < 1e-9
    (y * images(2, 3, 12, seed=4)).sum().backward()
    latents, codes = kept["latents"], kept["codes"]
    assert latents.grad is not None and codes.grad is not None and codes.grad.abs().min(dim=1).values.max() > 0
    # codes = 2 digit / (levels - 1) - 1 and digit = half (1 + 1.001 tanh): the factors but for the slack cancel.
    expected = codes.grad * 1.001 * (1 - torch.tanh(latents) ** 2)
    assert (latents.grad - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert next(tokenizer.encoder.parameters()).grad.abs().max() > 0


def test_fsq_and_patches_refuse_what_does_not_fit():
    for make, options, message in [
        (FSQTokenizer, {"levels": (4, 1)}, "levels must be whole numbers from 2 to 256"),
        (FSQTokenizer, {"levels": ()}, "levels"),
        (FSQTokenizer, {"sample_size": 29}, "multiple of the stride 2, got 29"),
        (PatchVQTokenizer, {"sample_size": 29}, "multiple of patch_size 2, got 29"),
        (PatchVQTokenizer, {"padding": -1}, "padding"),
        (PatchVQTokenizer, {"codebook_size": 0}, "codebook_size must be a whole number of at least 1, got 0"),
        (PixelPatchTokenizer, {"sample_size": 29}, "multiple of patch_size 4, got 29"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(**options)
