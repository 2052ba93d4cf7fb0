"""What one process or two compute alike: features of a pipeline and of an array, and an evaluation of them."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from tiny_extractor import TinyExtractor

from gendiff.data.pipeline_source import PipelineSource
from gendiff.data.source_arrays import ArraySource
from gendiff.errors import GendiffError, MetricWarning
from gendiff.metrics.evaluate import evaluate
from gendiff.metrics.features import extract_features
from gendiff.metrics.processes import process_state

NUM = 18


class Chaotic:
    """A pipeline whose bytes tell in which batch they were made: each step enlarges the rounding of a convolution."""

    def __init__(self):
        torch.manual_seed(0)
        self.unet = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 3, 3, padding=1))

    def __call__(self, batch_size=1, generator=None, num_inference_steps=12):
        x = torch.stack([torch.randn(3, 8, 8, generator=one) for one in generator])
        for _ in range(num_inference_steps):
            x = torch.sin(20 * self.unet(x))
        return ((x + 1) / 2,)


def compute() -> dict[str, np.ndarray]:
    source = PipelineSource(Chaotic(), NUM, batch_size=4)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    network, rank = TinyExtractor(), process_state().process_index
    rows = extract_features(source, network, batch_size=3, progress=False)
    made = source.stats()["images"]
    content = source.describe()["sha256"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        report = evaluate(source, pixels, ("fd", "kid"), network, batch_size=8, progress=False)
    failing = ArraySource(pixels)
    if rank == 0:  # the other process has nothing to complain of, and must not wait forever
        failing.load = lambda indices: [torch.zeros(3, 9, 9, dtype=torch.uint8)] * len(indices)
        failing._size = (8, 8)
    try:
        extract_features(failing, network, 4, progress=False)
        error = "none"
    except GendiffError as raised:
        error = type(raised).__name__
    found = {
        "world": process_state().num_processes,
        "pipeline": rows,
        "array": extract_features(ArraySource(pixels), network, batch_size=16, progress=False),
        "one batch": extract_features(ArraySource(pixels), network, batch_size=64, progress=False),
        "made": made,
        "hash": content,
        "scores": [score.value for score in report.scores.values()],
        "cost": report.conditions["sampling_cost"]["images"],
        "bytes": source.read(range(NUM)).numpy(),
        "error": error,
    }
    return {name: np.asarray(value) for name, value in found.items()}
