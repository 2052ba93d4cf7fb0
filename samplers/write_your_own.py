"""Write your own scheduler: a second-order flow-matching solver, walked by `sample`, beside the exact answer."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import ConfigMixin, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from gendiff.app.plots import STYLE
from gendiff.oracles.gaussian import Gaussian, exact_predictor
from gendiff.samplers.loop import sample


class FlowAdamsBashforthScheduler(SchedulerMixin, ConfigMixin):
    """Euler's step with the velocity extrapolated half a step ahead: one network call a step, like Euler.

    v(t + h/2) is guessed on the line through the last two velocities (Adams & Bashforth 1883, two-step formula).
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000):
        self.timesteps = None

    def set_timesteps(self, num_inference_steps, device=None):
        self.sigmas = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        self.timesteps = (self.sigmas[:-1] * self.config["num_train_timesteps"]).to(device)
        self._index, self._previous = 0, None

    def step(self, model_output, timestep, sample, return_dict=True):
        width = self.sigmas[self._index + 1] - self.sigmas[self._index]
        change = 0 if self._previous is None else model_output - self._previous
        following = sample + width * (model_output + change / 2)
        self._index, self._previous = self._index + 1, model_output
        return SchedulerOutput(prev_sample=following) if return_dict else (following,)


def error(scheduler, data, noise):
    reached = sample(exact_predictor(data, scheduler), scheduler, noise, progress=False)
    return (reached - data.transport(noise, (0.0, 1.0))).square().mean().sqrt().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/samplers/write_your_own.png"))
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 40, 80, 160])
    args = parser.parse_args()
    data = Gaussian(torch.tensor([2.0, -1.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double())
    noise = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    euler, ours, errors = FlowMatchEulerDiscreteScheduler(), FlowAdamsBashforthScheduler(), []
    for steps in args.steps:
        euler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        ours.set_timesteps(steps)
        errors.append([error(scheduler, data, noise) for scheduler in (euler, ours)])
    plt.switch_backend("Agg")
    plt.style.use(STYLE)
    figure, axes = plt.subplots(figsize=(6.4, 4.6))
    lines = axes.loglog(args.steps, errors, "o-", label=["Euler (diffusers)", "our own"])
    for line, last, order in zip(lines, errors[-1], (1, 2), strict=True):
        slope = [last * (args.steps[-1] / steps) ** order for steps in args.steps]
        axes.loglog(args.steps, slope, ":", color=line.get_color(), alpha=0.7, label=f"order {order}")
    axes.set(xlabel="network calls", ylabel="distance to the exact solution (RMS)", title="A scheduler of one's own")
    axes.set_xticks(args.steps, [str(steps) for steps in args.steps])
    axes.minorticks_off()
    axes.legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
