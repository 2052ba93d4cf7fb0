from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gendiff.data import load_dataset
from gendiff.data.discs import disc_coverage
from gendiff.errors import InvalidInputError

NAME = "bouncing-balls"


@pytest.fixture(scope="module")
def data():
    return load_dataset(NAME)


@pytest.fixture(scope="module")
def crowd():
    return load_dataset(NAME, "test", num_balls=5)


def centroids(video):
    """(F, 2): row and column of the mean of the pixels of frames (F, 1, S, S)."""
    light = (video[:, 0].double() + 1) / 2
    places = torch.arange(light.shape[-1], dtype=torch.float64)
    return torch.stack([light.sum(2) @ places, light.sum(1) @ places], 1) / light.sum((1, 2))[:, None]


def test_items(data):
    assert len(data) == 10_000 and len(load_dataset(NAME, "test")) == 1_000
    assert data.frame_shape == (1, 32, 32) and data.classes == () and data.num_frames == 20
    assert (data.size, data.num_balls, data.radius) == (32, 2, 4)
    item = data[7]
    assert item["video"].shape == (20, 1, 32, 32) and item["video"].min() == -1 and item["video"].max() == 1
    assert item["positions"].shape == item["velocities"].shape == (20, 2, 2)
    assert all(value.dtype == torch.float32 for value in item.values())
    large = load_dataset(NAME, size=64, num_frames=3, num_balls=3, radius=5.5, num_videos=2)
    assert len(large) == 2 and large.frame_shape == (1, 64, 64) and large[1]["video"].shape == (3, 1, 64, 64)
    assert large[1]["positions"].shape == (3, 3, 2)


@pytest.mark.parametrize("size", [32, 64])
def test_starts_are_in_the_box_and_within_the_range_of_speeds(size):
    data = load_dataset(NAME, num_frames=1, size=size)
    items = [data[index] for index in range(300)]
    places, speeds = (torch.cat([item[name] for item in items]) for name in ("positions", "velocities"))
    pace = speeds.norm(dim=-1) * 32 / size
    assert 0.5 <= pace.min() < 0.52 and 1.98 < pace.max() <= 2
    assert data.low == size / 8 - 0.5 and data.high == size - 0.5 - size / 8
    assert data.low <= places.min() < data.low + size / 32 and data.high - size / 32 < places.max() <= data.high
    assert (speeds > 0).float().mean((0, 1)).sub(0.5).abs().max() < 0.1  # all directions


def test_energy_is_conserved_and_time_can_be_reversed(data, crowd):
    for videos in (data, crowd):
        for index in range(20):
            start = (videos[index]["positions"][0], videos[index]["velocities"][0])
            places, speeds = videos.simulate(*start, 20)
            energy = speeds.square().sum((1, 2))
            assert (energy / energy[0] - 1).abs().max() < 1e-12
            back, _ = videos.simulate(places[-1], -speeds[-1], 20)
            assert (back.flip(0) - places).abs().max() < 1e-9
            assert torch.equal(places[0], start[0].double())


def test_a_head_on_collision_exchanges_velocities(data):
    # 14 apart and touching at 8, so after 3 frames at a relative speed of 2; walls are touched at 3.5 and 27.5.
    places, speeds = data.simulate([[16, 8], [16, 22]], [[0, 1], [0, -1]], 12)
    for frame in range(12):
        columns = [8 + frame, 22 - frame] if frame <= 3 else [11 - (frame - 3), 19 + (frame - 3)]
        columns = [3.5 + abs(columns[0] - 3.5), 27.5 - abs(columns[1] - 27.5)]
        assert places[frame, :, 0].tolist() == [16, 16]
        assert places[frame, :, 1].tolist() == pytest.approx(columns, abs=1e-12)
    assert speeds[3, :, 1].tolist() == [1, -1] and speeds[4, :, 1].tolist() == [-1, 1]  # at frame 3 they just touch
    # Equal masses: with unequal speeds they exchange them, and a ball at rest takes all.
    _, speeds = data.simulate([[16, 8], [16, 22]], [[0, 2], [0, 0]], 5)
    assert speeds[-1, :, 1].tolist() == pytest.approx([0, 2], abs=1e-12)


def test_an_oblique_collision_has_its_closed_form(data):
    # The centres pass at b = 4 = 2 r sin 30 degrees: the resting ball leaves along the line of centres, 30 degrees off,
    # with cos 30 of the speed, the other at right angles to it with sin 30.
    start = torch.tensor([[16.0, 5.0], [12.0, 18.0]], dtype=torch.float64)
    wait = 13 - 8 * math.cos(math.radians(30))
    places, speeds = data.simulate(start, [[0, 1], [0, 0]], 12)
    away = math.cos(math.radians(30)) * torch.tensor([-0.5, math.cos(math.radians(30))], dtype=torch.float64)
    left = torch.tensor([0, 1], dtype=torch.float64) - away
    assert speeds[-1, 0].dot(speeds[-1, 1]).item() == pytest.approx(0, abs=1e-12)
    assert speeds[-1, 0].norm().item() == pytest.approx(0.5) and speeds[-1, 1].norm().item() == pytest.approx(0.75**0.5)
    for frame in range(7, 12):
        expected = torch.stack(
            [
                start[0] + torch.tensor([0, wait], dtype=torch.float64) + left * (frame - wait),
                start[1] + away * (frame - wait),
            ]
        )
        assert (places[frame] - expected).abs().max() < 1e-12
    touch = places[7] - speeds[7] * (7 - wait)
    assert (touch[0] - touch[1]).norm().item() == pytest.approx(8, abs=1e-12)


def test_a_single_ball_follows_its_reflections():
    data = load_dataset(NAME, num_balls=1, num_frames=200)
    for index in range(5):
        item = data[index]
        start, speed = item["positions"][0].double(), item["velocities"][0].double()
        places, _ = data.simulate(start, speed, 200)
        room = data.high - data.low
        free = (start - data.low + speed * torch.arange(200)[:, None, None]) % (2 * room)
        assert (places - (data.low + room - (free - room).abs())).abs().max() < 1e-9
    corner = load_dataset(NAME, num_balls=1).simulate([[26.5, 26.5]], [[1, 1]], 4)[0]  # both walls at once
    assert corner[:, 0].tolist() == [[26.5] * 2, [27.5] * 2, [26.5] * 2, [25.5] * 2]


def test_balls_never_overlap_or_leave_the_box(crowd):
    for index in range(3):
        item = crowd[index]
        places, speeds = crowd.simulate(item["positions"][0], item["velocities"][0], 1_000)
        distance = torch.cdist(places, places) + 1e3 * torch.eye(5)
        assert 2 * crowd.radius - 1e-6 <= distance.min() < 2 * crowd.radius + 0.5
        assert crowd.low - 1e-9 <= places.min() and places.max() <= crowd.high + 1e-9
        assert (speeds.square().sum((1, 2)) / speeds[0].square().sum() - 1).abs().max() < 1e-9
        assert (speeds.norm(dim=-1) - speeds[0].norm(dim=-1)).abs().max() > 0.1  # there were collisions


def test_any_state_can_be_continued(data):
    item = data[3]
    start = (item["positions"][0], item["velocities"][0])
    places, speeds = data.simulate(*start, 20)
    rest, rest_speeds = data.simulate(places[8], speeds[8], 12)
    assert (rest - places[8:]).abs().max() < 1e-9 and (rest_speeds - speeds[8:]).abs().max() < 1e-9
    # States that cannot be, as estimated from a picture: they are let go, or turn at once.
    places, speeds = data.simulate([[16.0, 12.0], [16.0, 18.0]], [[0, -1], [0, 1]], 3)
    assert places[:, 0, 1].tolist() == [12, 11, 10] and speeds[2].tolist() == [[0, -1], [0, 1]]
    places, _ = data.simulate([[16.0, 12.0], [16.0, 18.0]], [[0, 1], [0, -1]], 3)
    assert places[:, 0, 1].tolist() == [12, 11, 10]
    places, _ = data.simulate([[16.0, 29.0]], [[0, 1]], 3)
    assert places[:, 0, 1].tolist() == [29, 28, 27]


@pytest.mark.parametrize("options", [{}, {"num_balls": 1, "radius": 3.3}, {"size": 64, "num_balls": 4}])
def test_the_brightness_is_the_area_wherever_the_balls_are(options):
    data = load_dataset(NAME, **options)
    area = data.num_balls * math.pi * data.radius**2
    for index in range(50):
        light = ((data[index]["video"].double() + 1) / 2).sum((1, 2, 3))
        assert (light / area - 1).abs().max() < 1e-5
    touching = data.render([[[10.0, 10.0], [10.0, 10.0 + 2 * data.radius]]])
    assert ((touching.double() + 1) / 2).sum().item() == pytest.approx(2 * math.pi * data.radius**2, rel=1e-6)


def test_the_positions_are_those_of_the_pixels(data):
    one = load_dataset(NAME, "test", num_balls=1)
    for index in range(20):
        item = one[index]
        assert (centroids(item["video"]) - item["positions"][:, 0]).abs().max() < 0.01
        both = data[index]
        assert (centroids(both["video"]) - both["positions"].mean(1)).abs().max() < 0.01


def test_coverage_is_the_area_by_counting_points():
    points = (np.arange(8 * 100) + 0.5) / 100 - 0.5
    for centre, radius in (((3.2, 4.1), 2.7), ((0.0, 7.4), 3.0), ((3.5, 3.5), 1.0)):
        inside = (points[:, None] - centre[0]) ** 2 + (points - centre[1]) ** 2 < radius**2
        counted = inside.reshape(8, 100, 8, 100).mean((1, 3))
        covered = disc_coverage(np.array([[centre]]), radius, 8)[0]
        assert np.abs(covered - counted).max() < 2e-3
    away = disc_coverage(np.array([[(-50.0, 3.0), (3.0, 1e6)]]), 2.0, 8)
    assert np.abs(away).max() < 1e-12


def test_videos_follow_from_seed_split_and_index(data):
    again = load_dataset(NAME, num_videos=5)
    assert torch.equal(data[4]["video"], again[-1]["video"])
    others = [data[3], load_dataset(NAME, seed=1)[4], load_dataset(NAME, "test")[4]]
    assert not any(torch.equal(data[4]["positions"], other["positions"]) for other in others)
    assert torch.equal(load_dataset(NAME, num_frames=7)[4]["video"], data[4]["video"][:7])
    with pytest.raises(IndexError, match="index 5 is outside a dataset of 5 videos"):
        again[5]


def test_the_number_of_workers_changes_nothing():
    data = load_dataset(NAME, num_videos=8, num_frames=4)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2)
    videos = torch.cat([batch["video"] for batch in loader])
    assert torch.equal(videos, torch.stack([data[index]["video"] for index in range(8)]))


def test_the_motion_is_the_same_on_every_machine(data):
    expected = [18.430914, 14.017227, 6.49686, 7.953174, 22.775955, 7.48589, 5.330532, 10.213929]
    item = data[999]
    assert item["positions"][[0, 19]].flatten().tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, "split must be one of train, test, got 'validation'"),
        ({"num_videos": 0}, "num_videos must be an integer of at least 1, got 0"),
        ({"num_frames": 2.5}, "num_frames must be an integer of at least 1, got 2.5"),
        ({"num_balls": 0}, "num_balls must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"size": 4}, "size must be an integer from 8 to 1024, got 4"),
        ({"size": True}, "size must be an integer from 8 to 1024, got True"),
        ({"radius": 0.5}, r"radius must be from 1 to 7\.553 pixels .* got 0\.5"),
        ({"radius": 8}, r"radius must be from 1 to 7\.553 pixels for num_balls=2 and size=32 .* got 8"),
        ({"radius": float("nan")}, "radius must be from 1 .* got nan"),
        ({"num_balls": 9}, r"radius must be from 1 to 3\.56 pixels for num_balls=9 .* got 4\.0"),
        ({"num_balls": 500}, "num_balls must be at most 114 for size 32, got 500"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(NAME, **options)


def test_bad_states(data):
    place, speed = torch.zeros(2, 2), torch.zeros(2, 2)
    for arguments, message in (
        ((place[0], speed, 3), r"positions must be \(n, 2\), got \(2,\)"),
        ((place, torch.zeros(3, 2), 3), r"velocities must be \(2, 2\) like positions, got \(3, 2\)"),
        ((place, speed / 0, 3), "velocities must be finite, got"),
        ((place, speed, 0), "num_frames must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            data.simulate(*arguments)
    with pytest.raises(InvalidInputError, match=r"positions must be \(F, n, 2\) and finite"):
        data.render(torch.zeros(3, 2))
    # A row of balls that fills the box from wall to wall hands a push on for ever.
    row = torch.tensor([[16, 3.5], [16, 11.5], [16, 19.5], [16, 27.5]])
    with pytest.raises(InvalidInputError, match="bounce more than 1000 times per frame: they are wedged"):
        data.simulate(row, [[0, 1], [0, 0], [0, 0], [0, 0]], 3)
