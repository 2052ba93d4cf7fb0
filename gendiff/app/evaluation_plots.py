"""Plots of scores: each a PNG, an SVG and the numbers in it as CSV. Equal numbers give equal files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from .pictures import grid, png_bytes, to_pil

SHOWN = 84
"""Side in screen pixels, about, that a picture is enlarged to in the grid."""
INK, SOFT = "#1f4e79", "#9aa5b1"


def line_plot(
    name: str,
    points: Mapping[str, Sequence[float]],
    labels: tuple[str, str],
    title: str = "",
    levels: Mapping[str, float] | None = None,
    line: tuple[Sequence[float], Sequence[float], str] | None = None,
    log: bool = False,
) -> dict[str, bytes]:
    """One curve.

    Args:
        name: of the files, without their endings.
        points: two columns of equal length by name, x and y, and any further ones for the CSV.
        labels: of the axes.
        title: above the plot.
        levels: horizontal lines by name.
        line: x, y and name of a fitted line.
        log: logarithmic x axis.

    Returns: content of NAME.png, NAME.svg and NAME.csv.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A fixed salt and no date, so that equal numbers give equal SVG.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        x, y = list(points.values())[:2]
        axes.plot(x, y, "o-" if line is None else "o", color=INK)
        if line is not None:
            axes.plot(line[0], line[1], "--", color=SOFT, label=line[2])
        for text, value in (levels or {}).items():
            axes.axhline(value, color=SOFT, linewidth=1, linestyle=":", label=text)
        if log:
            axes.set_xscale("log")
            axes.set_xticks(list(x), [f"{value:g}" for value in x])
            axes.minorticks_off()
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        if levels or line:
            axes.legend(frameon=False, fontsize=8)
        files = {f"{name}.csv": _csv(points)}
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            files[f"{name}.{kind}"] = buffer.getvalue()
    return files


def grids(sets: Sequence[tuple[str, Tensor]]) -> bytes:
    """PNG of sets of images side by side, their names above.

    Args:
        sets: name and uint8 (N, 3, H, W) of each.
    """
    blocks = []
    for _, images in sets:
        scale = max(1, SHOWN // images.shape[-1])
        pictures = [to_pil(image.float() / 255, scale) for image in images]
        columns = math.ceil(len(pictures) ** 0.5)
        blocks.append(grid([pictures[start : start + columns] for start in range(0, len(pictures), columns)]))
    return png_bytes(grid([blocks], column_labels=[name for name, _ in sets]))


def _csv(columns: Mapping[str, Sequence[float]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()
