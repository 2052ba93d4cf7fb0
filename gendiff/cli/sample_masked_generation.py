"""`gendiff sample masked-generation`: images from hidden tokens, from nothing or around what is kept of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def sample_masked_generation(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and run.json.")],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Name or number; if left out every class, or none with --image."),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="Instead of --class, for a model that reads text."),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Text to move away from.")] = None,
    model: Annotated[str, typer.Option(help="Built-in checkpoint, folder or hub repository.")] = "maskgit-fashion",
    num_images: Annotated[int, typer.Option(help="Images of each class or text.")] = 4,
    steps: Annotated[int, typer.Option(help="Steps in which all tokens are revealed.")] = 16,
    recap: Annotated[
        str | None,
        typer.Option(
            metavar="light=U,warmup=F",
            help="U light steps after each full one, but for the first F full ones; also bound=NATS, and every other "
            "name of ReCAPConfig.",
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", "--guidance", help="Towards the class; 1 is off. 2 if left out."),
    ] = None,
    guidance_schedule: Annotated[
        str | None,
        typer.Option(help="constant, linear_step, linear_open, linear_revealed or power_cosine; else the model's own."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="How fast tokens are revealed: cosine, arccos, linear, root, log, exp or pow2.5; else the model's own."
        ),
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="Which first: confidence, halton or random; else the model's own.")
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(metavar="NUMBER|FIRST,LAST", help="Weight of the noise in confidences; falls to 0 if one number."),
    ] = None,
    sampling_temperature: Annotated[
        float | None, typer.Option(help="Below 1 draws likelier codes, above 1 more various ones.")
    ] = None,
    head_steps: Annotated[
        int | None, typer.Option(help="Denoising steps of each token, where tokens are vectors. 25 if left out.")
    ] = None,
    head_temperature: Annotated[
        float | None, typer.Option(help="Factor of the noise in those steps; else the model's own.")
    ] = None,
    unconditional: Annotated[bool, typer.Option("--unconditional", help="Draw without a class.")] = False,
    image: Annotated[Path | None, typer.Option(help="Picture to fill in, in the model's own size.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Picture of what to draw anew in --image: white anew, black kept.")
    ] = None,
    dilation: Annotated[
        int | None, typer.Option(help="Rings of tokens around --mask that are drawn anew as well. 1 if left out.")
    ] = None,
    blend: Annotated[bool, typer.Option("--blend", help="Put the kept pixels of --image back at the end.")] = False,
    order_map: Annotated[
        bool,
        typer.Option("--order-map", help="Also order.png, when each token was decided, and steps.png, step by step."),
    ] = False,
    measure_staleness: Annotated[
        bool, typer.Option("--measure-staleness", help="Compare each light step with a full one, which costs as much.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Image i is drawn from seed + i.")] = 0,
    device: Annotated[str | None, typer.Option(help="E.g. cuda.")] = None,
) -> None:
    """Images from hidden tokens, revealed a few at a time, with cheap light steps between full ones or without."""
    arguments: dict[str, Any] = dict(locals())
    from gendiff.app.masked_generation_run import Order, run
    from gendiff.app.output_folder import output_folder, write_files
    from gendiff.samplers.recap import ReCAPConfig

    wanted = Order(
        model=model,
        classes=classes or [],
        prompts=prompts or [],
        num_images=num_images,
        unconditional=unconditional,
        image=image,
        mask=mask,
        order_map=order_map,
        seed=seed,
        device=device,
        recap=None if recap is None else ReCAPConfig.parse(recap),
        scheduler={
            "schedule": schedule,
            "order": order,
            "confidence_temperature": None if temperature is None else _parse_temperature(temperature),
            "sampling_temperature": sampling_temperature,
            "guidance_schedule": guidance_schedule,
        },
        options={
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "mask_dilation": dilation,
            "blend_pixels": blend,
            "num_head_steps": head_steps,
            "head_temperature": head_temperature,
            "measure_staleness": measure_staleness,
            "negative_prompt": negative_prompt,
        },
    )
    with output_folder(out):
        files, summary = run(wanted, arguments)
        write_files(out, files)
    typer.echo(f"{summary}\ngrid.png and {len(files) - 1} more files in {out}")


def _parse_temperature(text: str) -> float | list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--temperature must be a number, or two as 4.5,0, got {text!r}.") from None
    return values[0] if len(values) == 1 else values
