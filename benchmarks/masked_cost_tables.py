"""Cost of light passes, counts, diffusers beside us, and known tokens kept, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from report import markdown_table
from timed_tables import machine_line

RATIOS = ("light", "uvit", "peer")


def result_table(result: Mapping[str, Any]) -> str:
    """Ratios of seconds, counts of operations, known tokens, as far as they were measured."""
    cells = {case["row"]: case["cells"] for case in result["cases"] if "cells" in case}
    ratios = [cell for row in RATIOS for cell in cells.get(row, [])]
    parts = [ratio_table(ratios)] if ratios else []
    if cells.get("counts"):
        parts.append(count_table(cells["counts"]))
    if cells.get("known"):
        rows = [
            [c["words"], f"{100 * c['value']:.4g} % of {c['n']:,}", f"{100 * c['bar']:g} %", _met(c)]
            for c in cells["known"]
        ]
        parts.append(markdown_table(["masks whose known tokens all stay", "measured", "bar", ""], rows))
    return "\n\n".join(parts)


def ratio_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Measured ratios beside those of the operations."""
    rows = []
    for cell in cells:
        low, high = cell["ci95"]
        first, second = cell["seconds"]
        rows.append(
            [
                f"{cell['words']}{' (noisy)' if cell['noisy'] else ''}",
                f"{1e3 * first:.4g} / {1e3 * second:.4g}",
                f"{cell['value']:.3f}",
                f"{low:.3f} to {high:.3f} ({cell['n']})",
                f"{cell['predicted']:.3f}",
                f"{cell['value'] / cell['predicted']:.2f}",
                "-" if cell["bar"] is None else f"{cell['side']} {cell['bar']:.3g}",
                _met(cell),
            ]
        )
    header = ["seconds of one over seconds of the other", "ms", "ratio", "95 % (pairs)", "operations"]
    return markdown_table([*header, "ratio / operations", "bar", ""], rows)


def count_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Counted operations beside the formula."""
    rows = [
        [
            cell["words"],
            *(f"{cell[name] / 1e9:.5g}" for name in ("counted", "formula")),
            f"{cell['value']:.4f}",
            f"1 ± {cell['bar']:g}",
            _met(cell),
        ]
        for cell in cells
    ]
    return markdown_table(["GFLOP of an image", "counted", "formula", "ratio", "bar", ""], rows)


def markdown(result: Mapping[str, Any]) -> str:
    """The page beside the result file."""
    sizes = next((case["sizes"] for case in result["cases"] if "sizes" in case), None)
    said = "Random weights, which do not change the cost. "
    if sizes:
        said += (
            f"MaskGIT: {sizes['side'] ** 2} tokens, {sizes['depth']} blocks of width {sizes['width']}, batch 4, a full "
            "pass without a cache. "
        )
    said += "Two ways are timed turn by turn, A B B A; a ratio is the median over pairs."
    parts = ["# What a light step costs", machine_line(result), said, result_table(result)]
    noisy = [c["words"] for case in result["cases"] for c in case.get("cells", []) if c.get("noisy")]
    if noisy:
        parts.append(f"Noisy, no claim rests on them: {'; '.join(noisy)}.")
    parts.append(f"```sh\n{result['command']}\n```")
    return "\n\n".join(parts) + "\n"


def _met(cell: Mapping[str, Any]) -> str:
    if cell["met"] is None:
        return "-"
    return "met" if cell["met"] else "**missed**"
