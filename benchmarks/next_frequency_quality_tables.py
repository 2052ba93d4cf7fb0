"""Quality of models over stages in Markdown, and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from next_frequency_bars import BASELINE, REAL, RECONSTRUCTIONS, TRAINING, Bar, Scores, bars, rivals, verdict
from report import environment_line, markdown_table

from gendiff.app.plots import save_plot

WORDS = {"ours": "{} better", "theirs": "{} better", "tie": "tie", "one seed": "one seed: no verdict"}


def result_table(result: Mapping[str, Any]) -> str:
    """Samples, bars, rivals, guidance and stages, as far as there are models in the result."""
    scores = Scores(result)
    parts = [sample_table(scores, result)]
    if scores.facts:
        parts.append(bar_table(scores))
        if rivals(scores):
            parts.append(rival_table(scores))
        parts += [guidance_table(scores), stage_table(scores)]
    return "\n\n".join(parts)


def sample_table(scores: Scores, result: Mapping[str, Any]) -> str:
    """Real images, reconstructions, the baseline, and each model by seed and over seeds."""
    rows = [_row(name, scores, name, {}) for name in (REAL, TRAINING) if scores.seeds(name)]
    if scores.seeds(BASELINE):
        rows.append(_row(result["settings"]["baseline"], scores, BASELINE, {}))
    for name, facts in scores.facts.items():
        for of in RECONSTRUCTIONS:
            rows.append(_row(f"{name}: {of}", scores, name, {"of": of}))
        guidance = scores.guidance(name)
        model = [str(facts["tokens"]), str(len(facts["stages"])), f"{guidance:g}"]
        seeds = scores.seeds(name)
        for at, seed in enumerate(seeds):
            rows.append(_row(f"{name}, seed {seed}", scores, name, {"guidance": guidance}, model, at))
        if len(seeds) > 1:
            rows.append(_row(f"{name}, {len(seeds)} seeds", scores, name, {"guidance": guidance}, model))
    distances = [f"FD[{name}]" for name in scores.extractors]
    header = ["images", "tokens", "steps", "guidance", *distances, "class accuracy, %", "PSNR, dB", "nats / image"]
    return markdown_table([*header, "ms / image, batch 16"], rows)


def _row(
    words: str,
    scores: Scores,
    row: str,
    fields: Mapping[str, Any],
    model: Sequence[str] = ("-", "-", "-"),
    seed: int | None = None,
) -> list[str]:
    """One row; `seed` is the position of one, None for all."""

    def cell(metric: str, digits: int, scale: float = 1.0, **more: Any) -> str:
        found = [scale * value for value in scores.values(row, metric, **more)]
        return shown(found if seed is None else found[seed : seed + 1], digits)

    of_tokenizer = ["-", "-"]
    if model[0] != "-":
        last = len(scores.facts[row]["stages"]) - 1
        of_tokenizer = [cell("psnr", 2, stage=last), cell("nats_image", 1)]
    return [
        words,
        *model,
        *(cell("fd", 2, extractor=name, **fields) for name in scores.extractors),
        cell("accuracy", 1, 100.0, **fields),
        *of_tokenizer,
        cell("seconds", 2, 1e3, **fields),
    ]


def bar_table(scores: Scores) -> str:
    """Each figure beside its bar."""
    rows = []
    for name in scores.facts:
        for bar in bars(scores, name):
            rows.append([f"{name}: {bar.words}", shown(bar.values, 3), _limit(bar), _met(bar)])
    return markdown_table(["figure", "measured", "bar", ""], rows)


def _limit(bar: Bar) -> str:
    limits = bar.limits[:1] if len(set(bar.limits)) == 1 else bar.limits
    return f"{'at least' if bar.high else 'at most'} {shown(limits, 3)}"


def _met(bar: Bar) -> str:
    if bar.met == len(bar.values):
        return "met"
    return "**missed**" if len(bar.values) == 1 else f"**missed** by {len(bar.values) - bar.met} of {len(bar.values)}"


def rival_table(scores: Scores) -> str:
    """Next-frequency against next-scale, figure by figure."""
    rows = []
    for ours, theirs in rivals(scores):
        for metric, words, digits, fields in _compared(scores, ours):
            other = {**fields, "guidance": scores.guidance(theirs)} if "guidance" in fields else fields
            first, second = scores.values(ours, metric, **fields), scores.values(theirs, metric, **other)
            better = verdict(metric, first, second)
            said = WORDS[better].format(ours if better == "ours" else theirs)
            rows.append([f"{words}: {ours} / {theirs}", shown(first, digits), shown(second, digits), said])
    return markdown_table(["figure", "first", "second", ""], rows)


def _compared(scores: Scores, row: str) -> list[tuple[str, str, int, dict[str, Any]]]:
    guided = {"guidance": scores.guidance(row)}
    last = len(scores.facts[row]["stages"]) - 1
    return [
        *(("fd", f"FD[{name}]", 2, {"extractor": name, **guided}) for name in scores.extractors),
        ("accuracy", "class accuracy", 3, guided),
        ("psnr", "PSNR, dB", 2, {"stage": last}),
        ("seconds", "seconds / image", 5, guided),
    ]


def guidance_table(scores: Scores) -> str:
    """Every guidance that was tried."""
    rows = []
    for name in scores.facts:
        chosen = scores.guidance(name)
        for guidance in scores.guidances(name):
            fields = {"guidance": guidance}
            distances = [shown(scores.values(name, "fd", extractor=one, **fields), 2) for one in scores.extractors]
            accuracy = [100 * value for value in scores.values(name, "accuracy", **fields)]
            seconds = [1e3 * value for value in scores.values(name, "seconds", **fields)]
            words = f"{name}, guidance {guidance:g}{' (chosen)' if guidance == chosen else ''}"
            rows.append([words, *distances, shown(accuracy, 1), shown(seconds, 2)])
    distances = [f"FD[{name}]" for name in scores.extractors]
    return markdown_table(["samples", *distances, "class accuracy, %", "ms / image, batch 16"], rows)


def stage_table(scores: Scores) -> str:
    """Of each stage: PSNR up to it, codes in use, nats a token."""
    rows = []
    for name, facts in scores.facts.items():
        for stage, side in enumerate(facts["stages"]):
            most = max(
                cell["most"]
                for case in scores.cases
                if case["row"] == name
                for cell in case["cells"]
                if cell["metric"] == "codes" and cell["stage"] == stage
            )
            used = scores.values(name, "codes", stage=stage)
            rows.append(
                [
                    f"{name}, stage {stage} ({side} x {side})",
                    shown(scores.values(name, "psnr", stage=stage), 2),
                    f"{shown(used, 0)} of {most} ({100 * statistics.fmean(used) / most:.0f} %)",
                    shown(scores.values(name, "nats", stage=stage), 3),
                ]
            )
        unquantised = shown(scores.values(name, "psnr", of="unquantised"), 2)
        rows.append([f"{name}, unquantised", unquantised, "-", "-"])
        rows.append([f"{name}, all tokens", "-", "-", shown(scores.values(name, "nats"), 3)])
    return markdown_table(["on test images", "PSNR up to it, dB", "codes used", "nats / token"], rows)


def markdown(result: Mapping[str, Any], figure: str) -> str:
    """The page beside the result file.

    Args:
        figure: file name of the plot.
    """
    settings, scores = result["settings"], Scores(result)
    parts = [
        "# Next-frequency and next-scale prediction on Fashion-MNIST, 28 px",
        environment_line(result["env"]),
        f"{settings['num']:,} samples of balanced classes a row and seed, against the {settings['reference']:,} test "
        f"images of {settings['data']} (held out: against the rest of them). PSNR, codes and nats are of "
        f"{settings['images']:,} test images. Reconstructions are of as many images as there are samples. "
        f"{_options(settings)}",
        result_table(result),
        *_remarks(result, scores),
        f"![quality by stage and by guidance]({figure})",
        f"```sh\n{result['command']}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _options(settings: Mapping[str, Any]) -> str:
    given = ", ".join(f"{name} {value}" for name, value in settings["options"].items())
    return f"Samples are drawn with {given}." if given else "All codes may be drawn, as their probabilities say."


def _remarks(result: Mapping[str, Any], scores: Scores) -> list[str]:
    said = []
    if scores.facts:
        said.append(
            "Nats are of each tokenizer's own tokens and cannot be compared across tokenizers: one whose tokens are "
            "easier to predict may draw worse pictures. They rank transformers over one tokenizer."
        )
        how = (
            "as asked for" if scores.asked is not None else f"the least mean FD[{scores.extractors[0]}] of those tried"
        )
        said.append(f"Guidance in the tables is {how}; it was chosen on the test images it is then scored on.")
    if rivals(scores):
        said.append("A tie: the seeds of the two overlap. Otherwise the worst seed of one beats the best of the other.")
    noisy = [
        f"{case['row']}, seed {case['seed']}"
        for case in result["cases"]
        if any(cost["noisy"] for cost in case.get("cost", {}).values())
    ]
    if noisy:
        said.append(f"Times of {'; '.join(noisy)} were taken on a busy machine and hold as upper bounds only.")
    return said


def plot(result: Mapping[str, Any], stem: Path) -> None:
    """Left, PSNR up to each stage; right, distance in the first features against guidance, and levels to compare."""
    scores = Scores(result)
    metric = scores.extractors[0]
    columns: dict[str, list[Any]] = {"panel": [], "name": [], "x": [], "y": []}
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {"stage": {}, "guidance": {}}
    for name, facts in scores.facts.items():
        psnr = [statistics.fmean(scores.values(name, "psnr", stage=k)) for k in range(len(facts["stages"]))]
        curves["stage"][name] = (list(range(len(psnr))), psnr)
        known = scores.guidances(name)
        means = [statistics.fmean(scores.values(name, "fd", extractor=metric, guidance=g)) for g in known]
        curves["guidance"][name] = (known, means)
    names = {REAL: REAL, BASELINE: str(result["settings"]["baseline"])}
    found = {words: scores.values(row, "fd", extractor=metric) for row, words in names.items()}
    levels = {words: statistics.fmean(values) for words, values in found.items() if values}
    for panel, some in curves.items():
        for name, (x, y) in some.items():
            for key, values in zip(columns, ([panel] * len(x), [name] * len(x), x, y), strict=True):
                columns[key].extend(values)
    for words, level in levels.items():
        for key, value in zip(columns, ("level", words, "", level), strict=True):
            columns[key].append(value)

    def draw(left: Any, right: Any) -> None:
        for axes, panel in ((left, "stage"), (right, "guidance")):
            for name, (x, y) in curves[panel].items():
                axes.plot(x, y, "o-", label=name)
        for style, (words, level) in zip((":", "--"), levels.items(), strict=False):
            right.axhline(level, linestyle=style, color="0.5", label=words)
        left.set(xlabel="stage", ylabel="PSNR up to it (dB)")
        right.set(xlabel="guidance", ylabel=f"FD[{metric}]")
        right.set_ylim(bottom=0)
        for axes in (left, right):
            if axes.get_legend_handles_labels()[0]:
                axes.legend()

    save_plot(stem, draw, columns, panels=2)


def shown(values: Sequence[float], digits: int) -> str:
    """Mean and, of several, standard deviation; a dash for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
