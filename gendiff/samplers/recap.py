"""ReCAP: cheap light steps between full ones, which compute a group of tokens and use the features of all others again.

Source: Liu, Liu, Van den Broeck and Liang 2025, "Plug-and-Play Context Feature Reuse for Efficient Masked Generation",
arXiv 2505.19089.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

LAYOUTS = ("in_place", "concat")
ANNEALINGS = ("step", "group")
DTYPES = ("float32", "bfloat16", "float16")
SHORT_NAMES = {"light": "num_light_steps", "warmup": "num_warmup_groups", "bound": "max_staleness"}


@dataclass(frozen=True)
class ReCAPConfig:
    """Where light steps lie and what they compute.

    Attributes:
        num_light_steps: U, light steps after a full one; 0 is the base decoder, bit for bit.
        num_warmup_groups: F, full steps at the start that have no light ones.
        recompute_prefix: light steps compute class, text or buffer rows as well.
        light_head_steps: denoising steps of MAR's head in light steps; None for as many as in full ones.
        resample_committed: what a full step reveals is drawn a second time, after the draw that ranked it (the
            published recipe).
        anneal_over: the noise of confidences falls with the group's last "step", or with the "group" (the published
            recipe).
        layout: see `RowCache`.
        cache_dtype: of keys and values in the cache, "float32", "bfloat16" or "float16"; None for the network's.
        max_staleness: end a group once what the network says of its hidden tokens has moved this far since the full
            step, in nats (mean Kullback-Leibler divergence, of the image where it is largest). None: a fixed plan.

    Raises:
        ValueError: a value out of range.
    """

    num_light_steps: int = 1
    num_warmup_groups: int = 0
    recompute_prefix: bool = True
    light_head_steps: int | None = None
    resample_committed: bool = False
    anneal_over: str = "step"
    layout: str = "in_place"
    cache_dtype: str | None = None
    max_staleness: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_light_steps", 0), ("num_warmup_groups", 0), ("light_head_steps", 1)):
            value = getattr(self, name)
            if name == "light_head_steps" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
        for name, allowed in (("layout", LAYOUTS), ("anneal_over", ANNEALINGS), ("cache_dtype", (None, *DTYPES))):
            if getattr(self, name) not in allowed:
                known = ", ".join(str(value) for value in allowed)
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        for name in ("recompute_prefix", "resample_committed"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        bound = self.max_staleness
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int | float) or not bound >= 0):
            raise ValueError(f"max_staleness must be at least 0, got {bound!r}.")

    @property
    def active(self) -> bool:
        """Whether there can be light steps."""
        return self.num_light_steps > 0

    def to_dict(self) -> dict[str, Any]:
        """Values by name, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReCAPConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: an unknown name, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"recap has {name!r}; known: {', '.join(known)}.")
        return cls(**values)

    @classmethod
    def parse(cls, text: str) -> ReCAPConfig:
        """From words, as "light=1,warmup=8": names of attributes, or `light`, `warmup` and `bound` for short.

        Raises:
            ValueError: not name=value, a name twice, an unknown one, or a value out of range.
        """
        values: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, sign, value = (piece.strip() for piece in part.partition("="))
            if not sign:
                raise ValueError(f"recap must be name=value, separated by commas, got {part!r}.")
            name = SHORT_NAMES.get(name, name)
            if name in values:
                raise ValueError(f"recap says {name} twice, got {text!r}.")
            values[name] = _value(value)
        return cls.from_dict(values)


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def plan_groups(num_steps: int, config: ReCAPConfig | None) -> list[list[int]]:
    """Steps 0 .. T - 1 as groups: the first of each is a full one, the others are light.

    >>> plan_groups(5, ReCAPConfig(num_light_steps=1, num_warmup_groups=1))
    [[0], [1, 2], [3, 4]]
    """
    groups: list[list[int]] = []
    step = 0
    while step < num_steps:
        stop = group_stop(step, len(groups), num_steps, config)
        groups.append(list(range(step, stop)))
        step = stop
    return groups


def group_stop(step: int, done: int, num_steps: int, config: ReCAPConfig | None) -> int:
    """First step behind the group that starts at `step`, after `done` groups."""
    light = config.num_light_steps if config is not None and done >= config.num_warmup_groups else 0
    return min(step + 1 + light, num_steps)


def full_equivalents(groups: list[list[int]], counts: list[int], num_tokens: int, prefix: int, rows: int) -> float:
    """Cost of a plan in full steps: a light step of a group of n tokens costs (P' + n) / (P + N) of one.

    Args:
        groups: from `plan_groups`.
        counts: tokens revealed at each step.
        num_tokens: N.
        prefix: P.
        rows: P', prefix rows that light steps compute.
    """
    total = 0.0
    for group in groups:
        size = sum(counts[step] for step in group)
        total += 1 + (len(group) - 1) * (rows + size) / (prefix + num_tokens)
    return total
