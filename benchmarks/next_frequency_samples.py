"""Images of a pipeline, kept on disk in parts, so that a slow model is sampled once and a killed run goes on."""

from __future__ import annotations

import hashlib
import io
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import say
from calls import Work, make_call
from harness import measure
from torch import Tensor

from gendiff.data.pipeline_source import PipelineSource
from gendiff.files import write_whole

PART = 500
"""Images of a file, about; a whole number of blocks."""
TIMED_BATCH = 16


def kept_images(source: PipelineSource, name: str, folder: Path) -> Tensor:
    """All images (N, 3, H, W) uint8, those on disk from there.

    Args:
        source: its settings, seeds and weights, but not the place of its checkpoint, say which files are meant.
        name: first part of the folder's name.
        folder: of all samples.

    Raises:
        OSError, ValueError: a file cannot be read or written.
    """
    facts = {key: value for key, value in source.facts().items() if key != "checkpoint"}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / f"{name}-{key}"
    size = source.block * max(1, PART // source.block)
    parts = []
    for first in range(0, len(source), size):
        indices = range(first, min(first + size, len(source)))
        path = place / f"{first:06d}-{indices.stop:06d}.npy"
        if path.is_file():
            parts.append(torch.from_numpy(np.load(path, allow_pickle=False)))
            continue
        blocks = [indices[at : at + source.block] for at in range(0, len(indices), source.block)]
        images = torch.cat([source.read(block) for block in blocks])
        content = io.BytesIO()
        np.save(content, images.numpy(), allow_pickle=False)
        write_whole(path, content.getvalue())
        say(f"{name}: {indices.stop} of {len(source)} images")
        parts.append(images)
    return torch.cat(parts)


def call_seconds(pipe: Any, device: str, repeats: int, budget_s: float, options: dict[str, Any]) -> dict[str, Any]:
    """Timed calls of TIMED_BATCH images from nothing to pixels, as fields of a case.

    Args:
        options: arguments of the call.
    """
    call = make_call(pipe, Work(device=device, options=options), TIMED_BATCH)
    # Operations are not needed here, and counting takes as long as a run.
    stop = {"warmup": 1, "min_repeats": repeats, "max_repeats": max(repeats, 1000), "budget_s": budget_s}
    return measure(call.run, batch=TIMED_BATCH, device=device, before=call.before, flops=None, **stop)


def cpu_seconds(cost: dict[str, Any]) -> float | None:
    """Median process seconds of an image, of `call_seconds`; None on an accelerator."""
    if not cost["cpu_shares"]:
        return None
    pairs = zip(cost["cpu_shares"], cost["timings_s"], strict=True)
    return statistics.median(share * wall for share, wall in pairs) * torch.get_num_threads() / cost["batch"]
