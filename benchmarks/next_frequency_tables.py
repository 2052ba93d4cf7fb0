"""Cost of stages in Markdown and as a plot: ratios beside what was predicted, times, and counted multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from next_frequency_cost import PUBLISHED, TEN_STAGES, Sizes, cached_macs, every_stage_macs, recomputed_macs, var_sizes
from report import markdown_table
from timed_tables import machine_line

from gendiff.app.plots import save_plot


def result_table(result: Mapping[str, Any]) -> str:
    """The ratios with their bars, the times behind them, and the counts."""
    cells = {case["row"]: case["cells"] for case in result["cases"] if "cells" in case}
    timed = [case for case in result["cases"] if "timings_s" in case]
    parts = []
    if cells.get("ratios"):
        parts.append(ratio_table(cells["ratios"]))
    if timed:
        parts.append(time_table(timed))
    if cells.get("counts"):
        parts.append(count_table(cells["counts"]))
    return "\n\n".join(parts)


def ratio_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Measured ratios beside those of the multiply-adds."""
    rows = []
    for cell in cells:
        if "predicted" not in cell:
            continue
        low, high = cell["ci95"]
        rows.append(
            [
                f"{cell['words']}{' (noisy)' if cell['noisy'] else ''}",
                f"{cell['value']:.3f}",
                f"{low:.3f} to {high:.3f} ({cell['n']})",
                "-" if cell["cpu_ratio"] is None else f"{cell['cpu_ratio']:.3f}",
                f"{cell['predicted']:.3f}",
                f"{cell['value'] / cell['predicted']:.2f}",
                *_bar(cell),
            ]
        )
    header = ["seconds of one over seconds of the other", "measured", "95 % (pairs)", "CPU time", "multiply-adds"]
    return markdown_table([*header, "measured / multiply-adds", "bar", ""], rows)


def time_table(timed: Sequence[Mapping[str, Any]]) -> str:
    """Seconds of each way, once each, and of the decoder."""
    rows, seen = [], set()
    for case in timed:
        way = (case["id"] == "decoder", *(str(case[name]) for name in ("stages", "width", "bands", "batch")))
        way += (case["guidance"], case["use_cache"])
        if way in seen:
            continue
        seen.add(way)
        rows.append(_decoder_row(case) if case["id"] == "decoder" else _time_row(case))
    header = [
        "one call",
        "tokens",
        "batch",
        "guidance",
        "seconds",
        "± (runs)",
        "CPU, s",
        "GMAC",
        "GFLOP/s",
        "cache, MiB",
    ]
    return markdown_table(header, rows)


def _time_row(case: Mapping[str, Any]) -> list[str]:
    words = f"{'next-scale' if case['bands'] == 'none' else 'next-frequency'}, {case['steps']} stages, "
    words += f"{case['depth']} blocks of {case['width']}{'' if case['use_cache'] else ', no cache'}"
    return [
        f"{words}{' (noisy)' if case['noisy'] else ''}",
        str(case["tokens"]),
        str(case["batch"]),
        f"{case['guidance']:g}" if case["guidance"] != 1 else "off",
        *_seconds(case),
        f"{case['formula_macs'] / 1e9:.4g}",
        "-" if case["achieved_gflops"] is None else f"{case['achieved_gflops']:.3g}",
        f"{case['cache_bytes'] / 2**20:.1f}",
    ]


def _decoder_row(case: Mapping[str, Any]) -> list[str]:
    words = f"decoder to {case['shape'][-1]} px, not in the rows below{' (noisy)' if case['noisy'] else ''}"
    macs = "-" if case["flops_per_sample"] is None else f"{case['flops_per_sample'] / 2e9:.4g}"
    rate = "-" if case["achieved_gflops"] is None else f"{case['achieved_gflops']:.3g}"
    return [words, "-", "1", "-", *_seconds(case), macs, rate, "-"]


def _seconds(case: Mapping[str, Any]) -> list[str]:
    spread = "-"
    if case.get("ci95") is not None:
        spread = f"{100 * (case['ci95'][1] - case['ci95'][0]) / 2 / case['p50']:.1f} %"
    events = sorted(case.get("event_s") or [])
    seconds = f"{case['p50']:.4g}" + (f" ({events[len(events) // 2]:.4g} by events)" if events else "")
    return [seconds, f"{spread} ({case['repeats']})", "-" if case["cpu_s"] is None else f"{case['cpu_s']:.4g}"]


def count_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Counted multiply-adds beside the formula."""
    rows = []
    for cell in cells:
        words = f"{cell['depth']} blocks of {cell['width']}, {len(cell['stages'])} stages"
        words += "" if cell["use_cache"] else ", no cache"
        numbers = [f"{cell[name] / 1e9:.5g}" for name in ("counted", "formula")]
        rows.append([words, *numbers, f"{cell['value']:.4f}", *_bar(cell)])
    header = ["10^9 multiply-adds of an image and a condition", "counted", "formula", "ratio", "bar", ""]
    return markdown_table(header, rows)


def published_table() -> str:
    """Multiply-adds of the published sizes by formula: as here, and with the norms anew at each stage."""
    rows = []
    for depth, (figure, relative) in PUBLISHED.items():
        sizes = var_sizes(depth)
        here, every = sum(cached_macs(sizes)) / 1e9, every_stage_macs(sizes) / 1e9
        bound = sum(recomputed_macs(sizes)) / 1e9 / here
        rows.append([f"d{depth}", f"{here:.1f}", f"{every:.1f}", f"{figure:.1f}", f"{bound:.2f}", f"{relative:g}"])
    header = ["10^9 multiply-adds at ten stages", "here", "norms at every stage", "known for that", "no cache / cache"]
    return markdown_table([*header, "relative time VAR lists"], rows)


def markdown(result: Mapping[str, Any], figure: str) -> str:
    """The page beside the result file.

    Args:
        figure: file name of the plot.
    """
    settings = result["settings"]
    sizes = settings["sizes"]
    parts = [
        "# What an image in stages costs",
        machine_line(result),
        f"Random weights; {sizes['codes']} codes of width {sizes['channels']}, {sizes['image']} px; unless a row says "
        f"otherwise {sizes['depth']} blocks of width {sizes['width']} at stages {','.join(map(str, sizes['stages']))}. "
        "Seconds are medians of wall clock from the call to the sum of stages, sampling included, the decoder not; ± "
        "is half the 95 % interval of the median. Ratios are medians over pairs, timed A B B A.",
        result_table(result),
        *_remarks(result),
        published_table(),
        f"![seconds and multiply-adds of each stage]({figure})",
        f"```sh\n{result['command']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _remarks(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a row."""
    cells = {cell["metric"]: cell for case in result["cases"] for cell in case.get("cells", [])}
    timed = {case["id"]: case for case in result["cases"] if "timings_s" in case}
    said = []
    equal = cells.get("equal_tokens")
    if equal:
        said.append(
            f"With and without the cache, {100 * equal['value']:.4g} % of {equal['n']} tokens are the same where the "
            "likeliest is taken."
        )
    said += _why_not_more(result, cells, timed)
    sizes = next((cell for name, cell in cells.items() if name.startswith("sizes/")), None)
    if sizes and "decoder" in timed:
        decoder = timed["decoder"]["p50"]
        slow, quick = (timed[f"{sizes['metric']}/{side}"]["p50"] for side in ("slow", "quick"))
        said.append(
            f"The size ratio is {(slow + decoder) / (quick + decoder):.2f} with the decoder. NFIG's published 1.25x is "
            "that of a network of 310 M parameters (d16) over one of 600 M (d20), both of ten steps and 680 tokens. It "
            "says nothing of the schedules, whose own ratio is in the row next-frequency / next-scale."
        )
    few = [cell["words"] for cell in cells.values() if "predicted" in cell and cell["n"] < 10]
    if few:
        said.append(f"Fewer than 10 pairs, as slow rows get: {'; '.join(few)}.")
    noisy = [cell["words"] for cell in cells.values() if cell.get("noisy")]
    if noisy:
        said.append(
            f"Noisy, no claim rests on them: {'; '.join(noisy)}. The process got less than 85 % of the CPU time of its "
            "threads: a busy machine, or threads that waited."
        )
    said.append(
        "Multiply-adds by formula, D wide: 12 D² n_k + 2 D n_k L_k a block and stage, n_k D V for the head, C D for "
        "each token that is read, and once a call 6 D² a block and 2 D² for what the class makes of the norms. VAR's "
        f"authors compute that last part at each of {len(TEN_STAGES)} stages, which the figures known for it contain."
    )
    if result["settings"].get("quick"):
        said.append("A quick run: nothing here is a claim.")
    return said


def _why_not_more(result: Mapping[str, Any], cells: Mapping[str, Any], timed: Mapping[str, Any]) -> list[str]:
    """Where the first row with a cache spends what the multiply-adds do not explain."""
    cache = next((cell for name, cell in cells.items() if name.startswith("cache/")), None)
    if not cache or "decoder" not in timed:
        return []
    stages, decoder = result["settings"]["stages"], timed["decoder"]["p50"]
    slow, quick = (timed[f"{cache['metric']}/{side}"]["p50"] for side in ("slow", "quick"))
    macs, seconds = cached_macs(_network(result)), stages["seconds"]["cached"]
    half = len(seconds) // 2
    shares = [100 * sum(values[:half]) / sum(values) for values in (macs, seconds)]
    return [
        f"The first {half} of {len(seconds)} stages have {shares[0]:.1f} % of the multiply-adds of a call with a cache "
        f"and take {shares[1]:.1f} % of the network's {sum(seconds):.3g} seconds: all weights are read however few the "
        f"tokens. With the decoder, {decoder:.3g} seconds, the first row is {(slow + decoder) / (quick + decoder):.2f}."
    ]


def _network(result: Mapping[str, Any]) -> Sizes:
    sizes, sides = result["settings"]["sizes"], result["settings"]["stages"]["sides"]
    return Sizes(tuple(sides), sizes["width"], sizes["depth"], sizes["codes"], sizes["channels"])


def plot(result: Mapping[str, Any], stem: Path) -> None:
    """Seconds and multiply-adds of the network at each stage, with and without a cache."""
    stages, network = result["settings"]["stages"], _network(result)
    labels = [str(side) for side in stages["sides"]]
    columns = {
        "side": stages["sides"],
        "cached_s": stages["seconds"]["cached"],
        "recomputed_s": stages["seconds"]["recomputed"],
        "cached_gmac": [macs / 1e9 for macs in cached_macs(network)],
        "recomputed_gmac": [macs / 1e9 for macs in recomputed_macs(network)],
    }

    def draw(left: Any, right: Any) -> None:
        for axes, unit, words in ((left, "s", "seconds of the network"), (right, "gmac", "10^9 multiply-adds")):
            for name, shown in (("cached", "cache"), ("recomputed", "no cache")):
                axes.plot(labels, columns[f"{name}_{unit}"], "o-", label=shown)
            axes.set(xlabel="side of the token grid", ylabel=words)
            axes.set_ylim(bottom=0)
        left.legend()

    save_plot(stem, draw, columns, panels=2)


def _bar(cell: Mapping[str, Any]) -> list[str]:
    if cell["bar"] is None:
        return ["-", "-"]
    side = "within" if cell["side"] == "1 within" else cell["side"]
    shown = f"1 ± {cell['bar']:g}" if side == "within" else f"{side} {cell['bar']:g}"
    return [shown, "met" if cell["met"] else "**missed**"]
