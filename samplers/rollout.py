"""A video drawn chunk after chunk by a perfect network: what a short window forgets, and what few steps cost."""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from gendiff.app.plots import STYLE
from gendiff.oracles.gaussian import Gaussian, exact_predictor
from gendiff.samplers.loop import sample
from gendiff.samplers.rollout import chunk_lengths

# A frame is one number, of an AR(2) process: an oscillation that loses 3 % a frame and comes round in 12; variance 1.
KEPT, TURN = 0.97, 2 * math.pi / 12
TILT = (1 - KEPT**2) / (1 + KEPT**2) / math.tan(TURN)


def autocorrelation(lags):
    return KEPT**lags * ((TURN * lags).cos() + TILT * (TURN * lags).sin())


def next_frames(past, length):
    """Law of `length` frames after `past` (N, n): mean (N, length), and the Gaussian around it."""
    seen, index = past.shape[1], torch.arange(past.shape[1] + length, dtype=torch.float64)
    covariance = autocorrelation((index[:, None] - index).abs())
    gain = torch.linalg.solve(covariance[:seen, :seen], covariance[:seen, seen:])
    rest = covariance[seen:, seen:] - covariance[seen:, :seen] @ gain
    return past @ gain, Gaussian(torch.zeros(length, dtype=torch.float64), (rest + rest.mT) / 2)


def rollout(samples, frames, chunk, window, steps, seed):
    """Videos (samples, frames): each chunk is a walk of its own from noise, and sees the last `window` frames."""
    generator, scheduler = torch.Generator().manual_seed(seed), FlowMatchEulerDiscreteScheduler()
    video = torch.zeros(samples, 0, dtype=torch.float64)
    for length in chunk_lengths(frames, chunk, first=1):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        mean, around = next_frames(video[:, -window:], length)
        noise = torch.randn(samples, length, generator=generator, dtype=torch.float64)
        rest = sample(exact_predictor(around, scheduler), scheduler, noise, progress=False)
        video = torch.cat([video, mean + rest], dim=1)  # a known mean does not curve the path of the walk
    return video


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/samplers/rollout.png"))
    for name, value in {"samples": 4000, "frames": 81, "chunk": 4, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    draw = partial(rollout, args.samples, args.frames, args.chunk, seed=args.seed)
    plt.switch_backend("Agg")
    plt.style.use(STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    lags = torch.arange(min(25, args.frames))
    for window, style in [(1, "s-"), (2, "o-")]:
        late = draw(window, 100).flip(1)[:, : len(lags)]
        left.plot(lags, (late[:, :1] * late).mean(0) / late[:, 0].square().mean(), style, label=f"window of {window}")
    left.plot(lags, autocorrelation(lags.double()), "k:", label="exact")
    left.set(title="A window of one frame forgets the motion", xlabel="lag (frames)", ylabel="autocorrelation")
    for steps in (5, 20, 100):
        right.plot(draw(2, steps).var(0), label=f"{steps} steps a chunk")
    right.axhline(1, color="k", ls=":", label="exact")
    right.set(title="Few steps lose variance", xlabel="frame", ylabel="variance", ylim=(0, None))
    left.legend()
    right.legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
