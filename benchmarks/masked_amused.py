"""aMUSEd with random weights: what its light passes cost, and base decoding beside diffusers' own pipeline."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from arguments import say
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
from flops import count_flops
from masked_cost import compare_passes, ratio_cell, stop_of
from noise import load
from paired import compare_runs
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from gendiff.models.masked.text_condition import TextCondition
from gendiff.models.masked.uvit_adapter import UVitAdapter
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline

GROUP, LEAST_SPEED, MOST_SHARE = 32, 1.0, 0.45
STEPS, GUIDANCE, WORDS = 2, 10.0, 77
SIZES: dict[str, Any] = {"sample_size": 16}
"""aMUSEd-256 is the network that diffusers builds by default, on 16 x 16 tokens."""
QUICK: dict[str, Any] = {
    "sample_size": 8,
    "hidden_size": 64,
    "cond_embed_dim": 16,
    "micro_cond_encode_dim": 8,
    "micro_cond_embed_dim": 40,  # of five numbers
    "encoder_hidden_size": 16,
    "vocab_size": 40,
    "codebook_size": 32,
    "in_channels": 32,
    "block_out_channels": 32,
    "num_res_blocks": 1,
    "block_num_heads": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


def make_uvit(quick: bool, seed: int) -> UVit2DModel:
    """The network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UVit2DModel(**(QUICK if quick else SIZES)).eval()


def uvit_case(args: argparse.Namespace, model: UVit2DModel) -> dict[str, Any]:
    """A light pass of 32 tokens over a full one, batch 1."""
    network, config = UVitAdapter(model.to(args.device)), model.config
    generator = torch.Generator().manual_seed(args.seed)
    tokens = torch.randint(network.codebook_size, (1, network.num_tokens), generator=generator)
    hidden = torch.rand(tokens.shape, generator=generator) < 0.5
    text = torch.randn(1, WORDS, config["encoder_hidden_size"], generator=generator)
    pooled = torch.randn(1, config["cond_embed_dim"], generator=generator)
    condition = TextCondition(*(part.to(args.device) for part in (text, pooled, torch.tensor([[256, 256, 0, 0, 6]]))))
    group = min(GROUP, network.num_tokens // 4)
    rows = torch.randperm(network.num_tokens, generator=generator)[None, :group].to(args.device)
    inputs = (tokens.to(args.device), hidden.to(args.device), condition)
    before = load()
    # The full pass has a cache of its own, so that neither computes the text anew.
    found = compare_passes(network, inputs, rows, args, cached=True)
    words = f"light / full, {group} of {network.num_tokens} tokens, UVit2DModel, batch 1"
    cell = ratio_cell("uvit", words, found, _counted(network, inputs, rows), None if args.quick else MOST_SHARE)
    say(f"{words}: {cell['value']:.3f} in {cell['n']} pairs, operations {cell['predicted']:.3f}")
    return {"row": "uvit", "seed": args.seed, "cells": [{**cell, "load_before": before, "load_after": load()}]}


@torch.no_grad()
def _counted(network: UVitAdapter, inputs: tuple[Any, ...], rows: Tensor) -> float:
    """Operations of a light pass over those of a full one, both with the text known."""
    cache = network.make_cache()
    network(*inputs, cache=cache)
    full = count_flops(lambda: network(*inputs, cache=cache))
    return count_flops(lambda: network(*inputs, cache=cache, rows=rows)) / full


def peer_case(args: argparse.Namespace, model: UVit2DModel) -> dict[str, Any]:
    """Base decoding by diffusers' pipeline over ours: same weights, text, steps and guidance, batch 1, no decoder."""
    theirs = make_amused(model, args.seed).to(args.device)
    ours: Any = MaskedGenerationPipeline.from_amused(theirs)  # type: ignore[attr-defined]
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    call = {"prompt": "a photograph", "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}

    def draw(pipe: Any, kind: str) -> Tensor:
        with torch.no_grad():
            return pipe(**call, generator=torch.Generator().manual_seed(args.seed), output_type=kind).images.flatten()

    before = load()
    # They draw other numbers, so other tokens; what must be equal is how many.
    found = compare_runs(
        lambda: draw(theirs, "latent"), lambda: draw(ours, "tokens"), tolerance=math.inf, **stop_of(args)
    )
    words = f"AmusedPipeline of diffusers / ours, base, {STEPS} steps, guidance {GUIDANCE:g}, batch 1, decoder aside"
    cell = ratio_cell("peer", words, found, 1.0, None if args.quick else LEAST_SPEED, high=True)
    say(f"{words}: {cell['value']:.3f} in {cell['n']} pairs")
    return {"row": "peer", "seed": args.seed, "cells": [{**cell, "load_before": before, "load_after": load()}]}


def make_amused(model: UVit2DModel, seed: int) -> AmusedPipeline:
    """diffusers' pipeline around the network, with a small text encoder and a small tokenizer of images."""
    config = model.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = CLIPTextConfig(
            vocab_size=len(_words()),
            hidden_size=config["encoder_hidden_size"],
            intermediate_size=2 * config["encoder_hidden_size"],
            projection_dim=config["cond_embed_dim"],
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WORDS,
            bos_token_id=len(_words()) - 2,
            eos_token_id=len(_words()) - 1,
        )
        encoder = CLIPTextModelWithProjection(text).eval()
        images = VQModel(
            block_out_channels=(8, 8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 5,
            up_block_types=("UpDecoderBlock2D",) * 5,
            latent_channels=8,
            vq_embed_dim=8,
            num_vq_embeddings=config["codebook_size"],
            norm_num_groups=4,
            sample_size=16 * config["sample_size"],
            lookup_from_codebook=True,
            mid_block_add_attention=False,
        ).eval()
    scheduler = AmusedScheduler(mask_token_id=config["vocab_size"] - 1)
    return AmusedPipeline(images, _tokenizer(), encoder, model, scheduler)


def _words() -> dict[str, int]:
    """A vocabulary of letters, alone and at the end of a word."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {name: number for number, name in enumerate(names)}


def _tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps(_words()), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=WORDS)
