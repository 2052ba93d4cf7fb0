"""What light passes cost beside full ones: seconds turn by turn, and operations counted beside their formula."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from arguments import say
from harness import figures
from masked_formula import Sizes, counted_flops, make_inputs, make_network, make_rows, pass_flops
from noise import load
from paired import PairedTiming, compare_runs
from torch import Tensor

BATCH = 4
GROUPS = (16, 32, 64)
JUDGED = 32
"""The group that the bars are for."""
MOST_OVER = 1.5
"""Times its share of operations that a light pass may take."""
COUNTED = 0.02
QUICK = Sizes(side=4, width=32, heads=2, depth=2, codes=16)
QUICK_GROUPS = (2, 8)
TOLERANCE = 1e-3
"""Of the logits of the two passes, which see the same tokens and so must agree; logits are about 1."""


def light_cases(args: argparse.Namespace, calibration: Mapping[str, float]) -> list[dict[str, Any]]:
    """Timed cases of both passes for each group, and the cells of their ratios and counts."""
    sizes, groups = (QUICK, QUICK_GROUPS) if args.quick else (Sizes(), GROUPS)
    network = make_network(sizes, args.seed).to(args.device)
    inputs = tuple(part.to(args.device) for part in make_inputs(sizes, BATCH, args.seed))
    cases, ratios, counts = [], [], []
    for group in groups:
        rows = make_rows(sizes, BATCH, group, args.seed).to(args.device)
        predicted = pass_flops(sizes, group) / pass_flops(sizes, sizes.tokens)
        before = load()
        found = compare_passes(network, inputs, rows, args, cached=False)
        bar = MOST_OVER * predicted if group == JUDGED and not args.quick else None
        cell = ratio_cell(f"light/{group}", f"light / full, {group} of {sizes.tokens} tokens", found, predicted, bar)
        ratios.append({**cell, "load_before": before, "load_after": load()})
        say(f"{cell['words']}: {cell['value']:.3f} in {cell['n']} pairs, operations {predicted:.3f}")
        for side, timing, image_rows in (("light", found.ours, group), ("full", found.peer, sizes.tokens)):
            flops = BATCH * pass_flops(sizes, image_rows)
            cases.append(
                {
                    "id": f"light/{group}/{side}",
                    "pipeline": "MaskGITTransformer2DModel (random weights)",
                    "checkpoint_sha256": None,
                    "params": sum(parameter.numel() for parameter in network.parameters()),
                    "shape": [sizes.side, sizes.side],
                    "seed": args.seed,
                    **figures(timing, BATCH, "float32", calibration, 1, flops),
                    "output_sha256": None,
                }
            )
    for group in (None, *groups):
        formula = pass_flops(sizes, sizes.tokens if group is None else group)
        for by, counted in counted_flops(network, sizes, group).items():
            counts.append(count_cell(group, by, counted, formula))
    cases.append({"row": "light", "seed": args.seed, "cells": ratios, "sizes": asdict(sizes)})
    cases.append({"row": "counts", "seed": args.seed, "cells": counts})
    return cases


def compare_passes(
    network: Any, inputs: tuple[Any, ...], rows: Tensor, args: argparse.Namespace, cached: bool
) -> PairedTiming:
    """A light pass of `rows` against a full one; both see the same tokens, so they must say the same there.

    Args:
        inputs: tokens, hidden, condition.
        cached: whether the full pass fills a cache, as it does before light ones, or has none, as in base decoding.
    """
    cache = network.make_cache()
    other = network.make_cache() if cached else None
    with torch.no_grad():
        network(*inputs, cache=cache)

    @torch.no_grad()
    def light() -> Tensor:
        return network(*inputs, cache=cache, rows=rows, return_dict=False)[0]

    @torch.no_grad()
    def full() -> Tensor:
        logits = network(*inputs, cache=other, return_dict=False)[0]
        return logits.gather(1, rows[..., None].expand(-1, -1, logits.shape[2]))

    return compare_runs(light, full, tolerance=TOLERANCE, device=args.device, **stop_of(args))


def stop_of(args: argparse.Namespace) -> dict[str, Any]:
    """When pairs of runs are enough, for `compare_runs`."""
    return {"warmup": max(args.warmup, 1), "min_pairs": args.repeats, "budget_s": args.budget}


def ratio_cell(
    name: str, words: str, found: PairedTiming, predicted: float | None, bar: float | None, high: bool = False
) -> dict[str, Any]:
    """The cell of a ratio of seconds.

    Args:
        predicted: the ratio of operations.
        bar: None where nothing is asked.
        high: whether the bar is from below.
    """
    value = found.ratio_p50
    met = None if bar is None else (value >= bar if high else value <= bar)
    cell = {"metric": name, "words": words, "value": value, "n": len(found.ours.timings_s)}
    cell |= {"ci95": list(found.ratio_ci95), "predicted": predicted, "noisy": found.noisy}
    seconds = {"seconds": [sorted(t.timings_s)[len(t.timings_s) // 2] for t in (found.ours, found.peer)]}
    return cell | seconds | {"side": "at least" if high else "at most", "bar": bar, "met": met}


def count_cell(group: int | None, by: str, counted: int, formula: int) -> dict[str, Any]:
    """The cell of counted operations over those by formula."""
    words = "full pass" if group is None else f"light pass of {group}"
    value = counted / formula
    cell = {"metric": "counted", "words": f"{words}, {by}", "value": value, "n": 1, "counted": counted}
    return {**cell, "formula": formula, "bar": COUNTED, "met": abs(value - 1) <= COUNTED}
