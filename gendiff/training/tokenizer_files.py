"""Trained tokenizers that a recipe names by their folder."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from gendiff.models.frequency_vq import FrequencyVQModel


def load_tokenizer(path: str, shape: tuple[int, int]) -> FrequencyVQModel:
    """The tokenizer in a folder, its own or a pipeline's.

    Args:
        path: of the folder.
        shape: (C, S) of the images it must be for.

    Raises:
        OSError: there is none.
        ValueError: another model is there, or one for other images.
    """
    for folder in (Path(path), Path(path, "vqvae")):
        if (folder / "config.json").is_file():
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config.get("_class_name") != FrequencyVQModel.__name__:
                found = config.get("_class_name")
                raise ValueError(f"models.vqvae.path: {folder} holds a {found}, not a {FrequencyVQModel.__name__}.")
            known = (config["in_channels"], config["sample_size"])
            if known != shape:
                raise ValueError(
                    f"models.vqvae.path: {path} is for images of (channels, side) {known}, the data have {shape}."
                )
            # Not `from_pretrained`, which would write this machine's path into whatever is saved later.
            vqvae = FrequencyVQModel.from_config(config)
            assert isinstance(vqvae, FrequencyVQModel)
            vqvae.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
            return vqvae.eval()
    raise FileNotFoundError(
        f"models.vqvae.path: {path} holds no tokenizer; its recipe, named ...-tokenizer, comes first."
    )
