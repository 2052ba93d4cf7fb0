"""Which digit is it? A small classifier of handwriting, to judge pictures whose digit no renderer can read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from gendiff.data.handwriting import Handwriting
from gendiff.data.rendered import check_images, from_bytes
from gendiff.files import write_whole

BRIGHTEST = 12
"""Pixels whose mean is the brightness of a stroke, which the classifier divides by."""
BATCH, LEARNING_RATE, SEED = 128, 2e-3, 0
RECIPE = 1
"""Raise it when network or training change: classifiers on disk are then trained again."""


class DigitClassifier(nn.Module):
    """Three convolutions and a linear layer, blind to how bright a stroke is."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 3 * 3, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 28, 28) in [-1, 1]."""
        ink = (images + 1) / 2
        brightness = ink.flatten(1).topk(BRIGHTEST).values.mean(1).clamp(min=1e-3)
        return self.network(ink / brightness[:, None, None, None])

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Digit (B,) float32 of images (B, 1, 28, 28) in [-1, 1].

        Raises:
            ValueError: wrong shape.
        """
        check_images(images, 1, 28)
        return torch.cat([self(chunk).argmax(1) for chunk in images.float().split(batch_size)]).float()


def digit_classifier(dataset: Handwriting, root: str | Path = "data", epochs: int = 3) -> DigitClassifier:
    """The classifier trained on `dataset`, from `root/classifier` if it was trained before.

    Every other digit is seen as it was written, the rest redrawn as the dataset has them. The same data give the
    same weights on one machine with one number of threads; the file's name holds a hash of all they depend on.

    Args:
        dataset: the training split.
        root: folder of all datasets.
        epochs: passes over the data.
    """
    recipe = json.dumps([RECIPE, BATCH, LEARNING_RATE, SEED, epochs]).encode()
    content = hashlib.sha256(recipe)
    for tensor in (dataset.images, dataset.labels):
        content.update(tensor.numpy().tobytes())
    path = Path(root, "classifier", f"{len(dataset)}-{content.hexdigest()[:16]}.safetensors")
    try:
        classifier = DigitClassifier()
        classifier.load_state_dict(load(path.read_bytes()))
    except (FileNotFoundError, SafetensorError, RuntimeError):
        classifier = train_classifier(*_pictures(dataset), epochs=epochs)
        write_whole(path, save(classifier.state_dict()))
    return classifier.eval()


def train_classifier(images: Tensor, digits: Tensor, epochs: int = 1) -> DigitClassifier:
    """Train a classifier; no global state is read or changed.

    Args:
        images: (N, 1, 28, 28) uint8.
        digits: (N,) 0 .. 9.
        epochs: passes over the images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        classifier = DigitClassifier()
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    digits = digits.long()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(classifier(from_bytes(images[rows])), digits[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def _pictures(dataset: Handwriting) -> tuple[Tensor, Tensor]:
    """Digits, the odd ones as written and the even ones as redrawn, (N, 1, 28, 28) uint8, and their classes (N,)."""
    images = dataset.images.clone()
    images[1::2, 0] = torch.from_numpy(dataset.digits[1::2])
    return images, dataset.labels[:, dataset.graph.index("digit")]
