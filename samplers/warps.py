"""What a warped schedule costs: more steps early, fewer late, and the error of Euler's method on data known exactly."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from gendiff.app.plots import STYLE
from gendiff.oracles.gaussian import Gaussian, exact_predictor
from gendiff.samplers.loop import sample
from gendiff.samplers.warp_report import noise_shares, steps_at_least
from gendiff.samplers.warped import warp_scheduler
from gendiff.samplers.warps import WarpSpec

STRUCTURE = 0.7  # the noise share above which a picture's layout is thought to form
DEVIATION = 0.2


def schedule(kappa, steps):
    """N even steps of a flow model, respent by a Moebius warp."""
    scheduler = warp_scheduler(FlowMatchEulerDiscreteScheduler(), WarpSpec("moebius", kappa))
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    return scheduler


def error(data, noise, scheduler):
    """Root mean square distance between what Euler reaches from `noise` and the exact solution."""
    reached = sample(exact_predictor(data, scheduler), scheduler, noise, progress=False)
    return (reached - data.transport(noise, (0.0, 1.0))).square().mean().sqrt().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/samplers/warps.png"))
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--kappas", type=float, nargs="+", default=[1, 1.5, 2, 3, 5])
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = Gaussian(torch.tensor([1.7], dtype=torch.float64), DEVIATION**2 * torch.eye(1, dtype=torch.float64))
    generator = torch.Generator().manual_seed(args.seed)
    noise = torch.randn(args.samples, 1, generator=generator, dtype=torch.float64)

    plt.switch_backend("Agg")
    plt.style.use(STYLE)
    figure, (grid, errors) = plt.subplots(1, 2, figsize=(10, 4.4))
    first = args.steps[0]
    for kappa in args.kappas:
        shares = noise_shares(schedule(kappa, first))
        grid.plot(np.arange(first + 1), shares, "o-", ms=3.5, label=f"{kappa:g}")
    grid.axhline(STRUCTURE, color="k", ls=":")
    grid.set(title=f"{first} steps, respent", xlabel="step", ylabel="noise share s")
    grid.legend(title="kappa")
    print(f"{'steps':>5} {'kappa':>6} {f's >= {STRUCTURE}':>9} {'error':>8}")
    for steps in args.steps:
        row = [error(data, noise, schedule(kappa, steps)) for kappa in args.kappas]
        errors.plot(args.kappas, row, "o-", label=f"{steps} steps")
        for kappa, distance in zip(args.kappas, row, strict=True):
            print(f"{steps:>5} {kappa:>6g} {steps_at_least(schedule(kappa, steps), STRUCTURE):>9} {distance:>8.4f}")
    errors.axhline(DEVIATION, color="k", ls=":", label="all samples at the mean")
    errors.set(title="fewer late steps: a larger error", xlabel="kappa", ylabel="distance to the exact solution (RMS)")
    errors.set_ylim(0, 1.6 * DEVIATION)
    errors.legend(loc="upper left")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
