"""Warps of a sampling schedule: the same steps, the same ends, more of them where causal structure forms.

A warp w: [0, 1] -> [0, 1] is a strictly increasing bijection of the position u = i / N in a run. A scheduler's own grid
is G(u), its noise level at position u; the warped grid is G(w(u)). Below the diagonal w spends more steps early.

That early steps matter most, and are to get more of the compute, is LINA's finding (Yu & Lu 2025, arXiv 2512.13290);
the formulas are gendiff's realisation of it, not the authors'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Position = TypeVar("Position", float, Tensor)

# Name -> what the parameter is called and its range. Beyond these float64 no longer tells steps apart to 1e-12.
PARAMETERS: dict[str, tuple[str, float, float]] = {
    "moebius": ("kappa", 1.0, 1000.0),
    "power": ("gamma", 1.0, 100.0),
    "split": ("beta", 0.001, 0.999),
}
_BISECTIONS = 64  # halvings of [0, 1] until float64 is exhausted


@dataclass(frozen=True)
class WarpSpec:
    """A warp by name. `WarpSpec()` is the identity.

    Attributes:
        name: "moebius", w = u / (kappa - (kappa - 1) u), which on a linear flow grid is the time shift of SD3 (Esser et
            al. 2024); "power", w = u ** gamma; or "split", a share `parameter` of the steps for positions below `u_c`.
        parameter: kappa in [1, 1000], gamma in [1, 100], or beta in [0.001, 0.999].
        u_c: "split" only: where the first part ends, in [0.001, 0.999].
        omega: in [0, 1], blends with the identity: (1 - omega) u + omega w(u).

    Raises:
        ValueError: an unknown name, or a number that is not finite or outside its range.
    """

    name: str = "moebius"
    parameter: float = 1.0
    u_c: float = 0.3
    omega: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in PARAMETERS:
            raise ValueError(f"name of a warp must be one of {', '.join(PARAMETERS)}, got {self.name!r}.")
        label, low, high = PARAMETERS[self.name]
        checks = [
            (f"parameter ({label}) of a {self.name} warp", self.parameter, low, high),
            ("u_c of a warp", self.u_c, *PARAMETERS["split"][1:]),
            ("omega of a warp", self.omega, 0.0, 1.0),
        ]
        for what, value, least, most in checks:
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not (number and least <= value <= most):  # NaN fails both comparisons
                raise ValueError(f"{what} must be within [{least:g}, {most:g}], got {value!r}.")

    @property
    def is_identity(self) -> bool:
        """Whether w(u) = u."""
        same = self.u_c if self.name == "split" else 1.0
        return self.omega == 0 or self.parameter == same

    @property
    def label(self) -> str:
        """Name and parameter for a message, such as "moebius, kappa = 2"."""
        return f"{self.name}, {PARAMETERS[self.name][0]} = {self.parameter:g}"

    def at(self, u: Position) -> Position:
        """w(u).

        Args:
            u: a position or a tensor of them, within [0, 1].

        Returns: a float for a number, a float64 tensor of the same shape for a tensor.

        Raises:
            ValueError: a position outside [0, 1].
        """
        return self._apply(self._at, u, "u")

    def inverse(self, w: Position) -> Position:
        """The position u with w(u) = `w`: which share of the steps is done where the base is at position `w`.

        Closed form for pure warps and for every split; a blend of another kind is bisected to the end of float64.

        Args:
            w: a warped position or a tensor of them, within [0, 1].

        Returns: as `at`.

        Raises:
            ValueError: a position outside [0, 1].
        """
        return self._apply(self._inverse, w, "w")

    def positions(self, num_steps: int) -> Tensor:
        """w(i / N) for i = 0 .. N, float64 (N + 1,).

        Raises:
            ValueError: N is not a whole number of at least 1.
        """
        return self.at(torch.arange(checked_steps(num_steps) + 1, dtype=torch.float64) / num_steps)

    def share_before(self, position: float) -> float:
        """Expected share of the steps at positions below `position` of the base: 0.3 without a warp at 0.3.

        Raises:
            ValueError: a position outside [0, 1].
        """
        return self.inverse(float(position))

    def then(self, outer: WarpSpec) -> WarpSpec:
        """The warp `u -> outer(self(u))`, where it has a name: kappas multiply, and so do gammas.

        Raises:
            ValueError: the composition is none of the named warps.
        """
        if outer.is_identity:
            return self
        if self.is_identity:
            return outer
        if self.name == outer.name != "split" and self.omega == outer.omega == 1:
            return replace(self, parameter=self.parameter * outer.parameter)
        raise ValueError(f"a warp ({self.label}) followed by ({outer.label}) is no warp with a name; use one of them.")

    def _apply(self, function: Callable[[Tensor], Tensor], value: Any, name: str) -> Any:
        positions = torch.as_tensor(value, dtype=torch.float64)
        if not bool(((positions >= 0) & (positions <= 1)).all()):
            raise ValueError(f"{name} must be positions within [0, 1], got {value!r}.")
        result = function(positions)
        return result if isinstance(value, Tensor) else float(result)

    def _at(self, u: Tensor) -> Tensor:
        if self.is_identity:
            return u.clone()
        if self.name == "split":
            # A blended split is a split whose first part ends elsewhere.
            return _bend(u, self.parameter, self._blended_end)
        # A sum of positive terms keeps small positions precise; it may miss 1 by a rounding.
        blended = (1 - self.omega) * u + self.omega * self._pure(u)
        return torch.where(u < 1, blended, u)

    def _inverse(self, w: Tensor) -> Tensor:
        if self.is_identity:
            return w.clone()
        if self.name == "split":
            return _bend(w, self._blended_end, self.parameter)
        if self.omega == 1:
            if self.name == "power":
                return w ** (1 / self.parameter)
            return w / (w + (1 - w) / self.parameter)
        low, high = torch.zeros_like(w), torch.ones_like(w)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = self._at(middle) < w
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.where((w > 0) & (w < 1), (low + high) / 2, w)

    def _pure(self, u: Tensor) -> Tensor:
        if self.name == "power":
            return u**self.parameter
        return u / (1 + (self.parameter - 1) * (1 - u))

    @property
    def _blended_end(self) -> float:
        return (1 - self.omega) * self.parameter + self.omega * self.u_c


def _bend(x: Tensor, knee: float, height: float) -> Tensor:
    """The line from (0, 0) over (knee, height) to (1, 1), its second half measured from the end, where it is exact."""
    return torch.where(x <= knee, x * (height / knee), 1 - (1 - x) * ((1 - height) / (1 - knee)))


def checked_steps(num_steps: Any) -> int:
    """`num_steps` if it is a whole number of at least 1.

    Raises:
        ValueError: it is not.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be a whole number of at least 1, got {num_steps!r}.")
    return cast(int, num_steps)
