"""The tokenizer that a recipe of masked generation names: a trained one by its folder, or patches by k-means."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from gendiff.models.masked.patch_vq import PatchVQTokenizer

from .image_data import image_shape
from .patch_centres import fit_patches
from .recipe import check_arguments

KINDS = {
    "KLTokenizer": "gendiff.models.masked.kl_tokenizer",
    "FSQTokenizer": "gendiff.models.masked.fsq",
    "PatchVQTokenizer": "gendiff.models.masked.patch_vq",
    "PixelPatchTokenizer": "gendiff.models.masked.pixel_patches",
    "VQModelTokenizer": "gendiff.models.masked.vq_model_tokenizer",
}


def tokenizer_for(given: Mapping[str, Any], dataset: Any) -> Any:
    """A tokenizer for the images of `dataset`; it has no gradients.

    Args:
        given: `path: FOLDER` of a saved tokenizer, or of a pipeline that has one; or arguments of `PatchVQTokenizer`,
            whose centres are then found among the data's patches.
        dataset: has `images` (N, C, S, S).

    Raises:
        OSError: there is none at the path.
        ValueError: something else lies there, a tokenizer for other images, or an unknown argument.
    """
    channels, size = image_shape(dataset)
    if "path" not in given:
        arguments = {"in_channels": channels, "sample_size": size} | dict(given)
        check_arguments("models.image_tokenizer", arguments, PatchVQTokenizer)
        tokenizer = PatchVQTokenizer(**arguments)
        fit_patches(tokenizer, dataset)
        return tokenizer
    check_arguments("models.image_tokenizer", given, ["path"])
    tokenizer = _loaded(given["path"])
    known = (tokenizer.config["in_channels"], tokenizer.config["sample_size"])
    if known != (channels, size):
        raise ValueError(
            f"models.image_tokenizer.path: {given['path']} is for images of (channels, side) {known}, the data have "
            f"{(channels, size)}."
        )
    return tokenizer.requires_grad_(False).eval()


def _loaded(path: str) -> Any:
    for folder in (Path(path), Path(path, "image_tokenizer")):
        if (folder / "config.json").is_file():
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind = config.get("_class_name")
            if kind not in KINDS:
                raise ValueError(
                    f"models.image_tokenizer.path: {folder} holds a {kind}, not one of {', '.join(KINDS)}."
                )
            # Not `from_pretrained`, which would write this machine's path into whatever is saved later.
            tokenizer = getattr(importlib.import_module(KINDS[kind]), kind).from_config(config)
            weights = load_file(folder / "diffusion_pytorch_model.safetensors")
            tokenizer.load_state_dict(weights)
            return tokenizer
    raise FileNotFoundError(
        f"models.image_tokenizer.path: {path} holds no tokenizer; its recipe, named ...-tokenizer, comes first."
    )
