"""Folders of diffusers' aMUSEd (Patil et al. 2024, arXiv 2401.01808) as `MaskedGenerationPipeline`.

Published as amused/amused-256 and amused/amused-512 on the Hugging Face hub, under the OpenRAIL++ licence. Nothing is
bundled. Networks stay diffusers' own and no tensor changes; what is written is another pipeline around them.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gendiff.convert.tensor_files import check_destination
from gendiff.errors import InvalidInputError, UnsafeFileError
from gendiff.files import written_whole
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline

PARTS = ("transformer", "vqvae", "scheduler", "tokenizer", "text_encoder")
NETWORKS = ("transformer", "vqvae", "text_encoder")


def convert(source: str | Path, destination: str | Path) -> MaskedGenerationPipeline:
    """Write a folder for `MaskedGenerationPipeline.from_pretrained` from one of diffusers' `AmusedPipeline`.

    Args:
        source: folder on this machine, with weights as safetensors.
        destination: folder to write, whole or not at all; it must not exist, or be empty.

    Returns: the pipeline that was written.

    Raises:
        FileNotFoundError: no such folder.
        FileExistsError: the destination holds something.
        UnsafeFileError: a network has its weights as a pickle alone.
        InvalidInputError: a part is missing or not what aMUSEd has.
    """
    source, destination = Path(source), Path(destination)
    if not source.is_dir():
        raise FileNotFoundError(f"source: no folder {source}.")
    check_destination(destination)
    if missing := [part for part in PARTS if not (source / part).is_dir()]:
        raise InvalidInputError(f"{source}: no folders {', '.join(missing)}, which aMUSEd has.")
    for part in NETWORKS:
        if not any((source / part).glob("*.safetensors")):
            if any((source / part).glob("*.bin")):
                raise UnsafeFileError(f"{source / part}: weights as a pickle alone; safetensors are needed.")
            raise InvalidInputError(f"{source / part}: no weights as safetensors.")
    try:
        pipe = MaskedGenerationPipeline.from_amused(_parts(source))
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise InvalidInputError(f"{source}: {error}") from error
    with written_whole(destination) as folder:
        pipe.save_pretrained(folder)
    return pipe


def _parts(source: Path) -> Any:
    """What `AmusedPipeline` has; the class itself is deprecated and might go."""
    from diffusers import AmusedScheduler, UVit2DModel, VQModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    kinds: dict[str, Any] = dict(
        zip(PARTS, (UVit2DModel, VQModel, AmusedScheduler, CLIPTokenizer, CLIPTextModelWithProjection), strict=True)
    )
    loaded = {}
    for part, kind in kinds.items():
        safe: dict[str, Any] = {"use_safetensors": True} if part in NETWORKS else {}
        loaded[part] = kind.from_pretrained(str(source / part), local_files_only=True, **safe)
    return SimpleNamespace(**loaded)
