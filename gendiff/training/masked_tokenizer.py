"""The tokenizer that a recipe of masked generation names: a trained one by its folder, or patches by k-means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gendiff.models.masked.patch_vq import PatchVQTokenizer

from .image_data import image_shape
from .patch_centres import fit_patches
from .recipe import check_arguments
from .tokenizer_files import OF_HIDDEN_TOKENS, load_tokenizer


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
    tokenizer = load_tokenizer(given["path"], (channels, size), "image_tokenizer", OF_HIDDEN_TOKENS)
    return tokenizer.requires_grad_(False)
