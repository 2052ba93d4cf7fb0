"""Generated balls beside simulated ones: do they keep their number, and do they go where physics sends them?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gendiff.data.bouncing_balls import BouncingBalls
from gendiff.metrics.balls import find_balls, mass_error

from .markup import Row, number, plate, table

GIVEN, FOLLOWED, VIDEOS, COLUMNS = 5, 24, 4, 9
"""Frames given, frames to be foreseen, videos asked, and frames shown."""


def physics_block(
    pipe: Any, balls: BouncingBalls, videos: Tensor, steps: int, seed: int, say: Callable[[str], None]
) -> str:
    """How far generated videos keep to the simulator that made the training data; HTML.

    Args:
        pipe: `CausalVideoPipeline`.
        balls: the simulator, of test videos.
        videos: (N, T, 1, H, W) in [0, 1], generated from nothing.
        steps: of each chunk's walk.
        seed: chooses the test videos.
        say: told each stage.
    """
    say("futures that the simulator knows")
    truth = torch.stack([_simulated(balls, seed + i, GIVEN + FOLLOWED) for i in range(VIDEOS)])
    made = pipe(
        video=truth[:, :GIVEN],
        num_frames=GIVEN + FOLLOWED,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(VIDEOS)],
        output_type="pt",
    ).frames.cpu()
    numbers = [round(GIVEN - 1 + k * FOLLOWED / (COLUMNS - 1)) for k in range(COLUMNS)]
    strips = "".join(_strip(made[i], truth[i], numbers) for i in range(2))
    simulated = torch.stack([_simulated(balls, seed + i, videos.shape[1]) for i in range(len(videos))])
    half = videos.shape[1] // 2
    sides = {
        f"model, frames 0 to {half - 1}": videos[:, :half],
        f"model, frames {half} to {videos.shape[1] - 1}": videos[:, half:],
        "simulator": simulated,
    }
    rows = [[name, *_cells(side, balls)] for name, side in sides.items()]
    head = ["", f"frames with<br>{balls.num_balls} balls", "brightness off<br>(mean)", "frames"]
    return (
        f'<section class="block"><h4>Against the simulator</h4><p>From {GIVEN} frames of a test video, place and '
        "velocity of each ball follow, and with them the future. The model was shown these frames; the simulator goes "
        "on exactly. Distances are between pictures, in grey levels. A collision multiplies small errors, so no "
        f"estimate stays with the truth for ever.</p>{strips}"
        "<p>Whether balls stay balls can be measured without a truth too: discs of the right size and brightness, "
        f"found in each frame of the {len(videos)} videos at the top, and of as many simulated ones.</p>"
        f"{table(head, rows)}</section>"
    )


def _simulated(balls: BouncingBalls, index: int, num_frames: int) -> Tensor:
    """A test video of any length, (T, 1, H, W) in [0, 1]."""
    item = balls[index % len(balls)]
    places, _ = balls.simulate(item["positions"][0], item["velocities"][0], num_frames)
    return balls.render(places) / 2 + 0.5


def _strip(made: Tensor, truth: Tensor, numbers: list[int]) -> str:
    distances = 255 * (made[numbers] - truth[numbers]).abs().mean(dim=(1, 2, 3))
    captions = [number(distance, 1) for distance in distances.tolist()]
    rows = [
        Row("Frame", captions=[str(index) for index in numbers], style="asked"),
        Row("Simulator", "", [""] * len(numbers), truth[numbers], "simulated frame", "plain"),
        Row("Model", "distance", captions, made[numbers], "generated frame, distance"),
    ]
    return plate(rows)


def _cells(videos: Tensor, balls: BouncingBalls) -> list[str]:
    frames = videos.flatten(0, 1)
    right = sum(len(found) == balls.num_balls for found in find_balls(frames, balls.radius)) / len(frames)
    area = balls.num_balls * torch.pi * balls.radius**2
    return [f"{100 * right:.0f} %", f"{100 * mass_error(frames, area).mean().item():.1f} %", str(len(frames))]
