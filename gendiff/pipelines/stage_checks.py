"""Checks of the codes that a callback hands back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.samplers.loop import Step
from gendiff.samplers.next_frequency import Codes


def with_checked_codes(
    on_step_end: Callable[[Step, Codes], Any] | None, vqvae: FrequencyVQModel
) -> Callable[[Step, Codes], Codes | None] | None:
    """`on_step_end`, of which only the codes of the latest stage may be replaced: earlier ones are drawn already.

    Raises, when it is called:
        ValueError: earlier codes changed, or the new ones are no codes of their stage.
    """
    if on_step_end is None:
        return None

    def checked(step: Step, codes: Codes) -> Codes | None:
        replaced = on_step_end(step, codes)
        if replaced is None:
            return None
        replaced = tuple(replaced)
        if len(replaced) != len(codes):
            raise ValueError(f"latents must be the codes of {len(codes)} stages, got {len(replaced)}.")
        for stage, (new, old) in enumerate(zip(replaced[:-1], codes, strict=False)):
            if new is not old and not torch.equal(new, old):
                raise ValueError(f"latents may change at stage {step.index} alone; stage {stage} is in use already.")
        _check_codes(replaced, codes[-1], vqvae)
        return replaced

    return checked


def _check_codes(codes: Sequence[Tensor], like: Tensor, vqvae: FrequencyVQModel) -> None:
    if not codes[-1].is_floating_point():
        # With `smooth`, earlier stages are weights: look at the latest alone.
        vqvae.check_stage_tokens(len(codes) - 1, codes[-1], len(like))
        return
    expected = (*like.shape[:2], vqvae.config["codebook_size"])
    if tuple(codes[-1].shape) != expected:
        raise ValueError(f"weights of stage {len(codes) - 1} must be {expected}, got {tuple(codes[-1].shape)}.")
