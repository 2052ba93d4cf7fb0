"""Stage C of LINA's training: the predictor learns what the search found. gendiff's realisation of LINA."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gendiff.models.lina_predictor import LINAPredictor

from .lina_inputs import PredictorInputs, PredictorLabels, check_labels

HeldOut = Callable[[LINAPredictor], float]
"""J on prompts whose combinations of factors the training does not see: larger is better."""


@dataclass(frozen=True)
class RegressionReport:
    """How a training went.

    Attributes:
        losses: mean loss of each epoch.
        held_out: (epochs done, J) of each look at the held-out prompts.
        best_epoch: after which the weights are that are returned; the last epoch without a callback.
    """

    losses: tuple[float, ...]
    held_out: tuple[tuple[int, float], ...]
    best_epoch: int


def train_predictor(
    predictor: LINAPredictor,
    inputs: PredictorInputs,
    labels: PredictorLabels,
    *,
    held_out: HeldOut | None = None,
    loss: Literal["regress", "rwr"] = "regress",
    epochs: int = 300,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    gate_weight: float = 1.0,
    open_weight: float = 0.5,
    temperature: float = 0.1,
    check_every: int = 10,
    patience: int = 10,
    seed: int = 0,
    accelerator: Accelerator | None = None,
) -> RegressionReport:
    """Fit the predictor, in place, to labels of a search; it is left in evaluation mode.

    Args:
        predictor: usually untrained; its gate learns from all prompts, its action from accepted ones.
        inputs: of P prompts. Split them by combination of factors (`split_by_combination`), never by seed.
        labels: of the same prompts, easy ones included, so that the gate learns to stay shut.
        held_out: gives J on other prompts and decides when to stop: a label loss can fall while J does, too. It is
            called before the first epoch, so that an untrained predictor wins where training only hurts.
        loss: "regress" is smooth-L1 on accepted labels; "rwr" weights every candidate by softmax of its gain in J over
            `temperature`, for all prompts that were searched. Both add binary cross-entropy on the gate.
        epochs: at most.
        batch_size: prompts in a step of one process.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        gate_weight: of the cross-entropy.
        open_weight: of a prompt that needs an intervention in it, beside 1 for one that needs none; above 0. Below 1 a
            gate in doubt stays shut, which at worst leaves a picture as it was.
        temperature: T of "rwr", above 0.
        check_every: epochs between two looks at `held_out`.
        patience: looks without a better J before the training stops.
        seed: of the order of prompts; with the predictor's weights it determines the result.
        accelerator: one process on the default device without.
    Returns: the report; the predictor's weights are those of the best look.

    Raises:
        ValueError: an argument outside its range, or labels that do not fit.
        FloatingPointError: the loss or the held-out J is not finite.
    """
    _check(loss, epochs, batch_size, temperature, open_weight, check_every, patience)
    check_labels(predictor, inputs, labels)
    if loss == "rwr" and len(labels.tried) != len(inputs):
        raise ValueError(f"loss 'rwr' needs labels.tried for all {len(inputs)} prompts, got {len(labels.tried)}.")
    accelerator = accelerator or Accelerator()
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(torch.arange(len(inputs))), batch_size, shuffle=True, generator=order)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=learning_rate, weight_decay=weight_decay)
    model, optimizer, loader = accelerator.prepare(predictor, optimizer, loader)
    inputs = inputs.to(accelerator.device)
    wanted = _targets(labels, loss, temperature, accelerator.device)
    weights = (gate_weight, torch.tensor(open_weight, device=accelerator.device))
    losses: list[float] = []
    looks: list[tuple[int, float]] = []
    best = _State(predictor, 0, _look(predictor, held_out, looks, 0, accelerator))
    for epoch in range(1, epochs + 1):
        model.train()
        losses.append(_epoch(model, optimizer, loader, inputs, wanted, weights, accelerator))
        if held_out is None or (epoch % check_every and epoch != epochs):
            continue
        found = _look(predictor, held_out, looks, epoch, accelerator)
        if found > best.value:
            best = _State(predictor, epoch, found)
        elif epoch - best.epoch >= patience * check_every:
            break
    if held_out is not None:
        predictor.load_state_dict(best.weights)
    predictor.eval()
    return RegressionReport(tuple(losses), tuple(looks), best.epoch if held_out is not None else len(losses))


class _State:
    """Weights after an epoch and what they are worth."""

    def __init__(self, predictor: LINAPredictor, epoch: int, value: float) -> None:
        self.weights, self.epoch, self.value = copy.deepcopy(predictor.state_dict()), epoch, value


@dataclass(frozen=True)
class _Targets:
    """Points y (P, C, K + 4), their weights (P, C), which sum to 1 or are all 0, and the gate (P,)."""

    points: Tensor
    weights: Tensor
    gate: Tensor


def _targets(labels: PredictorLabels, loss: str, temperature: float, device: torch.device) -> _Targets:
    gate = labels.accepted.float()
    if loss == "regress":
        # What stands in other rows is not read, and may be anything.
        points = torch.where(labels.accepted[:, None], labels.action.float(), torch.zeros(()))
        return _Targets(points[:, None].to(device), gate[:, None].to(device), gate.to(device))
    count = max([len(gains) for _, gains in labels.tried] + [1])
    points = torch.zeros(len(gate), count, labels.action.shape[1])
    weights = torch.zeros(len(gate), count)
    for row, (tried, gains) in enumerate(labels.tried):
        if len(gains):
            points[row, : len(gains)] = tried
            weights[row, : len(gains)] = torch.softmax(gains.double() / temperature, 0).float()
    return _Targets(points.to(device), weights.to(device), gate.to(device))


def _epoch(
    model: nn.Module,
    optimizer: Any,
    loader: Any,
    inputs: PredictorInputs,
    wanted: _Targets,
    gate_weights: tuple[float, Tensor],
    accelerator: Accelerator,
) -> float:
    gate_weight, open_weight = gate_weights
    total, batches = 0.0, 0
    for (index,) in loader:
        action, logits = inputs.rows(index).said_by(model)
        points, weights = wanted.points[index], wanted.weights[index]
        apart = nn.functional.smooth_l1_loss(action.unsqueeze(1).expand_as(points), points, reduction="none").sum(-1)
        # Per prompt that has a label, so that many easy prompts do not drown the few hard ones.
        labelled = weights.sum().clamp(min=1e-9)
        gate = nn.functional.binary_cross_entropy_with_logits(logits, wanted.gate[index], pos_weight=open_weight)
        loss = (weights * apart).sum() / labelled + gate_weight * gate
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of the predictor became {value}.")
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        total, batches = total + value, batches + 1
    return total / batches


def _look(
    predictor: LINAPredictor,
    held_out: HeldOut | None,
    looks: list[tuple[int, float]],
    epoch: int,
    accelerator: Accelerator,
) -> float:
    if held_out is None:
        return 0.0
    predictor.eval()
    with torch.no_grad():
        found = torch.tensor(float(held_out(predictor)), dtype=torch.float64)
    if not found.isfinite():
        raise FloatingPointError(f"held_out must give a finite J, got {found.item()} after epoch {epoch}.")
    if accelerator.num_processes > 1:
        # One process decides when all stop.
        found = broadcast(found.to(accelerator.device, torch.float32), from_process=0)
    assert isinstance(found, Tensor)
    looks.append((epoch, found.item()))
    return found.item()


def _check(
    loss: str,
    epochs: int,
    batch_size: int,
    temperature: float,
    open_weight: float,
    check_every: int,
    patience: int,
) -> None:
    if loss not in ("regress", "rwr"):
        raise ValueError(f"loss must be 'regress' or 'rwr', got {loss!r}.")
    counts = {"epochs": epochs, "batch_size": batch_size, "check_every": check_every, "patience": patience}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    for name, value in {"temperature": temperature, "open_weight": open_weight}.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be above 0, got {value}.")
