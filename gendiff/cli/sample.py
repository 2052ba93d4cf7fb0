"""`gendiff sample TASK`: pictures from a pipeline, with all that is needed to make them again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .sample_causal_video import sample_causal_video
from .sample_lina import sample_lina
from .sample_masked_generation import sample_masked_generation
from .sample_next_frequency import sample_next_frequency

# A new task: one command below, or one file beside this one and `app.command("task")(function)`.
app = typer.Typer(help="Make pictures and videos with a pipeline.", no_args_is_help=True)
app.command("causal-video")(sample_causal_video)
app.command("lina")(sample_lina)
app.command("masked-generation")(sample_masked_generation)
app.command("next-frequency")(sample_next_frequency)


@app.command("counterfactual")
def sample_counterfactual(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and run.json.")],
    image: Annotated[
        Path | None, typer.Option(help="A picture; a test image of the model's own data if left out.")
    ] = None,
    do: Annotated[
        list[str] | None, typer.Option("--do", metavar="NAME=VALUE", help="Set a variable; several act jointly.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="NAME=START:STOP:COUNT", help="A strip in which one more variable varies.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What is known about the picture as it is.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Built-in checkpoint, folder or hub repository.")
    ] = "counterfactual-pendulum",
    num_images: Annotated[int, typer.Option(help="Test images to use where --image is left out.")] = 1,
    steps: Annotated[int, typer.Option(help="Steps of abduction, and as many of prediction.")] = 50,
    inversion: Annotated[str, typer.Option(help="edict, ddim or fixed_point.")] = "edict",
    noise: Annotated[
        str, typer.Option(help="abducted (a counterfactual) or random (an interventional sample).")
    ] = "abducted",
    guidance_scale: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    guidance_mode: Annotated[str, typer.Option(help="factual, affected or uncond.")] = "factual",
    allow_extrapolation: Annotated[
        bool, typer.Option("--allow-extrapolation", help="Only warn about values outside the training range.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Chooses the test images, and draws the noise for --noise random.")] = 0,
    device: Annotated[str | None, typer.Option(help="E.g. cuda.")] = None,
) -> None:
    """What a picture would look like had a variable been different."""
    arguments: dict[str, Any] = dict(locals())
    from gendiff.app.counterfactual_run import Question, run
    from gendiff.app.output_folder import output_folder, write_files

    from .parsing import parse_assignments, parse_sweep

    interventions = parse_assignments("--do", do or [])
    swept = parse_sweep(sweep) if sweep else None
    if not interventions and swept is None:
        raise ValueError("nothing to change: give --do NAME=VALUE or --sweep NAME=START:STOP:COUNT.")
    question = Question(
        model=model,
        image=image,
        interventions=interventions,
        sweep=swept,
        labels=parse_assignments("--label", label or []),
        num_images=num_images,
        seed=seed,
        device=device,
        options={
            "num_inference_steps": steps,
            "inversion": inversion,
            "noise": noise,
            "guidance_scale": guidance_scale,
            "guidance_mode": guidance_mode,
            "allow_extrapolation": allow_extrapolation,
        },
    )
    with output_folder(out):
        files, summary = run(question, arguments)
        write_files(out, files)
    typer.echo(f"{summary}\n{', '.join(files)} in {out}")


@app.command("image-generation")
def sample_images(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and run.json.")],
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="Name or number; every class if left out.")
    ] = None,
    model: Annotated[str, typer.Option(help="Built-in checkpoint, folder or hub repository.")] = "ddpm-fashion",
    num_images: Annotated[int, typer.Option(help="Images of each class.")] = 4,
    steps: Annotated[int, typer.Option(help="Steps of the walk from noise to image.")] = 50,
    scheduler: Annotated[str | None, typer.Option(help="ddim or dpm-solver++; the model's own if left out.")] = None,
    guidance_scale: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Image i is drawn from seed + i.")] = 0,
    device: Annotated[str | None, typer.Option(help="E.g. cuda.")] = None,
) -> None:
    """Images by class."""
    arguments: dict[str, Any] = dict(locals())
    from gendiff.app.image_generation_run import Order, run
    from gendiff.app.output_folder import output_folder, write_files

    order = Order(
        model=model,
        classes=classes or [],
        num_images=num_images,
        steps=steps,
        scheduler=scheduler,
        guidance_scale=guidance_scale,
        seed=seed,
        device=device,
    )
    with output_folder(out):
        files, summary = run(order, arguments)
        write_files(out, files)
    typer.echo(f"{summary}\ngrid.png and {len(files) - 1} more files in {out}")
