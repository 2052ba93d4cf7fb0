"""Real handwriting with a known causal story: MNIST digits, redrawn at a drawn thickness and a brightness it causes.

The pictures are real pen strokes; the variables follow the structural causal model of Pawlowski et al. (NeurIPS 2020,
section 4.1), except that thickness is uniform, so that every value of its range is learnt equally well:

    thickness t ~ Uniform[1, 6] px
    intensity i = 64 + 191 sigmoid(2 (t - 2.5) + 0.5 e),  e ~ N(0, 1)
    digit: as written

A digit is drawn again while morphology cannot bring it within 0.1 px of its drawn thickness (strokes that merge make
the measure jump). Labels are what is read from the finished image, and the noise of an item is the e that explains its
labels, so an item, its labels and its noise agree exactly. Thick strokes that leave the 28 px frame are cut.

`python -m gendiff.data.handwriting --root data` writes the sample digits that ship with the package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.causal.intervention import InterventionError
from gendiff.data import morphology
from gendiff.data.arrays import load_arrays, save_arrays
from gendiff.data.mnist import mnist_arrays
from gendiff.data.rendered import SEEDS, RenderedDataset, check_count, check_images, check_share

SPLITS = (*SEEDS, "samples")
SAMPLES = Path(__file__).parent / "samples" / "handwriting.npz"
VALIDATION = 2000
"""The first so many digits of MNIST's test file are for validation."""
THICKNESS = (1.0, 6.0)
INTENSITY = (64.0, 255.0)
MISS = 0.1
"""Largest difference in pixels between the drawn and the measured thickness of an item."""
ATTEMPTS = 100
RECIPE = 1
"""Raise it when the drawing changes: prepared digits on disk are then made again."""


def handwriting_graph() -> CausalGraph:
    """Thickness causes intensity; the digit stands alone."""
    return CausalGraph(
        [
            Variable("thickness", loc=3.5, scale=2.5, low=THICKNESS[0], high=THICKNESS[1]),
            Variable("intensity", loc=159.5, scale=95.5, low=INTENSITY[0], high=INTENSITY[1]),
            Variable("digit", kind="categorical", num_classes=10),
        ],
        edges=[("thickness", "intensity")],
    )


def intensity_of(thickness: float, noise: float) -> float:
    """Structural equation of the intensity (64 .. 255) of strokes `thickness` pixels thick."""
    return 64 + 191 / (1 + math.exp(-2 * (thickness - 2.5) - 0.5 * noise))


def noise_of(thickness: float, intensity: float) -> float:
    """The noise under which `thickness` causes `intensity`: the inverse of `intensity_of`."""
    share = (intensity - 64) / 191
    return 2 * (math.log(share / (1 - share)) - 2 * (thickness - 2.5))


def brighten(coverage: np.ndarray, intensity: float) -> np.ndarray:
    """Uint8 image (H, W) whose 12 brightest pixels have the mean `intensity` (0 .. 255).

    Thin antialiased strokes cover no pixel fully, so the scale comes from the strokes' own brightest pixels. Where it
    would exceed white the pixel is clipped and the rest of the twelve make up for it.

    Args:
        coverage: (H, W) in [0, 1], with at least 12 pixels above 0.
    """
    top = np.sort(coverage, axis=None)[-morphology.BRIGHTEST :]
    wanted = morphology.BRIGHTEST * intensity / 255
    for clipped in range(morphology.BRIGHTEST):
        rest = top[: morphology.BRIGHTEST - clipped]
        scale = (wanted - clipped) / rest.sum()
        if scale * rest[-1] <= 1 + 1e-9:
            break
    return np.rint(255 * np.clip(scale * coverage, 0, 1)).astype(np.uint8)


class Handwriting(RenderedDataset):
    """MNIST digits with thickness and intensity changed by morphology, and the true answer to every `do` on them.

    `train` are the 60,000 digits of MNIST's training file, `validation` the first 2,000 of its test file, `test` the
    other 8,000. `samples` are 200 items of `test`, 20 of each digit, that ship with the package and need no files.
    Digits are prepared once (5 to 10 minutes of one core for `train`) and kept under `root/handwriting`.

    Args:
        split: train, validation, test or samples.
        root: folder MNIST was imported into.
        num_images: keep only the first so many.
        experiments: share of the *training* digits whose intensity is set at random instead of following from the
            thickness; the other splits have none.
        seed: of the thickness and noise; each split has its own by default, and `samples` keeps that of `test`.

    Attributes:
        digits: (N, 28, 28) uint8, as written.
        noise: (N,) float64, the exogenous noise of the intensity.
        targets: (N,) float64, the thickness each digit was drawn for; measured is `labels[:, 0]`.

    Raises:
        ValueError: unknown split, a bad count, or a seed for `samples`.
        FileNotFoundError: MNIST is not under `root`.
        ImportError: the digits must be prepared and scipy or scikit-image is missing.
    """

    def __init__(
        self,
        split: str = "train",
        root: str | Path = "data",
        num_images: int | None = None,
        experiments: float = 0.0,
        seed: int | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if num_images is not None:
            check_count("num_images", num_images)
        check_share("experiments", experiments)
        if seed is not None:
            check_count("seed", seed, minimum=0)
        self.graph = handwriting_graph()
        if split == "samples":
            if seed is not None:
                raise ValueError(f"the samples are fixed: seed must be None, got {seed}")
            stored = load_arrays(SAMPLES)
            self.digits = _first(stored["digits"], num_images)
        else:
            self.digits, classes = (_first(array, num_images) for array in _written(split, root))
            stored = _prepared(self.digits, classes, SEEDS[split] if seed is None else seed, Path(root), split)
        kept = {name: torch.from_numpy(array[: len(self.digits)]) for name, array in stored.items()}
        self.images, self.labels = kept["images"][:, None], kept["labels"]
        self.noise, self.targets = kept["noise"], kept["targets"]
        self.intervened = torch.zeros(self.labels.shape, dtype=torch.bool)
        if split == "train" and experiments:
            self._experiment(experiments, SEEDS[split] if seed is None else seed)

    def _experiment(self, share: float, seed: int) -> None:
        """Set the intensity of a `share` of the items, uniformly on its range."""
        chosen, position = torch.from_numpy(np.random.default_rng([seed, 2**32]).random((len(self.labels), 2))).T
        for index in (chosen < share).nonzero()[:, 0].tolist():
            intensity = INTENSITY[0] + (INTENSITY[1] - INTENSITY[0]) * position[index].item()
            image = brighten(self.images[index, 0].numpy() / 255, intensity)
            self.images[index, 0] = torch.from_numpy(image)
            self.labels[index, 1] = 255 * morphology.brightness(image / 255)
        self.intervened[:, 1] = chosen < share

    def structural(self, index: int, interventions: Mapping[str, float]) -> Tensor:
        if "digit" in interventions:
            raise InterventionError(
                "do(digit) has no ground truth: no one wrote this digit as another; use thickness or intensity."
            )
        thickness, intensity, digit = self.labels[index].tolist()
        if "thickness" in interventions:
            thickness = interventions["thickness"]
        if "thickness" in interventions and not self.intervened[index, 1]:
            intensity = intensity_of(thickness, self.noise[index].item())
        return torch.tensor([thickness, interventions.get("intensity", intensity), digit])

    def render(self, labels: Tensor, indices: Tensor) -> Tensor:
        drawn = []
        for (thickness, intensity, _), index in zip(labels.tolist(), indices.tolist(), strict=True):
            # A thickness left alone keeps the item's own strokes, which were searched for with its target.
            untouched = thickness == self.labels[index, 0].item()
            target = self.targets[index].item() if untouched else thickness
            drawn.append(brighten(morphology.set_thickness(self.digits[index], target), intensity))
        return torch.from_numpy(np.stack(drawn))[:, None].float() / 127.5 - 1

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """Thickness and intensity read from the pixels alone; the digit needs a classifier.

        Args:
            images: (B, 1, 28, 28) in [-1, 1].

        Returns:
            "thickness" (B,) in pixels by `morphology.measure_thickness`, 0 for a blank image, and "intensity" (B,),
            255 times the mean of the 12 brightest pixels.

        Raises:
            ValueError: wrong shape.
            ImportError: scipy or scikit-image is missing.
        """
        check_images(images, 1, 28)
        return read_strokes(images)


def read_strokes(images: Tensor) -> dict[str, Tensor]:
    """Thickness and intensity of (B, 1, S, S) images in [-1, 1], each (B,) float32 on the images' device."""
    pixels = ((images.detach().float() + 1) / 2).clamp(0, 1).cpu().numpy()[:, 0]
    thickness = [morphology.measure_thickness(image) for image in pixels]
    intensity = [255 * morphology.brightness(image) for image in pixels]
    return {
        "thickness": torch.tensor(thickness, dtype=torch.float32, device=images.device),
        "intensity": torch.tensor(intensity, dtype=torch.float32, device=images.device),
    }


def prepare(
    digits: np.ndarray, classes: np.ndarray, seed: int, description: str | None = None
) -> dict[str, np.ndarray]:
    """Draw thickness and noise for every digit and render it; item k depends on `digits[k]`, `seed` and k alone.

    Args:
        digits: (N, 28, 28) uint8.
        classes: (N,) 0 .. 9.
        seed: of all draws.
        description: words before the progress bar; no bar without them.

    Returns:
        "images" (N, 28, 28) uint8, "labels" (N, 3) float32, "noise" (N,) and "targets" (N,) float64.

    Raises:
        ValueError: a digit that cannot be redrawn.
    """
    count = len(digits)
    images, labels = np.empty((count, 28, 28), np.uint8), np.empty((count, 3), np.float32)
    noise, targets = np.empty(count), np.empty(count)
    for k in tqdm(range(count), desc=description, disable=description is None):
        images[k], thickness, intensity, targets[k] = _draw_item(digits[k], np.random.default_rng([seed, k]), k)
        labels[k] = thickness, intensity, classes[k]
        noise[k] = noise_of(*labels[k, :2].astype(float))
    return {"images": images, "labels": labels, "noise": noise, "targets": targets}


def _draw_item(digit: np.ndarray, rng: np.random.Generator, index: int) -> tuple[np.ndarray, float, float, float]:
    """Image, measured thickness, intensity and drawn thickness of one item."""
    noise = rng.standard_normal()
    for _ in range(ATTEMPTS):
        target = rng.uniform(*THICKNESS)
        intensity = intensity_of(target, noise)
        image = brighten(morphology.set_thickness(digit, target), intensity)
        thickness = morphology.measure_thickness(image)
        if abs(thickness - target) <= MISS and THICKNESS[0] <= thickness <= THICKNESS[1]:
            return image, thickness, intensity, target
    raise ValueError(f"digit {index} cannot be redrawn: no thickness out of {ATTEMPTS} was reached.")


def _written(split: str, root: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Digits and classes of a split as MNIST has them."""
    images, classes = mnist_arrays(root, "train" if split == "train" else "test")
    rows = {"train": slice(None), "validation": slice(None, VALIDATION), "test": slice(VALIDATION, None)}[split]
    return images[rows], classes[rows]


def _first(array: np.ndarray, count: int | None) -> np.ndarray:
    if count is not None and count > len(array):
        raise ValueError(f"num_images must be at most {len(array)} for this split, got {count}")
    return array[:count]


def _prepared(digits: np.ndarray, classes: np.ndarray, seed: int, root: Path, split: str) -> dict[str, np.ndarray]:
    """`prepare`, kept on disk under a name that holds a hash of all it depends on."""
    constants = [RECIPE, seed, THICKNESS, INTENSITY, MISS, morphology.SPINE, morphology.GAP, morphology.TOLERANCE]
    key = hashlib.sha256(json.dumps(constants).encode() + digits.tobytes() + classes.tobytes()).hexdigest()[:16]
    path = root / "handwriting" / f"{split}-{len(digits)}-{key}.npz"
    try:
        return load_arrays(path)
    except (FileNotFoundError, ValueError):
        arrays = prepare(digits, classes, seed, f"preparing {len(digits)} digits")
        save_arrays(path, arrays)
        return arrays


def write_samples(
    root: str | Path = "data", path: str | Path = SAMPLES, per_class: int = 20, candidates: int = 400
) -> None:
    """Write the items of the split `samples`: the first of each digit in `test`, in the order 0 1 .. 9 0 1 ..

    Args:
        root: folder MNIST was imported into.
        path: the file to write.
        per_class: items of each digit.
        candidates: test digits to choose from, counted from the first.

    Raises:
        ValueError: fewer than `per_class` of a digit among the candidates.
    """
    data = Handwriting("test", root=root, num_images=candidates)
    classes = data.labels[:, 2].numpy()
    counts = np.bincount(classes.astype(int), minlength=10)
    if counts.min() < per_class:
        raise ValueError(f"{candidates} candidates hold {counts.min()} of digit {counts.argmin()}, need {per_class}")
    rows = np.stack([np.flatnonzero(classes == digit)[:per_class] for digit in range(10)], 1).ravel()
    arrays = {
        "digits": data.digits,
        "images": data.images[:, 0].numpy(),
        "labels": data.labels.numpy(),
        "noise": data.noise.numpy(),
        "targets": data.targets.numpy(),
    }
    save_arrays(path, {name: array[rows] for name, array in arrays.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the sample digits that ship with the package.")
    parser.add_argument("--root", default="data", help="folder MNIST was imported into (default: %(default)s)")
    write_samples(parser.parse_args().root)
