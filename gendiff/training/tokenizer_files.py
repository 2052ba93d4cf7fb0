"""Trained tokenizers that a recipe names by their folder."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

OF_STAGES = {"FrequencyVQModel": "gendiff.models.frequency_vq"}
OF_HIDDEN_TOKENS = {
    "FSQTokenizer": "gendiff.models.masked.fsq",
    "KLTokenizer": "gendiff.models.masked.kl_tokenizer",
    "PatchVQTokenizer": "gendiff.models.masked.patch_vq",
    "PixelPatchTokenizer": "gendiff.models.masked.pixel_patches",
    "VQModelTokenizer": "gendiff.models.masked.vq_model_tokenizer",
}


def load_tokenizer(path: str, shape: tuple[int, int], component: str, kinds: Mapping[str, str]) -> Any:
    """The tokenizer in a folder, its own or a pipeline's, in evaluation mode.

    Args:
        path: of the folder.
        shape: (C, S) of the images it must be for.
        component: what a pipeline, and the recipe, call it.
        kinds: classes it may be of, and their modules.

    Raises:
        OSError: there is none.
        ValueError: another model is there, or one for other images.
    """
    name = f"models.{component}.path"
    for folder in (Path(path), Path(path, component)):
        if (folder / "config.json").is_file():
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind = config.get("_class_name")
            if kind not in kinds:
                raise ValueError(f"{name}: {folder} holds a {kind}, not a {' or '.join(kinds)}.")
            known = (config["in_channels"], config["sample_size"])
            if known != shape:
                raise ValueError(f"{name}: {path} is for images of (channels, side) {known}, the data have {shape}.")
            # Not `from_pretrained`, which would write this machine's path into whatever is saved later.
            tokenizer = getattr(importlib.import_module(kinds[kind]), kind).from_config(config)
            tokenizer.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
            return tokenizer.eval()
    raise FileNotFoundError(f"{name}: {path} holds no tokenizer; its recipe, named ...-tokenizer, comes first.")
