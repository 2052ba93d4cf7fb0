"""In-painting in every precision: do tokens that were known come out as they went in?"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from arguments import say
from calibration import DTYPES
from torch import nn

from gendiff.models.masked.maskgit import MaskGITTransformer2DModel
from gendiff.models.masked.patch_vq import PatchVQTokenizer
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.samplers.masked import ORDERS, MaskedScheduler
from gendiff.samplers.recap import ReCAPConfig

MASKS, BATCH = 1000, 50
QUICK_MASKS, QUICK_BATCH = 8, 4
CODES, SIDE, STEPS = 32, 8, 8
TEMPERATURE = 4.0
"""Of the noise in confidences: large, because noise in half precision is what loses tokens elsewhere."""


def known_case(args: argparse.Namespace) -> dict[str, Any]:
    """Share of random masks after which all known tokens are as before, for each precision and order.

    Each image has a mask of its own, from one hidden token to all but one; guidance is on, and every second call
    has light steps.
    """
    masks, batch = (QUICK_MASKS, QUICK_BATCH) if args.quick else (MASKS, BATCH)
    cells = []
    for order in ORDERS:
        for dtype in DTYPES:
            kept = sum(_kept(dtype, order, number, batch) for number in range(masks // batch))
            words = f"{dtype}, order {order}"
            say(f"known tokens kept, {words}: {kept} of {masks}")
            cell = {"metric": "known", "words": words, "value": kept / masks, "n": masks, "dtype": dtype}
            cells.append({**cell, "order": order, "bar": 1.0, "met": kept == masks})
    return {"row": "known", "seed": args.seed, "cells": cells}


def make_pipe(dtype: str, order: str) -> MaskedGenerationPipeline:
    """A small pipeline with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MaskGITTransformer2DModel(
            SIDE, CODES, num_classes=10, num_layers=2, num_attention_heads=2, attention_head_dim=16
        )
        tokenizer = PatchVQTokenizer(in_channels=1, sample_size=2 * SIDE, patch_size=2, codebook_size=CODES)
    scheduler = MaskedScheduler(order=order, confidence_temperature=TEMPERATURE)
    for part in (network, tokenizer):
        nn.Module.to(part, DTYPES[dtype])  # diffusers' own warns of nothing
    pipe = MaskedGenerationPipeline(network.eval(), tokenizer.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _kept(dtype: str, order: str, number: int, count: int) -> int:
    """Of `count` masks, the batch `number`: those that keep all known tokens and leave none hidden."""
    pipe, generator = make_pipe(dtype, order), torch.Generator().manual_seed(number)
    total = SIDE**2
    tokens = torch.randint(CODES, (count, total), generator=generator)
    ranks = torch.rand(count, total, generator=generator).argsort(dim=1).argsort(dim=1)
    hidden = ranks < torch.randint(1, total, (count, 1), generator=generator)
    output: Any = pipe(
        [index % 10 for index in range(count)],
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=generator,
        recap=ReCAPConfig(num_light_steps=2) if number % 2 else None,
        latents=tokens.masked_fill(hidden, CODES),
        output_type="tokens",
    )
    drawn = output.tokens
    same = (drawn == tokens) | hidden
    return int((same & (drawn >= 0) & (drawn < CODES)).all(dim=1).sum())
