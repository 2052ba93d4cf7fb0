"""What the gallery says of masked generation, as pieces of HTML, one function for each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from .examples import Examples
from .given_pictures import without
from .markup import Row, number, plate, table
from .masked_generation_answers import PAINTED, Painted, Way, pixels
from .masked_generation_pictures import order_maps, shown_steps, step_pictures, veiled

ORDERS = {"confidence": "Surest first", "halton": "Halton points", "random": "Random"}


def samples_block(images: Tensor, closest: Tensor, distances: list[float], names: list[str]) -> str:
    """An image of each class (classes, C, S, S), and the training image nearest to each with its distance."""
    half = (len(names) + 1) // 2 if len(names) > 5 else len(names)
    plates = ""
    for first in range(0, len(names), half):
        part = slice(first, first + half)
        near = [number(distance, 1) for distance in distances[part]]
        plates += plate(
            [
                Row("Drawn", "", names[part], images[part], "drawn"),
                Row("Nearest", "in training", near, closest[part], "nearest training image, distance"),
            ]
        )
    return (
        '<section class="block"><h4>By class</h4><p>Drawn from nothing. Below each picture the training image nearest '
        "to it, of those that come with the package, and their mean difference in grey levels: a model that had "
        f"only learnt by heart would show the same picture twice.</p>{plates}</section>"
    )


def order_block(pictures: Mapping[str, Mapping[str, Any]], tokenizer: Any) -> str:
    """How pictures appear.

    Args:
        pictures: name of a class -> order -> the output of one image.
        tokenizer: says where tokens lie.
    """
    plates = []
    for name, outputs in pictures.items():
        rows: list[Row] = []
        for order, output in outputs.items():
            revealed = output.stats.plan["revealed"][0]
            steps = shown_steps(len(revealed))
            if not rows:
                captions = [*(f"step {step + 1}" for step in steps), "order"]
                rows.append(Row(escape(name), captions=captions, style="asked"))
            counts = [f"{sum(revealed[: step + 1])}/{sum(revealed)}" for step in steps]
            shown = strip(output, tokenizer)
            rows.append(Row(ORDERS[order], "tokens known", [*counts, ""], shown, f"{name}, {order} order"))
        plates.append(plate(rows))
    return (
        '<section class="block"><h4>The order in which a picture appears</h4><p>What is known after a step; blue is '
        "still hidden. The last picture says when each token was decided: dark ones first, light ones last. "
        f"Halton&rsquo;s points spread evenly over the picture, whatever it shows.</p>{''.join(plates)}</section>"
    )


def strip(output: Any, tokenizer: Any) -> Tensor:
    """The first image of an output after `shown_steps`, and its map, (K + 1, 3, S, S)."""
    revealed_at, count = output.revealed_at[:1].cpu(), len(output.stats.plan["revealed"][0])
    pictures = step_pictures(pixels(output)[:1], revealed_at, shown_steps(count), tokenizer)[:, 0]
    return torch.cat([pictures, order_maps(revealed_at, count, tokenizer)])


def recap_block(ways: Sequence[Way], names: list[str]) -> str:
    """Ways to decode: what they cost, and their images of the classes called `names`."""
    rows = []
    for way in ways:
        last = way is ways[-1]
        captions, style = (names, "") if last else ([""] * len(names), "plain")
        rows.append(Row(way.name, _steps(way), captions, pixels(way.output), way.name, style))
    return (
        '<section class="block"><h4>Base beside ReCAP</h4><p>The same seeds by four ways. The third is the base '
        "decoder with so few steps that it costs what the second does: that is what light steps must be better than. "
        "Floating-point operations are counted while the networks run, both branches of guidance together; seconds are "
        "those of the quicker of two runs.</p>"
        f"{table(*_costs(ways))}{plate(rows, _staleness(ways))}</section>"
    )


def _steps(way: Way) -> str:
    full, light = _kinds(way)
    return f"{full} full, {light} light" if light else f"{full} full"


def _kinds(way: Way) -> tuple[int, int]:
    """Full and light steps."""
    groups = way.output.stats.plan["groups"]
    return len(groups), sum(len(group) - 1 for group in groups)


def _costs(ways: Sequence[Way]) -> tuple[list[str], list[list[str]]]:
    head = ["way", "full steps", "light steps", "calls", "GFLOP / image", "of base", "s / image", "of base", "cache kB"]
    first = ways[0]
    diffusion = first.output.stats.plan["flops"]["head"] > 0
    rows = []
    for way in ways:
        stats, count = way.output.stats, len(way.output.class_labels)
        flops = number(stats.flops / count / 1e9, 3)
        if diffusion:
            flops += f" ({number(stats.plan['flops']['head'] / count / 1e9, 3)})"
        rows.append(
            [
                way.name,
                *(str(kind) for kind in _kinds(way)),
                str(stats.network_calls),
                flops,
                number(stats.flops / first.output.stats.flops, 2),
                number(way.seconds / count, 3),
                number(way.seconds / first.seconds, 2),
                number(stats.cache_bytes / count / 1e3, 0),
            ]
        )
    if diffusion:
        head[4] += " (head)"
    return head, rows


def _staleness(ways: Sequence[Way]) -> str:
    """What light steps got wrong, in words."""
    said = []
    for way in ways:
        if "kl" in way.staleness:
            share = number(100 * way.staleness["top1_agreement"], 0)
            said.append(
                f"{way.name}: a light step is {number(way.staleness['kl'], 4)} nats away from what a full one would "
                f"have said, with the same best code for {share} % of tokens."
            )
        elif way.staleness:
            share = number(100 * way.staleness["relative_change"], 1)
            said.append(f"{way.name}: features of a light step are {share} % off those of a full one.")
    return " ".join(said)


def painted_block(given: Examples, painted: Painted, names: list[str], tokenizer: Any) -> str:
    """Each example, what is kept of it, and what was drawn there."""
    labels = ["image", "mask", "hidden", *[f"draw {i + 1}" for i in range(PAINTED)], "pixels kept"]
    kept = without(given.images, painted.masks)
    veils = veiled(given.images, painted.hidden, tokenizer)
    rows = []
    for row, label in enumerate(given.labels):
        last = row == len(given.labels) - 1
        pictures = torch.cat(
            [
                *(part.expand(-1, 3, -1, -1) for part in (given.images[row : row + 1], kept[row : row + 1])),
                veils[row : row + 1],
                painted.draws[row].expand(-1, 3, -1, -1),
                painted.blended[row : row + 1].expand(-1, 3, -1, -1),
            ]
        )
        captions = labels if last else [""] * len(labels)
        rows.append(Row(escape(names[label]), "", captions, pictures, "", "" if last else "plain"))
    origin = "Test images" if given.unseen else "Pictures that the model drew (its test images are not on this machine)"
    return (
        f'<section class="block"><h4>Fill in a part</h4><p>{origin} of which a part is drawn anew. Its tokens are '
        "hidden, and a ring of tokens around them, which tell of what the part was like. All others stay; what "
        "changes there is the tokenizer&rsquo;s, and at the end the kept pixels can be put back.</p>"
        f"{plate(rows)}</section>"
    )
