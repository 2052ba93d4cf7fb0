"""What a steered run gives back: the pictures, and what was done to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusers.utils import BaseOutput

from gendiff.causal.scene_graph import CausalSceneGraph
from gendiff.samplers.intervention import Intervention

from .stats import RunStats


@dataclass
class LINAPipelineOutput(BaseOutput):
    """Generated images or videos.

    Attributes:
        images: list of PIL images, array (B, H, W, C) or tensor (B, C, H, W) in [0, 1]; for "latent" the end of the
            walk itself. Images of a prompt lie next to one another.
        interventions: what was done, one for each prompt; the identity where the gate stayed shut.
        graphs: the causal scene graph of each prompt; None where there was no parser.
        nfe: network rows for each image of a prompt.
        schedule: the noise shares s walked, 1 first, for each prompt; the end, 0, is left out.
        stats: what the whole call cost.
        frames: of a video model, instead of `images`.
    """

    images: Any
    interventions: list[Intervention]
    graphs: list[CausalSceneGraph | None]
    nfe: list[float]
    schedule: list[list[float]]
    stats: RunStats | None = None
    frames: Any = field(default=None)
