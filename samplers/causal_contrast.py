"""What guidance and causal contrast do to a prompt whose prior is wrong, in a world whose network is perfect."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from gendiff import sample
from gendiff.app.plots import STYLE
from gendiff.oracles.mode_world import SHORTCUT_SHARE, STATED_SHARE, TARGET_SHARE, ModeWorld
from gendiff.samplers.contrast import CausalContrast, contrasted
from gendiff.samplers.guidance import guided
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.noise_levels import noise_level, noise_share
from gendiff.samplers.remembered import remembered


def draw(world, mode, noise, steps, scale=1.0, intervention=None):
    """End of a walk of `mode`'s prompt under guidance `scale` and contrast."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - index / steps for index in range(steps)])
    texts = world.prompt(mode), "", world.factual(mode), world.counterfactual(mode)
    asked, empty, plus, minus = (remembered(world.predictor(text, scheduler)) for text in texts)
    predict = contrasted(
        guided(asked, empty, scale),
        plus,
        minus,
        contrast=CausalContrast(),
        intervention=intervention or Intervention(),
        share=lambda step: noise_share(noise_level(scheduler, step)),
    )
    return sample(predict, scheduler, noise, progress=False)


def rates(world, noise, steps, **how):
    """Shares of samples at the target and at its shortcut, averaged over all modes as targets."""
    ends = {mode: draw(world, mode, noise, steps, **how) for mode in range(world.num_modes)}
    hits = [(world.rate(end, mode), world.rate(end, world.shortcut(mode))) for mode, end in ends.items()]
    return torch.tensor(hits).mean(0).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/samplers/causal_contrast.png"))
    lists = {"scales": [1, 1.5, 2, 3, 5, 8], "strengths": [0, 0.25, 0.5, 1, 2], "stops": [0.6, 0.3, 0]}
    for name, values in lists.items():
        parser.add_argument(f"--{name}", type=float, nargs="+", default=values)
    for name, value in {"steps": 10, "samples": 1500, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    world = ModeWorld()
    noise = torch.randn(args.samples, 2, 2, 2, generator=torch.Generator().manual_seed(args.seed))

    plt.switch_backend("Agg")
    plt.style.use(STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True)
    target, shortcut = zip(*(rates(world, noise, args.steps, scale=scale) for scale in args.scales), strict=True)
    left.plot(args.scales, torch.tensor([target, shortcut]).T, "o-", label=["mode asked for", "shortcut"])
    print("guidance      ", *(f"{scale:g}: {rate:.3f} " for scale, rate in zip(args.scales, target, strict=True)))
    for stop in args.stops:
        tries = (Intervention(lam=lam, window=(1.0, stop)) for lam in args.strengths)
        target = [rates(world, noise, args.steps, intervention=one)[0] for one in tries]
        right.plot(args.strengths, target, "o-", label=f"while s > {stop:g}")
        print(f"contrast s>{stop:<4g}", *(f"{a:g}: {b:.3f} " for a, b in zip(args.strengths, target, strict=True)))
    for axes, truth in ((left, TARGET_SHARE), (left, SHORTCUT_SHARE), (right, TARGET_SHARE), (right, STATED_SHARE)):
        axes.axhline(truth, color="k", ls=":", lw=1)
    left.set(title="Guidance takes the shortcut", xlabel="guidance scale", ylabel="share of samples", ylim=(0, 1.03))
    right.set(title="Early contrast does not", xlabel="strength of contrast")
    left.legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
