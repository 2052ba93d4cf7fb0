"""Glyphs: pen-stroke digits whose thickness causes their intensity, after Morpho-MNIST.

The structural equations are those of Pawlowski et al., "Deep Structural Causal Models" (NeurIPS 2020, section 4); the
pictures are drawn here, so that the true counterfactual of each is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.data.glyph_reading import brightest, fit_thickness, ink, match, tilt
from gendiff.data.rendered import SEEDS, RenderedDataset, check_count, check_images, check_split
from gendiff.data.strokes import coverage, digit_strokes, distance_map

COUNTS = {"train": 10_000, "validation": 1000, "test": 1000}
SIZE = 28
BOX = (12.0, 18.0)
MAX_SLANT = float(np.rad2deg(0.5))
SLANT_STD = 3.0

# Style of an item: a uniform draw between the two for each. Lengths in pixels, phases in turns.
STYLE = {
    "scale_x": (0.85, 1.1),
    "scale_y": (0.85, 1.05),
    "wobble_x": (0.0, 0.6),
    "wobble_y": (0.0, 0.6),
    "phase_x": (0.0, 1.0),
    "phase_y": (0.0, 1.0),
    "shift_x": (-1.0, 1.0),
    "shift_y": (-1.0, 1.0),
}


def intensity(thickness: Tensor, noise: Tensor, invert: bool = False) -> Tensor:
    """Grey level 64 .. 255 of a stroke of `thickness` pixels; `noise` is standard normal. `invert`: thin is bright."""
    logit = -2 * (thickness - 2) if invert else 2 * (thickness - 2.5)
    return 64 + 191 * torch.sigmoid(logit + 0.5 * noise)


def slant(digit: Tensor, noise: Tensor) -> Tensor:
    """Slant in degrees, positive to the right, within 0.5 rad; `noise` is standard normal."""
    return (6 * digit - 27 + SLANT_STD * noise).clamp(-MAX_SLANT, MAX_SLANT)


def glyph_graph(with_slant: bool = False) -> CausalGraph:
    """thickness -> intensity beside digit, and digit -> slant if that is a variable."""
    variables = [
        Variable("thickness", loc=2.5, scale=2.0, low=0.5, high=7.0),
        Variable("intensity", loc=159.5, scale=95.5, low=64.0, high=255.0),
        Variable("digit", kind="categorical", num_classes=10),
    ]
    edges = [("thickness", "intensity")]
    if with_slant:
        variables.append(Variable("slant", loc=0.0, scale=MAX_SLANT, low=-MAX_SLANT, high=MAX_SLANT))
        edges.append(("digit", "slant"))
    return CausalGraph(variables, edges)


def glyph_strokes(digit: Tensor, slant: Tensor, style: Tensor) -> Tensor:
    """Pen strokes (B, P, 2), pixels from the middle, of digits (B,) with a slant (B,) in degrees and a style (B, 8)."""
    unit = digit_strokes().to(style)[digit.long()]
    knobs = dict(zip(STYLE, style[:, :, None].unbind(1), strict=True))
    x, y = unit.unbind(2)
    bend_x = knobs["wobble_x"] * torch.sin(2 * torch.pi * (y + knobs["phase_x"]))
    bend_y = knobs["wobble_y"] * torch.sin(2 * torch.pi * (x + knobs["phase_y"]))
    x = (x - 0.5) * BOX[0] * knobs["scale_x"] + bend_x
    y = (y - 0.5) * BOX[1] * knobs["scale_y"] + bend_y
    x = x - y * torch.deg2rad(slant)[:, None].tan()
    return torch.stack([x + knobs["shift_x"], y + knobs["shift_y"]], dim=2)


class Glyphs(RenderedDataset):
    """Digits of 28 x 28 pixels, one channel, bright strokes on black, with labels thickness, intensity, digit.

    An item's own noise is kept (`intensity_noise`, `slant_noise`, `style`), so its counterfactuals can be drawn.

    Args:
        split: train (10 000 images), validation (1 000) or test (1 000).
        size: side of the images; only 28 is drawn.
        num_images: another number of images.
        invert: thin strokes are bright instead of thick ones.
        slant: adds the variable slant in degrees, caused by the digit. Without it all digits lean a little at random.
        seed: another seed than the split's own (0, 1, 2).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = SIZE,
        num_images: int | None = None,
        invert: bool = False,
        slant: bool = False,
        seed: int | None = None,
    ):
        check_split(split)
        if size != SIZE:
            raise ValueError(f"size must be {SIZE}, the only side glyphs are drawn at, got {size!r}")
        if num_images is not None:
            check_count("num_images", num_images)
        if seed is not None:
            check_count("seed", seed, minimum=0)
        self.size, self.invert = SIZE, bool(invert)
        self.graph = glyph_graph(slant)
        count = num_images or COUNTS[split]
        # One stream per quantity: another number of images extends the same sequence.
        streams = [np.random.default_rng([SEEDS[split] if seed is None else seed, stream]) for stream in range(5)]
        thickness = _tensor(0.5 + streams[0].gamma(10, 1 / 5, count))
        self.intensity_noise = _tensor(streams[1].standard_normal(count))
        digit = _tensor(streams[2].integers(10, size=count))
        self.slant_noise = _tensor(streams[3].standard_normal(count))
        low, high = np.array(list(STYLE.values())).T
        self.style = _tensor(low + (high - low) * streams[4].random((count, len(STYLE))))
        self.labels = self._effects(thickness, digit, torch.arange(count))
        self.intervened = torch.zeros(self.labels.shape, dtype=torch.bool)
        self.images = self._render_all()

    def _effects(self, thickness: Tensor, digit: Tensor, indices: Tensor) -> Tensor:
        columns = [thickness, intensity(thickness, self.intensity_noise[indices], self.invert), digit]
        if "slant" in self.graph.names:
            columns.append(slant(digit, self.slant_noise[indices]))
        return torch.stack(columns, dim=1)

    def structural(self, index: int, interventions: Mapping[str, float]) -> Tensor:
        values = {name: torch.tensor([value]) for name, value in interventions.items()}
        thickness = values.get("thickness", self.labels[index, :1])
        digit = values.get("digit", self.labels[index, 2:3])
        labels = self._effects(thickness, digit, torch.tensor([index]))[0]
        for name, value in interventions.items():
            labels[self.graph.index(name)] = value
        return labels

    def render(self, labels: Tensor, indices: Tensor) -> Tensor:
        lean = labels[:, 3] if "slant" in self.graph.names else SLANT_STD * self.slant_noise[indices]
        distance = distance_map(glyph_strokes(labels[:, 2], lean, self.style[indices]), SIZE)
        grey = coverage(distance, labels[:, 0]) * labels[:, 1, None, None] / 255
        return 2 * grey[:, None] - 1

    def read(self, images: Tensor, indices: Tensor | None = None) -> dict[str, Tensor]:
        """Read the variables from the pixels of (B, 1, 28, 28) images in [-1, 1]; no network is involved.

        Args:
            indices: (B,) the items whose style the images have. Thickness and digit need it: they are measured with
                the item's own strokes, of the digit (and, where it is a variable, the slant) that fits the picture.

        Returns:
            intensity (B,), the mean of the 12 brightest pixels; with `indices` also thickness, digit and, where it is
            a variable, slant, and the intensity is corrected for strokes too thin to fill 12 pixels. An empty picture
            reads as intensity 0 and the thinnest stroke.

        Raises:
            ValueError: images of another shape, or not one index per image.
        """
        check_images(images, channels=1, size=SIZE)
        if indices is None:
            return {"intensity": 255 * brightest(ink(images))}
        rows = torch.as_tensor(indices).cpu()
        if rows.shape != (len(images),):
            raise ValueError(f"indices must be one item per image ({len(images)},), got {tuple(rows.shape)}")
        parts = [self._read(*part) for part in zip(ink(images).cpu().split(4), rows.split(4), strict=True)]
        return {name: torch.cat([part[name] for part in parts]).to(images.device) for name in parts[0]}

    def _read(self, picture: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """`read` for a few pictures (B, 28, 28): draw each as all ten digits, keep the best, measure with that."""
        count = len(picture)
        digit = torch.arange(10.0).repeat_interleave(count)
        candidates, style = picture.repeat(10, 1, 1), self.style[indices].repeat(10, 1)
        if "slant" in self.graph.names:
            lean = _fit_slant(candidates, digit, style)
        else:
            lean = SLANT_STD * self.slant_noise[indices].repeat(10)
        distance = distance_map(glyph_strokes(digit, lean, style), SIZE)
        best = match(candidates, distance).view(10, count).argmax(0)
        chosen = best * count + torch.arange(count)
        thickness, brightness = fit_thickness(picture, distance[chosen])
        values = {"thickness": thickness, "intensity": 255 * brightness, "digit": best.float()}
        return values | ({"slant": lean[chosen]} if "slant" in self.graph.names else {})


def _fit_slant(picture: Tensor, digit: Tensor, style: Tensor) -> Tensor:
    """Slants (B,) in degrees at which the digits have the shear of the pictures (B, 28, 28)."""
    target, lean = tilt(picture), torch.zeros(len(picture))
    # A shear adds to the tilt of a line exactly, to that of a thick stroke nearly: a few corrections suffice.
    for _ in range(3):
        drawn = coverage(distance_map(glyph_strokes(digit, lean, style), SIZE), torch.full_like(lean, 2.5))
        shear = torch.deg2rad(lean).tan() + tilt(drawn) - target
        lean = torch.rad2deg(shear.atan()).clamp(-MAX_SLANT, MAX_SLANT)
    return lean


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()
