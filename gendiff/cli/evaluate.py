"""`gendiff evaluate`: how far a set of images or videos is from real ones, with everything the number depends on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from . import evaluate_options as option
from .evaluate_more import evaluate_pairs, evaluate_pipeline, evaluate_videos, list_weights, save_statistics

MODES = ("clean", "legacy-tf", "legacy-pt")
Mode = Annotated[str, typer.Option(help=f"How images are resized: {', '.join(MODES)}. Never mix them.")]
Neighbour = Annotated[int, typer.Option("--k", min=1, help="Which neighbour makes the radius of a ball.")]


@dataclass(frozen=True)
class Metric:
    """A command that scores two sets of images.

    Attributes:
        metrics: what `gendiff.metrics.evaluate.evaluate` is asked for.
        help: one line.
        extractor: default of --extractor; None where the command has no such option.
        own: further options: name -> annotation and default.
        reference: what may stand for the real images.
    """

    metrics: tuple[str, ...]
    help: str
    extractor: str | None = "auto"
    own: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    reference: Any = option.RealImages


SMALL_N = {"allow_small_n": (option.AllowSmallN, False)}
# A new metric of images: one line here.
COMMANDS = {
    "fd": Metric(
        ("fd",),
        "Fréchet distance in the features of an extractor; lower is better.",
        own=SMALL_N,
        reference=option.Reference,
    ),
    "fid": Metric(
        ("fd",),
        "Fréchet inception distance, FID(mode); needs the Inception weights on this machine.",
        extractor=None,
        own={"mode": (Mode, "clean"), **SMALL_N},
        reference=option.Reference,
    ),
    "kid": Metric(("kid",), "Kernel distance over subsets of at most 1000; usable where images are few."),
    "prdc": Metric(("prdc",), "Precision, recall, density and coverage.", own={"k": (Neighbour, 3)}),
    "is": Metric(
        ("is",),
        "Inception score beside that of the reference; means nothing off the data the classifier was trained on.",
        extractor="inception-legacy-tf",
    ),
    "cmmd": Metric(("cmmd",), "CMMD by CLIP embeddings; assumes no Gaussian.", extractor="clip-l14-336"),
    "all": Metric(
        ("fd", "fd_infinity", "kid", "prdc"),
        "FD, FD∞, KID, precision, recall, density and coverage of one reading of the images.",
        own={"k": (Neighbour, 3), **SMALL_N},
    ),
}
SHARED: dict[str, tuple[Any, Any]] = {
    "weights": (option.Weights, None),
    "num": (option.Num, None),
    "num_reference": (option.NumReference, None),
    "train": (option.Train, None),
    "resize": (option.Resize, None),
    "seed": (option.Seed, 0),
    "batch_size": (option.BatchSize, 64),
    "device": (option.Device, None),
    "workers": (option.Workers, 2),
    "json": (option.Json, None),
    "md": (option.Markdown, None),
    "plot": (option.Plot, None),
}
"""Options of every such command: name -> annotation and default."""


def command(metric: Metric) -> Callable[..., None]:
    """The function that typer makes a command of; its options are those of `metric`."""

    def score(**arguments: Any) -> None:
        if "mode" in arguments:
            arguments["extractor"] = f"inception-{_checked_mode(arguments.pop('mode'))}"
        _score(metric.metrics, **arguments)

    chosen = {} if metric.extractor is None else {"extractor": (option.Extractor, metric.extractor)}
    options = {
        "samples": (option.Samples, inspect.Parameter.empty),
        "reference": (metric.reference, inspect.Parameter.empty),
        **chosen,
        **metric.own,
        **SHARED,
    }
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, (kind, default) in options.items()
    ]
    score.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    score.__annotations__ = {name: kind for name, (kind, _) in options.items()}
    return score


def _score(metrics: tuple[str, ...], json: Any, md: Any, plot: Any, **arguments: Any) -> None:
    from gendiff.app.evaluation_outcome import Outputs, deliver
    from gendiff.app.evaluation_run import score_images

    outputs = Outputs(json, md, plot)
    outputs.check()
    deliver(score_images(metrics=metrics, plotted=plot is not None, **arguments), outputs)


def _checked_mode(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"--mode must be one of {', '.join(MODES)}, got {mode!r}.")
    return mode


app = typer.Typer(help="Score images and videos against real ones.", no_args_is_help=True)
for name, metric in COMMANDS.items():
    app.command(name, help=metric.help)(command(metric))
# What is no metric of two sets of images has its function in `evaluate_more.py`.
app.command("fvd")(evaluate_videos)
app.command("paired")(evaluate_pairs)
app.command("pipeline")(evaluate_pipeline)
app.command("stats")(save_statistics)
app.command("weights")(list_weights)
