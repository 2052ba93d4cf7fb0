"""How good the images of a prompt are: a world's own verifier, asked about a pipeline under an intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gendiff.pipelines.lina import LINAPipeline
from gendiff.pipelines.lina_output import LINAPipelineOutput
from gendiff.samplers.intervention import Intervention

PRIME = 100_003
"""Noise of a prompt is drawn from seed * PRIME + its number, so that no two prompts share theirs."""


class VerifierScore:
    """`Score` of a search: the share of a world's checks that an image passes, and whether it passes all.

    Args:
        pipe: draws the images.
        world: its `check` judges them.
        prompts: sentences that a search knows by number.
        share: weight of the share of checks passed; the rest is on passing them all, the figure that is reported.
            Alone that one has no slope where most images fail.
        options: of the pipeline's call, e.g. guidance_scale.

    Raises:
        ValueError: share is outside [0, 1].
    """

    def __init__(
        self, pipe: LINAPipeline, world: Any, prompts: Sequence[str], share: float = 0.5, **options: Any
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {share!r}.")
        self.pipe, self.world, self.prompts, self.share, self.options = pipe, world, list(prompts), share, options

    def __call__(
        self,
        intervention: Intervention | Sequence[Intervention],
        prompts: Sequence[int],
        /,
        *,
        seeds: Sequence[int],
    ) -> Tensor:
        """Scores (P, S) in [0, 1]; the same seed and prompt start from the same noise under every intervention."""
        passed = torch.stack(list(self.checks(intervention, prompts, seeds=seeds).values())).float()
        score = self.share * passed.mean(0) + (1 - self.share) * passed.amin(0)
        return score.view(len(prompts), len(seeds))

    @torch.no_grad()
    def checks(
        self, intervention: Intervention | Sequence[Intervention], prompts: Sequence[int], *, seeds: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """Which checks the images pass, (P * S,) bool by node, the seeds of a prompt next to one another."""
        asked = [self.prompts[i] for i in prompts]
        self.pipe.set_progress_bar_config(disable=True)
        output = self.pipe(
            asked,
            intervention=intervention,
            num_images_per_prompt=len(seeds),
            generator=[torch.Generator().manual_seed(seed * PRIME + i) for i in prompts for seed in seeds],
            output_type="latent",
            **self.options,
        )
        assert isinstance(output, LINAPipelineOutput)
        return self.world.check(output.images.float().cpu(), [text for text in asked for _ in seeds])
