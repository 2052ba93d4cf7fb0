"""Energies whose minimum is a projection: in-painting, the mean colour of regions, super-resolution.

For a linear measurement y = A x_0 the nearest sample that fits is `x_0 + A^+ (y - A x_0)`: what y determines is set,
and the rest (the null space of A) stays as the network has it. So no gradient and no strength is needed, and the end of
a walk fits y exactly. Source: DDNM, Wang et al. 2022 (arXiv 2212.00490), equation 9, for measurements without noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gendiff.samplers.loop import Predictor, State, Step
from gendiff.samplers.noise_levels import from_x0, noise_level, prediction_type, to_x0

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearMeasurement:
    """`y = A x_0`, with A and its pseudo-inverse as functions of batches.

    Attributes:
        name: what errors call it.
        target: y, (1 or B, ...).
        measure: A, (B, ...) -> (B, ...) of the target's shape.
        pseudo_inverse: A^+ with `A A^+ A = A`, back to the shape of a sample.
    """

    name: str
    target: Tensor
    measure: Linear
    pseudo_inverse: Linear

    def project(self, clean: Tensor) -> Tensor:
        """The nearest samples that fit: `x_0 + A^+ (y - A x_0)`.

        Raises:
            ValueError: the target was made for samples of another shape.
        """
        return clean + self.pseudo_inverse(self._missing(clean))

    def energy(self, clean: Tensor) -> Tensor:
        """V = mean square of `y - A x_0` over what is measured, (B,): for `EnergySteering`, or as a report."""
        return self._missing(clean).flatten(1).square().mean(1)

    def _missing(self, clean: Tensor) -> Tensor:
        seen = self.measure(clean)
        target = self.target.to(seen)
        if target.shape[1:] != seen.shape[1:] or len(target) not in (1, len(seen)):
            raise ValueError(
                f"{self.name}: the target has shape {tuple(target.shape)}, what is measured {tuple(seen.shape)}."
            )
        return target - seen


def inpainting(known: Tensor, mask: Tensor) -> LinearMeasurement:
    """Keep what is known: A sets everything outside `mask` to 0 and is its own pseudo-inverse.

    Args:
        known: samples (1 or B, C, *spatial); read where the mask is 1 only.
        mask: 1 where known, else 0, bool or number; `spatial` or anything that broadcasts to `known`.

    Raises:
        ValueError: a mask with other values than 0 and 1, or of another size; later, samples of another size.
    """
    kept = _binary("mask", mask, known)

    def keep(x: Tensor) -> Tensor:
        own_masks = len(kept) if kept.ndim == known.ndim else 1
        if x.shape[1:] != known.shape[1:] or own_masks not in (1, len(x)):
            raise ValueError(f"in-painting: known is {tuple(known.shape)}, samples are {tuple(x.shape)}.")
        return torch.where(kept.to(x.device), x, 0)  # not a product: what is unknown may be NaN

    return LinearMeasurement("in-painting", keep(known), keep, keep)


def region_means(values: Tensor, regions: Tensor) -> LinearMeasurement:
    """Set the mean of each channel over each region, e.g. a colour: A is that mean, A^+ paints it evenly.

    Args:
        values: the means, (1 or B, K, C), in the units of a sample.
        regions: (K, *spatial), bool or 0 and 1; no two overlap and none is empty.

    Raises:
        ValueError: regions with other values, that overlap or are empty, or not as many as values.
    """
    if values.ndim != 3 or values.shape[1] != len(regions):
        raise ValueError(f"values must be (1 or B, {len(regions)}, C), got {tuple(values.shape)}.")
    inside = _binary("regions", regions, regions).flatten(1)  # (K, P)
    if (inside.sum(0) > 1).any():
        raise ValueError("regions must not overlap.")
    if not inside.any(1).all():
        raise ValueError(f"region {int((~inside.any(1)).nonzero()[0, 0])} is empty.")
    spatial = regions.shape[1:]

    def measure(x: Tensor) -> Tensor:
        if x.shape[2:] != spatial:
            raise ValueError(f"region means: regions are {tuple(spatial)}, samples {tuple(x.shape)}.")
        weights = inside.to(x.device, x.dtype)
        return torch.einsum("bcp,kp->bkc", x.flatten(2), weights / weights.sum(1, keepdim=True))

    def paint(y: Tensor) -> Tensor:
        return torch.einsum("bkc,kp->bcp", y, inside.to(y.device, y.dtype)).unflatten(2, spatial)

    return LinearMeasurement("region means", values, measure, paint)


def super_resolution(low: Tensor, factor: int) -> LinearMeasurement:
    """Agree with a small picture: A averages blocks of `factor` x `factor`, A^+ repeats.

    Args:
        low: (1 or B, C, h, w); samples are (B, C, h * factor, w * factor).
        factor: at least 1.

    Raises:
        ValueError: a factor below 1, or a `low` that is no batch of pictures; later, samples of another size.
    """
    if low.ndim != 4 or factor < 1:
        raise ValueError(f"low must be (1 or B, C, h, w) and factor >= 1, got {tuple(low.shape)} and {factor}.")

    def measure(x: Tensor) -> Tensor:
        if x.shape[-2] % factor or x.shape[-1] % factor:
            raise ValueError(f"super-resolution: factor {factor} does not divide samples of {tuple(x.shape)}.")
        return F.avg_pool2d(x, factor)

    def repeat(y: Tensor) -> Tensor:
        return y.repeat_interleave(factor, -2).repeat_interleave(factor, -1)

    return LinearMeasurement("super-resolution", low, measure, repeat)


def projected(predict: Predictor, measurement: LinearMeasurement, scheduler: Any) -> Predictor:
    """Predict what stands for the projection of `x0_hat`, at every step of the walk.

    The end fits the target to rounding wherever the last step goes to noise 0 by x0_hat alone: Euler, DDIM (eta any),
    DPM-Solver with `lower_order_final`. The pixels of a latent model's decoder fit only as well as the decoder does.

    Args:
        predict: what would be predicted without it.
        measurement: what the samples shall show.
        scheduler: the one that is walked; levels and the kind of prediction are read from it.

    Raises:
        ValueError: as `prediction_type`; at a step, samples of another shape than the target is for.
    """
    kind = prediction_type(scheduler)

    def fitted(state: State, step: Step) -> Tensor:
        level = noise_level(scheduler, step)
        said = predict(state, step)
        fine = torch.promote_types(said.dtype, torch.float32)
        x = state.to(fine)
        clean = measurement.project(to_x0(said.to(fine), x, level, kind))
        return from_x0(clean, x, level, kind).to(said.dtype)

    return fitted


def _binary(name: str, mask: Tensor, like: Tensor) -> Tensor:
    """As bool, of a shape that broadcasts to `like`."""
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{name} must hold 0 and 1 only.")
    pairs = zip(reversed(mask.shape), reversed(like.shape), strict=False)
    if mask.ndim > like.ndim or any(a not in (1, b) for a, b in pairs):
        raise ValueError(f"{name} of shape {tuple(mask.shape)} does not fit samples of shape {tuple(like.shape)}.")
    return mask.bool()
