from __future__ import annotations

import hashlib
from itertools import product

import numpy as np
import pytest
import torch

from gendiff.data import load_dataset
from gendiff.data.idx import write_idx
from gendiff.errors import InvalidInputError

NAMES = ("moving-digits", "moving-clothes")


@pytest.mark.parametrize("name", NAMES)
def test_items(name):
    data = load_dataset(name, "test", num_videos=3)
    assert len(data) == 3 and len(load_dataset(name, "train")) == 10_000 and len(load_dataset(name, "test")) == 1_000
    item = data[0]
    assert item["video"].shape == (20, 1, 64, 64) and item["video"].dtype == torch.float32
    assert item["video"].min() == -1 and 0.5 < item["video"].max() <= 1
    assert item["label"].shape == (2,) and item["label"].dtype == torch.int64
    assert item["positions"].shape == (20, 2, 2) and item["positions"].dtype == torch.int64
    assert len(data.classes) == 10
    assert torch.equal(item["video"], data.frames(0).float() / 127.5 - 1)
    assert load_dataset(name, "test", num_videos=1, num_frames=5)[0]["video"].equal(item["video"][:5])


@pytest.mark.parametrize("name", NAMES)
def test_the_positions_are_those_of_the_pixels(name):
    # Remake every frame from the objects and the positions alone.
    data = load_dataset(name, "train")
    for index in (0, 7):
        item = data[index]
        remade = torch.zeros(20, 64, 64, dtype=torch.uint8)
        candidates = [data.objects[data.labels == label] for label in item["label"]]
        row, column = item["positions"][0, 0].tolist()
        crops = data.frames(index)[:, 0]
        found = []
        for k, objects in enumerate(candidates):
            # The object is the one of its class that no frame contradicts: a pixel is never darker than the object.
            fits = [
                thing
                for thing in objects
                if all((crops[f, r : r + 28, c : c + 28] >= thing).all() for f, (r, c) in _places(item, k))
            ]
            assert len(fits) >= 1
            found.append(max(fits, key=lambda thing: int(thing.sum())))
        for k, thing in enumerate(found):
            for frame, (row, column) in _places(item, k):
                under = remade[frame, row : row + 28, column : column + 28]
                torch.maximum(under, thing, out=under)
        assert torch.equal(remade, crops)


def _places(item, k):
    return list(enumerate(item["positions"][:, k].tolist()))


@pytest.mark.parametrize("name", NAMES)
def test_objects_move_at_constant_speed_and_bounce(name):
    data = load_dataset(name)
    positions = torch.stack([data[index]["positions"] for index in range(60)])
    assert positions.min() == 0 and positions.max() == 36
    steps = positions.diff(dim=1).abs()
    assert steps.max() == 4
    speed = steps.amax(1, keepdim=True)  # a step is shorter than the speed only where it meets a wall
    assert speed.min() >= 1
    shorter = steps < speed
    at_wall = torch.minimum(positions, 36 - positions)
    assert (torch.minimum(at_wall[:, 1:], at_wall[:, :-1])[shorter] < 4).all()
    turned = positions.diff(dim=1).sign().diff(dim=1).abs() == 2
    assert turned.any() and (at_wall[:, 1:-1][turned] < 4).all()


def test_three_places_determine_the_rest():
    seen = {}
    for start, speed in product(range(37), (-4, -3, -2, -1, 1, 2, 3, 4)):
        path = 36 - np.abs((start + speed * np.arange(20)) % 72 - 36)
        seen.setdefault(tuple(path[:3]), set()).add(tuple(path))
    assert len(seen) == 37 * 8 - 8 and all(len(paths) == 1 for paths in seen.values())
    # And those are the paths of the data set.
    positions = load_dataset("moving-clothes", "test")[5]["positions"]
    for k, axis in product(range(2), range(2)):
        path = tuple(positions[:, k, axis].tolist())
        assert seen[path[:3]] == {path}


@pytest.mark.parametrize("name", NAMES)
def test_frames_follow_from_seed_and_index(name):
    first, again = load_dataset(name), load_dataset(name, num_videos=5)
    assert torch.equal(first.frames(4), again.frames(4)) and torch.equal(again.frames(-1), again.frames(4))
    others = [first.frames(3), load_dataset(name, seed=1).frames(4), load_dataset(name, "test").frames(4)]
    assert not any(torch.equal(first.frames(4), other) for other in others)
    with pytest.raises(IndexError, match="index 5 is outside a dataset of 5 videos"):
        again[5]


def test_the_motion_is_the_same_on_every_machine():
    # Of positions and labels, not of pixels: the motion is the same for all objects.
    data = load_dataset("moving-clothes")
    motion = b"".join(
        array.numpy().astype("<i8").tobytes()
        for index in (0, 999)
        for array in (data[index]["positions"], data[index]["label"])
    )
    assert hashlib.sha256(motion).hexdigest()[:16] == "330c08bfeb1f1a0b"


def test_train_and_test_move_different_objects():
    for name in NAMES:
        train, test = ({thing.numpy().tobytes() for thing in load_dataset(name, s).objects} for s in ("train", "test"))
        assert not train & test
    for split in ("train", "test"):
        assert load_dataset("moving-digits", split).labels.bincount().tolist() == [10] * 10


@pytest.mark.parametrize(("name", "folder"), [("moving-digits", "MNIST"), ("moving-clothes", "FashionMNIST")])
def test_objects_from_imported_files(name, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="gendiff data import"):
        load_dataset(name, root=tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)
    write_idx(tmp_path / folder / "raw" / "t10k-images-idx3-ubyte", images)
    write_idx(tmp_path / folder / "raw" / "t10k-labels-idx1-ubyte", np.arange(6, dtype=np.uint8))
    data = load_dataset(name, "test", root=tmp_path)
    np.testing.assert_array_equal(data.objects, images)
    shipped = load_dataset(name, "test")
    assert torch.equal(data[2]["positions"], shipped[2]["positions"])
    assert set(data[2]["label"].tolist()) <= set(range(6))


def test_the_frames_by_default_stay_what_they_were():
    data = load_dataset("moving-clothes")
    assert hashlib.sha256(data.frames(4).numpy().tobytes()).hexdigest()[:16] == "12c34d9c9f3c4b28"
    same = load_dataset("moving-clothes", size=64, num_objects=2)[4]
    assert all(torch.equal(data[4][name], same[name]) for name in same)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_objects", [1, 2])
@pytest.mark.parametrize("size", [32, 64])
def test_sizes_and_numbers_of_objects(name, size, num_objects):
    data = load_dataset(name, "test", num_frames=17, size=size, num_objects=num_objects)
    assert data.frame_shape == (1, size, size) and data.num_frames == 17 and data.num_objects == num_objects
    item = data[0]
    assert item["video"].shape == (17, *data.frame_shape) and item["video"].min() == -1
    assert item["label"].shape == (num_objects,) and item["positions"].shape == (17, num_objects, 2)
    positions = torch.stack([data[index]["positions"] for index in range(60)])
    room, fastest = size * 9 // 16, size // 16
    assert positions.min() == 0 and positions.max() == room == data.room
    steps = positions.diff(dim=1).abs()
    assert steps.max() == fastest and steps.amax(1).min() == 1
    longer = load_dataset(name, "test", size=size, num_objects=num_objects)[2]
    assert torch.equal(longer["positions"][:17], data[2]["positions"])


@pytest.mark.parametrize("name", NAMES)
def test_small_objects_are_means_of_2x2_pixels_and_drawn_where_they_are_said_to_be(name):
    data, large = load_dataset(name, size=32, num_objects=1), load_dataset(name, num_objects=1)
    means = torch.nn.functional.avg_pool2d(large.objects[:, None].double(), 2)[:, 0]
    assert torch.equal(data.objects, (means + 0.5).floor().byte())
    item, frames = data[3], data.frames(3)[:, 0]
    cuts = torch.stack(
        [f[r : r + 14, c : c + 14] for f, (r, c) in zip(frames, item["positions"][:, 0].tolist(), strict=True)]
    )
    assert (cuts == cuts[0]).all() and frames.flatten(1).sum(1).eq(cuts[0].sum()).all()  # nothing is drawn elsewhere
    same = data.objects[data.labels == item["label"]]
    assert (same == cuts[0]).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"size": 48}, "size must be one of 64, 32, got 48"),
        ({"size": 32.0}, "size must be an integer of at least 1, got 32.0"),
        ({"num_objects": 3}, "num_objects must be one of 1, 2, got 3"),
        ({"num_objects": True}, "num_objects must be an integer of at least 1, got True"),
    ],
)
def test_bad_sizes_and_numbers_of_objects(argument, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("moving-digits", **argument)


def test_bad_arguments():
    for name in NAMES:
        with pytest.raises(InvalidInputError, match="split must be one of train, test, got 'validation'"):
            load_dataset(name, "validation")
        for argument in ({"num_videos": 0}, {"num_frames": 0}, {"num_frames": 2.5}, {"seed": -1}):
            with pytest.raises(ValueError, match=f"{next(iter(argument))} must be an integer of at least"):
                load_dataset(name, **argument)
