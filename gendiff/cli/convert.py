"""`gendiff convert`: other people's checkpoints as folders that this package loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .convert_masked import COMMANDS

app = typer.Typer(help="Turn other people's checkpoints into folders that this package loads.")


@app.callback()
def _convert() -> None:
    """Turn other people's checkpoints into folders that this package loads."""


@app.command("self-forcing")
def convert_self_forcing(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A .pt, .pth or .safetensors file on this machine.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; must not exist or be empty.")],
    key: Annotated[str, typer.Option(help="Which network in the file, e.g. generator.")] = "generator_ema",
    chunk_size: Annotated[int, typer.Option(min=1, help="Latent frames denoised together in training.")] = 3,
) -> None:
    """Convert a Wan-based causal video transformer: Self-Forcing, Causal-Forcing, LongLive and relatives.

    Names and shapes are checked. The weights keep their own licence: see the card of the model you downloaded.
    """
    from gendiff.convert.self_forcing import convert

    model = convert(source, destination, key, chunk_size)
    config = model.config
    typer.echo(
        f"{destination}: {type(model).__name__}, {config['num_layers']} blocks, {config['num_attention_heads']} heads "
        f"of {config['attention_head_dim']}, {model.num_parameters():,} parameters"
    )


@app.command("var")
def convert_var(
    vae: Annotated[Path, typer.Option(help="The tokenizer: a .pt, .pth or .safetensors file on this machine.")],
    transformer: Annotated[Path, typer.Option(help="The transformer, likewise; or the same file of a training run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    class_names: Annotated[
        Path | None, typer.Option(help="Text file with the name of each class on its own line; default: numbers.")
    ] = None,
) -> None:
    """Convert a tokenizer and a transformer of VAR (next-scale prediction) to a pipeline.

    Names, shapes and dropped buffers are checked. The weights keep their own licence.
    """
    from gendiff.convert.var import convert

    names = class_names.read_text(encoding="utf-8").splitlines() if class_names else []
    pipe = convert(vae, transformer, out, [name.strip() for name in names])
    config, sizes = pipe.transformer.config, [pipe.transformer.num_parameters(), pipe.vqvae.num_parameters()]
    typer.echo(
        f"{out}: {type(pipe).__name__}, {config['num_layers']} blocks, {config['num_attention_heads']} heads of "
        f"{config['attention_head_dim']}, {pipe.num_classes} classes, {pipe.num_stages} stages, "
        f"{pipe.sample_shape[-1]} px, {sizes[0]:,} + {sizes[1]:,} parameters"
    )


for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
