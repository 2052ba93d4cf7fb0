"""SwapWorld: two captions of the same words, told apart by whom the model draws on top; scores as of Winoground.

Guidance and contrast for a pair are chosen on other pairs and other noise: two folds, each chosen on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lina_fixed import LAMS, STOPS, intervention_words
from lina_runs import Outcome, Runner
from lina_statistics import difference_cell
from torch import Tensor

from gendiff.data.rendered import from_bytes
from gendiff.metrics.winoground import VerifierScorer, pair_scores, winoground_score
from gendiff.samplers.intervention import Intervention
from gendiff.training.lina_calibrate import GUIDANCE_SCALES

SCORES = ("image", "text", "group")
TEST = 5000
"""First seed of the test."""
Setting = tuple[float, Intervention]
"""Guidance and intervention."""


@dataclass(frozen=True)
class Pairs:
    """Outcomes of the common and of the rare caption of each of P pairs, and which of 2 folds a pair is in, (P,)."""

    runner: Runner
    common: list[str]
    rare: list[str]

    def outcome(self, setting: Setting, seeds: Sequence[int]) -> Outcome:
        """All common captions, then all rare ones."""
        return self.runner.run([*self.common, *self.rare], seeds, *setting)

    def right(self, setting: Setting, seeds: Sequence[int]) -> Tensor:
        """Share of images whose checks are all passed, mean of both captions, for each pair (P,)."""
        return self.outcome(setting, seeds).scores["pap_all"].mean(1).view(2, -1).mean(0)

    def folds(self) -> list[list[int]]:
        """Numbers of pairs: every other one, and the rest."""
        return [list(range(first, len(self.common), 2)) for first in (0, 1)]


def swap_cases(pipe: Any, world: Any, args: Any) -> list[dict[str, Any]]:
    """Cases of every guidance, of base* and of the contrast against the swapped caption.

    Args:
        args: `steps`, `seeds`, `calibration_seeds`, `prompts` (pairs, None = all).
    """
    runner = Runner(pipe, world, args.steps)
    pairs = Pairs(runner, world.prompts("common")[: args.prompts], world.prompts("rare")[: args.prompts])
    test, search = range(TEST, TEST + args.seeds), range(args.calibration_seeds)
    plain = [(scale, Intervention()) for scale in GUIDANCE_SCALES]
    base = _chosen(pairs, search, [plain, plain])
    steered = []
    for scale, _ in base:
        steered.append([(scale, Intervention(lam=lam, window=(1.0, stop))) for lam in LAMS for stop in STOPS])
    contrast = _chosen(pairs, search, steered)
    rows = {f"guidance-{scale:g}": (f"guidance {scale:g}", [(scale, one)] * 2) for scale, one in plain}
    rows["base"] = ("base*", base)
    rows["contrast"] = ("contrast against the swapped caption", contrast)
    tables = {name: _table(pairs, settings, test) for name, (_, settings) in rows.items()}
    return [_case(name, words, settings, tables) for name, (words, settings) in rows.items()]


def _chosen(pairs: Pairs, seeds: Sequence[int], candidates: Sequence[Sequence[Setting]]) -> list[Setting]:
    """The setting of each fold that does best on the pairs of the other one."""
    folds, chosen = pairs.folds(), []
    for fold, settings in enumerate(candidates):
        other = folds[1 - fold] or folds[fold]
        chosen.append(max(settings, key=lambda one: pairs.right(one, seeds)[other].mean().item()))
    return chosen


def _table(pairs: Pairs, settings: Sequence[Setting], seeds: Sequence[int]) -> dict[str, Tensor]:
    """Figures of each pair and seed (P, S): image, text, group, common, rare; nfe and noise likewise."""
    found: dict[str, Tensor] = {}
    count = len(pairs.common)
    scorer = VerifierScorer(pairs.runner.world.check)
    for members, setting in zip(pairs.folds(), settings, strict=True):
        if not members:
            continue
        outcome = pairs.outcome(setting, seeds)
        two = torch.stack([outcome.images[:count], outcome.images[count:]], 2)[members]
        captions = [(pairs.common[i], pairs.rare[i]) for i in members for _ in seeds]
        matrices = pair_scores(scorer, from_bytes(two.flatten(0, 1)), captions)
        told = [winoground_score(one[None]) for one in matrices]
        part = {name: torch.tensor([one[name] for one in told]).view(len(members), -1) for name in SCORES}
        passed, noise = outcome.scores["pap_all"], outcome.scores["noise"]
        part |= {"common": passed[:count][members], "rare": passed[count:][members]}
        part["noise"] = (noise[:count] + noise[count:])[members] / 2
        part["nfe"] = outcome.nfe[members, None].expand(-1, len(seeds))
        for name, value in part.items():
            found.setdefault(name, torch.zeros(count, len(seeds), dtype=torch.float64))[members] = value.double()
    return found


def _case(name: str, words: str, settings: Sequence[Setting], tables: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    table, base = tables[name], tables["base"]
    cells = [{"metric": key, "value": value.mean().item(), "n": value.numel()} for key, value in table.items()]
    if name != "base":
        cells += [difference_cell(table[key], base[key], "base", of=key) for key in ("group", "rare", "common")]
    does = "; ".join(dict.fromkeys(f"guidance {scale:g}, {intervention_words(one)}" for scale, one in settings))
    return {"row": f"swap/{name}", "seed": 0, "words": words, "does": does, "cells": cells}
