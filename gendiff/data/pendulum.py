"""Pendulum: a swinging ball, a sun and the shadow the two cast.

The world of the CausalVAE paper (Yang et al., CVPR 2021, section 6.1): angle and light cause the length and the
position of the shadow. Angles come in units of pi / 200 rad; the world spans x in [0, 20] and y in [-1, 21].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.data.rendered import (
    SEEDS,
    RenderedDataset,
    check_count,
    check_images,
    check_nonnegative,
    check_share,
    check_split,
)

COUNTS = {"train": 5000, "validation": 500, "test": 1000}
ANGLE, LIGHT = (-40.0, 43.0), (60.0, 147.0)
UNIT = math.pi / 200
WIDTH, HEIGHT, TOP = 20.0, 22.0, 21.0
PIVOT, ROD, SUN_HEIGHT = (10.0, 10.5), 8.0, 20.5
BLACK, FIREBRICK, ORANGE = (0, 0, 0), (178, 34, 34), (255, 165, 0)
SUPERSAMPLING = 4


def shadow(angle: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
    """Length and position of the shadow for `angle` and `light`, both in units of pi / 200 rad.

    Parallel rays of the sun pass the two ends of the pendulum (9.5 long with its ball) and meet the ground y = -0.5;
    a shadow is never shorter than 3. Returned in float64.
    """
    swing, sun = angle.double() * UNIT, light.double() * UNIT
    stretch = (swing - sun).cos() / sun.sin()
    length = (9.5 * stretch).abs().clamp(min=3.0)
    return length, 10 - 11 / sun.tan() + 4.75 * stretch


def pendulum_graph(noise_std: float = 0.0) -> CausalGraph:
    """The graph of the dataset; the range of the shadow grows by four standard deviations of its noise."""
    slack = 4 * noise_std
    return CausalGraph(
        [
            Variable("angle", loc=1.5, scale=42.0, low=ANGLE[0], high=ANGLE[1]),
            Variable("light", loc=103.5, scale=44.0, low=LIGHT[0], high=LIGHT[1]),
            Variable("shadow_len", loc=7.5, scale=4.5, low=3.0 - slack, high=12.58 + slack),
            Variable("shadow_pos", loc=11.0, scale=8.0, low=2.0 - slack, high=19.61 + slack),
        ],
        edges=[(cause, effect) for cause in ("angle", "light") for effect in ("shadow_len", "shadow_pos")],
    )


def render_pendulum(labels: Tensor, size: int) -> Tensor:
    """Draw (B, 4) labels (angle, light, shadow_len, shadow_pos; raw units) as (B, 3, size, size) in [-1, 1].

    Painted in order on white: rod, ball, sun, shadow. Drawn at four times the size and averaged. A shadow that
    contradicts the angle and the light is drawn as it is told: that is what an intervention on it means.
    """
    check_count("size", size)
    if labels.ndim != 2 or labels.shape[1] != 4:
        raise ValueError(f"labels must be (B, 4), got {tuple(labels.shape)}")
    angle, light, length, position = (column[:, None, None] for column in labels.float().unbind(1))
    x, y = _coordinates(size * SUPERSAMPLING, labels.device)
    sine, cosine = (angle * UNIT).sin(), (angle * UNIT).cos()
    ball_x, ball_y = PIVOT[0] + ROD * sine, PIVOT[1] - ROD * cosine
    along = (x - PIVOT[0]) * sine - (y - PIVOT[1]) * cosine
    across = (x - PIVOT[0]) * cosine + (y - PIVOT[1]) * sine
    layers = [
        (BLACK, ((along - ROD / 2).abs() <= ROD / 2) & (across.abs() <= 0.5)),
        (FIREBRICK, (x - ball_x).square() + (y - ball_y).square() <= 1.5**2),
        (ORANGE, (x - 10 - 10 / (light * UNIT).tan()).square() + (y - SUN_HEIGHT).square() <= 3.0**2),
        (BLACK, ((y + 0.5).abs() <= 0.5) & ((x - position).abs() <= length / 2)),
    ]
    return _paint(layers)


def read_pendulum(images: Tensor) -> dict[str, Tensor]:
    """Read all four variables from the pixels of (B, 3, S, S) images in [-1, 1]; no network is involved.

    Sun and ball are found by the centroids of their colours, the shadow by the darkness of the ground. Defined for any
    picture: whatever is not there at all reads as the middle of its range (a shadow as length 0 in the middle).

    Returns:
        angle, light, shadow_len, shadow_pos: (B,) float32 each, raw units. On drawn images the mean errors over `scale`
        stay below 0.008, 0.004, 0.0135 and 0.0041 at 28 px. Where the picture's edge cuts the sun or the shadow,
        the visible part is what is read.
    """
    check_images(images, channels=3)
    pixels = ((images.float() + 1) / 2).clamp(0, 1)
    red, green, blue = pixels.unbind(1)
    x, y = _coordinates(images.shape[-1], images.device)
    middle = {variable.name: variable.loc for variable in pendulum_graph().variables}

    sun, (sun_x, _) = _centroid(red - blue, (green > 0.4) & (y > 17), x, y)
    light = torch.atan2(torch.full_like(sun_x, SUN_HEIGHT - PIVOT[1]), sun_x - PIVOT[0]) / UNIT
    ball, (ball_x, ball_y) = _centroid(red - green, (green < 0.55) & (y > 0.2) & (y < 17), x, y)
    angle = torch.atan2(ball_x - PIVOT[0], PIVOT[1] - ball_y) / UNIT
    ground, (position, _) = _centroid(1 - pixels.mean(1), y < 0, x, y)
    profile = ground.sum(1)
    length = (profile / profile.amax(1, keepdim=True).clamp(min=1e-6)).sum(1) * WIDTH / images.shape[-1]
    return {
        "angle": torch.where(ball.any(2).any(1), angle, middle["angle"]),
        "light": torch.where(sun.any(2).any(1), light, middle["light"]),
        "shadow_len": length,
        "shadow_pos": torch.where(ground.any(2).any(1), position, middle["shadow_pos"]),
    }


class Pendulum(RenderedDataset):
    """Pendulum images with labels angle, light, shadow_len, shadow_pos and their true counterfactuals.

    Args:
        split: train (5 000 images), validation (500) or test (1 000); angle and light are uniform on their ranges.
        size: side of the images in pixels.
        num_images: another number of images.
        noise_std: standard deviation of normal noise added to shadow_len and shadow_pos, world units.
        experiments: share of the *training* images in which the length or the position of the shadow, or both, are
            set at random instead of being cast; the other splits have none.
        grid: the integer grid of the original generator instead, 5 482 train and 1 826 test images.
        seed: another seed than the split's own (0, 1, 2).

    Raises:
        ValueError: an argument is out of range, or `grid` comes with `num_images` or the validation split.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 32,
        num_images: int | None = None,
        noise_std: float = 0.0,
        experiments: float = 0.0,
        grid: bool = False,
        seed: int | None = None,
    ):
        check_split(split)
        check_count("size", size, minimum=8)
        check_nonnegative("noise_std", noise_std)
        check_share("experiments", experiments)
        if num_images is not None:
            check_count("num_images", num_images)
        if seed is not None:
            check_count("seed", seed, minimum=0)
        if grid and (num_images is not None or split == "validation"):
            raise ValueError("grid=True has a fixed train and test split; leave num_images out and use one of those")
        self.size = size
        self.graph = pendulum_graph(noise_std)
        seed = SEEDS[split] if seed is None else seed
        roots = _grid_roots(split) if grid else _random_roots(num_images or COUNTS[split], seed)
        # A stream of its own: the same angles and lights come with any amount of noise.
        noise = noise_std * np.random.default_rng([seed, 1]).standard_normal((len(roots), 2))
        self.noise = torch.from_numpy(noise)
        self.labels = torch.cat([roots, self._shadows(roots, self.noise)], dim=1)
        self.intervened = torch.zeros(self.labels.shape, dtype=torch.bool)
        if split == "train" and experiments:
            self._experiment(experiments, seed)
        self.images = self._render_all()

    def _experiment(self, share: float, seed: int) -> None:
        """Set shadow_len, shadow_pos or both, uniformly on their ranges, in a `share` of the items."""
        draws = torch.from_numpy(np.random.default_rng([seed, 2]).random((len(self.labels), 4)))
        chosen, which = draws[:, 0] < share, (draws[:, 1] * 3).long()  # 0 length, 1 position, 2 both
        for column, spared in ((2, 1), (3, 0)):
            variable = self.graph.variables[column]
            assert variable.low is not None and variable.high is not None
            rows = chosen & (which != spared)
            values = variable.low + (variable.high - variable.low) * draws[:, column]
            self.labels[rows, column] = values[rows].float()
            self.intervened[rows, column] = True

    @staticmethod
    def _shadows(roots: Tensor, noise: Tensor) -> Tensor:
        return (torch.stack(shadow(roots[:, 0], roots[:, 1]), dim=1) + noise).float()

    def structural(self, index: int, interventions: Mapping[str, float]) -> Tensor:
        labels = self.labels[index].clone()
        for root in ("angle", "light"):
            if root in interventions:
                labels[self.graph.index(root)] = interventions[root]
        cast = self._shadows(labels[None, :2], self.noise[index][None])[0]
        labels[2:] = torch.where(self.intervened[index, 2:], labels[2:], cast)
        for name, value in interventions.items():
            labels[self.graph.index(name)] = value
        return labels

    def render(self, labels: Tensor, indices: Tensor) -> Tensor:
        return render_pendulum(labels, self.size)

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """`read_pendulum`: all four variables, (B,) each, from the pixels of (B, 3, S, S) images in [-1, 1]."""
        return read_pendulum(images)


def _random_roots(count: int, seed: int) -> Tensor:
    low, high = np.array([ANGLE, LIGHT]).T
    roots = low + (high - low) * np.random.default_rng([seed, 0]).random((count, 2))
    return torch.from_numpy(roots).float()


def _grid_roots(split: str) -> Tensor:
    """The original grid: every whole angle and light but light 100; every fourth image from the fifth on is test."""
    lights = [light for light in range(60, 148) if light != 100]
    pairs = [(angle, light) for angle in range(-40, 44) for light in lights]
    test = [number > 0 and number % 4 == 0 for number in range(len(pairs))]
    chosen = [pair for pair, in_test in zip(pairs, test, strict=True) if in_test == (split == "test")]
    return torch.tensor(chosen, dtype=torch.float32)


def _coordinates(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """World coordinates of the pixel centres: x (1, 1, size) and y (1, size, 1), y pointing up."""
    centres = (torch.arange(size, device=device) + 0.5) / size
    return (centres * WIDTH)[None, None, :], (TOP - centres * HEIGHT)[None, :, None]


def _paint(layers: list[tuple[tuple[int, int, int], Tensor]]) -> Tensor:
    """White with each mask (B, 4S, 4S) painted over the ones before it, averaged down to (B, 3, S, S) in [-1, 1]."""
    covered = torch.zeros_like(layers[0][1])
    image = torch.ones((), device=covered.device)
    for colour, mask in reversed(layers):
        share = F.avg_pool2d((mask & ~covered).float()[:, None], SUPERSAMPLING)
        image = image + share * (torch.tensor(colour, device=mask.device).view(1, 3, 1, 1) / 127.5 - 2)
        covered = covered | mask
    return image


def _centroid(weight: Tensor, where: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Weights (B, S, S) that count, and their centroid x, y (B,); 0, 0 if none counts.

    Weights below 0.05 are dropped: the faint noise of a generated picture, summed over a wide background, would
    outweigh the object. A pixel that is not a number drops out too.
    """
    counted = torch.where(where & (weight > 0.05), weight, 0.0)
    total = counted.sum((1, 2)).clamp(min=1e-6)
    return counted, ((counted * x).sum((1, 2)) / total, (counted * y).sum((1, 2)) / total)
