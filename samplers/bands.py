"""Bands of frequencies: what each spacing gives to a stage, and how the bands of a map add up to it again."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from gendiff.app.plots import STYLE
from gendiff.nn.bands import band_maps, band_radii, coefficient_counts
from gendiff.nn.stages import check_stages, token_counts

SPACINGS = {"linear": "s", "area": "o", "nyquist": "D"}


def radius(size):
    """|frequency| of each coefficient of `fft2`, (size, size)."""
    axis = (torch.fft.fftfreq(size, dtype=torch.float64) * size).round()
    return torch.hypot(axis[:, None], axis)


def power(size):
    """Expected power of each coefficient of maps like photographs: it falls with the square of the frequency."""
    return 1 / radius(size).clamp(min=1).square()


def maps(samples, size, seed):
    """Random maps (samples, 1, size, size) of that power, float32 as in a tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(samples, 1, size, size, generator=generator, dtype=torch.float64)
    return torch.fft.ifft2(torch.fft.fft2(white) * power(size).sqrt()).real.float()


def missing(images, radii):
    """Share of energy that bands 0 .. k leave out, for each k: measured on `images`, and exact for `power`."""
    rest = images - torch.stack(band_maps(images, radii)).cumsum(0)
    size = images.shape[-1]
    exact = [power(size)[radius(size) >= edge].sum() / power(size).sum() for edge in (*radii, math.inf)]
    return rest.square().sum((1, 2, 3, 4)) / images.square().sum(), exact


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/samplers/bands.png"))
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 8, 10, 13, 16], help="grid sides")
    for name, value in {"samples": 500, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    stages = check_stages(args.stages)
    images, numbers = maps(args.samples, stages[-1], args.seed), range(len(stages))
    plt.switch_backend("Agg")
    plt.style.use(STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    left.plot(numbers, token_counts(stages), "k:", label="tokens of the stage")
    for spacing, marker in SPACINGS.items():
        radii = band_radii(spacing, stages)
        counts = coefficient_counts(radii, stages[-1])
        left.plot(numbers, counts, marker + "-", label=f"{spacing}: {counts.count(0)} empty")
        measured, exact = missing(images, radii)
        (line,) = right.plot(numbers, measured, marker, label=spacing)
        right.plot(numbers, exact, ":", color=line.get_color())
        print(f"{spacing:8s} {counts}, all bands miss {measured[-1]:.1e}")
    left.set(title="What a stage is given", xlabel="stage", ylabel="coefficients of its band", yscale="symlog")
    right.set(title="What the bands so far leave out of a map", xlabel="stage", ylabel="share of its energy")
    left.legend()
    right.legend(title="dotted: exact")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
