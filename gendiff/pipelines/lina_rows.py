"""Which rows of a step's denoiser calls are the prompt's and which are the guidance's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .lina_recorder import Call


@dataclass(frozen=True)
class StepRows:
    """What a denoiser said in one step, sorted.

    Attributes:
        call: the prompt's rows, (B, ...).
        positive: v_c, fitted to the prediction's shape.
        negative: v_u; None where the pipeline made none.
    """

    call: Call
    positive: Tensor
    negative: Tensor | None

    @property
    def latents(self) -> Tensor:
        """What the denoiser read, (B, ...), fitted as well."""
        return _fitted(self.call.input, self.positive)

    def fitted(self, said: Tensor) -> Tensor:
        """Of the prediction's shape: pipelines drop what a denoiser says beyond it on axis 1 (variances, tokens of a
        reference image)."""
        return _fitted(said, self.positive)

    def with_latents(self, latents: Tensor) -> Tensor:
        """What the denoiser is to read for these latents: the rest of its input (a mask, a reference) stays."""
        given = self.call.input
        rest = given[:, latents.shape[1] :]
        return torch.cat([latents.to(given.dtype), rest], dim=1) if rest.shape[1] else latents.to(given.dtype)

    def check_prediction(self, prediction: Tensor, name: str) -> None:
        """See to it that the prediction is made of what the denoiser said, and with its sign.

        Guidance and its rescaling give `a v_c + b v_u` with a + b > 0. A pipeline that hands something else to the
        scheduler, such as the negative, would be pushed the wrong way, so it is refused.

        Raises:
            TypeError: it is not; names the pipeline.
        """
        parts = [self.positive] if self.negative is None else [self.positive - self.negative, self.negative]
        basis = torch.stack([part.float().flatten(1) for part in parts], 2)
        target = prediction.float().flatten(1).unsqueeze(2)
        # Normal equations, with a touch of ridge: without guidance the first column may vanish.
        gram, wanted = (basis.mT @ basis).double().cpu(), (basis.mT @ target).double().cpu()
        size = gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(1e-30)
        weights = torch.linalg.solve(gram + 1e-9 * torch.diag_embed(size[:, None].expand(-1, len(parts))), wanted)
        missing = (target - basis @ weights.to(basis)).norm() > 0.5 * target.norm()
        # v = w_0 (v_c - v_u) + w_1 v_u, so a + b is the last weight.
        if missing or bool((weights[:, -1] <= 0).any()):
            raise TypeError(
                f"{name} hands something else to scheduler.step than what its denoiser said under guidance; "
                "there is no route for a contrast."
            )


def step_rows(calls: list[Call], prediction: Tensor, name: str) -> StepRows:
    """Sort the calls of one step by the number of rows: B, the batch, or 2 B.

    One call of 2 B rows is [unconditional; conditional]; of B rows it is the prompt's, and a second one is the
    unconditional one, as in pipelines that make two calls (FLUX with true guidance, Wan).

    Args:
        calls: of the step, in order.
        prediction: (B, ...), what was handed to the scheduler.
        name: the pipeline's class, for errors.

    Raises:
        TypeError: no call, or another number of rows.
    """
    batch = len(prediction)
    if not calls:
        raise TypeError(f"{name} made a step without calling its denoiser; there is no route for a contrast.")
    first = calls[0]
    if first.rows not in (batch, 2 * batch):
        raise TypeError(
            f"{name} called its denoiser with {first.rows} rows for a batch of {batch}, not {batch} or twice."
        )
    call = first.tail(batch)
    negative = None
    if first.rows == 2 * batch:
        negative = first.head(batch).output
    elif len(calls) > 1 and calls[1].rows == batch:
        negative = calls[1].output
    positive = _fitted(call.output, prediction)
    return StepRows(call, positive, None if negative is None else _fitted(negative, prediction))


def _fitted(said: Tensor, like: Tensor) -> Tensor:
    cut = said[:, : like.shape[1]]
    if cut.shape != like.shape:
        raise ValueError(f"the denoiser said {tuple(said.shape)}, but the scheduler was handed {tuple(like.shape)}.")
    return cut
