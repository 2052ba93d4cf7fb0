"""A line chart as SVG in a page: it needs no plotting library and takes the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#2a6fdb", "#e8743b", "#1b9e77", "#8e5bb5")
"""As in plot.mplstyle."""
WIDTH, HEIGHT = 660, 290
LEFT, RIGHT, TOP, BOTTOM = 52, 150, 14, 44
"""Room for the axes, and on the right for the names of the lines."""
LINE = 15
"""Pixels between names that would stand on one another."""

Curve = tuple[Sequence[float], Sequence[float]]


def line_chart(curves: Mapping[str, Curve], x_label: str, y_label: str) -> str:
    """An `<svg>` of lines with points, each with its name at its end. Both axes begin at 0.

    Args:
        curves: name -> (x, y), finite numbers of at least 0.
        x_label: below.
        y_label: on the left.

    Raises:
        ValueError: no curves, an empty one, unequal lengths, or a number that cannot be drawn.
    """
    points = [value for xs, ys in curves.values() for value in (*xs, *ys)]
    if not points or any(not xs or len(xs) != len(ys) for xs, ys in curves.values()):
        raise ValueError("curves must each hold as many x as y, and not be empty.")
    if not all(math.isfinite(value) and value >= 0 for value in points):
        raise ValueError("curves must hold finite numbers of at least 0.")
    x_ticks = _ticks(max(max(xs) for xs, _ in curves.values()))
    y_ticks = _ticks(max(max(ys) for _, ys in curves.values()))

    def x_of(value: float) -> float:
        return LEFT + value / x_ticks[-1] * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - value / y_ticks[-1] * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in y_ticks:
        level = f"{y_of(tick):.1f}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level}" y2="{level}" class="grid"/>')
        parts.append(_text(LEFT - 8, y_of(tick) + 4, f"{tick:g}", "end"))
    parts += [_text(x_of(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", "middle") for tick in x_ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(_text(13, middle, y_label, "middle", f' transform="rotate(-90 13 {middle:.1f})"'))
    ends = _spread([y_of(ys[-1]) for _, ys in curves.values()])
    for (name, (xs, ys)), colour, end in zip(curves.items(), _cycle(len(curves)), ends, strict=True):
        places = [(x_of(x), y_of(y)) for x, y in zip(xs, ys, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(_text(x_of(xs[-1]) + 10, end + 4, name, "start", f' style="fill:{colour}"'))
    said = escape(f"{y_label} against {x_label}: {', '.join(curves)}")
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{said}">'
        f"{''.join(parts)}</svg>"
    )


def _ticks(largest: float) -> list[float]:
    """Round numbers from 0 to `largest` or just above, 3 to 6 of them."""
    rough = (largest or 1) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(index * step, 12) for index in range(math.ceil(largest / step - 1e-9) + 1 or 2)] or [0.0, step]


def _spread(heights: Sequence[float]) -> list[float]:
    """Heights moved down as far as each must be to stand below the one above it."""
    placed = dict.fromkeys(range(len(heights)), 0.0)
    last = -math.inf
    for index in sorted(placed, key=lambda i: heights[i]):
        last = placed[index] = max(heights[index], last + LINE)
    return list(placed.values())


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
