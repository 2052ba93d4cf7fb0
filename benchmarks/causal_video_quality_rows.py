"""Rows of the quality benchmark: predicted frames, long rollouts and clips from nothing, each beside its references."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from causal_video_drift import as_bytes
from torch import Tensor

from gendiff.data.bouncing_balls import BouncingBalls
from gendiff.errors import MetricWarning
from gendiff.metrics.balls import BallReport, ball_report, position_error, velocity_error
from gendiff.metrics.paired import psnr, ssim
from gendiff.metrics.video_distance import video_distance
from gendiff.pipelines.causal_video import CausalVideoPipeline


@dataclass(frozen=True)
class Plan:
    """How videos are made.

    Attributes:
        given: frames the model is given.
        steps: N.
        batch: videos generated side by side.
        seed: video i has the generator of seed + i, whatever the batch.
    """

    given: int
    steps: int
    batch: int
    seed: int


def predict(pipe: CausalVideoPipeline, videos: Tensor, labels: Tensor | None, frames: int, plan: Plan) -> Tensor:
    """`frames` frames after the given ones of each video, (V, frames, C, H, W) in [0, 1].

    Args:
        videos: (V, F, C, H, W) in [0, 1]; the first `plan.given` frames are read.
        labels: (V,) class of each, for a model of classes.
    """
    parts = []
    for first in range(0, len(videos), plan.batch):
        some = slice(first, first + plan.batch)
        given = videos[some, : plan.given]
        out: Any = pipe(
            video=given,
            class_labels=None if labels is None else labels[some],
            num_frames=plan.given + frames,
            num_inference_steps=plan.steps,
            generator=_generators(plan, first, len(given)),
            output_type="pt",
        )
        parts.append(out.frames[:, plan.given :].float().cpu())
    return torch.cat(parts)


def from_nothing(pipe: CausalVideoPipeline, count: int, frames: int, plan: Plan) -> Tensor:
    """`count` clips (count, frames, C, H, W) uint8 without a given frame, of all classes in turn."""
    parts, classes = [], len(pipe.class_names)
    for first in range(0, count, plan.batch):
        size = min(plan.batch, count - first)
        extra: dict[str, Any] = {"num_videos_per_prompt": size}
        if classes:
            extra = {"class_labels": [index % classes for index in range(first, first + size)]}
        out: Any = pipe(
            num_frames=frames,
            num_inference_steps=plan.steps,
            generator=_generators(plan, first, size),
            output_type="pt",
            **extra,
        )
        parts.append(as_bytes(out.frames))
    return torch.cat(parts)


def ball_rows(data: BouncingBalls, predicted: Tensor, frames: int, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Cells of the model's predictions of balls and of what it is to be read against, in the frames after the given.

    `simulator` is the truth, seen by the same detector: the floor. `balls that pass through one another` bounce off
    walls only, `straight on` not even off those, both from the true state in the last given frame, and their places
    are known rather than found. `last frame repeated` stands still.

    Args:
        data: whose videos were predicted, in order.
        predicted: (V, frames, 1, S, S) in [0, 1].
        frames: predicted frames.
    """
    items = [data[index] for index in range(len(predicted))]
    truth = torch.stack([item["video"] for item in items]) / 2 + 0.5
    future = slice(plan.given, plan.given + frames)
    reports: dict[str, list[BallReport]] = {name: [] for name in ("model", *_REFERENCES)}
    shown: dict[str, list[Tensor]] = {name: [] for name in reports}
    for index, item in enumerate(items):
        places, speeds = item["positions"][future], item["velocities"][future]
        start = item["positions"][plan.given - 1], item["velocities"][plan.given - 1]
        known = {
            "balls that pass through one another": _walls_only(data, *start, frames),
            "straight on": start[0] + start[1] * torch.arange(1, frames + 1)[:, None, None],
        }
        videos = {
            "model": predicted[index],
            "simulator": truth[index, future],
            **{name: data.render(path) / 2 + 0.5 for name, path in known.items()},
            "last frame repeated": truth[index, plan.given - 1].expand(frames, -1, -1, -1),
        }
        for name, video in videos.items():
            report = ball_report(video, data.radius, data.num_balls, places, speeds)
            if name in known:
                report = _with_places(report, known[name], places, speeds)
            reports[name].append(report)
            shown[name].append(video)
    targets = as_bytes(truth[:, future])
    return {
        name: [*ball_cells(reports[name]), *paired_cells(as_bytes(torch.stack(shown[name])), targets)]
        for name in reports
    }


_REFERENCES = ("simulator", "balls that pass through one another", "straight on", "last frame repeated")


def long_rows(data: BouncingBalls, predicted: Tensor, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Cells of long rollouts of the model and of the simulator: number, mass, walls and energy, but no places.

    Two motions that differ a little part for good after a few collisions, so places are not compared.
    """
    frames = predicted.shape[1]
    truth = [data[index]["video"][plan.given : plan.given + frames] / 2 + 0.5 for index in range(len(predicted))]
    videos: dict[str, Sequence[Tensor]] = {"model": list(predicted), "simulator": truth}
    return {
        name: ball_cells([ball_report(video, data.radius, data.num_balls) for video in some])
        for name, some in videos.items()
    }


def ball_cells(reports: Sequence[BallReport]) -> list[dict[str, Any]]:
    """Mean of each series at each frame and over all, over videos; a frame without a value does not count.

    `energy` is relative to that of the video's first step that has one.
    """
    series = {name: torch.stack([report.series()[name] for report in reports]) for name in reports[0].series()}
    series["energy"] = _relative(series["energy"])
    cells = []
    for name, values in series.items():
        counted = (~values.isnan()).sum(0)
        # The series of steps begin at the second frame.
        first = 1 + len(reports[0].counts) - values.shape[1]
        for at, (mean, n) in enumerate(zip(values.nanmean(0).tolist(), counted.tolist(), strict=True)):
            if n:
                cells.append({"metric": name, "frame": first + at, "value": mean, "n": n})
        if counted.sum():
            cells.append({"metric": name, "value": values.nanmean().item(), "n": int(counted.sum())})
    tracked = [report.on_track for report in reports if report.on_track is not None]
    if tracked:
        cells.append({"metric": "on_track", "value": sum(tracked) / len(tracked), "n": len(tracked)})
    return cells


def paired_cells(samples: Tensor, targets: Tensor) -> list[dict[str, Any]]:
    """PSNR and SSIM at each frame and over all; uint8 (V, F, C, H, W)."""
    cells = []
    for metric in (psnr, ssim):
        result, count = metric(samples, targets), len(samples)
        cells += [
            {"metric": result.metric, "frame": at + 1, "value": value, "n": count}
            for at, value in enumerate(result.per_frame or ())
        ]
        cells.append(
            {"metric": result.metric, "value": result.mean, "n": count * samples.shape[1], "equal": result.equal_pairs}
        )
    return cells


def still_rows(videos: Tensor, predicted: Tensor, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Cells of predictions whose only metric is the picture: the model, and the last given frame repeated.

    Args:
        videos: (V, F, C, H, W) in [0, 1], the truth.
        predicted: (V, frames, C, H, W) in [0, 1].
    """
    frames = predicted.shape[1]
    targets = as_bytes(videos[:, plan.given : plan.given + frames])
    still = as_bytes(videos[:, plan.given - 1 : plan.given].expand(-1, frames, -1, -1, -1))
    return {
        "model": paired_cells(as_bytes(predicted), targets),
        "last frame repeated": paired_cells(still, targets),
        "truth": paired_cells(targets, targets),
    }


def clip_rows(generated: Tensor, real: Tensor, other: Tensor) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Cells of the distance of generated clips from real ones, and of other real ones from the same; conditions.

    Args:
        generated, real, other: uint8 (N, F, C, H, W), of one length and number.
    """
    cells, conditions = {}, {}
    with warnings.catch_warnings():
        # Of few samples; the floor beside it has as many, and the note is kept.
        warnings.simplefilter("ignore", MetricWarning)
        for name, clips in (("from nothing", generated), ("real clips", other)):
            result = video_distance(clips, real, "lite0-video", frames=clips.shape[1])
            cells[name] = [{"metric": result.label, "value": result.value, "n": result.n_samples}]
            conditions[name] = result.to_dict()
    return cells, conditions


def cases_of(group: str, rows: Mapping[str, list[dict[str, Any]]], seed: int) -> list[dict[str, Any]]:
    """Rows as cases "GROUP/NAME" of a result file."""
    return [{"row": f"{group}/{name}", "seed": seed, "cells": cells} for name, cells in rows.items()]


def _walls_only(data: BouncingBalls, places: Tensor, speeds: Tensor, frames: int) -> Tensor:
    """(frames, n, 2): each ball simulated alone."""
    alone = [
        data.simulate(place[None], speed[None], frames + 1)[0] for place, speed in zip(places, speeds, strict=True)
    ]
    return torch.cat(alone, dim=1)[1:].float()


def _with_places(report: BallReport, path: Tensor, places: Tensor, speeds: Tensor) -> BallReport:
    """The report with errors of known places, which balls that overlap or leave the picture would hide."""
    error = position_error(list(path), places)
    return replace(
        report,
        position_error=error,
        velocity_error=velocity_error(list(path), places, speeds),
        on_track=int((error < report.radius).long().cumprod(0).sum()),
    )


def _relative(energy: Tensor) -> Tensor:
    """(V, F) over each row's first number."""
    first = torch.stack([row[~row.isnan()][0] if (~row.isnan()).any() else row[0] for row in energy])
    return torch.where(first[:, None] > 0, energy / first[:, None], torch.nan)


def _generators(plan: Plan, first: int, count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(plan.seed + index) for index in range(first, first + count)]
