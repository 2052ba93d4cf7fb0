"""Autoencoders of diffusers as tokenizers: they say what diffusers says, and no weight is copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_tokenizers import HALVES, SPATIAL, WRAPPERS, cast, generator, images, kl_model, vq_model

from gendiff.models.masked.kl_tokenizer import KLTokenizer
from gendiff.models.masked.maskgit import MaskGITTransformer2DModel
from gendiff.models.masked.vq_model_tokenizer import VQModelTokenizer
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.samplers.masked import MaskedScheduler


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
