"""Options that several commands of `gendiff evaluate` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SOURCES = "a folder, .zip, .npz or .npy file, or dataset:NAME[:split]"

Samples = Annotated[str, typer.Option(help=f"Images to score: {SOURCES}.")]
Reference = Annotated[str, typer.Option(help=f"Real images: {SOURCES}; or the .npz of `gendiff evaluate stats`.")]
RealImages = Annotated[str, typer.Option(help=f"Real images: {SOURCES}.")]
Extractor = Annotated[
    str,
    typer.Option(
        help="lite0-112, lite0, fmnist-cnn, pixel, inception, dinov2-l14, clip-l14-336 or pkg.mod:Class; "
        "auto chooses by the number of images."
    ),
]
Weights = Annotated[Path | None, typer.Option(help="File of the extractor's weights; searched for if left out.")]
Num = Annotated[int | None, typer.Option(min=2, help="Score the first so many images; all if left out.")]
NumReference = Annotated[
    int | None, typer.Option(min=2, help="Use the first so many reference images; all if left out.")
]
Train = Annotated[str | None, typer.Option(help="Training set: warn of samples that are training images.")]
Resize = Annotated[int | None, typer.Option(min=1, help="Bring all images to this side in pixels first.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Device = Annotated[str | None, typer.Option(help="E.g. cuda; the extractor's choice if left out.")]
Workers = Annotated[int, typer.Option(min=0, help="Threads that read images ahead.")]
AllowSmallN = Annotated[
    bool, typer.Option("--allow-small-n", help="Score even where there are fewer images than feature dimensions.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the scores and all their conditions here.")]
Markdown = Annotated[Path | None, typer.Option("--md", help="Write them as a table here.")]
Plot = Annotated[Path | None, typer.Option(help="Folder for plots, each PNG and SVG with its data as CSV.")]
