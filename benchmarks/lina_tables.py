"""What `lina.py` measured, in Markdown: a section for each part that a result holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lina_gate import IN, OUT, verdicts
from report import markdown_table
from timed_tables import machine_line

Case = Mapping[str, Any]
DIFFERENCE = "difference to base*, points [95 %]"


def result_table(result: Mapping[str, Any]) -> str:
    """Tables of whatever cases there are: bars, worlds, costs."""
    cases = result["cases"]
    parts = [gate_table(case) for case in cases if case["row"] == "gate"]
    parts += mode_tables(_rows(cases, "modes"))
    names = dict.fromkeys(case["row"].partition("/")[0] for case in cases if case["row"].startswith("shadows-"))
    parts += [table for name in names for table in shadow_tables(name, _rows(cases, name))]
    parts += swap_tables(_rows(cases, "swap")) + cost_tables(_rows(cases, "cost"))
    return "\n\n".join(parts)


def _rows(cases: Sequence[Case], name: str) -> list[Case]:
    return [case for case in cases if case["row"].startswith(f"{name}/")]


def value(case: Case, metric: str, **fields: Any) -> dict[str, Any] | None:
    """The cell of a metric with these fields."""
    for cell in case["cells"]:
        if cell["metric"] == metric and all(cell.get(name) == one for name, one in fields.items()):
            return cell
    return None


def shown(cell: Mapping[str, Any] | None, digits: int = 3, scale: float = 1.0) -> str:
    """Its value, a dash for what was not measured."""
    return "-" if cell is None else f"{scale * cell['value']:.{digits}f}"


def difference(cell: Mapping[str, Any] | None) -> list[str]:
    """A difference in points with its interval, and its verdict: above, below or tie."""
    if cell is None:
        return ["-", "-"]
    low, high = (100 * end for end in cell["ci95"])
    return [f"{100 * cell['value']:+.1f} [{low:+.1f}, {high:+.1f}]", str(cell.get("verdict", "-"))]


def met(cell: Mapping[str, Any]) -> str:
    """Whether a bar is met."""
    return "met" if cell["met"] else "**missed**"


def gate_table(case: Case) -> str:
    """Bars, and what the intervals say."""
    rows = []
    for cell in case["cells"]:
        low, high = cell.get("ci95", (None, None))
        interval = "-" if low is None else f"{low:+.3f} to {high:+.3f}"
        rows.append([cell["words"], f"{cell['value']:+.3f}", interval, cell["bar"], met(cell)])
    table = markdown_table(["what LINA adaptive must reach", "measured", "95 %", "bar", ""], rows)
    said = [f"- {line}." for line in case.get("verdicts", [])]
    return "\n\n".join([table, "\n".join(said)] if said else [table])


def mode_tables(cases: Sequence[Case]) -> list[str]:
    """Target rates, then schedules."""
    rows, schedules = [], []
    for case in cases:
        if "schedule-" in case["row"]:
            agreement, distance = value(case, "agreement"), value(case, "distance")
            exact = distance["exact"] if distance else 0.0
            schedules.append([case["words"], shown(agreement), shown(distance), f"{exact:.3f}"])
            continue
        cells = [value(case, "target_rate", prior=prior) for prior in ("wrong", "right")]
        shut = [value(case, "gate_shut", prior=prior) for prior in ("wrong", "right")]
        gate = "-" if shut[0] is None else " / ".join(f"{100 * cell['value']:.0f} %" for cell in shut if cell)
        nfe = [shown(value(case, "nfe", prior=prior), 1) for prior in ("wrong", "right")]
        rows.append([case["words"], *(shown(cell) for cell in cells), gate, " / ".join(nfe)])
    parts = []
    if rows:
        header = ["ModeWorld", "target rate, wrong prior", "target rate, right prior"]
        parts.append(markdown_table([*header, "gate shut, wrong / right", "NFE, wrong / right"], rows))
    if schedules:
        header = ["ModeWorld, schedule alone", "same mode as 600 steps", "rms distance to it", "exact"]
        parts.append(markdown_table(header, schedules))
    return parts


def shadow_tables(name: str, cases: Sequence[Case]) -> list[str]:
    """Of both directions together: held-out prompts, training prompts. Of one direction: both in one table."""
    ways = [case for case in cases if not case["row"].endswith("/guidance")]
    parts = []
    if ways and name == "shadows-pooled":
        parts += [full_table(ways, OUT, "held-out prompts, both directions"), full_table(ways, IN, "training prompts")]
        parts.append("\n".join(f"- {line}." for line in verdicts(ways)))
    elif ways:
        rows = []
        for case in ways:
            row = [case["words"], case["does"]]
            for split in (OUT, IN):
                row += [shown(value(case, "pap_all", split=split))]
                row += difference(value(case, "difference", split=split, against="base"))
            rows.append(row)
        header = [f"tested on {name.removeprefix('shadows-')}", "what it does", "pap_all, held out", DIFFERENCE, ""]
        parts.append(markdown_table([*header, "pap_all, training prompts", DIFFERENCE, ""], rows))
    return parts + [guidance_table(name, case) for case in cases if case["row"].endswith("/guidance")]


def full_table(cases: Sequence[Case], split: str, words: str) -> str:
    """All columns of one split."""
    rows = []
    hops = sorted({cell["metric"] for case in cases for cell in case["cells"] if cell["metric"].startswith("pap@")})
    for case in cases:
        if value(case, "pap_all", split=split) is None:
            continue
        scores = [shown(value(case, metric, split=split)) for metric in (*hops, "pap_all")]
        gaps = difference(value(case, "difference", split=split, against="base"))
        gaps.append(difference(value(case, "difference", split=split, against="all"))[1])
        looks = [shown(value(case, "texture", split=split), 2), shown(value(case, "noise", split=split), 4)]
        cost = [shown(value(case, "nfe", split=split), 1), shown(value(case, "seconds", split=split), 1, 1e3)]
        rows.append([case["words"], *scores, *gaps, *looks, *cost])
    header = [f"ShadowWorld, {words}", *hops, "pap_all", DIFFERENCE, "to base*", "to best fixed"]
    return markdown_table([*header, "texture", "residual noise", "NFE", "ms / image"], rows)


def guidance_table(name: str, case: Case) -> str:
    """Guidance alone: what calibration says, and what the test would have said."""
    best = max(cell["value"] for cell in case["cells"])
    rows = []
    for cell in case["cells"]:
        remark = ["base*"] * cell["chosen"] + ["best in hindsight"] * (cell["value"] == best)
        rows.append([f"{cell['guidance']:g}", f"{cell['calibration']:.3f}", shown(cell), ", ".join(remark)])
    header = [f"guidance, tested on {name.removeprefix('shadows-')}", "calibration score", "pap_all of the test", ""]
    found = case["calibration"]
    learned = (
        f"Calibration of the predictor: {found['hard']} of {found['prompts']} prompts hard, {found['accepted']} "
        f"interventions accepted; on {found['held_out']} prompts that its training did not see its gate opened "
        f"{found['opened']} times, with a mean gain in score of {found['gain']:+.3f} over all of them."
    )
    return "\n\n".join([markdown_table(header, rows), learned])


def swap_tables(cases: Sequence[Case]) -> list[str]:
    """Winoground scores and rates of common and rare captions."""
    rows = []
    for case in cases:
        scores = [shown(value(case, name)) for name in ("image", "text", "group")]
        rates = [shown(value(case, name)) for name in ("common", "rare")]
        gaps = [difference(value(case, "difference", of=name)) for name in ("group", "rare")]
        nfe = shown(value(case, "nfe"), 1)
        rows.append([case["words"], case["does"], *scores, *gaps[0], *rates, *gaps[1], nfe])
    if not rows:
        return []
    chance = ["chance of a matching model", "-", "0.250", "0.250", "0.167", *["-"] * 7]
    header = ["SwapWorld", "what it does", "image", "text", "group", f"group: {DIFFERENCE}", ""]
    header += ["common captions right", "rare captions right", f"rare: {DIFFERENCE}", "", "NFE"]
    return [markdown_table(header, [chance, *rows])]


def cost_tables(cases: Sequence[Case]) -> list[str]:
    """Every figure beside its bar."""
    rows = []
    for cell in (cell for case in cases for cell in case["cells"]):
        bar = {
            "milliseconds": f"< {cell['bar']:g} ms",
            "nfe_ratio": f"1 + f/rows = {cell.get('formula', 0):.4g}",
            "overhead": f"< {cell['bar']:g}",
            "calls": f"{cell['bar']:g}",
            "planted": f"< {cell['bar']:g}",
        }.get(cell["metric"], f">= {cell['bar']:g}")
        interval = "-" if "ci95" not in cell else "{:.4g} to {:.4g}".format(*cell["ci95"])
        noisy = " (noisy)" if cell.get("noisy") else ""
        figure = f"{cell['value']:.4g}"
        rows.append([f"{cell['words']}{noisy}", figure, interval, f"{cell['n']:,}", bar, met(cell)])
    return [markdown_table(["cost and planted optima", "measured", "95 %", "n", "bar", ""], rows)] if rows else []


def markdown(result: Mapping[str, Any], figure: str | None) -> str:
    """The page beside the result file.

    Args:
        figure: file name of the picture, None without one.
    """
    settings = result["settings"]
    parts = [
        "# LINA: interventions on sampling",
        machine_line(result),
        f"{settings['seeds']} images of every prompt, {settings['steps']} steps, the same noise for all ways. base* is "
        "the plain model at the guidance that does best on calibration prompts; fixed settings and the predictor are "
        "chosen on the same prompts by the same score, with base*'s guidance. ShadowWorld: calibrated on one held-out "
        "half (and on some training prompts, for the gate), tested on the other half and on other training prompts; "
        "then the halves change places. pap_all: share of images that pass all checks of the world's verifier; "
        "texture: 1 - distance of colour histograms to base*'s image from the same noise. Intervals are bootstraps "
        "over prompts; one that holds 0 is a tie. Upper bounds let the verifier choose among test images, which no "
        "user can.",
        "ModeWorld: the network is exact, so nothing is trained but the predictor; it is tested on prompts that it has "
        "not seen. SwapWorld: guidance and contrast for a pair of captions are chosen on other pairs. Planted optima: "
        "three draws of the world.",
        result_table(result),
    ]
    if figure:
        parts.append(f"![base* and LINA adaptive on held-out prompts, with the verifier's verdict]({figure})")
    parts.append(f"```sh\n{result['command']}\n```")
    return "\n\n".join(parts) + "\n"
