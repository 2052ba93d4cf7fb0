"""The tables of fid_parity.py: agreement and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paired import verdict
from report import environment_line, markdown_table

FORMULA = (
    "\"On the peer's features\" sets the Fréchet formula aside: it is our formula on both programs' features."
    ' "A to A" is the distance of a set to itself, which is 0; what a program says instead is the error of its'
    " formula. torch-fidelity takes eigenvalues of a product of covariances, in which rounding turns zeros into"
    " numbers with a square root. There are many zeros where features are wider than there are images (2048), and"
    " none where they are narrower (192)."
)


def to_markdown(result: Mapping[str, Any]) -> str:
    """The whole report."""
    settings, timed = result["settings"], next(case for case in result["cases"] if "timings_s" in case)
    names = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    return "\n\n".join(
        [
            "# FID against other programs",
            f"{environment_line(result['env'])} {names}.",
            f"{settings['num_images']} images a side, {settings['side']} px, random weights, seed {settings['seed']};"
            f" bar: relative difference at most {settings['bar']:g}.",
            _agreement([case for case in result["cases"] if "cells" in case]),
            FORMULA,
            "Extraction from PNG files, turn by turn; speed is the peer's time over ours with its 95 % interval:",
            _time(timed),
            f"`{result['command']}`\n",
        ]
    )


def _agreement(cases: list[dict[str, Any]]) -> str:
    columns = {
        "fid": "ours",
        "fid_of_peer": "peer",
        "relative_difference": "relative difference",
        "relative_difference_by_features": "on the peer's features",
        "max_abs_difference_of_features": "features differ by",
        "largest_feature": "features up to",
        "set_to_itself": "A to A, ours",
        "set_to_itself_of_peer": "A to A, peer",
    }
    rows = []
    for case in cases:
        cells = {cell["metric"]: cell["value"] for cell in case["cells"]}
        rows.append([case["row"], *(_shown(name, cells.get(name)) for name in columns)])
    return markdown_table(["distance", *columns.values()], rows)


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.9g}" if name.startswith("fid") else f"{value:.1f}" if name == "largest_feature" else f"{value:.1e}"


def _time(case: Mapping[str, Any]) -> str:
    peer = case["peer"]
    row = [
        f"{case['batch']} images",
        f"{case['images_per_s']:.2f}",
        f"{case['batch'] / peer['p50']:.2f}",
        verdict(1 / peer["ratio_p50"], [1 / end for end in reversed(peer["ratio_ci95"])]),
        f"{peer['max_abs_diff']:.1e}",
        "yes" if case["noisy"] else "no",
    ]
    return markdown_table(["work", "images/s, ours", "images/s, peer", "speed", "features differ by", "noisy"], [row])
