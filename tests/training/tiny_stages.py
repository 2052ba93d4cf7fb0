"""Pictures small enough to learn in a test, and a tiny tokenizer and transformer for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.training.recipe import Recipe

TOKENIZER = {
    "stages": [1, 2, 3, 4],
    "latent_channels": 8,
    "codebook_size": 32,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TRANSFORMER = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}


class Bars(Dataset):
    """48 noisy images (1, 16, 16) of a bright left, middle or right third."""

    classes = ("left", "middle", "right")

    def __init__(self, side: int = 16, channels: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(48) % 3
        self.images = torch.randint(0, 40, (48, channels, side, side), generator=generator, dtype=torch.uint8)
        for image, label in zip(self.images, self.labels, strict=True):
            image[..., 5 * int(label) : 5 * int(label) + 5] += 200

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index].float() / 127.5 - 1, "label": self.labels[index]}


def whole_batch(dataset: Bars | None = None) -> dict[str, Tensor]:
    """All of it, stacked."""
    dataset = dataset or Bars()
    return {"image": torch.stack([item["image"] for item in dataset]), "label": dataset.labels}


def tokenizer_recipe(models: dict[str, Any] | None = None, losses: dict[str, float] | None = None, **train) -> Recipe:
    settings = {"steps": 16, "batch_size": 8, "learning_rate": 4e-3, "ema_decay": 0, "threads": 1, "log_every": 4}
    return Recipe.from_dict(
        {
            "name": "bars-tokenizer",
            "task": "frequency-tokenizer",
            "seed": 5,
            "models": {"vqvae": TOKENIZER, **(models or {})},
            "objective": {"revive_steps": 12, "stage_dropout": 0.2, "shift": 1},
            "losses": {"l2": 1.0, "l1": 0.1, "vq": 0.1, **(losses or {})},
            "train": settings | train,
        }
    )


def transformer_recipe(tokenizer: Path, **train) -> Recipe:
    settings = {"steps": 16, "batch_size": 8, "learning_rate": 4e-3, "ema_decay": 0.9, "threads": 1, "log_every": 4}
    return Recipe.from_dict(
        {
            "name": "bars",
            "task": "next-frequency",
            "seed": 5,
            "models": {"vqvae": {"path": str(tokenizer)}, "transformer": TRANSFORMER},
            "objective": {"label_dropout": 0.1},
            "losses": {"cross_entropy": 1.0},
            "train": {"weight_decay": 0.05, "decay": "matrices", "betas": [0.9, 0.95], **settings, **train},
        }
    )
