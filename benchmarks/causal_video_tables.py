"""Rollouts in Markdown and as a plot: one table for each window, the bars, and how predictions drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from causal_video_bars import BARS
from causal_video_runs import VARIANTS
from report import markdown_table, summarise
from timed_tables import MEMORY, machine_line

from gendiff.app.plots import save_plot

DRIFT_FRAMES = (1, 2, 4, 8, 16, 32, 64)
"""Predicted frames whose PSNR is shown."""
DRIFT = "drift/"


def result_table(result: Mapping[str, Any]) -> str:
    """The tables of whatever cases there are: of each window, bars, drift."""
    cases = result["cases"]
    timed = [case for case in cases if "timings_s" in case]
    parts = [window_table(timed, window) for window in sorted({case["window"] for case in timed})]
    parts += [bar_table(case["cells"]) for case in cases if case.get("row") == "bars"]
    drift = [case for case in cases if str(case.get("row", "")).startswith(DRIFT)]
    if drift:
        parts.append(drift_table(drift))
    return "\n\n".join(parts)


def window_table(cases: Sequence[Mapping[str, Any]], window: int) -> str:
    """A row for each variant: seconds for n chunks, and the figures of its longest rollout."""
    own = [case for case in cases if case["window"] == window]
    numbers = sorted({case["chunks"] for case in own})
    rows = []
    for name in dict.fromkeys(case["variant"] for case in own):
        by_n = {case["chunks"]: case for case in own if case["variant"] == name}
        last = by_n[max(by_n)]
        rows.append(
            [
                f"{VARIANTS[name].words}{' (noisy)' if last['noisy'] else ''}",
                *(f"{by_n[n]['p50']:.3g}" if n in by_n else "-" for n in numbers),
                _spread(last),
                f"{last['first_frame_s']:.3g}",
                f"{last['frames_per_s']:.3g}",
                f"{1e3 * last['chunk_s'][-1]:.4g}",
                f"{1e-9 * last['chunk_flops'][-1]:.3g}",
                f"{last['cache_bytes'] / 2**20:.3g}",
                f"{last['peak_mem_bytes'] / 2**20:.0f}" if last.get("peak_mem_bytes") is not None else "-",
            ]
        )
    first = own[0]
    header = [
        f"W = {window}, l = {first['chunk']}, N = {first['steps']}; seconds for n chunks:",
        *(f"n = {n}" for n in numbers),
        "± (runs)",
        "first frame, s",
        "frames/s",
        "last chunk, ms",
        "last chunk, GFLOP",
        "cache, MiB",
        "peak, MiB",
    ]
    return markdown_table(header, rows)


def bar_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Each figure beside what it should be."""
    rows = []
    for cell in cells:
        (words, side, _), bar = BARS[cell["metric"]], cell["bar"]
        met = {True: "met", False: "**missed**", None: "-"}[cell["met"]]
        rows.append([words, f"{cell['value']:.4g}", "-" if bar is None else f"{side} {bar:g}", met])
    return markdown_table(["figure", "measured", "bar", ""], rows)


def drift_table(cases: Sequence[Mapping[str, Any]]) -> str:
    """PSNR of predicted frames against the simulator, beside seconds."""
    table = summarise(cases, ["metric", "frame"])
    known = {frame for _, metric, frame in table if metric == "psnr" and frame is not None}
    shown = [frame for frame in DRIFT_FRAMES if frame in known]
    rows = []
    for case in cases:
        row = case["row"]
        values = [f"{table[row, 'psnr', frame]['mean']:.1f}" for frame in shown]
        means = f"{table[row, 'psnr', None]['mean']:.2f}", f"{table[row, 'ssim', None]['mean']:.3f}"
        rows.append([row.removeprefix(DRIFT), f"{table[row, 'seconds', None]['mean']:.3g}", *values, *means])
    heads = [f"frame {frame}" for frame in shown]
    return markdown_table(["PSNR in dB against the simulator", "seconds", *heads, "mean", "mean SSIM"], rows)


def markdown(result: Mapping[str, Any], figure: str) -> str:
    """The page beside the result file.

    Args:
        figure: file name of the plot.
    """
    settings, timed = result["settings"], [case for case in result["cases"] if "timings_s" in case]
    sizes = settings["sizes"]
    parts = [
        f"# Causal video with and without a cache: {timed[0]['pipeline']}",
        machine_line(result),
        f"{sizes['blocks']} blocks of width {sizes['width']}, {sizes['sites']} tokens a frame, chunks of "
        f"l = {sizes['chunk']} frames, N = {sizes['steps']} steps a chunk, {sizes['references']} reference frames, "
        f"batch {sizes['batch']}; weights: {settings['weights']}. Bidirectional networks: {settings['bidirectional']}. "
        "Seconds are wall clock with decoding, medians over runs taken in turn; ± is half the 95 % interval of the "
        "median of the longest rollout.",
        result_table(result),
        *_remarks(result, timed),
        f"![cumulative seconds against frames]({figure})",
        f"```sh\n{result['command']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def plot(result: Mapping[str, Any], stem: Path) -> None:
    """Cumulative seconds against frames, and seconds of each chunk, for each variant at the model's window."""
    window = result["settings"]["sizes"]["window"]
    longest: dict[str, Mapping[str, Any]] = {}
    for case in result["cases"]:
        if "timings_s" in case and case["window"] == window:
            longest[case["variant"]] = case  # cases of a variant grow
    columns: dict[str, list[Any]] = {"variant": [], "frames": [], "cumulative_s": [], "chunk_s": [], "chunk_flops": []}
    for name, case in longest.items():
        count = len(case["chunk_s"])
        rows = {
            "variant": [name] * count,
            "frames": [case["chunk"] * (at + 1) for at in range(count)],
            "cumulative_s": list(accumulate(case["chunk_s"])),
            "chunk_s": case["chunk_s"],
            "chunk_flops": case["chunk_flops"],
        }
        for key, values in rows.items():
            columns[key].extend(values)

    def draw(left: Any, right: Any) -> None:
        for name in longest:
            at = [k for k, variant in enumerate(columns["variant"]) if variant == name]
            frames = [columns["frames"][k] for k in at]
            left.plot(frames, [columns["cumulative_s"][k] for k in at], "-", label=name)
            right.plot(frames, [columns["chunk_s"][k] for k in at], "-", label=name)
        left.set(xlabel="frames", ylabel="seconds in all", title=f"W = {window}")
        right.set(xlabel="frames", ylabel="seconds of a chunk")
        for axes in (left, right):
            axes.set_ylim(bottom=0)
        left.legend()

    save_plot(stem, draw, columns, panels=2)


def _remarks(result: Mapping[str, Any], timed: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before believing a row."""
    settings = result["settings"]
    said = []
    matrix = settings.get("matrix")
    if matrix:
        shape = " x ".join(map(str, matrix["matrix_shape"]))
        said.append(
            f"Matrix rate: {matrix['matrix_gflops']:.1f} GFLOP/s, the best product ({shape}: rows, inner, columns); "
            f"the network's forward: {matrix['forward_gflops']:.1f}."
        )
    stream = settings.get("stream")
    if stream:
        pairs = [f"live tensors {stream['live_bytes'][0] / 2**20:.2f} and {stream['live_bytes'][1] / 2**20:.2f} MiB"]
        if None not in stream["rss_peak"]:
            early, late = (value / 2**20 for value in stream["rss_peak"])
            pairs.append(f"peak of resident memory {early:.1f} and {late:.1f} MiB")
        said.append(f"A stream after {stream['frames'][0]} and {stream['frames'][1]} frames: {', '.join(pairs)}.")
    noisy = sorted({f"W{case['window']}/{case['variant']}" for case in timed if case["noisy"]})
    if noisy:
        said.append(
            f"Noisy, no claim rests on them: {', '.join(noisy)}. The process got less than 85 % of the CPU time of its "
            "threads: a busy machine, or threads that waited."
        )
    few = sorted({f"W{case['window']}/{case['variant']} ({case['repeats']})" for case in timed if case["repeats"] < 5})
    if few:
        said.append(f"Fewer than 5 runs, as long rollouts get: {', '.join(few)}.")
    kinds = sorted({case["mem_kind"] for case in timed if case.get("mem_kind")})
    said += [f"Peak memory: {MEMORY.get(kind, kind)}, with one step a chunk." for kind in kinds]
    if settings.get("quick"):
        said.append("A quick run: nothing here is a claim.")
    return said


def _spread(case: Mapping[str, Any]) -> str:
    if case.get("ci95") is None:
        return f"- ({case['repeats']})"
    low, high = case["ci95"]
    return f"{100 * (high - low) / 2 / case['p50']:.1f} % ({case['repeats']})"
