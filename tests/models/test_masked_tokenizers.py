"""Tokenizers of masked generation: what they encode they decode, saved ones come back, bad images are refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from gendiff.errors import InvalidInputError
from gendiff.models.masked.fsq import FSQTokenizer
from gendiff.models.masked.kl_tokenizer import KLTokenizer
from gendiff.models.masked.maskgit import MaskGITTransformer2DModel
from gendiff.models.masked.patch_vq import PatchVQTokenizer
from gendiff.models.masked.pixel_patches import PixelPatchTokenizer
from gendiff.models.masked.vq_model_tokenizer import VQModelTokenizer
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.samplers.masked import MaskedScheduler
from gendiff.training.patch_centres import fit_patches

HALVES = [torch.bfloat16, torch.float16]
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
# Its norms have 32 groups, whatever is asked for.
SPATIAL = {"norm_type": "spatial", "block_out_channels": (32, 32)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int, channels: int, side: int, seed: int = 2) -> Tensor:
    return torch.rand(batch, channels, side, side, generator=generator(seed)) * 2 - 1


def cast(model: Any, dtype: torch.dtype) -> Any:
    """A copy in another dtype; diffusers' own method warns of nothing."""
    return nn.Module.to(copy.deepcopy(model), dtype)


def patch_vq(side: int = 10, channels: int = 2, patch: int = 4, codes: int = 8, padding: int = 1) -> PatchVQTokenizer:
    """Centres are multiples of 1/8, so that every dtype has them as they are, and well apart."""
    tokenizer = PatchVQTokenizer(side, channels, patch, codes, padding)
    drawn = torch.randint(-8, 9, tokenizer.codebook.shape, generator=generator(1)) / 8
    tokenizer.codebook.copy_(drawn)
    return tokenizer


def fsq(**options: Any) -> FSQTokenizer:
    torch.manual_seed(0)
    tiny: dict[str, Any] = {"sample_size": 12, "in_channels": 3, "levels": (5, 4, 3), "block_out_channels": (8, 16)}
    tokenizer = FSQTokenizer(**{**tiny, "padding": 2, "norm_num_groups": 4, **options}).eval()
    tokenizer.encoder.conv_out.weight.data.mul_(8)  # latents that reach the outer levels
    return tokenizer


def vq_model(dtype: torch.dtype = torch.float32, **options: Any) -> VQModel:
    torch.manual_seed(0)
    network = VQModel(**{**AUTOENCODER, "num_vq_embeddings": 32, **options}).eval()
    # Codes from among the latents, so that many of them are used.
    latents = network.encode(images(4, network.config["in_channels"], 16, seed=9)).latents.detach()
    network.quantize.embedding.weight.data = latents.movedim(1, -1).flatten(0, 2)[::8].contiguous()
    return cast(network, dtype)


def kl_model(dtype: torch.dtype = torch.float32, **options: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return cast(AutoencoderKL(**{**AUTOENCODER, **options}).eval(), dtype)


def pixel_patches() -> PixelPatchTokenizer:
    tokenizer = PixelPatchTokenizer(10, 2, 4, 1)
    tokenizer.mean.copy_(torch.linspace(-0.5, 0.5, 32))
    tokenizer.scale.copy_(torch.linspace(0.25, 2, 32))
    return tokenizer


ALL: dict[str, Callable[[], Any]] = {
    "patch_vq": patch_vq,
    "fsq": fsq,
    "vq_model": lambda: VQModelTokenizer.wrap(vq_model()),
    "kl": lambda: KLTokenizer.wrap(kl_model(), patch_size=2),
    "pixel_patches": pixel_patches,
}
WRAPPERS = {"vq_model": lambda: VQModelTokenizer.wrap(vq_model()), "kl": lambda: KLTokenizer.wrap(kl_model())}


def shown(tokenizer: Any, batch: int = 3) -> Tensor:
    return images(batch, tokenizer.config["in_channels"], tokenizer.config["sample_size"])


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


@pytest.mark.parametrize("options", [{}, {"vq_embed_dim": 3}, {"lookup_from_codebook": True}, SPATIAL])
@torch.no_grad()
def test_vq_model_says_what_diffusers_says(options: dict):
    network = vq_model(**options)
    tokenizer = VQModelTokenizer.wrap(network)
    x = images(3, 3, 16)
    latents = network.encode(x).latents
    tokens = tokenizer.encode(x)
    assert torch.equal(tokens, network.quantize(latents)[2][2].view(3, 64)) and len(tokens.unique()) > 8
    assert (tokenizer(x) - network(x).sample).abs().max() <= 1e-5


@torch.no_grad()
def test_kl_says_what_diffusers_says():
    network = kl_model()
    tokenizer = KLTokenizer.wrap(network)
    x = images(3, 3, 16)
    mode = network.encode(x).latent_dist.mode()
    assert torch.equal(tokenizer.encode(x), (mode * 0.18215).flatten(2).transpose(1, 2))
    assert (tokenizer(x) - network.decode(mode).sample).abs().max() <= 1e-5
    assert torch.equal(KLTokenizer.wrap(network, scaling_factor=0.25).encode(x), (0.25 * mode).flatten(2).mT)


@torch.no_grad()
def test_kl_patches_have_channels_first():
    """By loops: token r * columns + c holds the patch at row r, column c; channel, row, column in it, in that order."""
    network = kl_model(latents_mean=[0.5, -0.5, 1.0, 0.0], latents_std=[2.0, 0.5, 1.0, 4.0])
    tokenizer = KLTokenizer.wrap(network, scaling_factor=0.25, patch_size=2)
    x = images(2, 3, 16)
    latents = network.encode(x).latent_dist.mode()  # (2, 4, 8, 8)
    tokens = tokenizer.encode(x)
    assert tokens.shape == (2, 16, 16) and tokenizer.grid == (4, 4) and tokenizer.token_channels == 16
    for place in range(256):
        token, channel, row, column = place // 16, place % 16 // 4, place % 4 // 2, place % 2
        latent = latents[:, channel, token // 4 * 2 + row, token % 4 * 2 + column]
        mean, std = network.config["latents_mean"][channel], network.config["latents_std"][channel]
        assert (tokens[:, token, place % 16] - (latent - mean) / std * 0.25).abs().max() <= 1e-6
    assert (tokenizer.decode(tokens) - network.decode(latents).sample).abs().max() <= 1e-5
    shifted = KLTokenizer.wrap(kl_model(shift_factor=0.5), scaling_factor=0.25)
    assert torch.equal(shifted.encode(x), ((latents - 0.5) * 0.25).flatten(2).mT)


@torch.no_grad()
def test_kl_posterior_is_drawn_from_generators():
    network = kl_model()
    tokenizer = KLTokenizer.wrap(network)
    x = images(3, 3, 16)
    one, two = (tokenizer.encode(x, [generator(seed) for seed in (7, 8, 9)]) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, tokenizer.encode(x))
    alone = tokenizer.encode(x[1:2], generator(8))
    assert (alone - one[1:2]).abs().max() <= 1e-5  # an image's draw does not depend on its batch mates
    std = network.encode(x[:1]).latent_dist.std
    drawn = tokenizer.encode(x[:1].expand(60, -1, -1, -1), generator(3))
    standard = (drawn - tokenizer.encode(x[:1])) / (0.18215 * std).flatten(2).mT  # 15360 numbers
    assert abs(float(standard.mean())) < 4 / 15360**0.5
    assert float(standard.std()) == pytest.approx(1, abs=4 / (2 * 15360) ** 0.5)
    with pytest.raises(ValueError, match="generator must be one, or one for each of 3 images, got 2"):
        tokenizer.encode(x, [generator(), generator()])


@pytest.mark.parametrize("name", WRAPPERS)
@torch.no_grad()
def test_a_network_is_wrapped_and_not_copied(name: str):
    tokenizer = WRAPPERS[name]()
    network = tokenizer.vqvae if name == "vq_model" else tokenizer.vae
    wrapped = type(tokenizer).wrap(network, 32)
    inner = wrapped.vqvae if name == "vq_model" else wrapped.vae
    assert inner is network and wrapped.training is network.training is False
    assert all(a is b for a, b in zip(wrapped.parameters(), network.parameters(), strict=True))
    assert wrapped.grid == (16, 16) and network.config["sample_size"] == 16 and wrapped.device.type != "meta"
    x = images(2, 3, 16)
    assert torch.equal(wrapped.encode(x), tokenizer.encode(x))


@pytest.mark.parametrize("name", WRAPPERS)
@torch.no_grad()
def test_any_side_that_is_a_multiple_of_the_stride_works(name: str):
    tokenizer = WRAPPERS[name]()
    for side in (8, 24):
        x = images(2, 3, side)
        tokens = tokenizer.encode(x)
        assert tokens.shape[1] == (side // 2) ** 2 and tokenizer.decode(tokens).shape == x.shape
    with pytest.raises(ValueError, match="multiple of the tokenizer's stride 2, got 17"):
        tokenizer.encode(images(2, 3, 17))
    with pytest.raises(ValueError, match="square grid, got 12"):
        tokenizer.decode(tokens[:, :12])


@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_half_precision_finds_the_nearest_code_of_its_latents(dtype: torch.dtype):
    network = vq_model(dtype)
    tokenizer = VQModelTokenizer.wrap(network)
    x = images(3, 3, 16).to(dtype)
    latents = network.encode(x).latents.movedim(1, -1).flatten(1, 2).double()
    codes = network.quantize.embedding.weight.double()
    gaps = (latents[:, :, None] - codes).square().sum(dim=-1).topk(2, dim=-1, largest=False)
    assert (gaps.values[..., 1] - gaps.values[..., 0] > 1e-6).all()
    tokens = tokenizer.encode(images(3, 3, 16))
    assert torch.equal(tokens, gaps.indices[..., 0]) and tokenizer.decode(tokens).dtype == dtype


@pytest.mark.parametrize("name", WRAPPERS)
@torch.no_grad()
def test_float16_is_computed_in_float32_where_the_config_asks_for_it(name: str):
    make, kind = (vq_model, VQModelTokenizer) if name == "vq_model" else (kl_model, KLTokenizer)
    network: Any = make(torch.float16, force_upcast=True)
    weights = [weight.clone() for weight in network.parameters()]
    x = images(2, 3, 16)
    tokenizer: Any = kind.wrap(network)
    wide: Any = kind.wrap(cast(network, torch.float32))
    tokens, expected = tokenizer.encode(x), wide.encode(x)
    assert torch.equal(tokens, expected.to(tokens.dtype)) and tokens.dtype in (torch.int64, torch.float16)
    decoded = tokenizer.decode(tokens)
    assert decoded.dtype == torch.float16 and torch.equal(decoded, wide.decode(expected.to(tokens.dtype)).half())
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
    assert network.dtype == torch.float16
    plain: Any = kind.wrap(make(torch.float16, force_upcast=False))
    assert not torch.equal(plain.decode(tokens), decoded)


def test_a_pipeline_around_a_wrapped_network_comes_back(tmp_path):
    torch.manual_seed(0)
    transformer = MaskGITTransformer2DModel(8, 32, 3, 1, num_attention_heads=2, attention_head_dim=8).eval()
    pipe = MaskedGenerationPipeline(transformer, VQModelTokenizer.wrap(vq_model()), MaskedScheduler())
    pipe.save_pretrained(tmp_path)
    loaded = MaskedGenerationPipeline.from_pretrained(tmp_path)
    outputs = []
    for one in (pipe, loaded):
        one.set_progress_bar_config(disable=True)
        outputs.append(one([0, 2], num_inference_steps=3, generator=generator(), output_type="pt"))
    assert torch.equal(outputs[0].tokens, outputs[1].tokens) and len(outputs[0].tokens.unique()) > 8
    assert torch.equal(outputs[0].images, outputs[1].images) and outputs[0].images.std() > 0


def test_wrappers_refuse_what_does_not_fit():
    vq, kl = VQModelTokenizer.wrap(vq_model()), KLTokenizer.wrap(kl_model(), patch_size=2)
    with pytest.raises(ValueError, match="tokens must be from 0 to 31, got 0 to 32"):
        vq.decode(torch.tensor([[0, 1, 2, 32]]))
    with pytest.raises(ValueError, match="tokens must be from 0 to 31, got -1 to 2"):
        vq.decode(torch.tensor([[0, 1, 2, -1]]))
    with pytest.raises(ValueError, match=r"tokens must be \(B, N\) int64"):
        vq.decode(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"tokens must be \(B, N, 16\), got \(1, 4, 4\)"):
        kl.decode(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="sample_size must be a multiple of the tokenizer's stride 4, got 18"):
        KLTokenizer.wrap(kl_model(), 18, patch_size=2)
    with pytest.raises(ValueError, match="sample_size must be a multiple of the tokenizer's stride 2, got 15"):
        VQModelTokenizer.wrap(vq_model(), 15)
    with pytest.raises(ValueError, match="scaling_factor must be above 0 and finite, got 0"):
        KLTokenizer.wrap(kl_model(), scaling_factor=0)
    with pytest.raises(ValueError, match="settings must not have in_channels"):
        VQModelTokenizer(settings={"in_channels": 3})
    with pytest.raises(TypeError, match="network must be a VQModel of diffusers, got AutoencoderKL"):
        VQModelTokenizer.wrap(kl_model())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in_channels 1 and out_channels 3"):
        KLTokenizer.wrap(kl_model(in_channels=1))
