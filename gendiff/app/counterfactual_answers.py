"""What a counterfactual checkpoint answers about its own test images, beside the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gendiff.causal.graph import Variable
from gendiff.pipelines.abduction import AbductedState
from gendiff.pipelines.counterfactual import CounterfactualPipeline

# Values of a sweep of a continuous variable; a categorical one shows all its classes.
SWEEP = 7


@dataclass(frozen=True)
class Answers:
    """One variable set by hand, in several images.

    Attributes:
        variable: the one that is set.
        values: what it is set to, one for each image; raw units.
        before: images (B, C, S, S) in [0, 1] as they are.
        pictures: the model's counterfactuals, likewise.
        truth: the true counterfactuals, likewise; None where the data has none.
        factors: raw value (B,) of each variable as the model has it after the intervention.
        read: raw value (B,) of each variable that can be read from the pixels of `pictures`.
        true_values: raw value (B,) of each variable in truth; empty where the data has none.
    """

    variable: Variable
    values: list[float]
    before: Tensor
    pictures: Tensor
    truth: Tensor | None
    factors: dict[str, Tensor]
    read: dict[str, Tensor]
    true_values: dict[str, Tensor]

    @property
    def errors(self) -> list[float]:
        """Distance of each picture to the truth in grey levels; needs a truth."""
        assert self.truth is not None
        return grey_levels(self.pictures, self.truth)

    @property
    def unchanged_errors(self) -> list[float]:
        """Distance of each image, left as it is, to the truth: what doing nothing would score."""
        assert self.truth is not None
        return grey_levels(self.before, self.truth)

    def rows(self, start: int, stop: int) -> Answers:
        """Answers about images `start` .. `stop` - 1 only."""

        def cut(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value[start:stop] for name, value in values.items()}

        return Answers(
            self.variable,
            self.values[start:stop],
            self.before[start:stop],
            self.pictures[start:stop],
            None if self.truth is None else self.truth[start:stop],
            cut(self.factors),
            cut(self.read),
            cut(self.true_values),
        )


@dataclass(frozen=True)
class Exhibition:
    """All that is shown of one checkpoint.

    Attributes:
        indices: places of the images in the test data.
        images: (N, C, S, S) in [0, 1].
        labels: true value (N,) of each variable, raw units.
        factors: the same as the model's encoder sees them.
        read: the same as read from the pixels, where that is possible.
        reconstruction_errors: grey levels between each image and its decoding without intervention.
        one_value_each: by variable, every image under a value of its own, rising from left to right.
        sweeps: by variable, the first image under values across the range.
        network_calls: passes of the decoder network, each on a batch.
        seconds: spent in the pipeline.
    """

    indices: list[int]
    images: Tensor
    labels: dict[str, Tensor]
    factors: dict[str, Tensor]
    read: dict[str, Tensor]
    reconstruction_errors: list[float]
    one_value_each: dict[str, Answers]
    sweeps: dict[str, Answers]
    network_calls: int
    seconds: float


def exhibit(
    pipe: CounterfactualPipeline, dataset: Any, count: int, seed: int, steps: int, say: Callable[[str], None]
) -> Exhibition:
    """Abduct `count` test images that `seed` chooses, once, and set each variable of the graph in turn.

    Args:
        dataset: the checkpoint's data; has `images`, `labels`, `counterfactual` and `read`.
        steps: of abduction and of each prediction.
        say: told what is being done.

    Raises:
        ValueError: `count` is more than there are, or `steps` is more than the schedule has.
    """
    if count > len(dataset):
        raise ValueError(f"num_images must be at most {len(dataset)}, the number of test images, got {count}.")
    indices = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    images = dataset.images[indices].float() / 255
    say(f"abduction of {count} images")
    first: Any = pipe(images, {}, num_inference_steps=steps, output_type="pt")
    stats, one_value_each, sweeps = [first.stats], {}, {}
    for variable in pipe.graph.variables:
        say(f"do({variable.name})")
        each, swept = spread(variable, count), sweep_values(variable)
        rows = [*range(count), *(0 for _ in swept)]
        output = pipe.predict(_pick(first.state, rows), {variable.name: [*each, *swept]}, output_type="pt")
        answers = _compare(output, dataset, variable, [*each, *swept], [indices[row] for row in rows])
        one_value_each[variable.name] = answers.rows(0, count)
        sweeps[variable.name] = answers.rows(count, len(rows))
        stats.append(output.stats)
    labels = dataset.labels[indices]
    return Exhibition(
        indices,
        images,
        {name: labels[:, pipe.graph.index(name)] for name in pipe.graph.names},
        {name: value.cpu() for name, value in first.factual.items()},
        dataset.read(2 * images - 1),
        grey_levels(images, first.images.cpu()),
        one_value_each,
        sweeps,
        sum(run.network_calls for run in stats),
        sum(run.seconds for run in stats),
    )


def spread(variable: Variable, count: int) -> list[float]:
    """`count` rising values across the variable's range, short enough to be typed again; classes take turns."""
    if variable.kind == "categorical":
        assert variable.num_classes is not None
        return [
            float(i * variable.num_classes // count if count <= variable.num_classes else i % variable.num_classes)
            for i in range(count)
        ]
    if variable.kind == "binary":
        return [float(2 * (i % 2) - 1) for i in range(count)]
    low, high = value_range(variable)
    values = (round(low + (high - low) * (i + 0.5) / count, decimals(variable)) for i in range(count))
    return [min(max(value, low), high) for value in values]


def sweep_values(variable: Variable) -> list[float]:
    """The whole range from end to end, or every class."""
    if variable.kind == "categorical":
        assert variable.num_classes is not None
        return [float(value) for value in range(variable.num_classes)]
    if variable.kind == "binary":
        return [-1.0, 1.0]
    low, high = value_range(variable)
    return [low + (high - low) * i / (SWEEP - 1) for i in range(SWEEP)]


def value_range(variable: Variable) -> tuple[float, float]:
    """Training range; where a side is open, one scale from the centre."""
    low = variable.loc - variable.scale if variable.low is None else variable.low
    high = variable.loc + variable.scale if variable.high is None else variable.high
    return low, high


def decimals(variable: Variable) -> int:
    """Decimals that resolve the variable's range to a part in some hundreds."""
    if variable.kind != "continuous":
        return 0
    low, high = value_range(variable)
    return max(0, 2 - math.floor(math.log10(high - low)))


def grey_levels(first: Tensor, second: Tensor) -> list[float]:
    """Mean absolute difference of each pair of images (B, C, S, S) in [0, 1], on the scale 0 .. 255."""
    return (255 * (first - second).abs().mean(dim=(1, 2, 3))).tolist()


def _pick(state: AbductedState, rows: Sequence[int]) -> AbductedState:
    """The state of images `rows`, some perhaps several times."""
    picked = torch.tensor(rows, device=state.u.device)
    # The batch is counted from the end of noise: for "edict" it is a pair of batches.
    noise = state.noise.index_select(state.noise.ndim - 4, picked)
    return replace(state, u=state.u[picked], z=state.z[picked], style=state.style[picked], noise=noise)


def _compare(output: Any, dataset: Any, variable: Variable, values: list[float], indices: Sequence[int]) -> Answers:
    pictures = output.images.float().cpu()
    truth, true_values = _truth(dataset, variable.name, values, indices)
    return Answers(
        variable,
        values,
        dataset.images[list(indices)].float() / 255,
        pictures,
        truth,
        {name: value.cpu() for name, value in output.counterfactual.items()},
        dataset.read(2 * pictures - 1),
        true_values,
    )


def _truth(
    dataset: Any, name: str, values: Sequence[float], indices: Sequence[int]
) -> tuple[Tensor | None, dict[str, Tensor]]:
    try:
        pairs = [dataset.counterfactual(index, {name: value}) for index, value in zip(indices, values, strict=True)]
    except ValueError:  # a question that the data itself cannot answer
        return None, {}
    pictures = torch.stack([(picture + 1) / 2 for picture, _ in pairs])
    return pictures, {key: torch.tensor([known[key] for _, known in pairs]) for key in pairs[0][1]}
