"""From sample to noise and back: how far each inversion scheme misses the sample it started from."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import DDIMScheduler

from gendiff.app.plots import STYLE
from gendiff.oracles.gaussian import Gaussian, GaussianMixture, exact_predictor
from gendiff.samplers.inversion import SCHEMES, forward_of, inverse_of
from gendiff.samplers.loop import sample


def ring(count=9):
    """A ring of narrow Gaussians: the exact network is strongly nonlinear between them."""
    angles = torch.arange(count, dtype=torch.float64) * 2 * torch.pi / count
    centres = 1.2 * torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture([Gaussian(centre, 0.02 * torch.eye(2, dtype=torch.float64)) for centre in centres])


def walk(data, scheduler, state, steps):
    scheduler.set_timesteps(steps)
    return sample(exact_predictor(data, scheduler), scheduler, state, progress=False)


def round_trip(data, clean, scheme, steps):
    """Invert `clean` (B, 2) to noise and decode it again; root mean squares of (noise, decoded - clean)."""
    ddim = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction")
    noise = walk(data, inverse_of(ddim, scheme), clean if scheme == "ddim" else (clean, clean), steps)
    noise = noise[0] if scheme == "fixed_point" else noise  # both halves are the noise, for plain DDIM to decode
    decoded = walk(data, forward_of(ddim, scheme), noise, steps)
    if scheme == "edict":
        noise, decoded = noise[0], decoded[0]
    return rms(noise), rms(decoded - clean)


def rms(values):
    return values.square().mean().sqrt().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/samplers/inversion.png"))
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40, 50, 100, 200], help="divisors of 1000")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = ring()
    clean = data.sample(args.samples, torch.Generator().manual_seed(args.seed))
    plt.switch_backend("Agg")
    plt.style.use(STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for scheme, marker in zip(SCHEMES, "osD", strict=True):
        sizes, errors = zip(*(round_trip(data, clean, scheme, steps) for steps in args.steps), strict=True)
        left.loglog(args.steps, errors, marker + "-", label=scheme)
        right.loglog(args.steps, sizes, marker + "-", label=scheme)
    left.axhline(torch.finfo(clean.dtype).eps, color="k", ls=":", label="rounding (float64)")
    right.axhline(1, color="k", ls=":", label="Gaussian noise")
    left.set(title="Sample to noise to sample", xlabel="steps", ylabel="error of the round trip (RMS)")
    right.set(title="The noise in between", xlabel="steps", ylabel="size of the recovered noise (RMS)")
    for axes in (left, right):
        axes.set_xticks(args.steps, [str(count) for count in args.steps])
        axes.minorticks_off()
        axes.legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
