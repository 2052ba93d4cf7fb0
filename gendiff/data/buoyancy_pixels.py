"""The pictures of BuoyancyWorld: drawing them, reading them, and which part of one shows which node.

Heights count pixels upwards from the tank's floor. The tank is 18 wide inside and 28 high, a block 6 or 12 square.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gendiff.data.prompt_world import check_pairs, nearest_colour
from gendiff.errors import InvalidInputError

SIZE = 32
INNER, HEIGHT, FLOOR = 18, 28, 29
LEFT = 8
TANKS = ((220, 40, 40), (40, 60, 200), (30, 150, 60), (240, 190, 20))
WOOD, STONE, WATER, BLACK, WHITE = (130, 80, 30), (120, 120, 125), (120, 190, 240), (20, 20, 20), (255, 255, 255)
PALETTE = (*TANKS, WOOD, STONE, WATER, BLACK, WHITE)
NODES = ("size", "material", "side", "colour", "fill", "depth", "water_line")


def render_buoyancy(values: Mapping[str, Tensor], places: Tensor) -> Tensor:
    """Draw blocks in tanks: (B, 3, 32, 32) in [-1, 1].

    Args:
        values: (B,) numbers by node: size, material, side, colour, fill, depth (0 floats in the middle of the water
            line, 1 lies on the floor) and water_line in pixels. What contradicts its causes is drawn as it is told.
        places: (B, 2) integers, how far the tank stands to the right, -2 .. 2, and the block off its wall, 0 .. 2.

    Raises:
        ValueError: a value is missing, or `places` has another shape.
    """
    missing = [name for name in NODES if name not in values]
    if missing or places.ndim != 2 or places.shape[1] != 2:
        raise ValueError(
            f"values must hold {', '.join(NODES)} and places be (B, 2), got {', '.join(values)}, {tuple(places.shape)}"
        )
    value = {name: values[name].float()[:, None, None] for name in NODES}
    x, height = _grid(places.device)
    across = x - (LEFT + places[:, 0])[:, None, None]
    inside = (across >= 0) & (across < INNER) & (height > 0) & (height < HEIGHT)
    tank = (across >= -2) & (across < INNER + 2) & (height > -2) & (height < HEIGHT) & ~inside
    mark = (across >= -5) & (across < -2) & ((height - 8 - 6 * value["fill"]).abs() < 1)
    side = 6 + 6 * value["size"]
    gap = places[:, 1][:, None, None]
    start = torch.where(value["side"] == 0, gap, INNER - side - gap)
    bottom = torch.where(value["depth"] == 0, (value["water_line"] - side / 2).round(), 0)
    block = (across >= start) & (across < start + side) & (height > bottom) & (height < bottom + side)
    colours = torch.tensor(PALETTE, device=places.device) / 127.5 - 1
    tank_colour, block_colour = colours[values["colour"].long()], colours[len(TANKS) + values["material"].long()]
    image = torch.ones(len(places), 3, SIZE, SIZE, device=places.device)
    for mask, colour in (
        (inside & (height < value["water_line"]), colours[None, PALETTE.index(WATER)]),
        (tank, tank_colour),
        (mark, colours[None, PALETTE.index(BLACK)]),
        (block, block_colour),
    ):
        image = torch.where(mask[:, None], colour[:, :, None, None], image)
    return image


def read_buoyancy(images: Tensor) -> dict[str, Tensor]:
    """Read all seven values from the pixels of (B, 3, 32, 32) images in [-1, 1]; no network is involved.

    Every pixel is given its nearest colour. The tank's colour must cover two thirds of a tank and no other colour a
    fifth of one. A block's area must be within 35 % of one of the two sizes, its overlap with a square of that size 0.6
    (intersection over union), and the other material a quarter of it at most. It floats if its middle is within 1.5
    pixels of the water line, and lies on the floor if it is as near to where it then would be. The water line is the
    height that divides water from the rest best, in the columns that hold no block; it counts if that explains 80 % of
    their pixels of water and air, and there are three columns' worth of them.

    Returns:
        (B,) float32 by node, positions as in the world's grammar, depth 0 or 1, water_line in pixels above the floor;
        NaN for what is not there or not clear.
    """
    kinds, column, inside = _parts(images)
    _, height = _grid(images.device)
    tanks = torch.stack([(kinds == colour).sum((1, 2)) for colour in range(len(TANKS))], dim=1).float()
    most = tanks.topk(2, dim=1).values
    colour = torch.where((most[:, 0] >= 104) & (most[:, 1] <= 31), tanks.argmax(1).float(), torch.nan)

    blocks = torch.stack([(kinds == len(TANKS) + material) & inside for material in (0, 1)], dim=1)
    areas = blocks.sum((2, 3)).float()
    area, material = areas.max(1)
    size = torch.full_like(area, torch.nan)
    for index, whole in enumerate((36.0, 144.0)):
        size = torch.where((area - whole).abs() <= 0.35 * whole, float(index), size)
    block = blocks[torch.arange(len(images)), material]
    middle_x = (block * column).sum((1, 2)) / area
    middle_y = (block * height).sum((1, 2)) / area
    off_x, off_y = (column - middle_x[:, None, None]).abs(), (height - middle_y[:, None, None]).abs()
    square = torch.maximum(off_x, off_y) < (3 + 3 * size)[:, None, None]
    overlap = (block & square).sum((1, 2)) / (block | square).sum((1, 2))
    clear = (areas.min(1).values <= 0.25 * area) & (overlap >= 0.6)

    water, air = kinds == PALETTE.index(WATER), kinds == PALETTE.index(WHITE)
    line = _water_line(water, inside & (water | air) & (blocks.any(1).sum(1, keepdim=True) <= 1))
    depth = torch.where((middle_y - line).abs() <= 1.5, 0.0, torch.nan)
    depth = torch.where((middle_y - 3 - 3 * size).abs() <= 1.5, 1.0, depth)
    marks = (kinds == PALETTE.index(BLACK)) & (column < -2)
    level = (marks * height).sum((1, 2)) / marks.sum((1, 2))
    fill = torch.full_like(area, torch.nan)
    for index in range(2):
        fill = torch.where((level - 8 - 6 * index).abs() <= 1.5, float(index), fill)
    return {
        "size": torch.where(clear, size, torch.nan),
        "material": torch.where(clear, material.float(), torch.nan),
        "side": torch.where(clear, (middle_x > INNER / 2).float(), torch.nan),
        "colour": colour,
        "fill": torch.where(((marks.sum((1, 2)) - 6).abs() <= 3), fill, torch.nan),
        "depth": torch.where(clear, depth, torch.nan),
        "water_line": line,
    }


def region(images: Tensor, node: str) -> Tensor:
    """The part of each picture that shows a node: (B, 1, 32, 32) bool, for masks that are to be painted anew.

    Material, size, side and depth are shown by the columns of the tank that hold the block, at their full height, so
    that the mask does not say how deep it lies (it does say how wide it is); the water line by the other columns; the
    colour by the tank's walls and floor, the fill by what is left of the tank.

    Raises:
        InvalidInputError: no such node, or images of another shape.
    """
    if node not in NODES:
        raise InvalidInputError(f"node must be one of {', '.join(NODES)}, got {node!r}")
    kinds, column, inside = _parts(images)
    held = ((kinds == len(TANKS)) | (kinds == len(TANKS) + 1)) & inside
    beside = held.sum(1, keepdim=True) <= 1
    if node == "water_line":
        return (inside & beside)[:, None]
    if node == "fill":
        return (column < -2).expand_as(inside)[:, None].clone()
    if node == "colour":
        return (~inside & (column >= -2))[:, None]
    return (inside & ~beside)[:, None]


def _grid(device: torch.device) -> tuple[Tensor, Tensor]:
    """Left edges of the pixels, (1, 1, 32), and heights of their middles, (1, 32, 1)."""
    places = torch.arange(SIZE, device=device, dtype=torch.float32)
    return places[None, None, :], (FLOOR - 0.5 - places)[None, :, None]


def _parts(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Colour of each pixel (B, 32, 32), middles of columns from the tank's inner left (B, 1, 32), and its inside."""
    check_pairs(images, [""] * len(images), SIZE)
    kinds = nearest_colour(images, PALETTE, radius=90.0)
    x, height = _grid(images.device)
    tank = (kinds >= 0) & (kinds < len(TANKS))
    middle = (tank * (x + 0.5)).sum((1, 2)) / tank.sum((1, 2)).clamp(min=1)
    left = (middle - INNER / 2).round().clamp(0, SIZE - INNER)
    column = x + 0.5 - left[:, None, None]
    return kinds, column, (column > 0) & (column < INNER) & (height > 0) & (height < HEIGHT)


def _water_line(water: Tensor, where: Tensor) -> Tensor:
    """Height of the water in the part `where` of (B, 32, 32) masks: (B,) whole pixels, NaN if none is clear."""
    rows = slice(FLOOR - HEIGHT, FLOOR)
    total = where[:, rows].sum(2).flip(1).float()
    wet = (water & where)[:, rows].sum(2).flip(1).float()
    nothing = torch.zeros_like(total[:, :1])
    # Pixels that agree with "water below h, none above", for every h from 0 to HEIGHT.
    below = torch.cat([nothing, wet.cumsum(1)], dim=1)
    above = torch.cat([nothing, (total - wet).cumsum(1)], dim=1)
    agree = below + above[:, -1:] - above
    best, line = agree.max(1)
    clear = (best >= 0.8 * total.sum(1)) & (total.sum(1) >= 3 * HEIGHT) & (wet.sum(1) > 0)
    return torch.where(clear, line.float(), torch.nan)
