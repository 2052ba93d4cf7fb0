"""Commands of `gendiff evaluate` that are no metric of two sets of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import evaluate_options as option

VIDEOS = "a folder of frame folders, an .npz file of uint8 (N, F, H, W, C), or dataset:NAME[:split]"


def evaluate_videos(
    samples: Annotated[str, typer.Option(help=f"Videos to score: {VIDEOS}.")],
    reference: Annotated[str, typer.Option(help=f"Real videos: {VIDEOS}.")],
    extractor: Annotated[str, typer.Option(help="lite0-video, i3d-videogpt or i3d-styleganv.")] = "lite0-video",
    frames: Annotated[int, typer.Option(min=2, help="Of the clip that each video gives.")] = 16,
    stride: Annotated[int, typer.Option(min=1, help="Between frames; the same for both sides.")] = 1,
    weights: option.Weights = None,
    num: Annotated[int | None, typer.Option(min=2, help="The first so many videos of each side.")] = None,
    seed: option.Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 8,
    device: option.Device = None,
    json: option.Json = None,
    md: option.Markdown = None,
) -> None:
    """Fréchet distance of videos, by lite0-video features or as an FVD under the name of its variant."""
    from gendiff.app.evaluation_outcome import Outputs, deliver
    from gendiff.app.evaluation_videos import score_videos

    outputs = Outputs(json, md)
    outputs.check()
    outcome = score_videos(
        samples,
        reference,
        extractor=extractor,
        frames=frames,
        stride=stride,
        num=num,
        seed=seed,
        batch_size=batch_size,
        weights=weights,
        device=device,
    )
    deliver(outcome, outputs)


def evaluate_pairs(
    samples: option.Samples,
    reference: Annotated[str, typer.Option(help=f"Targets, in the same order: {option.SOURCES}.")],
    metrics: Annotated[
        str, typer.Option(help="Some of psnr,ssim,lpips; lpips needs its weights on this machine.")
    ] = "psnr,ssim",
    frames: Annotated[
        int | None, typer.Option(min=1, help=f"Compare videos by so many frames; both sides {VIDEOS}.")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Between frames.")] = 1,
    net: Annotated[str, typer.Option(help="Of LPIPS: alex or vgg.")] = "alex",
    lpips_resize: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels that LPIPS sees; it needs 31 (alex) or 16 (vgg).")
    ] = None,
    weights: option.Weights = None,
    num: Annotated[int | None, typer.Option(min=1, help="The first so many pairs; all if left out.")] = None,
    resize: option.Resize = None,
    batch_size: option.BatchSize = 64,
    device: option.Device = None,
    json: option.Json = None,
    md: option.Markdown = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for plots against the frame index; needs --frames.")] = None,
) -> None:
    """PSNR, SSIM and LPIPS of each sample against its own target."""
    from gendiff.app.evaluation_outcome import Outputs, deliver
    from gendiff.app.evaluation_pairs import PairOrder, score_pairs

    outputs = Outputs(json, md, plot)
    outputs.check()
    if plot is not None and frames is None:
        raise ValueError("--plot draws videos against the frame index: give --frames.")
    order = PairOrder(
        samples=samples,
        reference=reference,
        metrics=[name for name in metrics.split(",") if name],
        num=num,
        resize=resize,
        frames=frames,
        stride=stride,
        lpips={"net": net, "weights": weights, "resize": lpips_resize, "batch_size": batch_size, "device": device},
    )
    deliver(score_pairs(order), outputs)


def evaluate_pipeline(
    path: Annotated[str, typer.Argument(help="Built-in checkpoint, or folder of a pipeline of gendiff or diffusers.")],
    steps: Annotated[str, typer.Option(metavar="N,N,..", help="Numbers of sampling steps, one row each.")] = "10,20,50",
    num: Annotated[int, typer.Option(min=2, help="Images of each row.")] = 2000,
    num_reference: option.NumReference = None,
    train: option.Train = None,
    reference: Annotated[
        str | None, typer.Option(help=f"Real images: {option.SOURCES}; the model's own unseen data if left out.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim or dpm-solver++; the model's own if left out.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 is off; the pipeline's own if left out.")] = None,
    extractor: option.Extractor = "auto",
    weights: option.Weights = None,
    resize: option.Resize = None,
    seed: option.Seed = 0,
    batch_size: option.BatchSize = 64,
    device: option.Device = None,
    allow_small_n: option.AllowSmallN = False,
    json: option.Json = None,
    md: option.Markdown = None,
    plot: option.Plot = None,
) -> None:
    """Quality against the number of network calls: one table, one plot."""
    from gendiff.app.evaluation_outcome import Outputs, deliver
    from gendiff.app.evaluation_pipeline import PipelineOrder
    from gendiff.app.evaluation_steps import score_pipeline

    outputs = Outputs(json, md, plot)
    outputs.check()
    order = PipelineOrder(
        path=path,
        steps=_numbers("--steps", steps),
        num=num,
        reference=reference,
        scheduler=scheduler,
        seed=seed,
        batch_size=batch_size,
        resize=resize,
        device=device,
        call={} if guidance_scale is None else {"guidance_scale": guidance_scale},
    )
    outcome = score_pipeline(
        order,
        extractor=extractor,
        weights=weights,
        num_reference=num_reference,
        train=train,
        allow_small_n=allow_small_n,
    )
    deliver(outcome, outputs)


def save_statistics(
    data: Annotated[str, typer.Option(help=f"Real images: {option.SOURCES}.")],
    out: Annotated[Path, typer.Option(help="The .npz file to write.")],
    extractor: option.Extractor = "lite0-112",
    weights: option.Weights = None,
    num: option.Num = None,
    resize: option.Resize = None,
    batch_size: option.BatchSize = 64,
    device: option.Device = None,
    workers: option.Workers = 2,
) -> None:
    """Write mean and covariance of real images' features, to be a --reference later."""
    from gendiff.app.evaluation_run import write_statistics

    line = write_statistics(
        data,
        out,
        extractor=extractor,
        weights=weights,
        num=num,
        resize=resize,
        batch_size=batch_size,
        device=device,
        workers=workers,
    )
    if line:
        typer.echo(line)


def list_weights() -> None:
    """Which weights are on this machine, where, and whether their sha256 is right; nothing is downloaded."""
    from gendiff.app.evaluation_outcome import show_table
    from gendiff.metrics.weights_report import list_weights

    found = list_weights()
    rows = [[row.name, row.state, (row.sha256 or "-")[:8], row.place or "-"] for row in found]
    show_table(("weights", "state", "sha256", "place"), rows)
    for row in found:
        typer.echo(f"{row.name}: {row.message or row.path}")


def _numbers(option: str, text: str) -> list[int]:
    """`"10,20,50"` as whole numbers of at least 1, rising.

    Raises:
        ValueError: something else between commas, or a number given twice.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} must be whole numbers of at least 1 with commas between, got {text!r}.")
    numbers = sorted(int(part) for part in parts)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{option} names a number twice: {text!r}.")
    return numbers
