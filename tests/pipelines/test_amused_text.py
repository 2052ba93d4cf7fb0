"""aMUSEd's prompts and components: the network is fed what diffusers' own pipeline feeds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AmusedPipeline, AmusedScheduler
from torch import Tensor

from gendiff.models.masked.amused_tokenizer import AmusedTokenizer
from gendiff.models.masked.uvit_adapter import UVitAdapter
from gendiff.pipelines.amused import amused_components, encode_prompts

PROMPTS, NEGATIVE = ["a red hat", "two blue cats on a mat " * 8], ["bad", ""]


@pytest.fixture(scope="module")
def amused(tiny_amused) -> AmusedPipeline:
    """Tiny random parts: 4 x 4 tokens of 8 x 8 pixels, a tokenizer of letters with room for 24."""
    return tiny_amused


def fed(pipe: AmusedPipeline, **options: Any) -> dict[str, Tensor]:
    """What the stock pipeline hands the network in its first step, and what it gets."""
    seen: dict[str, Tensor] = {}

    def look(module: Any, args: Any, kwargs: dict[str, Any], result: Tensor) -> None:
        if not seen:
            seen.update(kwargs, tokens=args[0], logits=result)

    handle = pipe.transformer.register_forward_hook(look, with_kwargs=True)
    pipe(PROMPTS, num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(0), **options)
    handle.remove()
    return seen


def encoded(pipe: AmusedPipeline, prompts: list[str], **options: Any) -> Any:
    return encode_prompts(pipe.tokenizer, pipe.text_encoder, prompts, **{"size": (8, 8), **options})


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_prompts_are_encoded_as_by_the_stock_pipeline(amused, negative: list[str] | None):
    stock = fed(amused, negative_prompt=negative, guidance_scale=4.0)
    halves = [encoded(amused, negative or ["", ""]), encoded(amused, PROMPTS)]
    for name in vars(halves[0]):
        got = torch.cat([getattr(half, name) for half in halves])
        assert torch.equal(got, stock[name]) and got.dtype == stock[name].dtype, name
    assert stock["encoder_hidden_states"].shape == (4, 24, 16)
    assert (halves[1].pooled_text_emb[0] - halves[1].pooled_text_emb[1]).abs().max() > 1e-3


def test_size_crop_and_score_are_in_the_stock_order(amused):
    options = {"micro_conditioning_crop_coord": (3, 1), "micro_conditioning_aesthetic_score": 5}
    stock = fed(amused, guidance_scale=0.0, height=8, width=16, **options)
    got = encoded(amused, PROMPTS, size=(16, 8), crop=(3, 1), aesthetic_score=5)
    assert torch.equal(got.micro_conds, stock["micro_conds"])
    assert got.micro_conds.tolist() == [[16, 8, 3, 1, 5]] * 2


def test_the_adapter_says_what_the_stock_pipeline_gets(amused):
    stock = fed(amused, guidance_scale=0.0)
    tokens, hidden = torch.zeros(2, 16, dtype=torch.long), torch.ones(2, 16, dtype=torch.bool)
    assert (stock["tokens"] == 23).all()
    with torch.no_grad():
        logits = UVitAdapter(amused.transformer)(tokens, hidden, encoded(amused, PROMPTS)).sample
    assert torch.equal(logits, stock["logits"].flatten(2).transpose(1, 2))


def test_components_are_the_same_objects_and_the_tokenizer_speaks_our_range(amused):
    parts = amused_components(amused)
    assert set(parts) == {"transformer", "image_tokenizer", "scheduler", "tokenizer", "text_encoder"}
    assert all(parts[name] is getattr(amused, name) for name in ("transformer", "tokenizer", "text_encoder"))
    tokenizer = parts["image_tokenizer"]
    assert tokenizer.vqvae is amused.vqvae and tokenizer.grid == (4, 4) and tokenizer.codebook_size == 20
    tokens = torch.randint(0, 20, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        stock = amused.vqvae.decode(tokens.view(2, 4, 4), force_not_quantize=True, shape=(2, 4, 4, 4)).sample
        assert torch.allclose(tokenizer.decode(tokens), stock * 2 - 1, atol=1e-6) and stock.std() > 0.01
        pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
        latents = amused.vqvae.encode(pixels).latents
        codes = amused.vqvae.quantize(latents)[2][2].view(2, 16)
    assert torch.equal(tokenizer.encode(pixels * 2 - 1), codes) and codes.unique().numel() > 1
    config = parts["scheduler"].config
    assert (config["schedule"], config["order"], config["guidance_schedule"]) == ("cosine", "confidence", "constant")
    assert list(config["confidence_temperature"]) == [2.0, 0.0]


def test_the_tokenizer_is_saved_and_loaded(amused, tmp_path):
    tokenizer = amused_components(amused)["image_tokenizer"]
    tokenizer.save_pretrained(tmp_path)
    again = AmusedTokenizer.from_pretrained(tmp_path)
    tokens = torch.arange(16).view(1, 16)
    with torch.no_grad():
        assert torch.equal(again.decode(tokens), tokenizer.decode(tokens))


@pytest.mark.parametrize("prompts", ["a text", [], ["one", 2]])
def test_prompts_that_are_none_are_refused(amused, prompts: Any):
    with pytest.raises(ValueError, match="prompts must be at least one text in a list"):
        encoded(amused, prompts)


def test_micro_conditions_must_be_numbers(amused):
    with pytest.raises(ValueError, match="size and crop must be two numbers each"):
        encoded(amused, PROMPTS, size=(8, 8, 8))
    with pytest.raises(ValueError, match="aesthetic_score"):
        encoded(amused, PROMPTS, aesthetic_score=float("nan"))


def test_parts_that_do_not_fit_are_refused(amused):
    parts = {name: getattr(amused, name) for name in ("vqvae", "tokenizer", "text_encoder", "transformer")}
    with pytest.raises(ValueError, match="mask_token_id of the scheduler must be 23, got 21"):
        amused_components(SimpleNamespace(**parts, scheduler=AmusedScheduler(mask_token_id=21)))
    with pytest.raises(TypeError, match="transformer must be a UVit2DModel of diffusers, got VQModel"):
        amused_components(SimpleNamespace(**{**parts, "transformer": amused.vqvae}, scheduler=amused.scheduler))
