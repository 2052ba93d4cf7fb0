"""`gendiff sample next-frequency`: images in a few stages, coarse to fine, from nothing or from a part of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def sample_next_frequency(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and run.json.")],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Name or number; if left out every class, or none with --image."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Built-in checkpoint, folder or hub repository.")
    ] = "next-frequency-fashion",
    num_images: Annotated[int, typer.Option(help="Images of each class.")] = 4,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", "--guidance", help="Towards the class; 1 is off. 2.5 if left out."),
    ] = None,
    guidance_schedule: Annotated[
        str | None,
        typer.Option(
            metavar="linear|constant|A,B,..",
            help="Growing from 1 to --guidance-scale, the same at every stage, or a number for each stage.",
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Draw each token from the so many most likely codes; 0 is all.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw each token from the codes of this share of probability; 0 is all.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Below 1 draws likelier codes, above 1 more various ones.")] = 1.0,
    stages: Annotated[int | None, typer.Option(help="Stop after so many stages: a coarser preview.")] = None,
    smooth: Annotated[
        bool, typer.Option("--smooth", help="Mix codes instead of drawing one; for the eye only.")
    ] = False,
    image: Annotated[Path | None, typer.Option(help="Picture to keep something of, in the model's own size.")] = None,
    keep_stages: Annotated[
        int | None, typer.Option(help="Keep so many first stages of --image, draw the rest.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Instead of --keep-stages: the share of stages to draw, 0 to 1.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Picture of what to draw anew in --image: white anew, black kept.")
    ] = None,
    blend_pixels: Annotated[
        bool, typer.Option("--blend-pixels", help="Put the kept pixels of --image back at the end.")
    ] = False,
    stages_strip: Annotated[
        bool,
        typer.Option(
            "--stages-strip", help="Also stages.png: each image after each stage, its spectrum, r of the band."
        ),
    ] = False,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Without: all earlier stages anew at each; the same, slower.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Image i is drawn from seed + i.")] = 0,
    device: Annotated[str | None, typer.Option(help="E.g. cuda.")] = None,
) -> None:
    """Images in stages, coarse to fine: next-frequency or next-scale prediction."""
    arguments: dict[str, Any] = dict(locals())
    from gendiff.app.next_frequency_run import Order, run
    from gendiff.app.output_folder import output_folder, write_files

    from .parsing import parse_numbers

    schedule: Any = guidance_schedule
    if schedule is not None and schedule not in ("linear", "constant"):
        schedule = parse_numbers("--guidance-schedule", schedule, "linear, constant")
    order = Order(
        model=model,
        classes=classes or [],
        num_images=num_images,
        image=image,
        mask=mask,
        stages_strip=stages_strip,
        seed=seed,
        device=device,
        options={
            "guidance_scale": guidance_scale,
            "guidance_schedule": schedule,
            "top_k": top_k,
            "top_p": top_p,
            "temperature": temperature,
            "num_stages": stages,
            "keep_stages": keep_stages,
            "strength": strength,
            "blend_pixels": blend_pixels,
            "smooth": smooth,
            "use_cache": cache,
        },
    )
    with output_folder(out):
        files, summary = run(order, arguments)
        write_files(out, files)
    typer.echo(f"{summary}\ngrid.png and {len(files) - 1} more files in {out}")
