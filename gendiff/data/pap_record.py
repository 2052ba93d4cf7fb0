"""One item of a physical alignment probe: a prompt, an image made from it, its masks, and what must hold in it.

Eleven fields are those of the published probe (data set OpenCausaLab/LINA-PAP); graph, factors, split, out-of-
distribution flag and checks are gendiff's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from gendiff.errors import InvalidInputError

KINDS = ("equal", "near", "at_least")
SPLITS = ("train", "calib", "test")


@dataclass(frozen=True)
class Check:
    """Something that must hold of one node of an image's scene graph.

    Args:
        node_id: the node.
        hop: 0 for what the prompt names, 1 for a direct effect, 2 and more for effects of effects.
        kind: "equal" value == target; "near" |value - target| <= tolerance; "at_least" value >= target - tolerance.
        target: what is read from a true image.
        tolerance: in units of the value; 0 for "equal".

    Raises:
        InvalidInputError: a field is out of range; the node is named.
    """

    node_id: str
    hop: int
    kind: str
    target: float
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        where = f"of check {self.node_id!r}"
        if not isinstance(self.node_id, str) or not self.node_id:
            raise InvalidInputError(f"node_id must be a name, got {self.node_id!r}")
        if isinstance(self.hop, bool) or not isinstance(self.hop, int) or self.hop < 0:
            raise InvalidInputError(f"hop {where} must be an integer of at least 0, got {self.hop!r}")
        if self.kind not in KINDS:
            raise InvalidInputError(f"kind {where} must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name, value in (("target", self.target), ("tolerance", self.tolerance)):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidInputError(f"{name} {where} must be a finite number, got {value!r}")
        if self.tolerance < 0 or (self.kind == "equal" and self.tolerance):
            raise InvalidInputError(f"tolerance {where} must be at least 0, and 0 for 'equal', got {self.tolerance!r}")

    def passes(self, values: Tensor) -> Tensor:
        """Whether values (B,) read from images meet the target: (B,) bool. NaN meets nothing."""
        if self.kind == "at_least":
            return values >= self.target - self.tolerance
        return (values - self.target).abs() <= self.tolerance


def run_checks(checks: Sequence[Check], values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Decide checks on what was read from images.

    Args:
        checks: at most one for each node.
        values: node -> (B,) numbers, NaN where nothing can be read.

    Returns:
        node -> (B,) bool, and node -> hop: the arguments of `gendiff.metrics.pap.pap_score`.

    Raises:
        InvalidInputError: two checks of one node, or a node that was not read.
    """
    check_unique(checks)
    for check in checks:
        if check.node_id not in values:
            raise InvalidInputError(f"values must hold node {check.node_id!r}, got {', '.join(values) or 'none'}")
    passed = {check.node_id: check.passes(torch.as_tensor(values[check.node_id])) for check in checks}
    return passed, {check.node_id: check.hop for check in checks}


def check_unique(checks: Sequence[Check]) -> None:
    """Raise InvalidInputError if two checks are of the same node."""
    nodes = [check.node_id for check in checks]
    twice = [node for node in nodes if nodes.count(node) > 1]
    if twice:
        raise InvalidInputError(f"checks must be one for each node, {twice[0]!r} has {nodes.count(twice[0])}")


@dataclass(frozen=True)
class PAPRecord:
    """One item of the probe.

    Attributes:
        id, seed, model, prompt, category, subcategory: as published.
        metadata: the published JSON, read.
        image: (3, H, W) uint8.
        mask_object, mask_mirror, mask_on_mirror_reflection: (H, W) bool, None where the item has no such mask.
        csg: the causal scene graph as JSON text, "" if there is none.
        factors: causal factor -> its value, by which combinations are split.
        split: train, calib or test.
        ood: whether the combination of factors was kept out of training.
        checks: what must hold.
    """

    id: str
    seed: int
    model: str
    prompt: str
    category: str
    subcategory: str
    metadata: dict[str, Any]
    image: Tensor
    mask_object: Tensor | None = None
    mask_mirror: Tensor | None = None
    mask_on_mirror_reflection: Tensor | None = None
    csg: str = ""
    factors: dict[str, Any] = field(default_factory=dict)
    split: str = "train"
    ood: bool = False
    checks: tuple[Check, ...] = ()

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InvalidInputError(
                f"split of record {self.id!r} must be one of {', '.join(SPLITS)}, got {self.split!r}"
            )
        check_unique(self.checks)

    @property
    def hops(self) -> dict[str, int]:
        """Node -> hop, of all checks."""
        return {check.node_id: check.hop for check in self.checks}


CHECK_FIELDS = tuple(item.name for item in fields(Check))
