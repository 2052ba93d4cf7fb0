"""Plots of benchmarks: PNG and SVG, and the numbers in them as CSV beside."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gendiff.files import write_whole

STYLE = Path(__file__).parents[1] / "samplers" / "plot.mplstyle"


def save_figure(path: Path, draw: Callable[..., None], rows: Sequence[Mapping[str, Any]], panels: int = 1) -> None:
    """Write `path` (.png), the same as .svg, and `rows` as .csv.

    Args:
        draw: called with as many axes as there are panels.
        rows: all with the same keys, which head the columns.
        panels: drawings side by side.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Without a salt and a date, the same numbers give the same SVG.
    with plt.style.context(STYLE), matplotlib.rc_context({"svg.hashsalt": "gendiff"}):
        figure, axes = plt.subplots(1, panels, figsize=(1.6 + 4.8 * panels, 4.2), squeeze=False)
        draw(*axes[0])
        for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=suffix[1:], metadata=metadata)
            write_whole(path.with_suffix(suffix), picture.getvalue())
        plt.close(figure)
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path.with_suffix(".csv"), table.getvalue())


def plot_throughput(result: Mapping[str, Any], path: Path) -> None:
    """Images a second against the batch, with the 95 % interval of the median; noisy rows hollow."""
    rows = [
        {
            "batch": case["batch"],
            "images_per_s": case["images_per_s"],
            "low": case["batch"] / case["ci95"][1] if case["ci95"] else "",
            "high": case["batch"] / case["ci95"][0] if case["ci95"] else "",
            "noisy": case["noisy"],
        }
        for case in result["cases"]
    ]

    def draw(axes: Any) -> None:
        batches, rates = [row["batch"] for row in rows], [row["images_per_s"] for row in rows]
        (line,) = axes.plot(batches, rates, "-")
        for row in rows:
            face = "white" if row["noisy"] else line.get_color()
            axes.plot(row["batch"], row["images_per_s"], "o", color=line.get_color(), markerfacecolor=face)
            if row["low"] != "":
                axes.vlines(row["batch"], row["low"], row["high"], color=line.get_color())
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        env = result["env"]
        title = f"{result['cases'][0]['pipeline']}, {env['device']}, {env['threads']} threads, {env['dtype']}"
        axes.set(xlabel="batch (hollow: noisy)", ylabel="images / s", title=title)

    save_figure(path, draw, rows)
