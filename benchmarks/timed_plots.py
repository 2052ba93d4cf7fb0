"""Plots of timed cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gendiff.app.plots import throughput


def plot_throughput(result: Mapping[str, Any], path: Path) -> None:
    """Images a second against the batch, with the 95 % interval of the median; noisy rows hollow."""
    cases, env = result["cases"], result["env"]
    # A case of too few runs has no interval; its median stands for both ends.
    ends = [case["ci95"] or [case["p50"]] * 2 for case in cases]
    throughput(
        path.with_suffix(""),
        [case["batch"] for case in cases],
        [case["images_per_s"] for case in cases],
        low=[case["batch"] / slow for case, (_, slow) in zip(cases, ends, strict=True)],
        high=[case["batch"] / quick for case, (quick, _) in zip(cases, ends, strict=True)],
        noisy=[case["noisy"] for case in cases],
        title=f"{cases[0]['pipeline']}, {env['device']}, {env['threads']} threads, {env['dtype']}",
    )
