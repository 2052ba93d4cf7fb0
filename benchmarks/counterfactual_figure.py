"""Factual, counterfactual, truth and error, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from counterfactual_questions import Exam
from counterfactual_rows import Answer
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from gendiff.data.rendered import to_bytes

EXAMPLES = 3
"""Images in the figure, from the first seed of the row `model`."""
FULL_ERROR = 128
"""Grey levels at the top of the error's colour scale."""
ERROR_COLOURS = "magma"
TITLE: dict[str, Any] = {"fontsize": 8.5, "pad": 3}


def store_examples(path: Path, exam: Exam, answers: list[Answer]) -> None:
    """Keep what the figure shows, so that it can be drawn again without the model.

    Writes arrays `names` (n,), `values` (n, E), and uint8 `factual` (E, C, S, S), `counterfactual` and `truth`
    (n, E, C, S, S); `has_truth` (n,) says for which variables `truth` is one.
    """
    questions = exam.questions
    factual = exam.images[:EXAMPLES]
    np.savez_compressed(
        path,
        names=np.array([question.variable for question in questions]),
        values=torch.stack([question.values[:EXAMPLES].double() for question in questions]).numpy(),
        factual=to_bytes(factual).numpy(),
        counterfactual=torch.stack([to_bytes(answer.images[:EXAMPLES]) for answer in answers]).numpy(),
        truth=torch.stack(
            [to_bytes(factual if question.truth is None else question.truth[:EXAMPLES]) for question in questions]
        ).numpy(),
        has_truth=np.array([question.truth is not None for question in questions]),
    )


def draw_examples(stored: Path, path: Path) -> None:
    """Write the figure of stored examples: a line for each variable, four panels for each example."""
    with np.load(stored) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    lines, count = len(data["names"]), len(data["factual"])
    widths = [4.4] * count + [0.9]
    figure = Figure(figsize=(sum(widths), 1.28 * lines + 0.75), facecolor="white")
    blocks: Any = figure.subfigures(1, count + 1, width_ratios=widths, wspace=0)
    for example, block in enumerate(blocks[:-1]):
        axes = block.subplots(lines, 4, squeeze=False)
        block.subplots_adjust(left=0.03, right=0.97, top=1 - 0.5 / figure.get_figheight(), bottom=0.03)
        block.subplots_adjust(wspace=0.06, hspace=0.32)
        for line in range(lines):
            _draw_line(axes[line], data, line, example)
        for axis, word in zip(axes[0], ("factual", "counterfactual", "truth", "error"), strict=True):
            axis.annotate(word, (0.5, 1.3), xycoords="axes fraction", ha="center", fontsize=9, fontweight="bold")
    scale = ScalarMappable(Normalize(0, FULL_ERROR), ERROR_COLOURS)
    bar = figure.colorbar(scale, cax=blocks[-1].add_axes((0.12, 0.1, 0.14, 0.75)), extend="max")
    bar.set_label("error, grey levels", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(path, dpi=160)


def _draw_line(axes: np.ndarray, data: dict[str, np.ndarray], line: int, example: int) -> None:
    """Four panels: the image, the answer, the truth, and how far apart the last two are."""
    answer, truth = data["counterfactual"][line, example], data["truth"][line, example]
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(color="#c8c8c8", linewidth=0.8)
    _show(axes[0], data["factual"][example])
    _show(axes[1], answer)
    axes[1].set_title(f"do({data['names'][line]} = {data['values'][line, example]:.3g})", **TITLE, loc="left")
    if not data["has_truth"][line]:
        for axis in axes[2:]:
            axis.set_aspect("equal")
            axis.text(0.5, 0.5, "not known", ha="center", va="center", fontsize=8, color="#888888")
        return
    _show(axes[2], truth)
    error = np.abs(answer.astype(float) - truth.astype(float)).mean(axis=0)
    axes[3].imshow(error, cmap=ERROR_COLOURS, vmin=0, vmax=FULL_ERROR, interpolation="nearest")
    # Its mean is what cf_l1 averages.
    axes[3].set_title(f"{error.mean():.1f}", **TITLE, loc="right", color="#555555")


def _show(axis, image: np.ndarray) -> None:
    if len(image) == 1:
        axis.imshow(image[0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    else:
        axis.imshow(image.transpose(1, 2, 0), interpolation="nearest")
