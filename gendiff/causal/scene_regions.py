"""Where in a picture a cause and what follows from it are to be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .graph import CausalGraph

if TYPE_CHECKING:
    from torch import Tensor

Boxes = Sequence[Sequence[float]]
"""Boxes (top, bottom, left, right) as shares of height and width, 0 <= top < bottom <= 1."""


def check_regions(regions: Mapping[str, Boxes], nodes: Sequence[str]) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Boxes by node, as tuples.

    Raises:
        ValueError: a node that is none of `nodes`, or a box that is empty or leaves the picture.
    """
    for name, boxes in regions.items():
        if name not in nodes:
            raise ValueError(f"regions has unknown node {name!r}; known: {', '.join(nodes)}.")
        for box in boxes:
            good = len(box) == 4 and 0 <= box[0] < box[1] <= 1 and 0 <= box[2] < box[3] <= 1
            if not good:
                raise ValueError(
                    f"regions of {name!r} must be boxes (top, bottom, left, right) within [0, 1], got {list(box)}."
                )
    return {name: tuple(tuple(box) for box in boxes) for name, boxes in regions.items()}


def affected_region(
    graph: CausalGraph, regions: Mapping[str, Boxes], cause: str, height: int, width: int
) -> Tensor | None:
    """Mask (1, 1, height, width) of 0 and 1: where `cause` and its effects lie; None where no region is known of them.

    A contrast between a fact and do(cause = other value) is noise wherever the cause changes nothing.
    """
    import torch  # parsers are imported by what must start fast

    seen = [boxes for name in (cause, *graph.descendants(cause)) if (boxes := regions.get(name))]
    if not seen:
        return None
    mask = torch.zeros(1, 1, height, width)
    for boxes in seen:
        for top, bottom, left, right in boxes:
            mask[..., round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 1
    return mask
