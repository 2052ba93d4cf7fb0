"""Quality of causal video in Markdown, and as a plot against the frame index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report import environment_line, markdown_table, shown, summarise

from gendiff.app.plots import save_plot

FRAMES = (1, 2, 4, 8, 16)
"""Predicted frames that are shown."""
PARTS = (1, 64, 128, 256)
"""Frames of a long rollout that are shown."""
BALLS = (
    ("mean", "position_error", 2),
    ("px a frame", "velocity_error", 2),
    ("mass error", "mass_error", 3),
    ("frames on track", "on_track", 1),
    ("right number", "count_right", 3),
    ("PSNR, dB", "psnr", 1),
)
LONG = (
    ("right number", "count_right", 3),
    ("outside", "outside", 4),
    ("mass error", "mass_error", 3),
    ("energy / first", "energy", 2),
)
"""Heading, metric, decimals."""


def result_table(result: Mapping[str, Any]) -> str:
    """The tables of whatever groups there are: `predict`, `long`, `clips`."""
    makers = {"predict": _predict, "long": _long, "clips": _clips}
    table = summarise(result["cases"], ["metric", "frame"])
    parts = []
    for group, make in makers.items():
        rows = [case["row"] for case in result["cases"] if case["row"].startswith(f"{group}/")]
        if rows:
            parts.append(make(table, list(dict.fromkeys(rows)), result))
    return "\n\n".join(parts)


def _predict(table: Mapping[Any, Any], rows: list[str], result: Mapping[str, Any]) -> str:
    balls = any((row, "position_error", None) in table for row in rows)
    metrics = ["position_error"] if balls else ["psnr", "ssim"]
    tables = []
    for metric in metrics:
        frames = [frame for frame in FRAMES if any((row, metric, frame) in table for row in rows)]
        digits = 3 if metric == "ssim" else 2 if balls else 1
        ends = BALLS if balls else (("mean", metric, digits),)
        words = {"position_error": "position error in px", "psnr": "PSNR in dB", "ssim": "SSIM"}[metric]
        header = [f"{words}, after {result['settings']['given']} given frames"]
        header += [*(f"frame {frame}" for frame in frames), *(head for head, *_ in ends)]
        lines = []
        for row in rows:
            at = [_shown(table, (row, metric, frame), digits) for frame in frames]
            lines.append([_name(row), *at, *(_shown(table, (row, name, None), count) for _, name, count in ends)])
        tables.append(markdown_table(header, lines))
    return "\n\n".join(tables)


def _long(table: Mapping[Any, Any], rows: list[str], result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    frames = [frame for frame in PARTS if any((row, "count_right", frame) in table for row in rows)]
    header = [f"{settings['long_frames']} frames of {settings['long_videos']} videos", *(head for head, *_ in LONG)]
    header += [f"right number, frame {frame}" for frame in frames]
    lines = [
        [
            _name(row),
            *(_shown(table, (row, metric, None), digits) for _, metric, digits in LONG),
            *(_shown(table, (row, "count_right", frame), 2) for frame in frames),
        ]
        for row in rows
    ]
    return markdown_table(header, lines)


def _clips(table: Mapping[Any, Any], rows: list[str], result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    label = next(metric for row, metric, _ in table if row in rows)
    header = [f"{settings['clips']} clips of {settings['frames']} frames against as many real ones", label]
    return markdown_table(header, [[_name(row), _shown(table, (row, label, None), 2)] for row in rows])


def markdown(result: Mapping[str, Any], figure: str) -> str:
    """The page beside the result file.

    Args:
        figure: file name of the plot.
    """
    settings = result["settings"]
    said = [
        f"# Quality of {Path(settings['model']).name}",
        environment_line(result["env"]),
        f"{settings['videos']} test videos of {settings['data']}, seed {settings['seed']}, {settings['steps']} steps a "
        f"chunk; weights {settings['checkpoint_sha256'][:12]}.",
        result_table(result),
    ]
    if settings["num_balls"] is not None:
        said.append(
            f"{settings['num_balls']} balls of radius {settings['radius']:g} px are found in the pictures. A frame "
            "with another number of balls has no position error, so read it beside the share with the right number; "
            "frames on track are those up to the first with a wrong number or an error above the radius. The simulator "
            "goes through the same detector; places of balls that pass through one another or go straight on are known."
        )
    if settings["distance"]:
        said += [f"- {note}" for one in settings["distance"].values() for note in one["warnings"]]
        said.append("The Fréchet distance is in features of lite0-video and no FVD.")
    said += [f"![error against the frame]({figure})", f"```sh\n{result['command']}\n```"]
    return "\n\n".join(dict.fromkeys(said)) + "\n"


def plot(result: Mapping[str, Any], stem: Path) -> None:
    """Position error of balls, or PSNR, at each predicted frame; a gap where no video has a value."""
    rows = {_name(case["row"]): case["cells"] for case in result["cases"] if case["row"].startswith("predict/")}
    balls = any(cell["metric"] == "position_error" for cells in rows.values() for cell in cells)
    metric, label = ("position_error", "position error (px)") if balls else ("psnr", "PSNR (dB)")
    frames = list(range(1, result["settings"]["frames"] + 1))
    curves = {}
    for name, cells in rows.items():
        known = {cell.get("frame"): cell["value"] for cell in cells if cell["metric"] == metric}
        if name != "truth":  # whose PSNR is that of equal pictures
            curves[name] = [known.get(frame, math.nan) for frame in frames]

    def draw(axes: Any) -> None:
        for name, curve in curves.items():
            axes.plot(frames, curve, "o-", label=name)
        title = f"{Path(result['settings']['model']).name}, after {result['settings']['given']} given frames"
        axes.set(xlabel="predicted frame", ylabel=label, title=title)
        axes.legend()

    save_plot(stem, draw, {"frame": frames, **curves})


def _name(row: str) -> str:
    return row.partition("/")[2]


def _shown(table: Mapping[Any, Any], key: tuple[str, str, int | None], digits: int) -> str:
    return shown(table.get(key), digits)
