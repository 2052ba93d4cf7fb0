"""Scores of a physical alignment probe: which of a prompt's causes and effects an image shows as they should be.

Terms of the LINA paper's probe (arXiv 2512.13290) in gendiff's realisation: the paper names the probe and tells direct
from multi-hop effects; how checks become scores, and the measures of masks and images below, are our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gendiff.errors import InvalidInputError


class PhysicalWorld(Protocol):
    """What a world must offer for `physics_given_scene`; ShadowWorld and BuoyancyWorld do."""

    def physics(self, images: Tensor) -> Mapping[str, Tensor]:
        """Read (B, 3, S, S) images, work out what their implied nodes should be given the causes they show, and
        compare: (B,) bool by implied node, False where a cause cannot be read."""
        ...


def check_unit_scores(scores: Tensor, name: str) -> Tensor:
    """`scores` as float32, or an error that names the first entry that is no number in [0, 1].

    Args:
        scores: bool or numbers; (prompts,) or (candidates, prompts), any shape is allowed.
        name: what the scores are of, for the message.

    Raises:
        InvalidInputError: NaN or a value outside [0, 1]; candidate (two dimensions or more) and prompt are named.
    """
    values = scores.float()
    wrong = (~((values >= 0) & (values <= 1))).nonzero()
    if len(wrong):
        index = wrong[0].tolist()
        names = ("candidate", "prompt")[-len(index) :] if index else ()
        place = ", ".join(f"{what} {at}" for what, at in zip(names, index[-2:], strict=True)) or "the only entry"
        raise InvalidInputError(f"{name} must be in [0, 1], got {values[tuple(index)].item()} for {place}")
    return values


def pap_score(checks: Mapping[str, Tensor], hops: Mapping[str, int]) -> dict[str, Tensor]:
    """Alignment of each image by distance from what the prompt says.

    Args:
        checks: node -> (B,) bool, or a pass rate in [0, 1], of every image.
        hops: node -> 0 for what the prompt names, 1 for its direct effects, 2 and more for effects of effects.

    Returns:
        "pap@h" for every hop h among the checks: mean pass rate of the checks of that hop. "pap_all": 1 where every
        check is passed in full, else 0. All (B,) float32 in [0, 1].

    Raises:
        InvalidInputError: no checks, checks of different length, a node without a hop, or a score outside [0, 1].
    """
    if not checks:
        raise InvalidInputError("checks must hold at least one check, got none")
    missing = [name for name in checks if name not in hops]
    if missing:
        raise InvalidInputError(f"hops must name every check, {missing[0]!r} is missing; got {', '.join(hops)}")
    shapes = {name: tuple(value.shape) for name, value in checks.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise InvalidInputError(f"checks must all be (B,), got {shapes}")
    values = {name: check_unit_scores(value, f"check {name!r}") for name, value in checks.items()}
    scores = {}
    for hop in sorted({hops[name] for name in values}):
        scores[f"pap@{hop}"] = torch.stack([value for name, value in values.items() if hops[name] == hop]).mean(0)
    scores["pap_all"] = torch.stack([value >= 1 for value in values.values()]).all(0).float()
    return scores


def mean_scores(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean over images of each of `pap_score`'s scores. Raises InvalidInputError if there is no image."""
    for name, value in scores.items():
        if not value.numel():
            raise InvalidInputError(f"scores must hold at least one image, {name!r} has none")
    return {name: value.double().mean().item() for name, value in scores.items()}


def physics_given_scene(world: PhysicalWorld, images: Tensor) -> dict[str, Tensor]:
    """Whether the implied parts of a picture follow from what the *picture* shows, whatever the prompt asked for.

    A picture of a floating stone fails; a picture of floating wood passes, even if stone was asked for.

    Args:
        world: reads pictures and knows the mechanisms; see `PhysicalWorld`.
        images: (B, 3, S, S) in [-1, 1].

    Returns:
        Implied node -> (B,) bool; and "all", whether all of them do. Where causes cannot be read, False.

    Raises:
        InvalidInputError: the world has no `physics`, or its answer is not (B,) bool for at least one node.
    """
    if not callable(getattr(world, "physics", None)):
        raise InvalidInputError(f"world must have physics(images), as ShadowWorld has; got {type(world).__name__}")
    answer = dict(world.physics(images))
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in answer.items()}
    if not shapes or any(shape != ((len(images),), torch.bool) for shape in shapes.values()):
        raise InvalidInputError(f"physics must answer ({len(images)},) bool for each implied node, got {shapes}")
    return answer | {"all": torch.stack(list(answer.values())).all(0)}


def reflection_containment(reflection: Tensor, mirror: Tensor) -> Tensor:
    """Share of a reflection that lies inside its mirror, |reflection & mirror| / |reflection|.

    Args:
        reflection: (B, ..., H, W) bool masks.
        mirror: masks of the same shape.

    Returns:
        (B,) float32 in [0, 1], NaN where there is no reflection at all and so nothing to contain.

    Raises:
        InvalidInputError: masks of another type, or of different shapes.
    """
    for name, mask in (("reflection", reflection), ("mirror", mirror)):
        if mask.dtype != torch.bool or mask.shape != reflection.shape or mask.ndim < 3:
            raise InvalidInputError(
                f"{name} must be (B, H, W) bool, as large as reflection, got {tuple(mask.shape)} of {mask.dtype}"
            )
    inside = (reflection & mirror).flatten(1).sum(1).float()
    return inside / reflection.flatten(1).sum(1)


def texture(images: Tensor, base: Tensor, regions: Tensor | None = None, bins: int = 8) -> Tensor:
    """How far the colours of each region are those of a base image: 1 - min(1, distance of colour histograms).

    The distance is the total variation between the `bins`-bin histograms of a channel, averaged over channels, then
    over the regions that are not empty. So the same colours in another arrangement score 1, disjoint colours 0.

    Args:
        images, base: (B, C, H, W) in [-1, 1].
        regions: (B, R, H, W) bool, else the whole image is the one region.
        bins: bins a channel, at least 2.

    Returns:
        (B,) float32 in [0, 1]; 1 for an image without any region.

    Raises:
        InvalidInputError: shapes that do not fit, or fewer than 2 bins.
    """
    if images.ndim != 4 or images.shape != base.shape:
        raise InvalidInputError(
            f"images and base must both be (B, C, H, W), got {tuple(images.shape)}, {tuple(base.shape)}"
        )
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
        raise InvalidInputError(f"bins must be an integer of at least 2, got {bins!r}")
    if regions is None:
        regions = torch.ones_like(images[:, :1], dtype=torch.bool)
    if (
        regions.dtype != torch.bool
        or regions.ndim != 4
        or (len(regions), *regions.shape[2:])
        != (
            len(images),
            *images.shape[2:],
        )
    ):
        raise InvalidInputError(f"regions must be (B, R, H, W) bool, got {tuple(regions.shape)} of {regions.dtype}")
    difference = (_histograms(images, regions, bins) - _histograms(base, regions, bins)).abs().sum(-1) / 2
    there = regions.flatten(2).any(2)
    distance = (difference.mean(2) * there).sum(1) / there.sum(1).clamp(min=1)
    return 1 - distance.clamp(max=1)


def residual_noise(images: Tensor) -> Tensor:
    """Noise left in an image, as the standard deviation of white noise that would explain it.

    The difference of two Laplacians (Immerkaer, CVIU 64(2), 1996) removes flat parts, slopes and most edges; the median
    of its size, and not its mean as there, keeps the remaining edges of a clean picture from counting. White noise of
    standard deviation s gives s; a picture of flat colours gives 0. Values clipped at the ends of the range hide noise.

    Args:
        images: (B, C, H, W), at least 3x3, in [-1, 1].

    Returns:
        (B,) float32, at least 0, in the units of the images.

    Raises:
        InvalidInputError: another shape.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 3:
        raise InvalidInputError(f"images must be (B, C, H, W) of at least 3x3 pixels, got {tuple(images.shape)}")
    kernel = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]], device=images.device)
    planes = images.float().flatten(0, 1)[:, None]
    response = F.conv2d(planes, kernel[None, None]).reshape(len(images), -1)
    # The kernel's squared entries sum to 36; the median of |N(0, 1)| is 0.6745.
    return response.abs().median(1).values / (6 * math.sqrt(2) * torch.erfinv(torch.tensor(0.5)).item())


def _histograms(images: Tensor, regions: Tensor, bins: int) -> Tensor:
    """(B, R, C, bins) shares of the pixels of each region in each bin; all 0 for an empty region."""
    position = ((images.float().clamp(-1, 1) + 1) / 2 * bins).long().clamp(max=bins - 1)
    hot = F.one_hot(position, bins).flatten(2, 3).float()
    counts = torch.einsum("brp,bcpk->brck", regions.flatten(2).float(), hot)
    return counts / counts.sum(-1, keepdim=True).clamp(min=1)
