"""Last part of stage C of LINA's training: the gate learns what opening it is worth. gendiff's realisation of LINA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gendiff.models.lina_predictor import LINAPredictor

from .lina_inputs import PredictorInputs


def train_gate(
    predictor: LINAPredictor,
    inputs: PredictorInputs,
    gains: Tensor,
    *,
    open_weight: float = 0.5,
    epochs: int = 500,
    learning_rate: float = 0.03,
) -> None:
    """Fit the gate, in place, to measured gains of what the predictor says; its actions do not change.

    Whether a single prompt gains beyond doubt is hard to know from a few images, and prompts that the predictor cannot
    tell apart share one gate. So each prompt counts by how much it gains or loses, not by whether a search accepted
    its best candidate: the gate opens where the mean gain, losses counted 1 / open_weight times, is above 0.

    Args:
        predictor: after `train_predictor`; it is left in evaluation mode.
        inputs: of P prompts, among them some that need no intervention.
        gains: (P,), J under what the predictor says with its gate open less J of the plain model.
        open_weight: of gains beside losses, above 0; below 1 a gate in doubt stays shut.
        epochs: steps, each over all prompts.
        learning_rate: of Adam.

    Raises:
        ValueError: gains that are not one finite number for each prompt, or an argument outside its range.
    """
    if tuple(gains.shape) != (len(inputs),) or not gains.isfinite().all():
        raise ValueError(f"gains must be finite ({len(inputs)},), one for each prompt, got {tuple(gains.shape)}.")
    for name, value in (("open_weight", open_weight), ("epochs", epochs), ("learning_rate", learning_rate)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}.")
    predictor.eval()
    inputs, worth = inputs.to(predictor.device), gains.float().to(predictor.device)
    scale = worth.abs().mean().clamp(min=1e-9)
    weights = torch.where(worth > 0, open_weight, 1.0) * worth.abs() / scale
    optimizer = torch.optim.Adam(predictor.out.parameters(), lr=learning_rate)
    with torch.no_grad():
        hidden = predictor.hidden(*inputs.parts)
    for _ in range(epochs):
        logits = predictor.out(hidden)[:, -1]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, (worth > 0).float(), weight=weights)
        optimizer.zero_grad()
        loss.backward()
        for parameter in predictor.out.parameters():
            assert parameter.grad is not None
            parameter.grad[:-1] = 0  # the gate is the last row
        optimizer.step()
    predictor.zero_grad()
