"""The ways to decode that are compared: steps of the base decoder, and plans of full and light steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gendiff.samplers.recap import ReCAPConfig

BASE_STEPS = (4, 8, 16, 32)
FIXED = ((32, 12, 1), (32, 0, 1), (32, 0, 3), (16, 8, 1), (16, 0, 1), (16, 0, 3))
"""T, F, U: steps, groups at the start without light steps, light steps of each group after them."""
ADAPTIVE = (32, 0, 7)
"""T, F, U of the plan whose groups end where the network's answers have moved too far."""


@dataclass(frozen=True)
class Plan:
    """A way to decode.

    Attributes:
        row: its name in the result: base/T, or recap/T-F-U and the bound if there is one.
        steps: T.
        recap: None for the base decoder.
    """

    row: str
    steps: int
    recap: ReCAPConfig | None = None

    @property
    def base(self) -> str:
        """Row of the base decoder of as many steps."""
        return f"base/{self.steps}"

    @property
    def words(self) -> str:
        """For a table."""
        if self.recap is None:
            return f"base, T = {self.steps}"
        said = f"ReCAP, T = {self.steps}, F = {self.recap.num_warmup_groups}, U = {self.recap.num_light_steps}"
        bound = self.recap.max_staleness
        return said if bound is None else f"{said} at most, change at most {bound:g} nats"

    def call(self, options: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        found = {"num_inference_steps": self.steps, **options}
        return found if self.recap is None else {**found, "recap": self.recap}


def plans_of(bounds: Sequence[float], continuous: bool) -> dict[str, Plan]:
    """All plans by row, base decoders first.

    Args:
        bounds: of adaptive plans, nats.
        continuous: leaves those out, whose measure is of logits.
    """
    plans = [Plan(f"base/{steps}", steps) for steps in BASE_STEPS]
    plans += [recap_plan(*plan) for plan in FIXED]
    plans += [] if continuous else [recap_plan(*ADAPTIVE, bound) for bound in bounds]
    return {plan.row: plan for plan in plans}


def recap_plan(steps: int, warmup: int, light: int, bound: float | None = None) -> Plan:
    """The plan (T, F, U), with a bound on staleness or without."""
    config = ReCAPConfig(num_light_steps=light, num_warmup_groups=warmup, max_staleness=bound)
    name = f"recap/{steps}-{warmup}-{light}" + ("" if bound is None else f"-bound-{bound:g}")
    return Plan(name, steps, config)
