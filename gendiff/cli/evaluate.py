"""`gendiff evaluate`: how far a set of images or videos is from real ones, with everything the number depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import evaluate_options as option
from .evaluate_more import evaluate_pairs, evaluate_pipeline, evaluate_videos, list_weights, save_statistics

app = typer.Typer(help="Score images and videos against real ones.", no_args_is_help=True)

MODES = ("clean", "legacy-tf", "legacy-pt")


@app.command("fd")
def frechet(
    samples: option.Samples,
    reference: option.Reference,
    extractor: option.Extractor = "auto",
    weights: option.Weights = None,
    num: option.Num = None,
    num_reference: option.NumReference = None,
    train: option.Train = None,
    resize: option.Resize = None,
    seed: option.Seed = 0,
    batch_size: option.BatchSize = 64,
    device: option.Device = None,
    workers: option.Workers = 2,
    allow_small_n: option.AllowSmallN = False,
    json: option.Json = None,
    md: option.Markdown = None,
    plot: option.Plot = None,
) -> None:
    """Fréchet distance in the features of an extractor; lower is better."""
    _score(["fd"], **locals())


@app.command("fid")
def frechet_inception(
    samples: option.Samples,
    reference: option.Reference,
    mode: Annotated[str, typer.Option(help=f"How images are resized: {', '.join(MODES)}. Never mix them.")] = "clean",
    weights: option.Weights = None,
    num: option.Num = None,
    num_reference: option.NumReference = None,
    train: option.Train = None,
    resize: option.Resize = None,
    seed: option.Seed = 0,
    batch_size: option.BatchSize = 64,
    device: option.Device = None,
    workers: option.Workers = 2,
    allow_small_n: option.AllowSmallN = False,
    json: option.Json = None,
    md: option.Markdown = None,
    plot: option.Plot = None,
) -> None:
    """Fréchet inception distance, FID(mode); needs the Inception weights on this machine."""
    arguments = dict(locals())
    _check_mode(arguments.pop("mode"))
    _score(["fd"], extractor=f"inception-{mode}", **arguments)


@app.command("kid")
def kernel(
    samples: option.Samples,
    reference: option.RealImages,
    extractor: option.Extractor = "auto",
    weights: option.Weights = None,
    num: option.Num = None,
    num_reference: option.NumReference = None,
    train: option.Train = None,
    resize: option.Resize = None,
    seed: option.Seed = 0,
    batch_size: option.BatchSize = 64,
    device: option.Device = None,
    workers: option.Workers = 2,
    json: option.Json = None,
    md: option.Markdown = None,
    plot: option.Plot = None,
) -> None:
    """Kernel distance over subsets of at most 1000; usable where images are few."""
    _score(["kid"], **locals())


@app.command("prdc")
def precision_recall(
    samples: option.Samples,
    reference: option.RealImages,
    extractor: option.Extractor = "auto",
    k: Annotated[int, typer.Option(min=1, help="Which neighbour makes the radius of a ball.")] = 3,
    weights: option.Weights = None,
    num: option.Num = None,
    num_reference: option.NumReference = None,
    train: option.Train = None,
    resize: option.Resize = None,
    seed: option.Seed = 0,
    batch_size: option.BatchSize = 64,
    device: option.Device = None,
    workers: option.Workers = 2,
    json: option.Json = None,
    md: option.Markdown = None,
    plot: option.Plot = None,
) -> None:
    """Precision, recall, density and coverage."""
    _score(["prdc"], **locals())


@app.command("is")
def inception(
    samples: option.Samples,
    reference: option.RealImages,
    extractor: option.Extractor = "inception-legacy-tf",
    weights: option.Weights = None,
    num: option.Num = None,
    num_reference: option.NumReference = None,
    train: option.Train = None,
    resize: option.Resize = None,
    seed: option.Seed = 0,
    batch_size: option.BatchSize = 64,
    device: option.Device = None,
    workers: option.Workers = 2,
    json: option.Json = None,
    md: option.Markdown = None,
    plot: option.Plot = None,
) -> None:
    """Inception score beside that of the reference; means nothing off the data the classifier was trained on."""
    _score(["is"], **locals())


@app.command("cmmd")
def clip_distance(
    samples: option.Samples,
    reference: option.RealImages,
    extractor: option.Extractor = "clip-l14-336",
    weights: option.Weights = None,
    num: option.Num = None,
    num_reference: option.NumReference = None,
    train: option.Train = None,
    resize: option.Resize = None,
    seed: option.Seed = 0,
    batch_size: option.BatchSize = 64,
    device: option.Device = None,
    workers: option.Workers = 2,
    json: option.Json = None,
    md: option.Markdown = None,
    plot: option.Plot = None,
) -> None:
    """CMMD by CLIP embeddings; assumes no Gaussian."""
    _score(["cmmd"], **locals())


@app.command("all")
def everything(
    samples: option.Samples,
    reference: option.RealImages,
    extractor: option.Extractor = "auto",
    k: Annotated[int, typer.Option(min=1, help="Which neighbour makes the radius of a ball.")] = 3,
    weights: option.Weights = None,
    num: option.Num = None,
    num_reference: option.NumReference = None,
    train: option.Train = None,
    resize: option.Resize = None,
    seed: option.Seed = 0,
    batch_size: option.BatchSize = 64,
    device: option.Device = None,
    workers: option.Workers = 2,
    allow_small_n: option.AllowSmallN = False,
    json: option.Json = None,
    md: option.Markdown = None,
    plot: option.Plot = None,
) -> None:
    """FD, FD∞, KID, precision, recall, density and coverage of one reading of the images."""
    _score(["fd", "fd_infinity", "kid", "prdc"], **locals())


# What is no metric of two sets of images has its function in `evaluate_more.py`.
app.command("fvd")(evaluate_videos)
app.command("paired")(evaluate_pairs)
app.command("pipeline")(evaluate_pipeline)
app.command("stats")(save_statistics)
app.command("weights")(list_weights)


def _score(metrics: Sequence[str], json: Any, md: Any, plot: Any, **arguments: Any) -> None:
    from gendiff.app.evaluation_outcome import Outputs, deliver
    from gendiff.app.evaluation_run import score_images

    outputs = Outputs(json, md, plot)
    outputs.check()
    deliver(score_images(metrics=metrics, plotted=plot is not None, **arguments), outputs)


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"--mode must be one of {', '.join(MODES)}, got {mode!r}.")
