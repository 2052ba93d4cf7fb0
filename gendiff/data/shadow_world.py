"""ShadowWorld: a pole, a sun, the shadow the two cast, and a plant that the shadow may reach.

A side view, 32 px. A prompt names five things; three more follow from them and are never named: where the shadow falls,
how long it is, and whether the plant stands in it. Two combinations of colour and sun side are kept out of training, so
that a model can be asked for what it has never seen. The world is our own (a probe of the kind the LINA paper
describes), as is the verifier, which reads colours and counts pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gendiff.data.prompt_world import PromptWorld, check_pairs, nearest_colour, passed, sentences, words_of
from gendiff.data.rendered import SEEDS, check_count, check_share, check_split

SIZE = 32
GROUND, SHADOW_ROWS, PLANT_ROWS = 27, slice(28, 31), slice(21, 27)
HEIGHTS = {"short": 8, "tall": 14}
LENGTHS = {("short", "low"): 8, ("short", "high"): 4, ("tall", "low"): 13, ("tall", "high"): 7}
SUN_ROW, SUN_COLUMN = {"high": 4, "low": 12}, {"left": 4, "right": 27}
PLANTS = {"near left": -4.5, "near right": 4.5, "far left": -9.5, "far right": 9.5}
"""Pixels from the middle of the pole to the middle of the plant, which is three wide."""
PALETTE = {
    "sky": (176, 216, 242),
    "ground": (196, 164, 112),
    "shadow": (74, 60, 44),
    "sun": (255, 250, 170),
    "lit": (150, 214, 60),
    "dark": (52, 78, 22),
    "red": (206, 44, 40),
    "green": (16, 146, 100),
    "blue": (44, 66, 200),
    "yellow": (244, 180, 0),
}
TOLERANCES = {"height": 2, "colour": 0, "elevation": 3, "side": 0, "plant": 2} | {
    "shadow_dir": 0,
    "shadow_len": 1.5,
    "plant_lit": 0,
}
RARE = 0.05
COLOURS = ("red", "green", "blue", "yellow")
USUAL_SIDE = {"red": "left", "green": "left", "blue": "right", "yellow": "right"}
"""Where the sun stands in nearly all training images of a colour: a prior that a model may take for a law."""
# Never trained on: a red pole with the sun on the right, a blue one with the sun on the left.
HELD_OUT = {"ood-red": ("red", "right"), "ood-blue": ("blue", "left")}

GRAMMAR: dict[str, Any] = {
    "template": "a {height} {colour} pole, {elevation} sun on the {side}, a plant {plant}",
    "slots": {
        "height": {"values": [*HEIGHTS], "kind": "attribute"},
        "colour": {"values": [*COLOURS], "kind": "attribute"},
        "elevation": {"values": [*SUN_ROW], "kind": "light"},
        "side": {"values": [*SUN_COLUMN], "kind": "light"},
        "plant": {"values": [*PLANTS], "kind": "object"},
    },
    "implied": [
        {"id": "shadow_dir", "effect": "shadow", "parents": ["side"], "text": "the shadow falls away from the sun"},
        {
            "id": "shadow_len",
            "effect": "shadow",
            "parents": ["height", "elevation"],
            "text": "the shadow is as long as height and sun make it",
        },
        {
            "id": "plant_lit",
            "effect": "shadow",
            "parents": ["shadow_dir", "shadow_len", "plant"],
            "text": "the plant is dark where the shadow reaches it",
        },
    ],
    "contrast": "side",
    "swap": None,
    # The plant is left out: it is an effect, but one that the side of the sun rarely changes.
    "regions": {
        "side": [[0.0, 0.625, 0.0, 0.3125], [0.0, 0.625, 0.6875, 1.0]],
        "shadow_dir": [[0.84375, 1.0, 0.0, 1.0]],
    },
}
"""What a prompt says and what follows from it, as `gendiff.causal.scene_grammar.TemplateGrammar` reads it."""


def effects(values: Mapping[str, str]) -> dict[str, Any]:
    """What follows from the five named things.

    Args:
        values: height, colour, elevation, side and plant, as in `GRAMMAR`.

    Returns: shadow_dir "left" or "right"; shadow_len in pixels; plant_lit.
    """
    direction = "right" if values["side"] == "left" else "left"
    length = LENGTHS[values["height"], values["elevation"]]
    offset = PLANTS[values["plant"]]
    reached = (offset > 0) == (direction == "right") and length > abs(offset)
    return {"shadow_dir": direction, "shadow_len": length, "plant_lit": not reached}


def render(values: Mapping[str, str], pole: int = 15, sun: tuple[int, int] = (0, 0), sky: int = 0) -> Tensor:
    """One scene, (3, 32, 32) uint8.

    Args:
        values: as for `effects`.
        pole: left column of the pole, which is two wide, 14 to 17.
        sun: (rows, columns) by which the sun is moved, each -1 to 1.
        sky: added to the brightness of the sky.
    """
    seen = effects(values)
    colour = {name: torch.tensor(rgb, dtype=torch.uint8)[:, None, None] for name, rgb in PALETTE.items()}
    image = (torch.tensor(PALETTE["sky"]) + sky).clamp(0, 255).to(torch.uint8)[:, None, None].repeat(1, SIZE, SIZE)
    image[:, GROUND:] = colour["ground"]
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    row, column = SUN_ROW[values["elevation"]] + sun[0], SUN_COLUMN[values["side"]] + sun[1]
    image = torch.where((rows - row) ** 2 + (columns - column) ** 2 <= 9, colour["sun"], image)
    image[:, GROUND - HEIGHTS[values["height"]] : GROUND, pole : pole + 2] = colour[values["colour"]]
    length = seen["shadow_len"]
    start = pole + 2 if seen["shadow_dir"] == "right" else pole - length
    image[:, SHADOW_ROWS, start : start + length] = colour["shadow"]
    plant = int(pole + PLANTS[values["plant"]] - 0.5)
    image[:, PLANT_ROWS, plant : plant + 3] = colour["lit" if seen["plant_lit"] else "dark"]
    return image


class ShadowWorld(PromptWorld):
    """Scenes with their prompts; an item is `{"image": (3, 32, 32) in [-1, 1], "caption": str}`.

    Args:
        split: train, validation or test, which differ in where things stand by a pixel or two; none holds a
            combination of `HELD_OUT`.
        num_images: images in all, equally many of each colour.
        rare: share of the green and yellow scenes with the sun on the other side than `USUAL_SIDE`, in [0, 1]. Red and
            blue ones never have it there.
        seed: another seed than the split's own (0, 1, 2).

    Attributes:
        images: (N, 3, 32, 32) uint8.
        captions: N prompts.
        grammar: `GRAMMAR`.

    Raises:
        ValueError: an argument is out of range.
    """

    grammar = GRAMMAR
    name = "shadow-world"
    calibration = ("ood-red", "train")

    def __init__(self, split: str = "train", num_images: int = 9600, rare: float = RARE, seed: int | None = None):
        check_split(split)
        check_count("num_images", num_images)
        check_share("rare", rare)
        generator = torch.Generator().manual_seed(SEEDS[split] if seed is None else seed)
        chosen = _scenes(num_images, rare)
        jitter = torch.randint(-1, 2, (num_images, 2), generator=generator).tolist()
        poles = torch.randint(14, 18, (num_images,), generator=generator).tolist()
        skies = torch.randint(-10, 11, (num_images,), generator=generator).tolist()
        self.captions = [caption(values) for values in chosen]
        self.images = torch.stack(
            [
                render(values, pole, (sun[0], sun[1]), sky)
                for values, pole, sun, sky in zip(chosen, poles, jitter, skies, strict=True)
            ]
        )

    @staticmethod
    def prompts(split: str = "train") -> list[str]:
        """Prompts of a kind: "train" (96), "ood" (the 32 never trained on), or one half of those, 16 each: "ood-red",
        "ood-blue".

        Raises:
            ValueError: another name.
        """
        known = ("train", "ood", *HELD_OUT)
        if split not in known:
            raise ValueError(f"prompts are {', '.join(known)}, got {split!r}")
        wanted = {"train": ("",), "ood": tuple(HELD_OUT)}.get(split, (split,))
        return [caption(values) for values in _VALUES.values() if _held_out(values) in wanted]

    @staticmethod
    def check(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Which of the eight things each image shows as its prompt demands; see `check_shadow_world`."""
        return check_shadow_world(images, prompts)

    @staticmethod
    def physics(images: Tensor) -> dict[str, Tensor]:
        """Whether what follows agrees with the causes *that the image itself shows*, whatever was asked for: (B,) bool
        by implied node. False where a cause cannot be read."""
        seen = read_shadow_world(images)
        scenes = [_scene_seen(seen, i) for i in range(len(images))]
        readable = [i for i, scene in enumerate(scenes) if scene is not None]
        implied = [node["id"] for node in GRAMMAR["implied"]]
        result = {name: torch.zeros(len(images), dtype=torch.bool) for name in implied}
        if readable:
            asked = [caption(scene) for scene in scenes if scene is not None]
            checks = check_shadow_world(images[readable], asked)
            for name in implied:
                result[name][readable] = checks[name]
        return result


def caption(values: Mapping[str, str]) -> str:
    """The prompt that names `values`."""
    return GRAMMAR["template"].format(**values)


def read_shadow_world(images: Tensor) -> dict[str, Tensor]:
    """Read a scene from pixels: every pixel is the nearest colour of the palette, then pixels are counted.

    Args:
        images: (B, 3, 32, 32) in [-1, 1].

    Returns: (B,) tensors; side -1 left, 1 right, 0 no sun or two; elevation row of the sun; colour index into
        `COLOURS`, -1 none; height in pixels; shadow_dir as side; shadow_len in pixels; plant offset from the pole in
        pixels, nan without one; plant_lit 1, dark 0, -1 without one.
    """
    check_pairs(images, [""] * len(images), SIZE)
    # A pixel far from all colours (noise, blur) is none of them.
    labels = nearest_colour(images.cpu(), list(PALETTE.values()), radius=70.0)
    is_a = {name: labels == i for i, name in enumerate(PALETTE)}
    columns, rows = torch.arange(SIZE).float(), torch.arange(SIZE).float()

    middle = slice(12, 21)
    counts = torch.stack([is_a[name][:, :GROUND, middle].sum((1, 2)) for name in COLOURS], 1)
    colour = torch.where(counts.max(1).values >= 8, counts.argmax(1), -1)
    pole_pixels = torch.stack([is_a[name][:, :GROUND, middle] for name in COLOURS], 1)
    pole_pixels = pole_pixels[torch.arange(len(images)), colour.clamp(min=0)]
    height = torch.where(colour >= 0, pole_pixels.any(2).sum(1), 0)
    centre = _mean(pole_pixels.sum(1), columns[middle]).nan_to_num(15.5)

    sun = is_a["sun"][:, :GROUND].clone()
    sun[:, :, middle] = False
    left, right = sun[:, :, :16].sum((1, 2)), sun[:, :, 16:].sum((1, 2))
    elevation = _mean(sun.sum(2), rows[:GROUND])

    covered = is_a["shadow"][:, SHADOW_ROWS].sum(1) >= 2
    before, after = (covered & (columns < centre[:, None])).sum(1), (covered & (columns > centre[:, None])).sum(1)

    lit, dark = is_a["lit"][:, 18:GROUND].sum(1), is_a["dark"][:, 18:GROUND].sum(1)
    plant = lit + dark
    plant = plant * ((columns - centre[:, None]).abs() > 1.6)
    found = plant.sum(1) >= 9
    return {
        "side": _sided(left, right, 8, 3),
        "elevation": elevation,
        "colour": colour,
        "height": height,
        "shadow_dir": _sided(before, after, 2, 1),
        "shadow_len": torch.maximum(before, after),
        "plant": torch.where(found, _mean(plant, columns) - centre, torch.nan),
        "plant_lit": torch.where(found, (lit.sum(1) > dark.sum(1)).long(), -1),
    }


def check_shadow_world(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Which of the eight things each image shows as its prompt demands.

    Args:
        images: (B, 3, 32, 32) in [-1, 1].
        prompts: one for each image, of the form of `GRAMMAR`.

    Returns: (B,) bool by node: height (within 2 px), colour, elevation, side, plant (within 2 px); shadow_dir,
        shadow_len (within 1.5 px); plant_lit. How far a value may be off is in `TOLERANCES`.

    Raises:
        ValueError: a prompt is none of this world's, or there is not one for each image.
    """
    check_pairs(images, prompts, SIZE)
    seen = read_shadow_world(images)
    asked = words_of(prompts, _VALUES, GRAMMAR)
    implied = [effects(values) for values in asked]
    side = {"left": -1.0, "right": 1.0}
    targets = {
        "height": [HEIGHTS[words["height"]] for words in asked],
        "colour": [COLOURS.index(words["colour"]) for words in asked],
        "elevation": [SUN_ROW[words["elevation"]] for words in asked],
        "side": [side[words["side"]] for words in asked],
        "plant": [PLANTS[words["plant"]] for words in asked],
        "shadow_dir": [side[effect["shadow_dir"]] for effect in implied],
        "shadow_len": [effect["shadow_len"] for effect in implied],
        "plant_lit": [float(effect["plant_lit"]) for effect in implied],
    }
    return passed(seen, {name: torch.tensor(target) for name, target in targets.items()}, TOLERANCES)


_VALUES = sentences(GRAMMAR)


def _scenes(count: int, rare: float) -> list[dict[str, str]]:
    """So many scenes, usual and rare ones in their shares; the shares are exact and not drawn."""
    scenes = [values for values in _VALUES.values() if not _held_out(values)]
    usual = [values for values in scenes if values["side"] == USUAL_SIDE[values["colour"]]]
    unusual = [values for values in scenes if values["side"] != USUAL_SIDE[values["colour"]]]
    # Half of all scenes are green or yellow. They take turns with a stride, so that any beginning has the shares.
    turns = [int((i + 1) * rare / 2) - int(i * rare / 2) for i in range(count)]
    seen = [0, 0]
    chosen = []
    for turn in turns:
        kind = unusual if turn else usual
        chosen.append(kind[seen[turn] % len(kind)])
        seen[turn] += 1
    return chosen


def _held_out(values: Mapping[str, str]) -> str:
    """Name of the held-out half a scene belongs to, "" for none."""
    pair = (values["colour"], values["side"])
    return next((name for name, held in HELD_OUT.items() if pair == held), "")


def _scene_seen(seen: Mapping[str, Tensor], index: int) -> dict[str, str] | None:
    """The named things as image `index` shows them; None where one cannot be read."""
    side, colour, offset = int(seen["side"][index]), int(seen["colour"][index]), float(seen["plant"][index])
    height, row = float(seen["height"][index]), float(seen["elevation"][index])
    if side == 0 or colour < 0 or offset != offset or row != row:
        return None
    return {
        "height": min(HEIGHTS, key=lambda name: abs(HEIGHTS[name] - height)),
        "colour": COLOURS[colour],
        "elevation": min(SUN_ROW, key=lambda name: abs(SUN_ROW[name] - row)),
        "side": "left" if side < 0 else "right",
        "plant": min(PLANTS, key=lambda name: abs(PLANTS[name] - offset)),
    }


def _sided(left: Tensor, right: Tensor, enough: int, stray: int) -> Tensor:
    """-1 where `left` alone holds enough pixels, 1 where `right` does, else 0."""
    one_left, one_right = (left >= enough) & (right <= stray), (right >= enough) & (left <= stray)
    return one_right.long() - one_left.long()


def _mean(counts: Tensor, positions: Tensor) -> Tensor:
    """Mean position under counts (B, n); nan where there are none."""
    return (counts * positions).sum(1) / counts.sum(1)
