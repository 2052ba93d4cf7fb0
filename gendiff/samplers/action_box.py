"""The box of interventions that a search walks and a predictor speaks of: a point y in [-1, 1]^(K + 4), and back.

The coordinates are (alpha_1, ..., alpha_K, lam, rho, log kappa, s_stop), and y = 0 is the identity. Those that have no
negative side (lam, rho, kappa) are cut at 0 here, at use, and nowhere else: a cut inside a loss has no gradient where
an untrained predictor starts. This is gendiff's realisation of LINA; the authors' parametrisation is not published.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from .intervention import Intervention
from .warps import WarpSpec

EXTRA_ACTIONS = ("lam", "rho", "log_kappa", "s_stop")
"""Coordinates behind the K factors."""
STOP_MAX = 0.9
"""Largest s_stop: a window keeps at least a tenth of the noise levels."""
FEW_STEPS, FEW_STEPS_KAPPA = 12, 3.0
"""With fewer steps than the first, kappa above the second starves the late steps: on a Gaussian (S = 0.2, Euler, 10
steps) the error grows from 0.040 to 0.067 at kappa 2 and to 0.117 at kappa 5."""


@dataclass(frozen=True)
class ActionBox:
    """Limits of what may be done to one base model.

    Attributes:
        factors: names of the K causal factors of the prompt, in the order of y.
        alpha_max: strength of a factor at y = 1, its negative at -1; above 0.
        lam_max: strength of the causal contrast at y = 1; 0 takes it out of the box.
        rho_max: strength of the energy gradient at y = 1; 0 takes it out of the box.
        kappa_max: Moebius warp at y = 1, at least 1; 1 takes it out of the box.
        stop_base: end of the window at y = 0, in [0, 0.9].
        stop_range: how far y = 1 moves the end of the window, in [0, 1]; what leaves [0, 0.9] is cut.

    Raises:
        ValueError: a limit outside its range, or a factor named twice.
    """

    factors: tuple[str, ...] = ()
    alpha_max: float = 1.0
    lam_max: float = 8.0
    rho_max: float = 0.0
    kappa_max: float = 2.0
    stop_base: float = 0.3
    stop_range: float = 0.4

    def __post_init__(self) -> None:
        if isinstance(self.factors, str):
            raise ValueError(f"factors must be a tuple of names, got the string {self.factors!r}.")
        object.__setattr__(self, "factors", tuple(self.factors))
        if len(set(self.factors)) != len(self.factors) or set(self.factors) & set(EXTRA_ACTIONS):
            raise ValueError(f"factors must differ and not be one of {', '.join(EXTRA_ACTIONS)}, got {self.factors}.")
        limits = {
            "alpha_max": (self.alpha_max > 0, "above 0"),
            "lam_max": (self.lam_max >= 0, "at least 0"),
            "rho_max": (self.rho_max >= 0, "at least 0"),
            "kappa_max": (self.kappa_max >= 1, "at least 1"),
            "stop_base": (0 <= self.stop_base <= STOP_MAX, f"in [0, {STOP_MAX}]"),
            "stop_range": (0 <= self.stop_range <= 1, "in [0, 1]"),
        }
        for name, (good, allowed) in limits.items():
            if not (good and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K + 4 coordinates in order."""
        return (*self.factors, *EXTRA_ACTIONS)

    @property
    def active(self) -> tuple[int, ...]:
        """Coordinates that can change anything: those whose limit is not the identity's value."""
        free = (self.lam_max > 0, self.rho_max > 0, self.kappa_max > 1, self.stop_range > 0)
        count = len(self.factors)
        return (*range(count), *(count + i for i, good in enumerate(free) if good))

    @property
    def identity(self) -> tuple[float, ...]:
        """y = 0."""
        return (0.0,) * len(self.names)

    def intervention(self, y: Sequence[float] | Tensor, open: bool = True) -> Intervention:
        """What the point y stands for.

        Args:
            y: (K + 4,), each in [-1, 1].
            open: the gate.
        Returns: `Intervention()` itself, but for the end of the window, where no strength is above 0.

        Raises:
            ValueError: a wrong number of coordinates, or one that is not in [-1, 1].
        """
        values = [float(value) for value in (y.tolist() if isinstance(y, Tensor) else y)]
        if len(values) != len(self.names):
            raise ValueError(f"y must have {len(self.names)} values ({', '.join(self.names)}), got {len(values)}.")
        for name, value in zip(self.names, values, strict=True):
            # Not "abs(value) > 1", which a NaN passes.
            if not abs(value) <= 1:
                raise ValueError(f"y of {name!r} must lie in [-1, 1], got {value!r}.")
        count = len(self.factors)
        lam, rho, log_kappa, stop = values[count:]
        kappa = math.exp(math.log(self.kappa_max) * max(log_kappa, 0.0))
        return Intervention(
            # A factor at 0 is left out, so that the identity is equal to Intervention().
            alpha={name: self.alpha_max * v for name, v in zip(self.factors, values, strict=False) if v},
            lam=self.lam_max * max(lam, 0.0),
            rho=self.rho_max * max(rho, 0.0),
            window=(1.0, min(max(self.stop_base + self.stop_range * stop, 0.0), STOP_MAX)),
            warp=WarpSpec("moebius", kappa),
            gate=bool(open),
        )

    def normalise(self, intervention: Intervention) -> tuple[float, ...]:
        """The point y (K + 4 values) of an intervention, whatever its gate; undoes `intervention`.

        Raises:
            ValueError: it lies outside the box, or has an unknown factor, a warp other than Moebius's, or a window
                that does not start at 1.
        """
        self.check_factors(intervention.alpha)
        warp, (start, stop) = intervention.warp, intervention.window
        if not warp.is_identity and (warp.name != "moebius" or warp.omega != 1):
            raise ValueError(f"warp must be 'moebius' with omega 1 to have a place in the box, got {warp}.")
        if start != 1:
            raise ValueError(f"window must start at 1 to have a place in the box, got {intervention.window}.")
        kappa = 1.0 if warp.is_identity else warp.parameter
        shift = stop - self.stop_base
        y = {name: intervention.alpha.get(name, 0.0) / self.alpha_max for name in self.factors}
        y["lam"] = _share("lam", intervention.lam, self.lam_max)
        y["rho"] = _share("rho", intervention.rho, self.rho_max)
        y["log_kappa"] = _share("log kappa", math.log(kappa), math.log(self.kappa_max))
        y["s_stop"] = _share("s_stop less stop_base", shift, self.stop_range)
        for name, value in y.items():
            if not abs(value) <= 1 + 1e-9:
                raise ValueError(f"{name} of {intervention} lies outside the box: {value:.6g} of its limit.")
        return tuple(min(max(value, -1.0), 1.0) for value in y.values())

    def check_factors(self, names: Iterable[str]) -> None:
        """See to it that all names are known.

        Raises:
            ValueError: one is not among the factors, which are listed.
        """
        if unknown := [name for name in names if name not in self.factors]:
            known = ", ".join(self.factors) or "none"
            raise ValueError(f"alpha has unknown factor {unknown[0]!r}; known factors: {known}.")

    def check_steps(self, intervention: Intervention, num_steps: int) -> None:
        """See to it that a run of `num_steps` can bear the warp; see `limited` for the nearest that it can.

        Raises:
            ValueError: kappa above 3 with fewer than 12 steps.
        """
        if self.limited(intervention, num_steps) != intervention:
            raise ValueError(
                f"kappa must be at most {FEW_STEPS_KAPPA:g} with fewer than {FEW_STEPS} steps, got "
                f"{intervention.warp.parameter:g} with {num_steps} steps."
            )

    def limited(self, intervention: Intervention, num_steps: int) -> Intervention:
        """The same with kappa cut to what `num_steps` can bear; the same object where nothing is to be cut."""
        warp = intervention.warp
        if num_steps >= FEW_STEPS or warp.name != "moebius" or warp.parameter <= FEW_STEPS_KAPPA:
            return intervention
        return replace(intervention, warp=replace(warp, parameter=FEW_STEPS_KAPPA))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as a predictor's config holds them."""
        return {**asdict(self), "factors": list(self.factors)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ActionBox:
        """Inverse of `to_dict`.

        Raises:
            ValueError: an unknown key, or as for the class.
        """
        known = list(cls.__dataclass_fields__)
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"an action box has no {unknown[0]!r}; known: {', '.join(known)}.")
        return cls(**values)


def _share(name: str, value: float, limit: float) -> float:
    if limit == 0 and abs(value) > 1e-9:
        raise ValueError(f"{name} lies outside the box, which has no room for it, got {value:.6g}.")
    return value / limit if limit else 0.0


@dataclass(frozen=True)
class Preset:
    """Values to start from for one family of base models.

    Attributes:
        base: the base model.
        num_steps: N.
        guidance_scale: g; the second where a base has two experts, else the same.
        num_factors: K.
        limits: of the `ActionBox`, all but the factors.
        projection: of the causal contrast, as `CausalContrast` names it.
        search: method of `search_interventions`.
        num_seeds: images for each candidate and prompt.
    """

    base: str
    num_steps: int
    guidance_scale: tuple[float, float]
    num_factors: int
    limits: Mapping[str, float]
    projection: str
    search: str
    num_seeds: int

    def box(self, factors: Sequence[str]) -> ActionBox:
        """The box for named factors, of which there may be fewer or more than `num_factors`."""
        return ActionBox(tuple(factors), **self.limits)


def _limits(alpha: float, lam: float, stop: float, kappa: float) -> dict[str, float]:
    return {"alpha_max": alpha, "lam_max": lam, "kappa_max": kappa, "stop_base": stop}


PRESETS: Mapping[str, Preset] = {
    "tiny": Preset("ModeWorld", 10, (1.0, 1.0), 2, _limits(2, 2, 0.3, 3), "none", "cem", 64),
    "small": Preset("ShadowWorld DiT", 10, (2.0, 2.0), 3, _limits(1, 8, 0.4, 2), "none", "grid", 4),
    "sd15": Preset("Stable Diffusion 1.5, Euler", 30, (7.5, 7.5), 4, _limits(0.3, 3, 0.5, 2), "clip", "grid", 4),
    "sdxl": Preset("SDXL, Euler", 30, (5.0, 5.0), 4, _limits(0.3, 3, 0.5, 2), "clip", "grid", 4),
    "sd35": Preset("SD 3.5, shift 3", 28, (4.5, 4.5), 4, _limits(0.3, 2, 0.5, 2), "clip+orthogonal", "grid", 4),
    "flux": Preset("FLUX.1, dynamic shift", 28, (3.5, 3.5), 4, _limits(0.2, 1, 0.6, 1.5), "clip", "grid", 4),
    # The window is that of the high-noise expert, whose part of a run ends at the share 0.875.
    "wan22": Preset("Wan2.2, UniPC flow_shift 5", 40, (4.0, 3.0), 4, _limits(0.2, 1, 0.875, 2), "clip", "grid", 2),
}
"""Starting values by base. Ours; only "tiny" and "small" were ever tried, the others are guesses to search from."""
