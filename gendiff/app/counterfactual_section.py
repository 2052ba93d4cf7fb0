"""The gallery's chapter on counterfactuals: for each variable what the model answers, and what would have been true."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from html import escape
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.pipelines.base import pipeline
from gendiff.pipelines.registry import Checkpoint

from .checkpoint_data import checkpoint_dataset
from .counterfactual_answers import Answers, Exhibition, decimals, exhibit, value_range
from .graph_drawing import draw_graph
from .markup import Row, code, enlargement, facts, listing, number, picture, plate, table
from .pictures import grid, png_bytes, to_pil
from .section import Chapter, Section, Settings


def build(checkpoint: Checkpoint, settings: Settings, say: Callable[[str], None]) -> Section:
    """The section of one counterfactual checkpoint.

    Raises:
        ValueError: the settings do not fit the checkpoint, or it is damaged.
        OSError: a file is missing.
    """
    pipe = pipeline("counterfactual", checkpoint.path, device=settings.device)
    pipe.set_progress_bar_config(disable=True)
    dataset = checkpoint_dataset(checkpoint.path)
    shown = exhibit(pipe, dataset, settings.num_images, settings.seed, settings.steps, say)
    files = {f"{checkpoint.name}/{name}": content for name, content in _files(shown).items()}
    blocks = "".join(_block(pipe.graph, shown, name) for name in pipe.graph.topological_order)
    html = (
        f"<h3>{escape(checkpoint.name)}</h3><p>{escape(_about(dataset))}</p>"
        f'<div class="opening">{_facts(checkpoint, pipe, shown, settings)}{draw_graph(pipe.graph)}</div>'
        f"{blocks}{_example(pipe.graph, shown)}{_repeat(checkpoint, pipe.graph, shown, settings)}"
    )
    return Section(html, _cover(pipe.graph, shown), files)


CHAPTER = Chapter("Counterfactuals", "counterfactual.html", build)


def _about(dataset: Any) -> str:
    """First line of the documentation of the module that defines the data."""
    module = inspect.getmodule(type(dataset))
    return ((module and module.__doc__) or type(dataset).__name__).partition("\n")[0]


def _facts(checkpoint: Checkpoint, pipe: Any, shown: Exhibition, settings: Settings) -> str:
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    parameters = sum(weight.numel() for network in networks for weight in network.parameters())
    size = sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file())
    channels, side = shown.images.shape[1:3]
    return facts(
        [
            ("Pictures", f"{side} &times; {side} px, {'colour' if channels == 3 else 'grey'}"),
            ("Weights", f"{parameters / 1e6:.2f} million parameters, {size / 1e6:.1f} MB"),
            ("Sampling", f"{settings.steps} steps there and as many back, EDICT, no guidance"),
            (
                "Nothing changed",
                f"the images come back {_distance(shown.reconstruction_errors)} grey levels from themselves",
            ),
            ("Cost", f"{shown.network_calls:,} network calls, {shown.seconds:.1f} s on {pipe.device.type}"),
        ]
    )


def _block(graph: CausalGraph, shown: Exhibition, name: str) -> str:
    answers = shown.one_value_each[name]
    own = [_value(graph[name], value) for value in shown.labels[name].tolist()]
    images = Row("Image", f"its {escape(name)}", own, shown.images, "test image")
    each = plate([images, *_rows(answers)], _verdict(answers))
    sweep = shown.sweeps[name]
    swept = plate(_rows(sweep), f"The first image above, {listing([name])} swept across its range. {_verdict(sweep)}")
    return (
        f'<section class="block"><div class="opening"><div><h4>do({escape(name)})</h4>{_question(graph, name)}</div>'
        f"{draw_graph(graph, [name])}</div>{each}{swept}</section>"
    )


def _question(graph: CausalGraph, name: str) -> str:
    follows, causes = graph.descendants(name), graph.parents(name)
    stays = [other for other in graph.names if other != name and other not in follows]
    parts = [f"{listing([name])} is set by hand."]
    if follows:
        parts.append(f"{listing(follows)} must follow.")
    if stays:
        parts.append(f"{listing(stays)} must stay as {'they are' if len(stays) > 1 else 'it is'}.")
    if causes:
        parts.append(f"What {listing(causes)} would have made of it no longer counts.")
    return f"<p>{' '.join(parts)}</p>"


def _rows(answers: Answers) -> list[Row]:
    """Values asked for, the model's pictures, and the true ones with their distance."""
    variable = answers.variable
    asked = [_value(variable, value) for value in answers.values]
    read = answers.read.get(variable.name)
    rows = [Row(f"do({escape(variable.name)})", captions=asked, style="asked")]
    captions = [""] * len(asked) if read is None else [_value(variable, value) for value in read.tolist()]
    note = "" if read is None else "as measured"
    rows.append(Row("Model", note, captions, answers.pictures, f"answer to do({variable.name})"))
    if answers.truth is not None:
        errors = [number(error, 2 if error < 10 else 1) for error in answers.errors]
        rows.append(Row("Truth", "distance", errors, answers.truth, "true answer, distance"))
    return rows


def _verdict(answers: Answers) -> str:
    if answers.truth is None:
        return "The data does not say what would have been true here, so there is nothing to compare with."
    return (
        f"Mean distance to the truth <b>{_distance(answers.errors)}</b> grey levels; "
        f"for the picture left as it was, {_distance(answers.unchanged_errors)}."
    )


def _example(graph: CausalGraph, shown: Exhibition) -> str:
    """One answer in numbers: every variable before and after, as labelled, as the model has it, as measured."""
    name, column = _telling(graph, shown)
    answers = shown.one_value_each[name]
    setting = f"do({name} = {_value(graph[name], answers.values[column])})"
    sources = [
        ("label", shown.labels),
        ("model", shown.factors),
        ("measured", shown.read),
        ("truth", answers.true_values),
        ("model", answers.factors),
        ("measured", answers.read),
    ]
    marks = {name: "set", **dict.fromkeys(graph.descendants(name), "follows")}
    rows = [
        [
            f'<code class="{marks.get(other, "")}">{escape(other)}</code>',
            *(_cell(graph[other], values, column) for _, values in sources),
        ]
        for other in graph.names
    ]
    pictures = [
        shown.images[column],
        answers.pictures[column],
        *([] if answers.truth is None else [answers.truth[column]]),
    ]
    names = ["image", "model", "truth"][: len(pictures)]
    times = ["before"] * 3 + ["after"] * 3
    head = ["", *(f"{time}<br>{source}" for time, (source, _) in zip(times, sources, strict=True))]
    return (
        f'<section class="block"><h4>One answer in numbers</h4><p>Image {column + 1} of the rows above under '
        f"<code>{escape(setting)}</code>: each variable as the data has it, as the model&rsquo;s own factors have it, "
        f"and, where that is possible, as measured in the pixels.</p>"
        f"{plate([Row('', captions=names, pictures=torch.stack(pictures), alt=setting, style='bare')])}"
        f"{table(head, rows)}</section>"
    )


def _telling(graph: CausalGraph, shown: Exhibition) -> tuple[str, int]:
    """The first variable that has an effect, and the image in which it is moved furthest."""
    name = next((name for name in graph.topological_order if graph.children(name)), graph.names[0])
    moves = torch.tensor(shown.one_value_each[name].values) - shown.labels[name]
    return name, int(moves.abs().argmax())


def _repeat(checkpoint: Checkpoint, graph: CausalGraph, shown: Exhibition, settings: Settings) -> str:
    name, column = _telling(graph, shown)
    value = shown.one_value_each[name].values[column]
    image = (settings.out / checkpoint.name / f"image-{column + 1}.png").as_posix()
    first = (settings.out / checkpoint.name / "image-1.png").as_posix()
    low, high = value_range(graph[name])
    device = f" --device {shlex.quote(settings.device)}" if settings.device else ""
    start = f"gendiff sample counterfactual --model {checkpoint.name} --steps {settings.steps}{device}"
    span = f"{low:g}:{high:g}:{len(shown.sweeps[name].values)}"
    shell = (
        f"{start} \\\n    --image {shlex.quote(image)} --do {name}={value:g} --out out/answer\n"
        f"{start} \\\n    --image {shlex.quote(first)} --sweep {name}={span} --out out/sweep"
    )
    return (
        f'<section class="block"><h4>Ask it yourself</h4><p>The answer above and the strip of its variable, from the '
        f"command line; and the answer in Python.</p>"
        f"{code(shell)}{code(python_lines(checkpoint.name, image, {name: value}, settings))}</section>"
    )


def python_lines(model: str, image: str, interventions: Mapping[str, float], settings: Settings) -> str:
    """A program that asks `model` one question about the picture in the file `image`."""
    device = f", device={settings.device!r}" if settings.device else ""
    values = ", ".join(f'"{name}": {value:g}' for name, value in interventions.items())
    return (
        "import gendiff\nfrom PIL import Image\n\n"
        f'pipe = gendiff.pipeline("counterfactual", "{model}"{device})\n'
        f"image = Image.open({json.dumps(image)})\n"
        f"out = pipe(image, {{{values}}}, num_inference_steps={settings.steps})\n"
        'out.images[0].save("answer.png")\n'
        "print(out.factual, out.counterfactual)"
    )


def _cover(graph: CausalGraph, shown: Exhibition) -> str:
    """The model's strip of the variable that the example is about."""
    name = _telling(graph, shown)[0]
    strip = "".join(picture(image, "") for image in shown.sweeps[name].pictures)
    return f'<span class="strip">{strip}</span><small>One test image, {escape(name)} set by hand.</small>'


def _files(shown: Exhibition) -> dict[str, bytes]:
    """Every image by itself, and each plate as one picture."""
    scale = enlargement(shown.images.shape[-1])
    files = {f"image-{i + 1}.png": png_bytes(to_pil(image)) for i, image in enumerate(shown.images)}
    for name, answers in shown.one_value_each.items():
        files[f"do-{name}.png"] = _sheet(answers, scale, shown.images)
        files[f"sweep-{name}.png"] = _sheet(shown.sweeps[name], scale)
    return files


def _sheet(answers: Answers, scale: int, images: Tensor | None = None) -> bytes:
    named = [("image", images), ("model", answers.pictures), ("truth", answers.truth)]
    kept = [(label, pictures) for label, pictures in named if pictures is not None]
    rows = [[to_pil(picture, scale) for picture in pictures] for _, pictures in kept]
    # Pillow's font has no minus sign of its own.
    values = [_value(answers.variable, value).replace("\N{MINUS SIGN}", "-") for value in answers.values]
    columns = [f"{answers.variable.name} = {value}" for value in values]
    return png_bytes(grid(rows, [label for label, _ in kept], columns))


def _cell(variable: Variable, values: Mapping[str, Tensor], row: int) -> str:
    return _value(variable, values[variable.name][row].item()) if variable.name in values else ""


def _distance(errors: Sequence[float]) -> str:
    """Their mean in grey levels, as HTML."""
    average = mean(errors)
    return "less than 0.01" if average < 0.01 else number(average, 2)


def _value(variable: Variable, value: float) -> str:
    return number(value, decimals(variable))
