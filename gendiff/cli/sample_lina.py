"""`gendiff sample lina`: pictures of prompts, plain and under the interventions that the prompts need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def sample_lina(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and run.json.")],
    prompt: Annotated[
        list[str], typer.Option("--prompt", metavar="TEXT", help="A sentence the model knows; may be repeated.")
    ],
    model: Annotated[
        str, typer.Option(help="Built-in checkpoint (lina-shadows, lina-swap), folder or hub repository.")
    ] = "lina-shadows",
    num_images: Annotated[int, typer.Option(help="Images of each prompt.")] = 4,
    intervention: Annotated[
        str,
        typer.Option(
            metavar="auto|off|lam=1,kappa=2,..",
            help="auto: what the model's predictor says; off; or strengths: lam, start, stop, kappa, alpha.SLOT.",
        ),
    ] = "auto",
    steps: Annotated[int, typer.Option(help="Steps of the walk from noise to image.")] = 10,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", "--guidance", help="1 is off; the model's own if left out.")
    ] = None,
    projection: Annotated[
        str | None,
        typer.Option(help="Of the contrast, instead of the model's own: none, orthogonal, clip, clip+orthogonal, ..."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Image i is drawn from seed + i.")] = 0,
    device: Annotated[str | None, typer.Option(help="E.g. cuda.")] = None,
) -> None:
    """Text to image, steered towards physically right pictures, beside what the plain model draws."""
    arguments: dict[str, Any] = dict(locals())
    from gendiff.app.lina_run import Order, run
    from gendiff.app.lina_words import parse_intervention
    from gendiff.app.output_folder import output_folder, write_files

    order = Order(
        model=model,
        prompts=prompt,
        num_images=num_images,
        intervention=parse_intervention(intervention),
        steps=steps,
        guidance_scale=guidance_scale,
        projection=projection,
        seed=seed,
        device=device,
    )
    with output_folder(out):
        files, summary = run(order, arguments)
        write_files(out, files)
    typer.echo(f"{summary}\npairs.png and {len(files) - 1} more files in {out}")
