"""How fast samplers approach the exact answer: error against the number of steps, on data with a perfect network."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from gendiff.app.plots import STYLE
from gendiff.oracles.gaussian import Gaussian, exact_predictor
from gendiff.samplers.loop import Step, sample
from gendiff.samplers.noise_levels import noise_level

GRID = 10_240  # training timesteps: fine enough to look continuous
BETAS = {"num_train_timesteps": GRID, "beta_start": 0.1 / GRID, "beta_end": 20 / GRID}


def ddim(steps):
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler, (1.0, 0.0)


def dpm_solver(steps):
    # Even steps in log-SNR down to the smallest noise of the grid; diffusers lists that last sigma twice.
    scheduler = DPMSolverMultistepScheduler(**BETAS, final_sigmas_type="sigma_min", use_lu_lambdas=True)
    scheduler.set_timesteps(steps + 1)
    signal = float(scheduler.alphas_cumprod[0])
    return scheduler, (math.sqrt(signal), math.sqrt(1 - signal))


def flow_euler(steps):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    return scheduler, (1.0, 0.0)


def error(data, noise, scheduler, end):
    """Root mean square distance between what the sampler reaches from `noise` and the exact solution."""
    start = noise_level(scheduler, Step(0, len(scheduler.timesteps), scheduler.timesteps[0]))
    reached = sample(exact_predictor(data, scheduler), scheduler, noise, progress=False)
    return (reached - data.transport(noise, start, end)).square().mean().sqrt().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/samplers/convergence.png"))
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40, 80, 160, 320], help="divisors of 10240")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    factor = torch.randn(8, 8, generator=generator, dtype=torch.float64) / math.sqrt(8)
    data = Gaussian(torch.zeros(8, dtype=torch.float64), factor @ factor.T + 0.02 * torch.eye(8))
    noise = torch.randn(256, 8, generator=generator, dtype=torch.float64)

    plt.switch_backend("Agg")
    plt.style.use(STYLE)
    figure, axes = plt.subplots(figsize=(6.4, 4.6))
    steps = np.array(sorted(args.steps))
    for name, make, order in [("DDIM", ddim, 1), ("flow Euler", flow_euler, 1), ("DPM-Solver++ 2M", dpm_solver, 2)]:
        errors = np.array([error(data, noise, *make(int(count))) for count in steps])
        (line,) = axes.loglog(steps, errors, "o-", label=f"{name}, order {order}")
        axes.loglog(steps, errors[-1] * (steps[-1] / steps) ** order, ":", color=line.get_color(), alpha=0.7)
    axes.set(xlabel="steps", ylabel="distance to the exact solution (RMS)", title="Gaussian data, perfect network")
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.minorticks_off()
    axes.legend(title="dotted: the slope of the order")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
