"""Causal contrast: a prediction pushed from what a counterfactual prompt says towards what the factual one says.

`v' = v + lam * w(s) * M * P(delta)` with `delta = v(x, s; E+) - v(x, s; E-)`, where E+ is the factual prompt and E- the
one in which a single cause was set otherwise, do(node = value). Every update of a scheduler is linear in what the
network predicts, so the term serves noise, velocity and sample predictions alike.

This is gendiff's realisation of LINA's guidance in latent space (Yu & Lu 2025, arXiv 2512.13290, state that such
guidance exists); the formulas are ours. If E- is the empty prompt, the term is plain classifier-free guidance and no
contrast: say so where results are reported.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import Predictor, State, Step

PROJECTIONS = ("none", "orthogonal", "clip", "clip+orthogonal", "momentum")
SHAPES = ("box", "ramp")


@dataclass(frozen=True)
class CausalContrast:
    """How the contrast enters a prediction; its strength and window belong to the `Intervention`.

    Attributes:
        projection: P. "none"; "orthogonal" takes the part along the guide `v_c - v_u` out, in each sample, so that no
            gain can be more classifier-free guidance (nor less of it: where guidance itself leads astray, as in
            ModeWorld, that is most of the gain); "clip" bounds `||lam * P(delta)|| <= clip * ||v_c - v_u||`;
            "clip+orthogonal" does both; "momentum" adds up `delta + momentum * (sum so far)` along the walk.
        clip: r of the bound, above 0. In ShadowWorld r = 1 took most of the gain away.
        momentum: in (-1, 1); below 0 it damps what all steps have in common (APG, Sadat et al. 2024, arXiv
            2410.02416). Only "momentum" reads it.
        shape: w(s) inside the window: "box" is 1, "ramp" falls evenly from 1 at s_start to 0 at s_stop.
        mask: M in [0, 1], where the term acts; None is everywhere. For latents (B, C, *spatial) it is `spatial`,
            (B or 1, 1 or C, *spatial) or anything between; for packed latents (B, tokens, channels) it is (tokens, 1);
            for vectors (B, D) it is (D,). All zero: a warning, and the term is skipped.

    Raises:
        ValueError: an unknown name, a number outside its range, or a mask that is not within [0, 1].
    """

    projection: str = "none"
    clip: float = 3.0
    momentum: float = -0.5
    shape: str = "box"
    mask: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, allowed in (("projection", PROJECTIONS), ("shape", SHAPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ValueError(f"clip must be finite and above 0, got {self.clip!r}.")
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum must be in (-1, 1), got {self.momentum!r}.")
        if self.mask is not None:
            low, high = self.mask.amin().item(), self.mask.amax().item()
            if not (low >= 0 and high <= 1):  # also refuses NaN
                raise ValueError(f"mask must lie within [0, 1], got values from {low:g} to {high:g}.")
            if self.is_masked_out:
                warnings.warn(f"mask of shape {tuple(self.mask.shape)} is all zero; contrast is skipped.", stacklevel=3)

    @property
    def is_masked_out(self) -> bool:
        """Whether the mask leaves nothing of the term."""
        return self.mask is not None and not bool(self.mask.any())

    @property
    def needs_guide(self) -> bool:
        """Whether P is about `v_c - v_u`, so that an unconditional prediction is needed."""
        return "orthogonal" in self.projection or "clip" in self.projection

    def weight(self, share: float, window: tuple[float, float]) -> float:
        """w(s) in [0, 1]: 0 outside `window` = (s_start, s_stop)."""
        start, stop = window
        share = round(share, 6)  # a scheduler's float32 0.6 lies above 0.6, and would be out of (0.6, 0.3)
        if not start >= share > stop:
            return 0.0
        return 1.0 if self.shape == "box" else (share - stop) / (start - stop)

    def averaged(self, delta: Tensor, previous: Tensor | None) -> Tensor:
        """What "momentum" puts in the place of `delta`, and is to be handed in as `previous` at the next step."""
        return delta if previous is None else delta + self.momentum * previous.to(delta)

    def term(
        self,
        delta: Tensor,
        guide: Tensor | None,
        share: float,
        lam: float | Tensor,
        window: tuple[float, float],
        previous: Tensor | None = None,
    ) -> Tensor:
        """`lam * w(s) * M * P(delta)`, what is to be added to the prediction, in the dtype of `delta`.

        Computed in float32 or finer. The bound of "clip" is on `lam * P(delta)`, so w(s) and M can only lower it.

        Args:
            delta: `v(E+) - v(E-)`, (B, ...).
            guide: `v_c - v_u` of the same shape; only "clip" and "orthogonal" need it. Where it vanishes, "clip" lets
                nothing through and "orthogonal" everything.
            share: s in [0, 1], how much of `x` is noise (`noise_share`).
            lam: strength, at least 0; one number or one for each sample, (B,).
            window: (s_start, s_stop).
            previous: `averaged` of the step before, for "momentum"; None at the first step.

        Raises:
            ValueError: lam is negative, not finite or of another batch; the guide is missing or has another shape; the
                mask does not fit.
        """
        _check_lam(lam, delta)
        if self.needs_guide:
            if guide is None:
                raise ValueError(f"projection {self.projection!r} needs the guide v_c - v_u, got none.")
            if guide.shape != delta.shape:
                raise ValueError(f"guide has shape {tuple(guide.shape)}, delta {tuple(delta.shape)}; they must agree.")
        mask = None if self.mask is None else _fitted(self.mask, delta)
        weight = self.weight(share, window)
        if weight == 0 or self.is_masked_out:
            return torch.zeros_like(delta)
        change, fine = _fine(delta), None if guide is None else _fine(guide)
        if self.projection == "momentum":
            change = self.averaged(change, previous)
        if "orthogonal" in self.projection and fine is not None:
            change = _without(change, fine)
        change = change * (lam.to(change).view(-1, *[1] * (delta.ndim - 1)) if isinstance(lam, Tensor) else lam)
        if "clip" in self.projection and fine is not None:
            # After the projection, so that no more is cut than the bound asks for; scaling keeps it orthogonal.
            length = _norm(change)
            bound = self.clip * _norm(fine)
            change = change * torch.where(length > bound, bound / length.clamp_min(torch.finfo(length.dtype).tiny), 1)
        change = change * weight
        return (change if mask is None else change * mask).to(delta.dtype)

    def to_json(self) -> str:
        """One line of JSON: everything but the mask, which belongs to one image and not to a setting."""
        return json.dumps({name: getattr(self, name) for name in _SETTINGS}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> CausalContrast:
        """Inverse of `to_json`; the mask is None."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CausalContrast:
        """From what `to_json` wrote.

        Raises:
            ValueError: an unknown key, or as for the class.
        """
        if unknown := [name for name in values if name not in _SETTINGS]:
            raise ValueError(f"a contrast has no {unknown[0]!r}; known: {', '.join(_SETTINGS)}.")
        return cls(**values)


_SETTINGS = ("projection", "clip", "momentum", "shape")


def difference(factual: Tensor, counterfactual: Tensor) -> Tensor:
    """`v(E+) - v(E-)` in float32 or finer: two bfloat16 predictions that differ little leave nothing but rounding.

    Raises:
        ValueError: the two differ in shape, dtype or device; names both.
    """
    seen = [f"{tuple(one.shape)} {one.dtype} on {one.device}" for one in (factual, counterfactual)]
    if seen[0] != seen[1]:
        raise ValueError(f"predictions under E+ and E- must agree, got {seen[0]} and {seen[1]}.")
    return _fine(factual) - _fine(counterfactual)


def contrasted(
    predict: Predictor,
    factual: Predictor,
    counterfactual: Predictor,
    *,
    contrast: CausalContrast,
    intervention: Intervention,
    share: Callable[[Step], float],
    unconditional: Predictor | None = None,
) -> Predictor:
    """Predict `predict + lam * w(s) * M * P(factual - counterfactual)`, while the window is open.

    `predict` may be anything, guidance included: what is added on top of guidance with strength g is the same as the
    term added to each of its rows, for any g. Give one `remembered` network to guidance and contrast, and a step
    costs one more row, not two. Outside the window only `predict` is called. A walk may be started any number of
    times: what "momentum" adds up is forgotten at step 0.

    Args:
        predict: what would be predicted without contrast.
        factual: the network under E+, usually the prompt itself.
        counterfactual: the network under E-.
        contrast: projection, mask and shape of the term.
        intervention: lam, window and gate; its other strengths are not looked at.
        share: s of a step, e.g. `lambda step: noise_share(noise_level(scheduler, step))`.
        unconditional: the network under the empty prompt; the guide is `factual - unconditional`. Only "clip" and
            "orthogonal" call it.

    Returns: `predict` itself where lam is 0, the gate is shut or the mask is all zero.

    Raises:
        ValueError: the projection needs `unconditional`; at a step, predictions that do not fit together.
    """
    if not intervention.gate or intervention.lam == 0 or contrast.is_masked_out:
        return predict
    if contrast.needs_guide and unconditional is None:
        raise ValueError(f"projection {contrast.projection!r} is about v_c - v_u: pass unconditional.")
    lam, window, running = intervention.lam, intervention.window, None

    def pushed(state: State, step: Step) -> Tensor:
        nonlocal running
        if step.index == 0:
            running = None
        said = predict(state, step)
        s = share(step)
        if contrast.weight(s, window) == 0:
            return said
        plus = factual(state, step)
        delta = difference(plus, counterfactual(state, step))
        guide = None
        if contrast.needs_guide and unconditional is not None:
            guide = difference(plus, unconditional(state, step))
        term = contrast.term(delta, guide, s, lam, window, running)
        if contrast.projection == "momentum":
            running = contrast.averaged(delta, running)
        return said + term.to(said.dtype)

    return pushed


def _fine(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _norm(values: Tensor) -> Tensor:
    """Length of each sample, (B, 1, ..., 1)."""
    return values.flatten(1).norm(dim=1).view(-1, *[1] * (values.ndim - 1))


def _without(values: Tensor, guide: Tensor) -> Tensor:
    """`values` less its part along `guide`, in each sample."""
    length = _norm(guide)
    unit = torch.where(length > 0, guide / length.clamp_min(torch.finfo(length.dtype).tiny), 0)
    for _ in range(2):  # the second round removes what rounding left where nearly all of `values` lay along the guide
        along = (values * unit).flatten(1).sum(1).view_as(length)
        values = values - along * unit
    return values


def _fitted(mask: Tensor, delta: Tensor) -> Tensor:
    """The mask as a factor of `delta`; unlike plain broadcasting it may repeat over samples and channels only."""
    full = (1,) * (delta.ndim - mask.ndim) + tuple(mask.shape)
    free = {0} if delta.ndim == 2 else {0, 2} if delta.ndim == 3 else {0, 1}
    sizes = zip(full, delta.shape, strict=False)
    fits = len(full) == delta.ndim and all(a == b or (a == 1 and axis in free) for axis, (a, b) in enumerate(sizes))
    if not fits:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not fit predictions of shape {tuple(delta.shape)}.")
    return mask.to(delta.device, torch.promote_types(delta.dtype, torch.float32)).view(full)


def _check_lam(lam: float | Tensor, delta: Tensor) -> None:
    if isinstance(lam, Tensor) and lam.shape not in ((), (len(delta),)):
        raise ValueError(f"lam must be one number or ({len(delta)},), one for each sample; got {tuple(lam.shape)}.")
    values = lam.reshape(-1).tolist() if isinstance(lam, Tensor) else [lam]
    if wrong := [value for value in values if not (math.isfinite(value) and value >= 0)]:
        raise ValueError(f"lam must be finite and at least 0, got {wrong[0]!r}; swap E+ and E- to move the other way.")
