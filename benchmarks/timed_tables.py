"""Timed results in Markdown: environment, one table for each pipeline, what is claimed, and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paired import verdict
from report import environment_line, markdown_table

from gendiff.errors import InvalidInputError

HEADER = (
    "batch",
    "steps",
    "p50, s/img",
    "± of p50",
    "img/s",
    "p90, s/img",
    "GFLOP/img",
    "% of GEMM",
    "memory, MiB",
    "FD",
    "time / peer",
)
MEMORY = {
    "rss_growth": "growth of a fresh process in its first call, on top of the loaded model",
    "cuda_allocated": "peak of allocated tensors, model included",
}


def timed_markdown(result: Mapping[str, Any], figure: str | None = None) -> str:
    """The report of a result with timed cases.

    Args:
        figure: file name of a plot beside the report.

    Raises:
        InvalidInputError: the result has no timed case.
    """
    timed = [case for case in result["cases"] if "timings_s" in case]
    if not timed:
        raise InvalidInputError("the result holds no timed cases.")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for case in timed:
        groups.setdefault(case["pipeline"], []).append(case)
    parts = [machine_line(result)]
    for name, cases in groups.items():
        parts += [f"### {name}", markdown_table(HEADER, [_row(case) for case in cases]), *claims(cases)]
    parts += warnings_of(timed, result.get("settings", {}))
    if figure:
        parts.append(f"![images per second against batch size]({figure})")
    parts.append(f"```sh\n{result['command']}\n```")
    return "\n\n".join(parts) + "\n"


def machine_line(result: Mapping[str, Any]) -> str:
    """One line on versions, machine, calibration and load."""
    env, rates = result["env"], result.get("calibration")
    words = [environment_line(env).rstrip(".")]
    words += [str(env[name]) for name in ("simd", "gpu") if env.get(name)]
    if env.get("driver"):
        words.append(f"driver {env['driver']}")
    if env.get("ram_gib"):
        words.append(f"{env['ram_gib']} GiB")
    if env.get("compile"):
        words.append(f"compiled ({env['compile']})")
    if rates:
        words.append(f"GEMM {rates['gemm_fp32_gflops']:.1f} GFLOP/s (float32), copy {rates['copy_gbs']:.1f} GB/s")
    loads = [(env.get(name) or {}).get("average") for name in ("load_before", "load_after")]
    if None not in loads:
        words.append(f"load {loads[0]} before, {loads[1]} after")
    return "; ".join(words) + "."


def claims(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Latency and throughput, from rows that are not noisy."""
    quiet = [case for case in cases if not case["noisy"]]
    if not quiet:
        return ["No claim: every row is noisy."]
    single = [case for case in quiet if case["batch"] == 1]
    best = max(quiet, key=lambda case: case["images_per_s"])
    said = []
    if single:
        said.append(f"Latency {1e3 * single[0]['p50']:.1f} ms (batch 1{_interval(single[0], 1e3)}{_share(single[0])})")
    said.append(f"throughput {best['images_per_s']:.2f} images/s (batch {best['batch']})")
    words = ", ".join(said)
    return [f"{words[0].upper()}{words[1:]}."]


def warnings_of(cases: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a row."""
    said = [f"Warning: {words}" for words in settings.get("warnings", [])]
    noisy = [_place(case) for case in cases if case["noisy"]]
    if noisy:
        said.append(
            f"Noisy, no claim rests on them: {', '.join(noisy)}. The process got less than 85 % of the CPU time of its "
            "threads: a busy machine, or threads that waited."
        )
    loose = [_place(case) for case in cases if not case.get("precise", True)]
    if loose:
        said.append(f"Median not known to 3 % within the time given: {', '.join(loose)}.")
    kinds = {case["mem_kind"] for case in cases if case.get("mem_kind")}
    said += [f"Memory: {MEMORY.get(kind, kind)}." for kind in sorted(kinds)]
    if any(case.get("peer") for case in cases):
        said.append("Time / peer below 1: faster than the peer; an interval that holds 1 is no difference.")
    if settings.get("stopped"):
        said.append(f"The sweep ended: {settings['stopped']}.")
    return said


def _row(case: Mapping[str, Any]) -> list[str]:
    batch, peer, quality = case["batch"], case.get("peer"), case.get("quality")
    return [
        f"{batch}{' (noisy)' if case['noisy'] else ''}",
        _shown(case.get("steps"), "d"),
        f"{case['s_per_image']:.4g}",
        _relative_error(case),
        f"{case['images_per_s']:.3g}",
        f"{case['p90'] / batch:.4g}",
        _shown(case.get("flops_per_sample"), ".3g", 1e-9),
        _shown(case.get("utilisation"), ".0f", 100),
        _shown(case.get("peak_mem_bytes"), ".1f", 2**-20),
        f"{quality['value']:.3g}" if quality else "-",
        verdict(peer["ratio_p50"], peer["ratio_ci95"]) if peer else "-",
    ]


def _shown(value: float | None, form: str, scale: float = 1) -> str:
    return "-" if value is None else format(value * scale, form)


def _relative_error(case: Mapping[str, Any]) -> str:
    """Half the 95 % interval as a share of the median."""
    if case.get("ci95") is None:
        return "-"
    low, high = case["ci95"]
    return f"{100 * (high - low) / 2 / case['p50']:.1f} %"


def _interval(case: Mapping[str, Any], scale: float) -> str:
    if case.get("ci95") is None:
        return ""
    return f", 95 % interval {case['ci95'][0] * scale:.1f} to {case['ci95'][1] * scale:.1f}"


def _share(case: Mapping[str, Any]) -> str:
    """The denoising network's part of the time."""
    if case.get("network_s") is None:
        return ""
    return f"; denoiser alone {1e3 * case['network_s']:.1f} ms"


def _place(case: Mapping[str, Any]) -> str:
    return f"batch {case['batch']}" if case.get("steps") is None else f"batch {case['batch']}, {case['steps']} steps"
