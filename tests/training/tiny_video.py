"""Videos small enough to learn in a test, and the tiny causal video model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

MOVES = ((0, 4), (0, -4), (4, 0), (-4, 0))
"""Rows and columns per frame of each of the videos."""

TINY = {
    "patch_size": 4,
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "chunk_size": 2,
    "context_frames": 5,
    "prefix_references": 1,
}
"""Preset of 16 px: D = 2, d = 64, h = 4, l = 2, W = 5, P' = 1."""


class MovingSquares(Dataset):
    """Four videos of a square that starts in the same place and moves in one of four directions, 16 px.

    Args:
        num_frames: F; 7 = W + l by default.
    """

    frame_shape = (1, 16, 16)
    classes = ("right", "left", "down", "up")

    def __init__(self, num_frames: int = 7) -> None:
        self.num_frames = num_frames

    def __len__(self) -> int:
        return len(MOVES)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        frame = torch.full((1, 16, 16), -1.0)
        frame[:, 4:8, 4:8] = 1
        row, column = MOVES[index]
        frames = [frame.roll((row * step, column * step), (1, 2)) for step in range(self.num_frames)]
        text = torch.nn.functional.one_hot(torch.tensor([index, 4]), 8).float()
        mask = torch.tensor([True, index != 2])  # a text of one token among those of two
        return {"video": torch.stack(frames), "label": torch.tensor([index]), "text": text, "text_mask": mask}


def batch_of(data: Dataset[Any], copies: int = 1) -> dict[str, Tensor]:
    """All items, each `copies` times."""
    items = [data[index] for index in range(len(data)) for _ in range(copies)]  # type: ignore[arg-type]
    return torch.utils.data.default_collate(items)
