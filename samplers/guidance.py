"""What guidance does: samples of one class, drawn with exact scores, as the strength and its interval change."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import DPMSolverMultistepScheduler

from gendiff.app.plots import STYLE
from gendiff.oracles.gaussian import Gaussian, GaussianMixture, exact_predictor
from gendiff.samplers.guidance import guided, interval
from gendiff.samplers.loop import sample

WINDOW = (0.6, 0.75)  # shares of the walk, for guidance that is on between them only
ANGLES = torch.tensor([90.0, 210.0, 330.0], dtype=torch.float64).deg2rad()


def three_classes():
    """Three round classes in a triangle; the first, at the top, is the one asked for."""
    centres = 1.1 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
    return GaussianMixture([Gaussian(centre, 0.35 * torch.eye(2, dtype=torch.float64)) for centre in centres])


def draw(data, scale, noise, steps):
    scheduler = DPMSolverMultistepScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(steps)
    conditional, unconditional = (exact_predictor(d, scheduler) for d in (data.components[0], data))
    return sample(guided(conditional, unconditional, scale), scheduler, noise, progress=False)


def show(axes, data, draws, title):
    grid = torch.linspace(-3.2, 3.6, 80, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)
    density = data.log_prob(points.flatten(0, 1)).exp().unflatten(0, points.shape[:2])
    axes.contourf(grid, grid, density, levels=8, cmap="Greys", alpha=0.6)
    axes.scatter(*draws.T, s=5, alpha=0.5, linewidths=0)
    axes.set(title=title, xticks=[], yticks=[], aspect="equal", xlim=(-3.2, 3.2), ylim=(-2.4, 3.6))
    axes.grid(False)
    axes.spines[:].set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/samplers/guidance.png"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.5, 2, 3, 4, 6, 8])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = three_classes()
    noise = torch.randn(args.samples, 2, generator=torch.Generator().manual_seed(args.seed), dtype=torch.float64)

    plt.switch_backend("Agg")
    plt.style.use(STYLE)
    figure, panels = plt.subplot_mosaic("abcd;sshh", figsize=(10, 6.2))
    window = "at {:.0%} to {:.0%}".format(*WINDOW)
    titles = {"scale 0: all": 0, "scale 1: one class": 1, "scale 6": 6, f"scale 6, {window}": interval(6, *WINDOW)}
    for key, (title, scale) in zip("abcd", titles.items(), strict=True):
        show(panels[key], data, draw(data, scale, noise, args.steps), title)
    asked = data.components[0]
    for label, schedule in [("all the way", lambda s: s), (window, lambda s: interval(s, *WINDOW))]:
        draws = torch.stack([draw(data, schedule(scale), noise, args.steps) for scale in args.scales])
        panels["s"].plot(args.scales, draws.var(1).mean(-1).sqrt(), "o-", label=label)
        panels["h"].plot(args.scales, draws[..., 1].mean(1), "o-", label=label)
    panels["s"].axhline(asked.covariance[0, 0].sqrt().item(), color="k", ls=":", label="the class itself")
    panels["h"].axhline(asked.mean[1].item(), color="k", ls=":", label="the class itself")
    panels["s"].set(title="Guidance narrows", xlabel="guidance scale", ylabel="standard deviation of samples")
    panels["h"].set(title="and overshoots", xlabel="guidance scale", ylabel="mean height of samples")
    panels["s"].legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
