"""Is a codebook used at every stage? Measured on training images once the weights are final, for the model card."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from gendiff.models.frequency_vq import FrequencyVQModel

from .image_data import fair_sample, images_at

logger = logging.getLogger(__name__)

IMAGES = 2000
"""How many are measured, if there are as many."""

PIXELS_AT_ONCE = 2**17
"""Of images that are decoded together."""

ENOUGH = 0.05
"""Of the codes that a stage could use; with fewer its tokens say next to nothing."""

FROM_STAGE = 2
"""Earlier stages have a few tokens an image, and may well have little to tell apart."""


@dataclass(frozen=True)
class StageHealth:
    """How one stage of a tokenizer is used.

    Attributes:
        stage: k.
        side: p_k, of its token grid.
        codes: distinct codes that the measured images use.
        possible: the codes that they could: V, or as many as there were tokens.
        psnr: dB, mean over the images, of what is decoded up to this stage.
    """

    stage: int
    side: int
    codes: int
    possible: int
    psnr: float

    @property
    def poor(self) -> bool:
        return self.stage >= FROM_STAGE and self.codes < ENOUGH * self.possible


@torch.no_grad()
def measure_stages(vqvae: FrequencyVQModel, dataset: Any, count: int = IMAGES) -> list[StageHealth]:
    """Code use and reconstruction by stage, on images of `dataset`, see `fair_sample`."""
    positions, size = fair_sample(dataset, count), vqvae.config["codebook_size"]
    used = torch.zeros(len(vqvae.stages), size, dtype=torch.bool, device=vqvae.device)
    psnr = torch.zeros(len(vqvae.stages), dtype=torch.float64)
    at_once = max(1, PIXELS_AT_ONCE // vqvae.config["sample_size"] ** 2)
    for start in range(0, len(positions), at_once):
        images = images_at(dataset, positions[start : start + at_once]).to(vqvae.device)
        tokens = vqvae.encode(images).tokens
        for stage, total in enumerate(vqvae.quantizer.sums(tokens)):
            used[stage, tokens[stage].flatten()] = True
            error = (vqvae.decode(f_hat=total) - images).square().flatten(1).mean(dim=1)
            # Pixels span 2; a perfect image would have no number.
            psnr[stage] += (10 * torch.log10(4 / error.clamp(min=1e-10))).double().sum().cpu()
    return [
        StageHealth(k, side, int(used[k].sum()), min(size, len(positions) * side**2), float(psnr[k]) / len(positions))
        for k, side in enumerate(vqvae.stages)
    ]


def report_stages(vqvae: FrequencyVQModel, dataset: Any) -> str:
    """Markdown for the model card; stages that are all but unused are also logged as a warning.

    A warning, not an error: the weights may still be what one wants, and whoever trained for hours is to judge that.
    """
    stages = measure_stages(vqvae, dataset)
    count = min(IMAGES, len(dataset))
    rows = [f"| {s.stage} | {s.side} x {s.side} | {s.codes} of {s.possible} | {s.psnr:.1f} dB |" for s in stages]
    poor = [f"stage {s.stage} uses {s.codes} of {s.possible} codes" for s in stages if s.poor]
    failing = f"{'; '.join(poor)}, fewer than {ENOUGH:.0%}" if poor else ""
    if failing:
        logger.warning(
            "the codebook is hardly used: %s; try more objective.revive_steps, a lower train.learning_rate or fewer "
            "codes.",
            failing,
        )
    table = "\n".join(("| stage | tokens | codes used | PSNR up to here |", "| --- | --- | --- | --- |", *rows))
    verdict = f"\n**Health check failed:** {failing}.\n" if failing else ""
    return f"Of the tokenizer, on {count:,} training images, codes that each stage uses:\n\n{table}\n{verdict}"
