"""The ways to roll out a video that are compared, on one set of weights, and one timed rollout of any of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from calibration import DTYPES
from causal_video_cost import Kind
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging
from timing import synchronize
from torch import Tensor, nn

import gendiff
from gendiff.models.causal_video import CausalVideoTransformer3DModel
from gendiff.pipelines.causal_video import CausalVideoPipeline
from gendiff.pipelines.causal_video_rollout import UseCache

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "sample_size": 32,
        "patch_size": 4,
        "num_layers": 6,
        "num_attention_heads": 6,
        "attention_head_dim": 32,
        "chunk_size": 4,
        "context_frames": 13,
        "prefix_references": 2,
    },
    "tiny": {
        "sample_size": 16,
        "patch_size": 4,
        "num_layers": 2,
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "chunk_size": 2,
        "context_frames": 5,
        "prefix_references": 1,
    },
}
"""Networks without a checkpoint; `tiny` is bound by the overhead of calls, and only for tests."""
RANDOM_STD = 0.1


@dataclass(frozen=True)
class Variant:
    """A way to roll out.

    Attributes:
        words: for tables.
        kind: how its cost follows, see `causal_video_cost`.
        use_cache: as of the pipeline.
        bidirectional: whether every frame sees every other; such a network would be trained apart, so with the weights
            of the causal one its frames mean nothing, and it is timed for its cost alone.
    """

    words: str
    kind: Kind
    use_cache: UseCache
    bidirectional: bool = False


VARIANTS = {
    "cached": Variant("cached", "cached", True),
    "recompute": Variant("window recomputed at every step", "recompute", "window"),
    "bidirectional": Variant("window recomputed, bidirectional (cost only)", "recompute", "window", True),
    "fixed": Variant("fixed prefix of l frames, bidirectional (cost only)", "fixed", "window", True),
    "unbounded": Variant("all frames recomputed at every step", "unbounded", False),
}


@dataclass(frozen=True)
class Work:
    """What is rolled out; picklable, so that another process can do the same.

    Attributes:
        preset: of `PRESETS`; used without `model`.
        model: built-in name or folder of a checkpoint.
        batch: videos side by side.
        seed: of weights, given frames and noise.
    """

    preset: str = "small"
    model: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    batch: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Rollout:
    """One timed rollout, chunk by chunk.

    Attributes:
        loop_s: seconds of the walk and the write of each chunk.
        wall_s: the same with decoding and all else that happens from one chunk to the next.
        first_s: from the call until the first generated frame is there, given frames written.
        flops: counted, of each chunk.
        calls: network calls of each chunk.
        cache_bytes: held after each chunk.
        cpu_s: process seconds of the whole.
        total_s: wall seconds of the whole.
    """

    loop_s: list[float]
    wall_s: list[float]
    first_s: float
    flops: list[int]
    calls: list[int]
    cache_bytes: list[int]
    cpu_s: float
    total_s: float


def make_pipes(work: Work) -> dict[bool, CausalVideoPipeline]:
    """`{False: causal, True: bidirectional}`: two pipelines whose networks have the same weights.

    Raises:
        ValueError, OSError: the model cannot be loaded, or is no causal video model.
    """
    causal = _saved_pipe(work) if work.model else random_pipe(PRESETS[work.preset], work.seed)
    network = causal.transformer
    if network.config["attention_layout"] != "factorized" or network.config["attention_mode"] == "full":
        raise ValueError("the model must attend to the past only, in space and in time in turn, to be compared here.")
    if network.time_period is not None:
        raise ValueError("the model must have rotary positions: cyclic ones end at their period, got cyclic ones.")
    settings = {key: value for key, value in network.config.items() if not key.startswith("_")}
    other = CausalVideoTransformer3DModel(**{**settings, "attention_mode": "full"})
    other.load_state_dict(network.state_dict())
    full = CausalVideoPipeline(other.eval(), causal.scheduler, causal.vae, class_names=causal.class_names)
    for pipe in (causal, full):
        pipe.set_progress_bar_config(disable=True)
        pipe.to(work.device)
        if pipe.dtype != DTYPES[work.dtype]:
            pipe.to(DTYPES[work.dtype])
    return {False: causal, True: full}


def random_pipe(settings: dict[str, Any], seed: int) -> CausalVideoPipeline:
    """A pipeline with random weights, those that start at zero among them, or its network would say 0 of everything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CausalVideoTransformer3DModel(**settings)
        for parameter in network.parameters():
            if not parameter.data.any():
                nn.init.normal_(parameter, std=RANDOM_STD)
    return CausalVideoPipeline(network.eval(), FlowMatchEulerDiscreteScheduler())


def _saved_pipe(work: Work) -> CausalVideoPipeline:
    logging.disable_progress_bar()
    pipe = gendiff.pipeline("causal-video", work.model)
    if not isinstance(pipe.transformer, CausalVideoTransformer3DModel):
        raise ValueError(f"the model must be a CausalVideoTransformer3DModel, got {type(pipe.transformer).__name__}.")
    return pipe


def given_frames(pipe: CausalVideoPipeline, work: Work, count: int) -> Tensor:
    """(B, count, C, H, W) of noise; what frames show does not change what they cost."""
    generator = torch.Generator().manual_seed(work.seed)
    frames = torch.rand(work.batch, count, *pipe.latent_shape, generator=generator) * 2 - 1
    return frames.to(pipe.device, pipe.transformer.dtype)


def window_of(variant: Variant, window: int, chunk: int, chunks: int) -> int:
    """`context_frames` of a variant whose rollout has so many chunks: l if fixed, all if unbounded."""
    return {"fixed": chunk, "unbounded": 1 + chunks * chunk}.get(variant.kind, window)


def roll_out(
    pipes: dict[bool, CausalVideoPipeline], work: Work, variant: Variant, window: int, steps: int, chunks: int
) -> Rollout:
    """Generate `chunks` chunks and time each.

    Args:
        window: W; see `window_of` for variants that do without.
        steps: N.
    """
    pipe, device = pipes[variant.bidirectional], torch.device(work.device)
    chunk = pipe.transformer.config["chunk_size"]
    given = given_frames(pipe, work, chunk if variant.kind == "fixed" else 1)
    classes = len(pipe.class_names)
    marks, parts = [], []
    with _waits_for_writes(pipe.transformer, device), ignoring_long_windows():
        synchronize(device)
        cpu, start = time.process_time(), time.perf_counter()
        for part in pipe.stream(
            num_frames=given.shape[1] + chunks * chunk,
            latents=given,
            class_labels=[index % classes for index in range(work.batch)] if classes else None,
            context_frames=window_of(variant, window, chunk, chunks),
            use_cache=variant.use_cache,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(work.seed),
        ):
            synchronize(device)
            marks.append(time.perf_counter())
            parts.append((part.seconds, part.flops, part.network_calls, part.cache_bytes))
        cpu = time.process_time() - cpu
    loop_s, flops, calls, cache_bytes = (list(column) for column in zip(*parts[1:], strict=True))
    wall_s = [after - before for before, after in pairwise(marks)]
    return Rollout(loop_s, wall_s, marks[1] - start, flops, calls, cache_bytes, cpu, marks[-1] - start)


def fresh_rollout(work: Work, name: str, window: int, chunks: int) -> Callable[[], Any]:
    """Load everything and return a rollout of one step a chunk, whose memory is that of any number of steps."""
    pipes = make_pipes(work)
    return lambda: roll_out(pipes, work, VARIANTS[name], window, 1, chunks)


@contextmanager
def ignoring_long_windows() -> Iterator[None]:
    """Longer windows than the model was trained for are meant here: quality is not what is measured, or is shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"context_frames \d+ is above the \d+ of training", UserWarning)
        yield


@contextmanager
def _waits_for_writes(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Let the last pass of a chunk end before the pipeline reads its clock; on a CPU it has ended anyway."""

    def wait(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if kwargs.get("cache_mode") == "write":
            synchronize(device)

    if device.type == "cpu":
        yield
        return
    hook = network.register_forward_hook(wait, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
