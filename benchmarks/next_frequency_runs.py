"""Pipelines over stages with random weights, and the runs that are timed: whole calls but for the decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from calibration import DTYPES
from next_frequency_cost import TEN_STAGES, Sizes
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.models.next_frequency import NextFrequencyTransformer2DModel
from gendiff.pipelines.next_frequency import NextFrequencyPipeline, NextFrequencyPipelineOutput
from gendiff.samplers.next_frequency import NextFrequencyScheduler

RANDOM_STD = 0.02
"""Of weights that training starts near zero, without which a network would say the same of everything."""


@dataclass(frozen=True)
class Preset:
    """Sizes of a measurement.

    Attributes:
        stages: side of each token grid.
        width, depth: of the network of most rows.
        head_dim: of attention.
        codes, channels: V and C.
        image: side in pixels.
        decoder: width of each level of the tokenizer.
        layers, groups: residual blocks of a level, and groups of its norms.
        short: shorter lists of stages.
        depths: of the two networks of width `64 depth` (here `head_dim depth`) whose sizes are compared.
    """

    stages: tuple[int, ...]
    width: int
    depth: int
    head_dim: int
    codes: int
    channels: int
    image: int
    decoder: tuple[int, ...]
    layers: int
    groups: int
    short: tuple[tuple[int, ...], ...]
    depths: tuple[int, int]


PRESETS = {
    "paper": Preset(
        stages=TEN_STAGES,
        width=512,
        depth=8,
        head_dim=64,
        codes=4096,
        channels=32,
        image=256,
        decoder=(160, 160, 320, 320, 640),
        layers=2,
        groups=32,
        short=((1, 2, 3, 5, 8, 12, 16), (1, 2, 4, 8, 16)),
        depths=(16, 20),
    ),
    "tiny": Preset(
        stages=(1, 2, 3, 4),
        width=32,
        depth=2,
        head_dim=16,
        codes=32,
        channels=8,
        image=16,
        decoder=(8, 8, 16),
        layers=1,
        groups=4,
        short=((1, 2, 4),),
        depths=(1, 2),
    ),
}


@dataclass(frozen=True)
class Work:
    """What all runs of a measurement share."""

    preset: str
    device: str
    dtype: str
    seed: int

    @property
    def sizes(self) -> Preset:
        return PRESETS[self.preset]


@dataclass(frozen=True)
class Way:
    """One way to draw images.

    Attributes:
        sizes: of stages and network.
        bands: "area" for next-frequency, "none" for next-scale.
        batch: images of a call.
        guidance: 1 = off; else each image is two rows of the network.
        use_cache: False computes earlier stages anew.
    """

    sizes: Sizes
    bands: str = "area"
    batch: int = 1
    guidance: float = 1.0
    use_cache: bool = True

    @property
    def rows(self) -> int:
        """Sequences in one pass of the network."""
        return self.batch * (1 if self.guidance == 1 else 2)


@lru_cache(maxsize=2)
def make_pipe(work: Work, sizes: Sizes, bands: str) -> NextFrequencyPipeline:
    """A pipeline whose weights depend on seed and sizes alone: two schedules have the same. The last two are kept."""
    preset = work.sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.seed)
        vqvae = FrequencyVQModel(
            sample_size=preset.image,
            stages=sizes.stages,
            latent_channels=sizes.channels,
            codebook_size=sizes.codes,
            block_out_channels=preset.decoder,
            layers_per_block=preset.layers,
            norm_num_groups=preset.groups,
            stem="conv",
            band_spacing=bands,
        )
        transformer = NextFrequencyTransformer2DModel(
            sizes.stages,
            sizes.channels,
            sizes.codes,
            num_classes=1000,
            num_layers=sizes.depth,
            num_attention_heads=sizes.width // preset.head_dim,
            attention_head_dim=preset.head_dim,
        )
        for block in transformer.blocks:
            nn.init.normal_(block.adaln.weight, std=RANDOM_STD)  # type: ignore[union-attr]
        nn.init.normal_(transformer.head.weight, std=RANDOM_STD)
    # The sum of stages stays float32 whatever the network computes in.
    nn.Module.to(transformer, DTYPES[work.dtype])  # diffusers' own warns of nothing
    pipe = NextFrequencyPipeline(vqvae.eval(), transformer.eval(), NextFrequencyScheduler(sizes.stages))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(work.device)


def draw(pipe: NextFrequencyPipeline, way: Way, seed: int, **options: Any) -> NextFrequencyPipelineOutput:
    """One call without the decoder, of the classes 0, 1, ..; the same images whatever the batch."""
    output = pipe(
        list(range(way.batch)),
        guidance_scale=way.guidance,
        generator=[torch.Generator().manual_seed(seed + index) for index in range(way.batch)],
        use_cache=way.use_cache,
        output_type="latent",
        **options,
    )
    assert isinstance(output, NextFrequencyPipelineOutput)
    return output


def equal_tokens(pipe: NextFrequencyPipeline, one: Way, other: Way, seed: int) -> tuple[float, int]:
    """Share of equal tokens when the likeliest is taken at each place, and how many there are.

    Draws would not do: a uniform number may fall between two cumulative probabilities that differ by rounding.
    """
    first, second = (torch.cat(draw(pipe, way, seed, top_k=1).tokens, dim=1) for way in (one, other))
    return (first == second).float().mean().item(), first.numel()


@torch.no_grad()
def counted_macs(network: NextFrequencyTransformer2DModel, use_cache: bool) -> int:
    """Multiply-adds of one image and condition by torch's counter, with attention as plain products.

    It knows no fused attention of the CPU, hence the kernel.
    """
    place = {"device": network.pos.device, "dtype": network.dtype}
    labels = torch.zeros(1, dtype=torch.int64, device=network.pos.device)
    cache = network.make_cache() if use_cache else None
    first = network.counts[0]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for stage, (count, end) in enumerate(zip(network.counts, accumulate(network.counts), strict=True)):
            rows = count if use_cache else end - first
            inputs = torch.zeros(1, rows, network.config["latent_channels"], **place) if stage else None
            network(inputs, labels, cache=cache)
    return counter.get_total_flops() // 2


def between_events(run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], Tensor], Callable[[], list]]:
    """`run` between two CUDA events, and what gives the seconds between them so far; nothing elsewhere."""
    if device.type != "cuda":
        return run, list
    marks: list[tuple[Any, Any]] = []

    def marked() -> Tensor:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = run()
        end.record()
        marks.append((start, end))
        return result

    return marked, lambda: [start.elapsed_time(end) / 1e3 for start, end in marks]
