"""The counterfactual result in Markdown: one table a metric, and the bars it shall reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from counterfactual_rows import MODEL_ROWS, REFERENCE_ROWS
from report import environment_line, markdown_table, shown, summarise

from gendiff.causal.graph import CausalGraph

Summary = Mapping[tuple, Mapping[str, Any]]

TABLES = (
    ("cf_l1", 2, "Distance to the true counterfactual, grey levels of 255: l1(x', x*)"),
    ("cf_gain", 3, "Gain over returning the input: 1 - l1(x', x*) / l1(x, x*); 1 is perfect, 0 is the input"),
    (
        "effectiveness",
        3,
        "Effectiveness: error of what is read from x', in units of scale (of the others: in the JSON)",
    ),
    ("accuracy", 3, "Share of x' whose class is read as it should be"),
    ("propagation_error", 3, "Propagation error: the model's own values of descendants against the truth, of scale"),
    ("leakage", 3, "Leakage: how far what must not move has moved, of scale (share of changed ones for a class)"),
    ("null_max_error", 3, "Null intervention: largest error of any pixel, images in [-1, 1]"),
    ("composition_1", 3, "Composition: grey levels lost by one null intervention"),
    ("composition_10", 3, "... and by ten, each on the picture that the one before returned"),
    ("reversibility_1", 2, "Reversibility: grey levels lost by going there and back once, from pictures alone"),
    ("reversibility_10", 2, "... and ten times"),
    ("minimality", 3, "Minimality, 0 to 0.87, lower is better"),
    ("disentanglement", 3, "DCI disentanglement of the factors"),
    (
        "completeness",
        3,
        "DCI completeness of the factors; d equal latents for each variable out of D can reach 1 - log d / log D",
    ),
    ("informativeness", 3, "DCI informativeness: R² of each variable (accuracy of a class) from the factors"),
)
"""Metric, decimals, caption; in this order."""

RENDERED_NO_PROPAGATION = {"angle": 2.34, "light": 3.56}
"""cf_l1 of `no_propagation` on pendulum images of 32 px over the whole population: the renderer alone decides it."""


@dataclass(frozen=True)
class Bar:
    """A figure and the limit it shall keep.

    Attributes:
        text: what is measured.
        limit: how much it may be (`at_most`) or must be.
        figure: measured; None if it was not.
        floor: the same figure of the true counterfactuals, which no model can be expected to beat.
        at_most: whether small is good.
    """

    text: str
    limit: float
    figure: float | None
    floor: float | None = None
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached; None if not measured."""
        if self.figure is None:
            return None
        return self.figure <= self.limit if self.at_most else self.figure >= self.limit


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """What the default answers of the model shall reach on the result's dataset."""
    summary = summarise(result["cases"], ("metric", "do", "of"))
    graph = CausalGraph.from_dict(result["settings"]["graph"])
    shared = [Bar("null intervention, largest error of a pixel", 1e-4, _mean(summary, "model", "null_max_error"))]
    if result["settings"]["dataset"] == "handwriting":
        return [*_handwriting_bars(result, summary), *shared]
    return [*_pendulum_bars(summary, graph), *shared]


def to_markdown(result: Mapping[str, Any], figure: str | None) -> str:
    """The whole report.

    Args:
        result: see `report`.
        figure: file name of the picture beside the report.
    """
    settings = result["settings"]
    summary = summarise(result["cases"], ("metric", "do", "of"))
    seeds = sorted({case["seed"] for case in result["cases"]})
    parts = [
        f"# Counterfactuals: {settings['dataset']}",
        f"Model `{settings['model']}`; {settings['num_images']} test images a seed, "
        f"seeds {', '.join(map(str, seeds))}, K = {settings['steps']} steps, values uniform over the training range "
        "(other classes for a class). "
        f"Mean ± standard deviation over seeds. Chains of ten run on {settings['chain_images']} images a seed.",
        f"`{result['command']}`",
        environment_line(result["env"]),
        "## Bars",
        bar_table(bars(result)),
    ]
    parts += [f"![Counterfactuals and the truth]({figure})"] if figure else []
    parts += _classifier_lines(result)
    reached = reached_pairs(CausalGraph.from_dict(settings["graph"]))
    for metric, digits, caption in TABLES:
        keys = [key for key in summary if key[1] == metric]
        if metric == "effectiveness":
            keys = [key for key in keys if key[2:] in reached]
        parts += [f"## {metric}", f"{caption}.", metric_table(summary, keys, digits)] if keys else []
    parts += ["## Rows", _legend(result)]
    return "\n\n".join(parts) + "\n"


def metric_table(summary: Summary, keys: Sequence[tuple], digits: int) -> str:
    """Rows of the benchmark by (do, of) columns, for `keys` (row, metric, do, of) of one metric."""
    metric, columns = keys[0][1], list(dict.fromkeys(key[2:] for key in keys))
    rows = _in_order({key[0] for key in keys})
    body = [[row, *(shown(summary.get((row, metric, *column)), digits) for column in columns)] for row in rows]
    return markdown_table(["row", *(_column_name(*column) for column in columns)], body)


def _pendulum_bars(summary: Summary, graph: CausalGraph) -> list[Bar]:
    found = []
    for root in graph.roots:
        figure = _mean(summary, "model", "cf_l1", root)
        measured = _mean(summary, "no_propagation", "cf_l1", root)
        found.append(Bar(f"cf_l1 under do({root}), below no_propagation", RENDERED_NO_PROPAGATION[root], figure))
        if measured is not None:
            found.append(Bar(f"cf_l1 under do({root}), below no_propagation on these images", measured, figure))
    return [
        *found,
        *_pair_bars(summary, "effectiveness", 0.10, reached_pairs(graph)),
        *_pair_bars(summary, "leakage", 0.05, {key[2:] for key in summary if key[1] == "leakage"}),
        *_pair_bars(summary, "propagation_error", 0.05, reached_pairs(graph)),
        Bar("composition_10, grey levels", 0.5, _mean(summary, "model", "composition_10")),
    ]


def _handwriting_bars(result: Mapping[str, Any], summary: Summary) -> list[Bar]:
    def bar(metric: str, do: str, of: str, text: str, limit: float, at_most: bool = True) -> Bar:
        figure, floor = (_mean(summary, row, metric, do, of) for row in ("model", "readout_floor"))
        return Bar(text, limit, figure, floor, at_most)

    pairs = (("thickness", "thickness"), ("thickness", "intensity"), ("intensity", "intensity"))
    accuracy = result["settings"]["classifier_accuracy"].get("written")
    return [
        *(bar("effectiveness", do, of, f"effectiveness of {of} under do({do})", 0.15) for do, of in pairs),
        *(
            bar("accuracy", do, "digit", f"digit kept under do({do})", 0.95, at_most=False)
            for do in ("thickness", "intensity")
        ),
        Bar("classifier on real test digits", 0.97, accuracy, at_most=False),
    ]


def reached_pairs(graph: CausalGraph) -> set[tuple[str, str]]:
    """(do, of) for every variable with itself and with each of its descendants."""
    return {(name, of) for name in graph.names for of in (name, *graph.descendants(name))}


def _pair_bars(summary: Summary, metric: str, limit: float, pairs: Iterable[tuple]) -> list[Bar]:
    """The mean over pairs (do, of), and the worst pair by name."""
    figures = {pair: _mean(summary, "model", metric, *pair) for pair in pairs}
    known = {pair: figure for pair, figure in figures.items() if figure is not None}
    if not known:
        return [Bar(f"{metric}, worst", limit, None)]
    floors = {pair: _mean(summary, "readout_floor", metric, *pair) for pair in known}
    measured = [floor for floor in floors.values() if floor is not None]
    worst = max(known, key=lambda pair: known[pair])
    return [
        Bar(f"{metric}, mean", limit, fmean(known.values()), fmean(measured) if measured else None),
        Bar(f"{metric}, worst ({_column_name(*worst)})", limit, known[worst], floors[worst]),
    ]


def _mean(summary: Summary, row: str, metric: str, do: str | None = None, of: str | None = None) -> float | None:
    found = summary.get((row, metric, do, of))
    return None if found is None else found["mean"]


def bar_table(found: Sequence[Bar]) -> str:
    words = {True: "yes", False: "**no**", None: "not measured"}
    rows = [
        [
            bar.text,
            f"{'≤' if bar.at_most else '≥'} {bar.limit:.3g}",
            _figure(bar.figure),
            _figure(bar.floor),
            words[bar.met],
        ]
        for bar in found
    ]
    return markdown_table(["bar", "limit", "figure", "floor", "met"], rows)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _classifier_lines(result: Mapping[str, Any]) -> list[str]:
    accuracy = result["settings"]["classifier_accuracy"]
    if not accuracy:
        return []
    return [
        f"The digit is read by a classifier that gets {accuracy['written']:.2%} of the real test digits right as they "
        f"were written and {accuracy['redrawn']:.2%} as the dataset redraws them. Its ceiling on counterfactuals is "
        "the row `readout_floor` of the table `accuracy`, where it reads the true ones."
    ]


def _legend(result: Mapping[str, Any]) -> str:
    about = {row.name: row.about for row in MODEL_ROWS} | REFERENCE_ROWS
    lines = []
    for row in _in_order({case["row"] for case in result["cases"]}):
        sha = next(case["checkpoint_sha256"] for case in result["cases"] if case["row"] == row)
        source = f" (weights {sha[:12]})" if sha else ""
        lines.append(f"- `{row}`: {about.get(row, 'the same questions to another model')}{source}")
    return "\n".join(lines)


def _in_order(rows: Iterable[str]) -> list[str]:
    """Models first, ablations by name, references last."""
    order = [row.name for row in MODEL_ROWS]
    return sorted(rows, key=lambda row: (row in REFERENCE_ROWS, order.index(row) if row in order else len(order), row))


def _column_name(do: str | None, of: str | None) -> str:
    if do is None:
        return of or "value"
    return f"do({do})" if of is None else f"do({do}): {of}"
