"""What a world's verifier says of pictures."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gendiff.causal.scene_graph import CausalSceneGraph
from gendiff.data import DATASETS
from gendiff.metrics.pap import pap_score


@dataclass(frozen=True)
class Verdict:
    """Of one picture.

    Attributes:
        checks: whether it shows each node of the scene graph as the prompt demands.
        scores: by hop, and over all; see `pap_score`.
    """

    checks: Mapping[str, bool]
    scores: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether it passed every check."""
        return all(self.checks.values())

    @property
    def failed(self) -> list[str]:
        """Nodes that it does not show as it should, in words."""
        return [name.replace("_", " ") for name, good in self.checks.items() if not good]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"passed": self.passed, "checks": dict(self.checks), **self.scores}


def verdicts(world: str, images: Tensor, prompts: Sequence[str], graph: CausalSceneGraph | None) -> list[Verdict]:
    """One verdict for each picture; none where no world is known.

    Args:
        world: name of a data set whose class has `check`; "" or an unknown one for none.
        images: (B, 3, S, S) in [0, 1].
        prompts: one for each, letter by letter as the world writes it.
        graph: of any of them; says how far each node is from the prompt.
    """
    if world not in DATASETS or graph is None:
        return []
    module, name = DATASETS[world].split(":")
    # What is judged is what is saved, whole bytes.
    saved = (images.clamp(0, 1) * 255).round() / 255
    checks = getattr(importlib.import_module(module), name).check(saved * 2 - 1, prompts)
    scores = pap_score(checks, graph.hops())
    return [
        Verdict(
            {name: bool(passed[i]) for name, passed in checks.items()},
            {name: round(float(values[i]), 4) for name, values in scores.items()},
        )
        for i in range(len(images))
    ]


def mean_scores(found: Sequence[Verdict]) -> dict[str, float]:
    """Mean of each score over pictures; nothing of none."""
    names = found[0].scores if found else {}
    return {name: sum(verdict.scores[name] for verdict in found) / len(found) for name in names}
