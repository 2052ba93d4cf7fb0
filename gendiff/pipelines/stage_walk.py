"""What a run over stages remembers: the sum of stages decoded so far, and what the transformer has cached."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.models.next_frequency import NextFrequencyTransformer2DModel
from gendiff.nn.stage_cache import StageCache
from gendiff.samplers.loop import Step
from gendiff.samplers.next_frequency import check_finite

from .stats import Meter


class StageWalk:
    """A predictor for the sampling loop: logits of the next stage, from the codes of those before it.

    Args:
        vqvae: turns codes into what the transformer reads.
        transformer: predicts.
        class_labels: (R B,) int64 for R conditions of B images; all of them see the same codes.
        batch: B.
        use_cache: False computes all earlier stages anew at every step, under the stage mask.
        meter: counts the transformer's calls.

    Attributes:
        total: (B, C, N, N), the sum of decoded stages.
        cache_bytes: most bytes the cache held.
    """

    def __init__(
        self,
        vqvae: FrequencyVQModel,
        transformer: NextFrequencyTransformer2DModel,
        class_labels: Tensor,
        batch: int,
        use_cache: bool,
        meter: Meter,
    ) -> None:
        self._quantizer, self._transformer, self._meter = vqvae.quantizer, transformer, meter
        self._labels, self._repeats = class_labels, len(class_labels) // batch
        self._cache = transformer.make_cache() if use_cache else None
        self._done = 0
        self._inputs: list[Tensor] = []
        self.total = self._quantizer.nothing(batch)
        self.cache_bytes = 0

    def __call__(self, codes: Sequence[Tensor], step: Step) -> Tensor:
        """Logits (R B, n_k, V) of stage k = `step.index`, given codes of stages 0 .. k - 1."""
        stage = step.index
        self.advance(codes)
        inputs = None
        if stage:
            inputs = self._quantizer.next_input(self.total, stage).repeat(self._repeats, 1, 1)
        if self._cache is not None:
            logits = self._call(stage, inputs, self._cache)
            self.cache_bytes = max(self.cache_bytes, self._cache.nbytes)
            return logits
        if inputs is not None:
            self._inputs.append(inputs)
        seen = torch.cat(self._inputs, dim=1) if self._inputs else None
        return self._call(stage, seen, None)[:, -(self._quantizer.stages[stage] ** 2) :]

    def _call(self, stage: int, inputs: Tensor | None, cache: StageCache | None) -> Tensor:
        logits = self._meter(self._transformer, inputs, self._labels, cache=cache, return_dict=False)[0]
        # Here and not in the scheduler alone, because only the network knows in which precision it computed.
        check_finite(logits, stage, self._transformer.dtype)
        return logits

    def advance(self, codes: Sequence[Tensor]) -> None:
        """Add the stages of `codes` that are new since the last call."""
        for stage in range(self._done, len(codes)):
            self.total = self.total + self._quantizer.contribution(codes[stage], stage)
        self._done = len(codes)
