"""`gendiff demo`: one page of pictures from every built-in checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build_demo(
    out: Annotated[Path, typer.Option(help="Folder for index.html and its pictures.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Chooses the test images.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps of every picture.")] = 50,
    num_images: Annotated[int, typer.Option(min=1, help="Test images shown for each checkpoint.")] = 7,
    device: Annotated[str | None, typer.Option(help="E.g. cuda.")] = None,
) -> None:
    """Build a gallery page of all built-in checkpoints."""
    from diffusers.utils import logging
    from rich.console import Console

    from gendiff.app.gallery import build_gallery
    from gendiff.app.section import Settings

    settings = Settings(out, seed, steps, num_images, device)
    logging.disable_progress_bar()
    with Console(stderr=True).status("loading") as status:
        page = build_gallery(settings, status.update)
    typer.echo(page)
