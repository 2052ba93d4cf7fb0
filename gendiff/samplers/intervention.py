"""What LINA changes in one run, as a value: strengths, when they act, and how the steps are spaced."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .warps import WarpSpec


@dataclass(frozen=True)
class Intervention:
    """Strengths of an intervention on a run. `Intervention()` is the identity: no bit changes, nothing is spent.

    Attributes:
        alpha: prompt strength by causal factor, in units of the embedding's rms; finite, usually within [-1, 1].
        lam: strength of the causal contrast in latent space, at least 0.
        rho: strength of the energy gradient, at least 0.
        window: (s_start, s_stop); all of it acts while s_start >= s > s_stop, where s is the share of noise
            (`noise_share`), 1 at the start of a run and 0 at its end. Noise levels, not step numbers: a warp moves more
            steps into the same window.
        warp: how the steps are spaced; it acts in the whole run.
        gate: False shuts everything, warp included.

    Raises:
        ValueError: a strength is not finite or lies outside its range, or the window is empty or outside [0, 1].
    """

    alpha: Mapping[str, float] = field(default_factory=dict)
    lam: float = 0.0
    rho: float = 0.0
    window: tuple[float, float] = (1.0, 0.3)
    warp: WarpSpec = field(default_factory=WarpSpec)
    gate: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", dict(self.alpha))
        object.__setattr__(self, "window", tuple(self.window))
        for name, value in self.alpha.items():
            if not math.isfinite(value):
                raise ValueError(f"alpha of {name!r} must be finite, got {value!r}.")
        for name, value in (("lam", self.lam), ("rho", self.rho)):
            if not (math.isfinite(value) and value >= 0):
                hint = " To move the other way, swap the factual and the counterfactual." if name == "lam" else ""
                raise ValueError(f"{name} must be finite and at least 0, got {value!r}.{hint}")
        if len(self.window) != 2 or not 1 >= self.window[0] > self.window[1] >= 0:
            raise ValueError(f"window must be (s_start, s_stop) with 1 >= s_start > s_stop >= 0, got {self.window}.")

    @property
    def is_identity(self) -> bool:
        """Whether a run under it is the plain run, bit for bit."""
        strengths = (self.lam, self.rho, *self.alpha.values())
        return not self.gate or (self.warp.is_identity and not any(strengths))

    def acts_at(self, share: float) -> bool:
        """Whether the window holds the noise share s = `share`."""
        start, stop = self.window
        # Schedulers hold float32, in which 0.3 is 0.30000001: an end of the window is what it reads as.
        return start >= round(share, 6) > stop

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Intervention:
        """Inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Intervention:
        """From what `to_json` wrote.

        Raises:
            ValueError: an unknown key, or as for the class.
        """
        known = [f for f in cls.__dataclass_fields__]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"an intervention has no {unknown[0]!r}; known: {', '.join(known)}.")
        warp = values.get("warp", {})
        return cls(**{**values, "warp": warp if isinstance(warp, WarpSpec) else WarpSpec(**warp)})

    def __hash__(self) -> int:
        return hash(self.to_json())
