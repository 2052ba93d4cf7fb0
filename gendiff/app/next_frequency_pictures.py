"""A picture as it comes about: after each stage, beside its spectrum, and with what is unknown of it in grey."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor

from gendiff.models.frequency_vq import FrequencyVQModel

from .pictures import grid, to_pil

SHOWN = 112
"""Side in screen pixels, about, that a picture is enlarged to in a strip; its spectrum gets half of that."""
BETWEEN = 4
WEAKEST, STRONGEST = -7.0, -2.0
"""Ends of the colour scale, decades of power. Fixed, so that spectra can be compared; the mean is above its end."""
COLOURS = torch.tensor([[18, 20, 46], [46, 62, 130], [52, 136, 150], [140, 200, 120], [252, 244, 190]]) / 255
"""Of powers from the weakest to the strongest, evenly spaced."""


@torch.no_grad()
def stage_pictures(vqvae: FrequencyVQModel, tokens: Sequence[Tensor]) -> Tensor:
    """The pictures (K, B, C, S, S) in [0, 1] after each stage that there are tokens for, on the CPU.

    Args:
        vqvae: tokenizer of the tokens.
        tokens: for each stage (B, n_k) int64, or weights over all codes (B, n_k, V), as a pipeline puts them out.
    """
    decoded = [vqvae.decode(f_hat=total) for total in vqvae.quantizer.sums(tokens)]
    return (torch.stack(decoded).float().cpu() + 1) / 2


def log_power(images: Tensor) -> Tensor:
    """log10 of the power of each frequency, (..., H, W), frequency 0 in the middle.

    The powers of all frequencies together are the mean square of the image; that of frequency 0 is its squared mean.

    Args:
        images: (..., C, H, W) in [0, 1]; powers of channels are averaged.
    """
    height, width = images.shape[-2:]
    power = (torch.fft.fft2(images.double()).abs() / (height * width)).square().mean(dim=-3)
    return torch.fft.fftshift(power.clamp(min=1e-30).log10(), dim=(-2, -1)).float()


def spectra(images: Tensor) -> Tensor:
    """Pictures (..., 3, H, W) in [0, 1] of `log_power`, from dark to light over five decades."""
    level = ((log_power(images) - WEAKEST) / (STRONGEST - WEAKEST)).clamp(0, 1) * (len(COLOURS) - 1)
    lower = level.floor().long().clamp(max=len(COLOURS) - 2)
    share = (level - lower)[..., None]
    return (COLOURS[lower] * (1 - share) + COLOURS[lower + 1] * share).movedim(-1, -3)


def band_labels(vqvae: FrequencyVQModel) -> list[str]:
    """The frequencies that each stage is given, in cycles across the latent map; plain ASCII, for pictures too."""
    report, count = vqvae.band_report(), len(vqvae.stages)
    if report.radii is None or count == 1:
        return ["all"] * count
    edges = [f"{radius:.2g}" for radius in report.radii]
    inner = [f"{low} - {high}" for low, high in pairwise(edges)]
    labels = [f"< {edges[0]}", *inner, f">= {edges[-1]}"]
    return ["none" if stage in report.empty else label for stage, label in enumerate(labels)]


def stages_strip(
    pictures: Tensor, vqvae: FrequencyVQModel, names: Sequence[str] | None = None, shown: int = SHOWN
) -> Image.Image:
    """One row for each image: what stands after each stage, its spectrum beside it; stages are named above.

    Args:
        pictures: (K, B, C, S, S) in [0, 1], K stages of B images.
        vqvae: says what the stages are.
        names: of the B images.
        shown: side in screen pixels, about.
    """
    bands = band_labels(vqvae)
    labels = [f"{side} x {side}" for side in vqvae.stages[: len(pictures)]]
    if vqvae.radii is not None:
        labels = [f"{label}\nr {band}" for label, band in zip(labels, bands, strict=False)]
    scale = max(1, shown // pictures.shape[-1])
    colours = spectra(pictures)
    rows = [
        [_pair(picture, colour, scale) for picture, colour in zip(row, panels, strict=True)]
        for row, panels in zip(pictures.transpose(0, 1), colours.transpose(0, 1), strict=True)
    ]
    return grid(rows, names, labels)


def _pair(picture: Tensor, colours: Tensor, scale: int) -> Image.Image:
    left, right = to_pil(picture, scale).convert("RGB"), to_pil(colours)
    side = left.width // 2
    # A spectrum that shrinks is averaged, or single frequencies would vanish.
    right = right.resize((side, side), Image.Resampling.NEAREST if side >= right.width else Image.Resampling.BOX)
    sheet = Image.new("RGB", (left.width + BETWEEN + side, left.height), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + BETWEEN, (left.height - side) // 2))
    return sheet
