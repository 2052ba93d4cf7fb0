"""Light steps with perfect answers: what they gain on a Markov chain, and what reusing stale context costs."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from gendiff import MaskedScheduler, ReCAPConfig, sample
from gendiff.app.plots import STYLE
from gendiff.oracles.markov_tokens import MarkovTokens
from gendiff.samplers.recap import full_equivalents

CODES, STAY = 4, 0.9  # a chain that keeps its token with probability STAY
MOVES = torch.full((CODES, CODES), (1 - STAY) / (CODES - 1)).fill_diagonal_(STAY)


def frozen(chain):
    """A predictor whose light steps see what was revealed since the full step only through rows of their own group.

    So it is in a network of messages between neighbours: none passes a hidden row that is not computed anew.
    """
    before = []

    def predict(state, step):
        group = state.group
        if group.shape[1] == 0:
            before[:] = [~state.hidden]
            return chain.predict(state, step)
        inside = torch.zeros_like(state.hidden).scatter(1, group, True)
        walls = (state.hidden & ~inside).long().cumsum(1)  # rows that block; where equal, none lies between
        passed = walls.gather(1, group)[..., None] == walls[:, None]
        seen = before[0][:, None] | (~state.hidden[:, None] & passed)  # (B, m, N), each row of the group its own
        tokens = state.tokens[:, None].expand_as(seen).flatten(0, 1)
        return chain.logits(tokens, ~seen.flatten(0, 1), group.reshape(-1, 1)).view(*group.shape, -1)

    return predict


def decode(predict, args, steps, light):
    """Price of a walk in full steps, and how many more neighbours differ in its sequences than in the chain's own."""
    scheduler, generator = MaskedScheduler(order="random"), torch.Generator().manual_seed(args.seed)
    counts = scheduler.set_timesteps(steps, [args.tokens] * args.samples, ReCAPConfig(num_light_steps=light))
    tokens = torch.zeros(args.samples, args.tokens, dtype=torch.long)
    state = scheduler.start(tokens, torch.ones_like(tokens, dtype=torch.bool), generator)
    drawn = sample(predict, scheduler, state, generator=generator, progress=False).tokens
    differ = (drawn[:, 1:] != drawn[:, :-1]).double().mean().item()
    return full_equivalents(scheduler.groups, counts[0].tolist(), args.tokens, 0, 0), differ - (1 - STAY)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/samplers/recap.png"))
    parser.add_argument("--full", type=int, nargs="+", default=[2, 3, 4, 6, 8], help="numbers of full steps")
    for name, value in {"tokens": 32, "samples": 500, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    chain = MarkovTokens(torch.full((CODES,), 1 / CODES), MOVES, num_tokens=args.tokens)
    plt.switch_backend("Agg")
    plt.style.use(STYLE)
    figure, axes = plt.subplots(figsize=(6.4, 4.6))
    ways = {"full steps alone": (chain.predict, 0, "o-")}
    for light, color in ((1, "C1"), (3, "C2")):
        ways[f"{light} light, frozen context"] = (frozen(chain), light, f"s-{color}")
        ways[f"{light} light, nothing stale"] = (chain.predict, light, f":{color}")
    for name, (predict, light, style) in ways.items():
        costs, errors = zip(*(decode(predict, args, full * (1 + light), light) for full in args.full), strict=True)
        axes.plot(costs, errors, style, label=name)
        print(f"{name:26s}", *(f"{cost:.1f}: {error:.4f} " for cost, error in zip(costs, errors, strict=True)))
    axes.set(xlabel="cost in full steps", ylabel="neighbours that differ, beyond the chain's share")
    axes.legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
