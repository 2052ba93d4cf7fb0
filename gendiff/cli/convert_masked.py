"""`gendiff convert` for transformers over hidden tokens: one command for each kind of checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Source = Annotated[Path, typer.Argument(metavar="SRC", help="A .pth, .pt or .safetensors file on this machine.")]
Folder = Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; must not exist or be empty.")]
Heads = Annotated[int | None, typer.Option(min=1, help="Attention heads; default: those of the published network.")]


def convert_halton_maskgit(source: Source, destination: Folder, heads: Heads = None) -> None:
    """Convert a transformer of valeoai/Halton-MaskGIT.

    Names and shapes are checked. The weights keep their own licence.
    """
    from gendiff.convert.halton import convert

    _say(destination, convert(source, destination, heads))


def convert_maskgit(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A file of Flax on this machine; needs msgpack.")],
    destination: Folder,
    codebook_size: Annotated[int, typer.Option(min=1, help="Codes; other embeddings are classes.")] = 1024,
) -> None:
    """Convert a transformer of google-research/maskgit.

    Names and shapes are checked. The weights keep their own licence.
    """
    from gendiff.convert.maskgit import convert

    _say(destination, convert(source, destination, codebook_size))


def convert_autonat(source: Source, destination: Folder, heads: Heads = None) -> None:
    """Convert a transformer of LeapLabTHU/ImprovedNAT (AutoNAT), which ReCAP's recipes for MaskGIT are for.

    Names and shapes are checked. The weights keep their own licence.
    """
    from gendiff.convert.autonat import convert

    _say(destination, convert(source, destination, heads))


def convert_mar(
    source: Source,
    destination: Folder,
    key: Annotated[str, typer.Option(help="Which network in the file: model_ema or model.")] = "model_ema",
    heads: Heads = None,
) -> None:
    """Convert a transformer of LTH14/mar with its diffusion head.

    Names and shapes are checked. The weights keep their own licence.
    """
    from gendiff.convert.mar import convert

    _say(destination, convert(source, destination, key, heads))


def convert_amused(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of diffusers' aMUSEd on this machine.")],
    destination: Folder,
) -> None:
    """Convert a folder of aMUSEd to a pipeline. No tensor changes; the weights keep their own licence."""
    from gendiff.convert.amused import convert

    pipe = convert(source, destination)
    sizes = [pipe.transformer.num_parameters(), pipe.image_tokenizer.num_parameters()]
    typer.echo(
        f"{destination}: {type(pipe).__name__}, {pipe.num_tokens} tokens, {pipe.sample_shape[-1]} px, "
        f"{sizes[0]:,} + {sizes[1]:,} parameters"
    )


COMMANDS = {
    "halton-maskgit": convert_halton_maskgit,
    "maskgit": convert_maskgit,
    "autonat": convert_autonat,
    "mar": convert_mar,
    "amused": convert_amused,
}


def _say(destination: Path, model: Any) -> None:
    config = model.config
    layers = [config[name] for name in ("num_layers", "num_encoder_layers", "num_decoder_layers") if name in config]
    typer.echo(
        f"{destination}: {type(model).__name__}, {' + '.join(map(str, layers))} blocks, "
        f"{config['num_attention_heads']} heads of {config['attention_head_dim']}, {model.num_tokens} tokens, "
        f"{config['num_classes']} classes, {model.num_parameters():,} parameters"
    )
