"""Centres of image patches by k-means, which is all the training that a tokenizer of patches needs."""

from __future__ import annotations

from typing import Any

import torch

from gendiff.errors import InvalidInputError
from gendiff.models.masked.patch_vq import PatchVQTokenizer

MOST_PATCHES = 400_000
"""Patches that k-means looks at; more hardly move the centres."""


def fit_patches(tokenizer: PatchVQTokenizer, dataset: Any, seed: int = 0) -> None:
    """Set the codebook to the k-means centres of the data's patches.

    The same data and seed give the same centres: one thread adds the numbers up.

    Args:
        tokenizer: changed in place.
        dataset: items have "image" (C, S, S) in [-1, 1].
        seed: of the patches drawn and of the first centres.

    Raises:
        InvalidInputError: fewer different patches than centres.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    generator = torch.Generator().manual_seed(seed)
    per_image = tokenizer.grid[0] * tokenizer.grid[1]
    count = min(len(dataset), max(1, MOST_PATCHES // per_image * 4))
    chosen = torch.randperm(len(dataset), generator=generator)[:count]
    patches = torch.cat(
        [
            tokenizer.patches(torch.stack([dataset[int(i)]["image"] for i in part])).flatten(0, 1)
            for part in chosen.split(512)
        ]
    )
    patches = patches[torch.randperm(len(patches), generator=generator)[:MOST_PATCHES]].float()
    different = len(patches.unique(dim=0))
    if different < tokenizer.codebook_size:
        raise InvalidInputError(
            f"codebook_size must be at most {different}, as the data have different patches, got "
            f"{tokenizer.codebook_size}."
        )
    kmeans: Any = MiniBatchKMeans  # its annotations want "auto" where it takes a number
    with threadpool_limits(1):
        found = kmeans(tokenizer.codebook_size, random_state=seed, batch_size=8192, n_init=3, max_iter=60).fit(
            patches.numpy()
        )
    with torch.no_grad():
        tokenizer.codebook.copy_(torch.from_numpy(found.cluster_centers_))
