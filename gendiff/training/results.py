"""What a run leaves: preview pictures and the final pipeline folder."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gendiff.files import write_whole, written_whole

from .model_card import write_model_card
from .run import Run


def save_picture(picture: Tensor, path: Path) -> None:
    """Write a PNG.

    Args:
        picture: (1 or 3, H, W), in [0, 1].
        path: of the file; its folder is made.
    """
    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())


def save_final(pipeline: Any, folder: Path, run: Run, last_row: Mapping[str, Any]) -> None:
    """Write the trained pipeline with its card; the folder is there whole or not at all.

    Args:
        pipeline: with the final weights.
        folder: replaced if it exists.
        run: that made it.
        last_row: of the log.
    """
    with written_whole(folder) as partial:
        pipeline.save_pretrained(partial, safe_serialization=True)
        if run.recipe.train.save_dtype == "float16":
            for path in partial.rglob("*.safetensors"):
                _halve(path)
        write_model_card(
            partial,
            run.recipe,
            losses={name: last_row[name] for name in ("loss", *run.recipe.losses) if name in last_row},
            seconds=run.seconds,
            parameters={name: sum(p.numel() for p in module.parameters()) for name, module in run.trained.items()},
            world=run.accelerator.num_processes,
            measured=run.measured,
        )


def _halve(path: Path) -> None:
    """Rewrite a weight file with its floating-point tensors in float16."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    overflown = [name for name, tensor in halved.items() if not torch.isfinite(tensor).all()]
    if overflown:
        raise FloatingPointError(f"{', '.join(overflown)} does not fit into float16; use train.save_dtype: float32.")
    save_file(halved, path, metadata=metadata)
