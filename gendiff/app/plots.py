"""Plots of scores and timings: numbers and the stem of a path in, STEM.png, STEM.svg and STEM.csv out.

The CSV holds every number in the picture. Equal numbers give equal files; nothing is written where an argument is bad.
Needs matplotlib (`gendiff[plots]`); its state outside, backend and style included, is left alone.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gendiff.errors import InvalidInputError
from gendiff.files import write_whole

STYLE = Path(__file__).with_name("assets") / "plot.mplstyle"
SIZE = (6.4, 4.4)
"""Of a plot, inches."""
SOFT = "0.5"
"""Colour of lines to compare with."""
LINES = (":", "--", "-.")

Columns = Mapping[str, Sequence[Any]]
Written = tuple[Path, Path, Path]


def fd_against_n(
    stem: str | Path,
    sizes: Sequence[int],
    distances: Sequence[float],
    infinity: float,
    r2: float | None = None,
    label: str = "FD",
    title: str = "",
) -> Written:
    """Fréchet distance against the number of images, the line a + b/N fitted to it, and its end a = FD∞.

    Args:
        stem: path of the files without their endings.
        sizes: numbers of images N.
        distances: distance at each.
        infinity: FD∞, the intercept of the least-squares line in 1/N, as `fd_infinity` gives it.
        r2: of that line.
        label: of the distance, as "FD[lite0-112]".
        title: above the plot.

    Raises:
        ImportError: matplotlib is missing.
        InvalidInputError: nothing to draw, unequal lengths, or a number that is not finite or out of range.
    """
    columns = _columns({"n": sizes, "fd": distances})
    _check_positive("sizes", sizes)
    _check_finite("infinity", [infinity])
    inverse = [1 / size for size in sizes]
    # A least-squares line runs through the means, so its intercept says its slope.
    slope = (sum(distances) / len(distances) - infinity) / (sum(inverse) / len(inverse))
    columns["fitted"] = [infinity + slope * x for x in inverse]
    columns["fd_infinity"] = [infinity] * len(inverse)
    low, high = min(sizes), max(sizes)
    curve = [low * (high / low) ** (step / 100) for step in range(101)]
    fit = "fit a + b/N" if r2 is None else f"fit a + b/N, R² = {r2:.3f}"

    def draw(axes: Any) -> None:
        axes.plot(sizes, distances, "o", label=label)
        axes.plot(curve, [infinity + slope / n for n in curve], "--", color=SOFT, label=fit)
        axes.axhline(infinity, linestyle=":", color=SOFT, label=f"N → ∞: {infinity:.4g}")
        axes.set(xlabel="images N", ylabel=label, title=title)
        axes.legend()

    return save_plot(stem, draw, columns)


def fd_against_nfe(
    stem: str | Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    label: str = "FD",
    floor: float | None = None,
    title: str = "",
) -> Written:
    """Fréchet distance against the number of model calls for an image, one curve for each solver or model.

    Args:
        stem: path of the files without their endings.
        curves: name -> (calls, distance at each).
        label: of the distance.
        floor: distance of real images from real ones, a line across.
        title: above the plot.

    Raises:
        ImportError: matplotlib is missing.
        InvalidInputError: nothing to draw, unequal lengths, or a number that is not finite or out of range.
    """
    _check_some("curves", curves)
    columns: dict[str, list[Any]] = {"name": [], "nfe": [], "fd": []}
    for name, (calls, distances) in curves.items():
        checked = _columns({f"calls of {name}": calls, f"distances of {name}": distances})
        _check_positive(f"calls of {name}", calls)
        for key, values in zip(columns, ([name] * len(calls), *checked.values()), strict=True):
            columns[key].extend(values)
    if floor is not None:
        _check_finite("floor", [floor])
        columns["floor"] = [floor] * len(columns["name"])
    ticks = sorted(set(columns["nfe"]))

    def draw(axes: Any) -> None:
        for name, (calls, distances) in curves.items():
            axes.plot(calls, distances, "o-", label=name)
        if floor is not None:
            axes.axhline(floor, linestyle=":", color=SOFT, label="real against real")
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="model calls for an image", ylabel=label, title=title)
        axes.set_ylim(bottom=min(0.0, *columns["fd"]))
        axes.legend()

    return save_plot(stem, draw, columns)


def pareto(
    stem: str | Path,
    points: Mapping[str, tuple[float, float]],
    label: str = "FD",
    levels: Mapping[str, float] | None = None,
    title: str = "",
) -> Written:
    """Fréchet distance against seconds for an image, and the front: points that no other beats in both.

    Args:
        stem: path of the files without their endings.
        points: name -> (seconds for an image, distance).
        label: of the distance.
        levels: distances to compare with, lines across, as of real images from real ones.
        title: above the plot.

    Raises:
        ImportError: matplotlib is missing.
        InvalidInputError: nothing to draw, or a number that is not finite or out of range.
    """
    _check_some("points", points)
    seconds, distances = (list(values) for values in zip(*points.values(), strict=True))
    columns = {"name": list(points), **_columns({"seconds_per_image": seconds, "fd": distances})}
    _check_positive("seconds", seconds)
    levels = dict(levels or {})
    _check_finite("levels", list(levels.values()))
    columns |= {name: [level] * len(points) for name, level in levels.items()}
    front = [
        not any(t <= s and f <= d and (t, f) != (s, d) for t, f in points.values())
        for s, d in zip(seconds, distances, strict=True)
    ]
    columns["on_front"] = front
    best = sorted((s, d) for s, d, is_best in zip(seconds, distances, front, strict=True) if is_best)

    def draw(axes: Any) -> None:
        # From a point on the front to the next, the distance to be had stays that of the quicker one.
        axes.plot(*zip(*best, strict=True), drawstyle="steps-post", color=SOFT, linewidth=1, label="front")
        for (name, (x, y)), is_best in zip(points.items(), front, strict=True):
            axes.plot([x], [y], "o")
            # Below the front and above the rest, so that close points keep their names apart.
            axes.annotate(name, (x, y), xytext=(6, -12 if is_best else 6), textcoords="offset points", fontsize=8)
        for level, (name, y) in enumerate(levels.items()):
            axes.axhline(y, linestyle=LINES[level % len(LINES)], color=SOFT, label=name)
        axes.set(xlabel="seconds for an image", ylabel=label, title=title, xscale="log")
        axes.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(bottom=min(0.0, *distances))
        axes.margins(x=0.25)
        axes.legend()

    return save_plot(stem, draw, columns)


def throughput(
    stem: str | Path,
    batches: Sequence[int],
    images_per_s: Sequence[float],
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    noisy: Sequence[bool] | None = None,
    title: str = "",
) -> Written:
    """Images a second against the batch.

    Args:
        stem: path of the files without their endings.
        batches: images in one call.
        images_per_s: rate at each.
        low, high: ends of an interval about each rate, given together.
        noisy: measured on a busy machine; drawn hollow.
        title: above the plot.

    Raises:
        ImportError: matplotlib is missing.
        InvalidInputError: nothing to draw, unequal lengths, or a number that is not finite or out of range.
    """
    columns = _columns({"batch": batches, "images_per_s": images_per_s})
    _check_positive("batches", batches)
    if (low is None) != (high is None):
        raise InvalidInputError(f"low and high must be given together, only {'high' if low is None else 'low'} is.")
    if low is not None and high is not None:
        columns |= _columns({"low": low, "high": high}, len(batches))

    if noisy is not None:
        columns |= _columns({"noisy": noisy}, len(batches))
    hollow = [bool(busy) for busy in noisy or [False] * len(batches)]

    def draw(axes: Any) -> None:
        (line,) = axes.plot(batches, images_per_s, "-")
        for batch, rate, busy in zip(batches, images_per_s, hollow, strict=True):
            axes.plot(batch, rate, "o", color=line.get_color(), markerfacecolor="white" if busy else line.get_color())
        if low is not None:
            axes.vlines(batches, low, high, color=line.get_color())
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(batches), [str(batch) for batch in batches])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set(xlabel="batch (hollow: noisy)" if any(hollow) else "batch", ylabel="images / s", title=title)

    return save_plot(stem, draw, columns)


def against_frame(
    stem: str | Path, curves: Mapping[str, Sequence[float]], label: str = "PSNR (dB)", title: str = ""
) -> Written:
    """A paired metric against the frame index: how a video drifts away from its target.

    Args:
        stem: path of the files without their endings.
        curves: name -> value at each frame, all of one length, as `PairedResult.per_frame`.
        label: of the metric.
        title: above the plot.

    Raises:
        ImportError: matplotlib is missing.
        InvalidInputError: nothing to draw, unequal lengths, or a value that is not finite.
    """
    _check_some("curves", curves)
    if "frame" in curves:
        raise InvalidInputError("curves must not be named 'frame', which the CSV calls its first column.")
    values = _columns(curves)
    frames = list(range(len(next(iter(values.values())))))

    def draw(axes: Any) -> None:
        for name, curve in values.items():
            axes.plot(frames, curve, "o-", label=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="frame", ylabel=label, title=title)
        axes.legend()

    return save_plot(stem, draw, {"frame": frames, **values})


def save_plot(
    stem: str | Path,
    draw: Callable[..., None],
    columns: Columns,
    size: tuple[float, float] | None = None,
    panels: int = 1,
) -> Written:
    """Draw on a new figure and write it with its numbers.

    Args:
        stem: path of the files without their endings.
        draw: called with the axes of each panel.
        columns: the numbers in the picture.
        size: in inches.
        panels: drawings side by side.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "gendiff[plots]".') from error
    stem = Path(stem)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    contents: dict[str, bytes | str] = {}
    # A fixed salt and no date or version, so that equal numbers give equal files.
    with style.context(["default", STYLE]), mpl.rc_context({"svg.hashsalt": "gendiff", "svg.fonttype": "none"}):
        figure = Figure(figsize=size or (SIZE[0] * (1 + 3 * panels) / 4, SIZE[1]))
        FigureCanvasAgg(figure)
        draw(*figure.subplots(1, panels, squeeze=False)[0])
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, metadata=metadata)
            contents[kind] = picture.getvalue()
    contents["csv"] = table.getvalue()
    # Not `with_suffix`: a stem may hold a dot, as "sigma-0.5".
    paths = tuple(stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg", "csv"))
    for path in paths:
        write_whole(path, contents[path.suffix[1:]])
    return paths[0], paths[1], paths[2]


def _columns(columns: Mapping[str, Sequence[float]], length: int | None = None) -> dict[str, list[Any]]:
    """Columns of numbers as lists.

    Raises:
        InvalidInputError: one is empty, they differ in length, or a number is not finite.
    """
    lists = {name: list(values) for name, values in columns.items()}
    lengths = {name: len(values) for name, values in lists.items()}
    if not all(lengths.values()):
        raise InvalidInputError(f"{next(name for name, count in lengths.items() if not count)} must not be empty.")
    if len({*lengths.values(), *([] if length is None else [length])}) > 1:
        said = ", ".join(f"{name} has {count}" for name, count in lengths.items())
        raise InvalidInputError(f"columns must have {length or 'one number of'} values each: {said}.")
    for name, values in lists.items():
        _check_finite(name, values)
    return lists


def _check_some(name: str, given: Mapping[str, Any]) -> None:
    if not given:
        raise InvalidInputError(f"{name} must not be empty.")


def _check_finite(name: str, values: Sequence[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise InvalidInputError(f"{name} must be finite, got {value}.")


def _check_positive(name: str, values: Sequence[float]) -> None:
    if min(values) <= 0:
        raise InvalidInputError(f"{name} must be above 0, got {min(values)}.")
