"""Trained tokenizers that a recipe names by their folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gendiff.models.frequency_vq import FrequencyVQModel


def load_tokenizer(path: str) -> FrequencyVQModel:
    """The tokenizer in a folder, its own or a pipeline's.

    Raises:
        OSError: there is none.
        ValueError: another model is there.
    """
    for folder in (Path(path), Path(path, "vqvae")):
        if (folder / "config.json").is_file():
            found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
            if found != FrequencyVQModel.__name__:
                raise ValueError(f"models.vqvae.path: {folder} holds a {found}, not a {FrequencyVQModel.__name__}.")
            return FrequencyVQModel.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32).eval()
    raise FileNotFoundError(
        f"models.vqvae.path: {path} holds no tokenizer; its recipe, named ...-tokenizer, comes first."
    )
