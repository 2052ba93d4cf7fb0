"""Does a model know which way a mechanism runs? Hide the effect and paint it anew, then hide the cause.

The LINA paper (arXiv 2512.13290) uses masked in-painting guided by the scene graph as its diagnostic; the protocol here
is gendiff's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.metrics.pap import check_unit_scores

Regenerate = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
"""(images (B, C, H, W), masks (B, 1, H, W) bool, True = to be painted anew, B prompts) -> images of the same shape."""
Check = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""(images, prompts) -> {node: (B,) bool or pass rate in [0, 1]}."""


def masked_inpaint_probe(
    regenerate: Regenerate,
    check: Check,
    images: Tensor,
    prompts: Sequence[str],
    cause: str,
    effect: str,
    cause_masks: Tensor,
    effect_masks: Tensor,
) -> dict[str, float]:
    """How often a model restores an effect from its cause, and a cause from its effect.

    What lies outside a mask is put back after `regenerate`: repainting the whole picture is of no use.

    Args:
        regenerate: paints the masked part anew; any in-painting of any model.
        check: a world's verifier.
        images: (B, C, H, W) in [-1, 1], true to their prompts.
        prompts: B prompts.
        cause, effect: nodes that `check` decides.
        cause_masks, effect_masks: (B, 1, H, W) bool, the part of each image that shows the node; or (1, H, W) for all.

    Returns:
        "acc(effect|cause)": share of effects restored with the effect hidden; "acc(cause|effect)": share of causes
        restored with the cause hidden; "gap": the first less the second. A model that learned the causal direction has
        a gap of 0 or more.

    Raises:
        InvalidInputError: no image, shapes that do not fit, an empty mask, a node that `check` does not decide, or a
            verdict that is NaN or outside [0, 1]; the image is named.
    """
    if images.ndim != 4 or not len(images) or len(prompts) != len(images):
        raise InvalidInputError(
            f"images must be (B, C, H, W), B > 0, with B prompts, got {tuple(images.shape)} and {len(prompts)} prompts"
        )
    masks = {
        "effect_masks": _checked_masks("effect_masks", effect_masks, images),
        "cause_masks": _checked_masks("cause_masks", cause_masks, images),
    }
    known = check(images, prompts)
    for name, node in (("cause", cause), ("effect", effect)):
        if node not in known:
            raise InvalidInputError(f"{name} must be one of {', '.join(known)}, got {node!r}")
    accuracy = {}
    for name, node in (("effect", effect), ("cause", cause)):
        mask = masks[f"{name}_masks"]
        painted = regenerate(torch.where(mask, 0.0, images), mask, prompts)
        if painted.shape != images.shape:
            raise InvalidInputError(f"regenerate must answer {tuple(images.shape)}, got {tuple(painted.shape)}")
        verdict = check(torch.where(mask, painted, images), prompts)
        accuracy[name] = check_unit_scores(verdict[node], f"check {node!r}").double().mean().item()
    return {
        "acc(effect|cause)": accuracy["effect"],
        "acc(cause|effect)": accuracy["cause"],
        "gap": accuracy["effect"] - accuracy["cause"],
    }


def _checked_masks(name: str, masks: Tensor, images: Tensor) -> Tensor:
    """The masks as (B, 1, H, W), or the error that names them."""
    if masks.ndim == 3:
        masks = masks[None].expand(len(images), -1, -1, -1)
    wanted = (len(images), 1, *images.shape[2:])
    if masks.dtype != torch.bool or tuple(masks.shape) != wanted:
        raise InvalidInputError(
            f"{name} must be {wanted} or {wanted[1:]} bool, got {tuple(masks.shape)} of {masks.dtype}"
        )
    empty = (~masks.flatten(1).any(1)).nonzero()
    if len(empty):
        raise InvalidInputError(f"{name} must hide something in every image, image {int(empty[0])} has an empty mask")
    return masks
