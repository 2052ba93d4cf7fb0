"""Seconds of all ways to decode, in rounds over all of them, so that a slow minute of the machine meets each."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from arguments import say
from calls import Work, make_call
from masked_plans import Plan
from masked_rows import options_of
from noise import NOISY_BELOW, load
from paired import paired_ratios
from timing import bootstrap_ci, time_once

from gendiff.pipelines.masked_generation import MaskedGenerationPipeline

BATCH = 16
ROW = "times"


def times_case(
    args: argparse.Namespace, pipe: MaskedGenerationPipeline, plans: Mapping[str, Plan], sha256: str
) -> dict[str, Any]:
    """Median seconds of an image in batches of 16, pixels included, and ratios to the base of as many steps."""
    device, before = torch.device(args.device), load()
    calls = {row: make_call(pipe, Work(options=plan.call(options_of(args))), BATCH) for row, plan in plans.items()}
    walls: dict[str, list[float]] = {row: [] for row in plans}
    shares: dict[str, list[float]] = {row: [] for row in plans}
    started = time.perf_counter()
    for row, call in calls.items():
        time_once(call.run, device, call.before)
        say(f"{row}: warm")
    while _more(walls, args, started):
        order = list(calls)
        # Forwards and backwards, as a machine that slows down would else always harm the same.
        for row in order if len(walls[order[0]]) % 2 == 0 else reversed(order):
            wall, cpu, _ = time_once(calls[row].run, device, calls[row].before)
            walls[row].append(wall)
            shares[row].append(cpu / (wall * torch.get_num_threads()))
        say(f"{len(walls[order[0]])} rounds of {len(order)} ways")
    cells = [_seconds(row, walls[row], shares[row] if device.type == "cpu" else []) for row in plans]
    for row, plan in plans.items():
        if plan.recap is not None and plan.base in walls:
            ratios = paired_ratios(walls[plan.base], walls[row])
            cell = {"metric": "speedup", "of": row, "value": statistics.median(ratios), "n": len(ratios)}
            cells.append({**cell, "ci95": list(bootstrap_ci(ratios))})
    case = {"row": ROW, "seed": 0, "fingerprint": sha256, "cells": cells, "batch": BATCH}
    return {**case, "threads": torch.get_num_threads(), "load_before": before, "load_after": load()}


def _more(walls: Mapping[str, list[float]], args: argparse.Namespace, started: float) -> bool:
    """At least `--repeats` rounds, then more for as long as the budget lasts, up to three times as many."""
    done = min(map(len, walls.values()))
    return done < args.repeats or (done < 3 * args.repeats and time.perf_counter() - started < args.budget)


def _seconds(row: str, walls: list[float], shares: list[float]) -> dict[str, Any]:
    share = statistics.median(shares) if shares else None
    return {
        "metric": "seconds",
        "of": row,
        "value": statistics.median(walls) / BATCH,
        "n": len(walls),
        "timings_s": walls,
        "cpu_share": share,
        "noisy": share is not None and share < NOISY_BELOW,
    }
