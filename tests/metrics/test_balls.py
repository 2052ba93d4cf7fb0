from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from scipy.ndimage import gaussian_filter

from gendiff.data.bouncing_balls import BouncingBalls
from gendiff.errors import InvalidInputError
from gendiff.metrics.balls import (
    ball_report,
    balls_outside,
    count_share,
    find_balls,
    mass,
    mass_error,
    motion_energy,
    position_error,
    summarise_balls,
    track,
    velocity_error,
)

SIDE, RADIUS = 32, 3.0
WALL = RADIUS - 0.5
"""Row or column of a centre whose ball touches the upper or left wall."""


def discs(places, radius=RADIUS, side=SIDE, brightness=1.0, joined="max"):
    """Frame (1, 1, side, side) with an edge that falls from 1 to 0 over a pixel: another renderer than the data's."""
    centres = torch.tensor(places, dtype=torch.float64)
    pixels = torch.stack(torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij"), -1)
    drawn = (radius + 0.5 - (pixels - centres[:, None, None]).norm(dim=-1)).clamp(0, 1) * brightness
    return (drawn.amax(0) if joined == "max" else drawn.sum(0).clamp(max=1))[None, None]


def drawn(places, radius=RADIUS, side=SIDE):
    """Frames (F, 1, side, side) in [0, 1] by the data's renderer, from (F, n, 2)."""
    video = BouncingBalls("test", size=side, radius=radius, num_balls=1).render(torch.as_tensor(places))
    return (video + 1) / 2


def counted(frame, radius=RADIUS, **options):
    return [len(balls) for balls in find_balls(frame, radius, **options)]


def distances(found, places):
    """From each true place to the nearest found one."""
    return torch.cdist(torch.tensor(places, dtype=torch.float64), found).amin(1)


def touching(angle, first=(15.2, 16.4), radius=RADIUS):
    return [list(first), [first[0] + 2 * radius * math.sin(angle), first[1] + 2 * radius * math.cos(angle)]]


def noisy(frames, std, seed=0):
    drawn = torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (frames + std * drawn).clamp(0, 1)


@pytest.mark.parametrize(("size", "radius", "balls"), [(16, 2.0, 1), (32, None, 2), (32, 2.5, 3), (64, 4.0, 5)])
def test_every_ball_of_the_data_is_found_where_it_is(size, radius, balls):
    videos = BouncingBalls("test", 2, num_frames=20, size=size, num_balls=balls, radius=radius)
    errors = []
    for index in range(2):
        item = videos[index]
        found = find_balls((item["video"] + 1) / 2, videos.radius)
        assert count_share(found, balls) == 1
        for centres, truth in zip(found, item["positions"], strict=True):
            assert centres.dtype == torch.float64 and centres.shape == (balls, 2)
            errors.append(distances(centres, truth.tolist()))
    assert torch.cat(errors).median() < 0.02
    assert torch.cat(errors).max() < 0.06


@pytest.mark.parametrize("joined", ["max", "sum"])
def test_balls_that_touch_are_two_in_any_direction(joined):
    pairs = [touching(step * math.pi / 12 + 0.1) for step in range(24)]
    frames = torch.cat([discs(places, joined=joined) for places in pairs])
    for video, bound in ((frames, 0.01), (drawn(pairs), 0.06)):
        found = find_balls(video, RADIUS)
        assert count_share(found, 2) == 1
        assert max(distances(*both).max() for both in zip(found, pairs, strict=True)) < bound


@pytest.mark.parametrize("radius", [2.0, 3.0, 4.5])
def test_three_balls_that_touch_each_other_are_not_taken_for_one_in_their_middle(radius):
    angles = [step * math.pi / 18 for step in range(12)]
    places = [[*touching(a, radius=radius), touching(a + math.pi / 3, radius=radius)[1]] for a in angles]
    found = find_balls(drawn(places, radius), radius)
    assert count_share(found, 3) == 1
    assert max(distances(*both).max() for both in zip(found, places, strict=True)) < 0.1


def test_balls_at_walls_and_in_corners():
    far = SIDE - 1 - WALL
    places = [[WALL, WALL], [WALL, 14.3], [15.6, far], [far, WALL + 0.2], [far, far]]
    for frame in (discs(places), drawn([places])):
        found = find_balls(frame, RADIUS)[0]
        assert len(found) == 5
        assert distances(found, places).max() < 0.06


def test_noise_moves_a_ball_little_and_makes_none():
    places = [touching(0.7 + index, first=(WALL, WALL + 12 + index / 7)) for index in range(3)]
    frames = noisy(drawn(places).double().repeat(20, 1, 1, 1), 0.05)
    found = find_balls(frames, RADIUS)
    assert count_share(found, 2) == 1
    errors = torch.stack([distances(balls, places[index % 3]) for index, balls in enumerate(found)])
    assert errors.median() < 0.05 and errors.max() < 0.15
    assert counted(noisy(torch.zeros(20, 1, SIDE, SIDE), 0.05)) == [0] * 20
    assert counted(torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))) == [0, 0, 0]


def test_a_faded_ball_is_none():
    faded, whole = [9.3, 8.1], [20.4, 21.7]
    for brightness, expected in ((0.25, 1), (0.5, 1), (0.58, 1), (0.62, 2), (0.8, 2)):
        frame = discs([whole]) + discs([faded], brightness=brightness)
        assert counted(frame) == [expected]
    frame = discs([whole]) + discs([faded], brightness=0.5)
    assert counted(frame, threshold=0.4) == [2]
    assert distances(find_balls(frame, RADIUS)[0], [whole]).max() < 0.01


def test_a_faded_ball_does_not_hide_the_whole_one_that_it_touches():
    places = touching(0.4)
    frame = torch.maximum(discs(places[:1]), discs(places[1:], brightness=0.45))
    found = find_balls(frame, RADIUS)[0]
    assert len(found) == 1
    assert distances(found, places[:1]).max() < 0.05


@pytest.mark.parametrize("radius", [2.0, 3.0, 4.0, 8.0])
def test_what_is_no_disc_of_this_radius_is_no_ball(radius):
    side = 32 if radius < 8 else 64
    middle = (side / 2 - 0.3, side / 2 + 0.2)

    def whole(share=1.0, offset=0.0):
        return discs([[middle[0], middle[1] + offset * radius]], radius * share, side)

    assert counted(whole(), radius) == [1]
    sizes = [whole(share) for share in (0.5, 0.75, 1.25, 1.5, 2.0)]
    merged = [torch.maximum(whole(), whole(offset=offset)) for offset in (0.75, 1.0, 1.4)]
    half = whole()
    half[..., : side // 2, :] = 0
    square = torch.zeros(1, 1, side, side)
    square[..., side // 2 - int(radius) : side // 2 + int(radius) + 1, 8 : 9 + 2 * int(radius)] = 1
    stripe = torch.zeros(1, 1, side, side)
    stripe[..., side // 2 - int(radius) : side // 2 + int(radius), :] = 1
    shapes = [whole() - whole(0.5), half, square, stripe, torch.ones(1, 1, side, side)]
    assert counted(torch.cat([*sizes, *merged, *shapes]), radius) == [0] * 13


def test_a_ball_with_soft_edges_is_one():
    for blur in (0.5, 1.0):
        frame = torch.from_numpy(gaussian_filter(discs([[15.2, 16.6]])[0, 0].numpy(), blur))[None, None]
        found = find_balls(frame, RADIUS)[0]
        assert distances(found, [[15.2, 16.6]]).max() < 0.1


def test_a_missing_and_an_extra_ball_lower_the_share_of_right_frames():
    two, three = [[8.0, 8.0], [20.0, 21.0]], [[8.0, 8.0], [20.0, 21.0], [8.5, 25.0]]
    frames = torch.cat([discs(two), discs(two[:1]), discs(three), discs(two), torch.zeros(1, 1, SIDE, SIDE)])
    found = find_balls(frames, RADIUS)
    assert [len(balls) for balls in found] == [2, 1, 3, 2, 0]
    assert count_share(found, 2) == 0.4
    errors = position_error(found, torch.tensor(two).expand(5, 2, 2))
    assert errors.isnan().tolist() == [False, True, True, False, True]
    assert errors[[0, 3]].max() < 0.01


def test_balls_partly_outside_are_found_and_counted_as_outside():
    places = [[[WALL - 1.5, 14.0], [20.0, 20.0]], [[WALL, 14.0], [20.0, SIDE + 0.5 - RADIUS + 1]]]
    found = find_balls(drawn(places), RADIUS)
    assert [len(balls) for balls in found] == [2, 2]
    assert distances(found[0], places[0]).max() < 0.1
    assert balls_outside(found, RADIUS, (SIDE, SIDE)).tolist() == [1, 1]
    assert balls_outside(found, RADIUS, (SIDE, SIDE), tolerance=1.8).tolist() == [0, 1]
    assert balls_outside(found, RADIUS, (SIDE, SIDE + 8)).tolist() == [1, 0]  # rows and columns have walls of their own
    inside = find_balls(drawn([[[WALL, 14.0]]]), RADIUS)
    assert balls_outside(inside, RADIUS, (SIDE, SIDE)).tolist() == [0]


def crossing(frames=9):
    """Two balls that pass each other: the one further up and further left is another at the end."""
    time = torch.arange(frames, dtype=torch.float64)[:, None]
    return torch.stack(
        [torch.tensor([[6.0, 8.0]]) + time * 2.0, torch.tensor([[24.0, 6.0]]) + time * torch.tensor([[-2.0, 2.0]])], 1
    )


def test_tracks_keep_their_ball_when_the_order_found_swaps():
    truth = crossing()
    found = [places[places[:, 0].argsort()] for places in truth]
    assert not torch.equal(torch.stack(found), truth)
    torch.testing.assert_close(track(found, 2), truth, rtol=0, atol=0)
    assert position_error(found, truth).max() == 0
    assert velocity_error(found, truth, truth.diff(dim=0)[:1].expand(9, 2, 2)).max() < 1e-12


def test_a_track_bridges_a_frame_without_its_ball_and_ignores_an_extra_one():
    truth = crossing()
    found = [places.clone() for places in truth]
    found[4] = found[4][1:]
    found[6] = torch.cat([torch.tensor([[28.0, 28.0]], dtype=torch.float64), found[6]])
    tracks = track(found, 2)
    assert tracks[4, 0].isnan().all()
    tracks[4, 0] = truth[4, 0]
    torch.testing.assert_close(tracks, truth, rtol=0, atol=0)
    late = track([truth[0, :1], *truth[1:]], 2)
    assert late[0].isnan().all() and torch.equal(late[1:], truth[1:])
    assert track([truth[0, :1]] * 3, 2).isnan().all()


def test_position_error_is_the_distance_whatever_the_order():
    truth = torch.tensor([[[10.0, 10.0], [20.0, 20.0]]])
    found = [torch.tensor([[20.0, 20.0], [13.0, 14.0]])]
    assert position_error(found, truth).tolist() == [pytest.approx(math.sqrt(25 / 2))]


def test_velocity_error_is_that_of_the_balls_that_hit_nothing():
    videos = BouncingBalls("test", 1, num_balls=1, radius=RADIUS)
    places, speeds = videos.simulate([[WALL + 2.4, 15.0]], [[-1.0, 0.5]], 6)
    found = [balls + 0.1 * t for t, balls in enumerate(places)]  # 0.1 px per frame too fast, along both axes
    errors = velocity_error(found, places, speeds)
    assert errors.isnan().tolist() == [False, False, True, False, False]  # it hits the wall 2.4 frames after the start
    assert errors[~errors.isnan()].tolist() == pytest.approx([math.sqrt(0.02)] * 4)


def test_energy_is_that_of_the_velocities_where_nothing_is_hit():
    places, speeds = crossing(), crossing().diff(dim=0)
    energy = motion_energy(track(list(places), 2))
    assert energy.tolist() == pytest.approx([speeds[0].square().sum().item() / 4] * 8)
    assert motion_energy(2 * places).tolist() == pytest.approx((4 * energy).tolist())


def test_mass_is_the_area_of_the_balls():
    frames = drawn([touching(0.3), [[WALL, WALL], [20.0, 20.0]]])
    area = 2 * math.pi * RADIUS**2
    assert mass(frames).tolist() == pytest.approx([area, area], rel=1e-6)
    assert mass_error(frames, area).max() < 1e-6
    dim = frames * torch.tensor([0.75, 0.5])[:, None, None, None]
    assert mass_error(dim, frames).tolist() == pytest.approx([0.25, 0.5])
    assert mass_error(dim, frames[:1]).tolist() == pytest.approx([0.25, 0.5])
    assert mass_error(frames, dim).tolist() == pytest.approx([1 / 3, 1.0])


def item(index=0, frames=20, balls=2):
    videos = BouncingBalls("test", 4, num_frames=frames, num_balls=balls, radius=RADIUS)
    chosen = videos[index]
    return (chosen["video"] + 1) / 2, chosen["positions"], chosen["velocities"]


def test_a_true_video_has_a_clean_report():
    frames, places, speeds = item()
    report = ball_report(frames, RADIUS, 2, places, speeds)
    means = report.means()
    assert means["count_share"] == 1 and means["outside"] == 0 and report.on_track == 20
    assert means["position_frames"] == 20 and 15 <= means["velocity_frames"] <= 19
    assert means["position_error"] < 0.03 and means["velocity_error"] < 0.05 and means["mass_error"] < 1e-6
    # Bounces shorten a step, so the mean energy of steps lies a little below that of the velocities.
    true_energy = speeds.square().sum(-1).mean().item() / 2
    assert 0.85 * true_energy < means["energy"] < 1.02 * true_energy
    torch.testing.assert_close(report.positions[0], places[0].double()[places[0, :, 0].argsort()], atol=0.05, rtol=0)


def test_a_video_that_goes_wrong_half_way_says_so():
    frames, places, speeds = item(frames=24)
    frames[12:] = discs([[10.0, 10.0]]).float()  # one ball, at rest
    report = ball_report(frames, RADIUS, 2, places, speeds)
    assert report.counts.tolist() == [2] * 12 + [1] * 12
    assert report.on_track == 12
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert written["means"]["all"]["count_share"] == 0.5
    assert written["means"]["first_16"]["count_share"] == 0.75
    assert written["means"]["all"]["mass_error"] == pytest.approx(0.25, abs=0.01)  # an own renderer, a little larger
    assert written["means"]["all"]["position_frames"] == 12
    assert written["means"]["all"]["position_error"] < 0.03
    assert written["drift"]["position_error"]["curve"][12:] == [None] * 12
    assert written["drift"]["mass_error"]["slope"] > 0.02
    assert written["positions"][11][0][0] is not None and written["positions"][12].count([None, None]) == 1


def test_a_video_that_drifts_from_the_truth_is_followed_up_to_a_radius():
    frames, places, speeds = item()
    shift = torch.arange(20)[:, None, None] * torch.tensor([0.25, 0.0])
    report = ball_report(frames, RADIUS, 2, places + shift, speeds)
    assert report.position_error is not None
    expected = torch.arange(20) * 0.25
    assert (report.position_error - expected)[:12].abs().max() < 0.05
    assert report.on_track == 12  # 0.25 px a frame: 3 px after 12


def test_without_truth_there_are_no_errors():
    frames, places, _ = item()
    report = ball_report(frames, RADIUS, 2)
    assert report.position_error is None and report.velocity_error is None and report.on_track is None
    assert "position_error" not in report.means() and "position_error" not in report.to_dict()["drift"]
    placed = ball_report(frames, RADIUS, 2, places)
    assert placed.velocity_error is None and placed.means()["position_frames"] == 20


def test_a_summary_is_the_mean_over_videos():
    reports = [ball_report(frames, RADIUS, 2, *truth) for frames, *truth in (item(index) for index in range(3))]
    dim, *truth = item(3)
    reports.append(ball_report(dim * 0.5, RADIUS, 2, *truth))
    found = json.loads(json.dumps(summarise_balls(reports), allow_nan=False))
    assert found["videos"] == 4 and found["num_frames"] == 20 and found["on_track"] == 15
    assert found["means"]["all"]["count_share"] == 0.75
    assert found["means"]["all"]["mass_error"] == pytest.approx(0.125, abs=1e-5)
    assert found["means"]["first_16"]["position_frames"] == 48
    assert found["drift"]["position_error"]["counted"] == [3] * 20
    assert found["drift"]["count_right"]["curve"] == [0.75] * 20
    with pytest.raises(InvalidInputError, match="one kind of video"):
        summarise_balls([reports[0], ball_report(item()[0], RADIUS, 2)])
    with pytest.raises(InvalidInputError, match="reports is empty"):
        summarise_balls([])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "floating"),
        ([[0.0]], "floating tensor .* got list"),
        (torch.zeros(2, 3, 8, 8), r"must be \(F, 1, H, W\)"),
        (torch.zeros(1, 8, 8), r"must be \(F, 1, H, W\)"),
        (torch.zeros(0, 1, 8, 8), "not empty"),
        (torch.full((1, 1, 8, 8), -1.0), r"lie in \[0, 1\], got \[-1, -1\]"),
        (torch.full((1, 1, 8, 8), math.nan), r"lie in \[0, 1\]"),
    ],
)
def test_frames_that_cannot_be_searched(frames, message):
    for call in (lambda: find_balls(frames, 2.0), lambda: mass(frames), lambda: ball_report(frames, 2.0, 1)):
        with pytest.raises(InvalidInputError, match=message):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, found, true: find_balls(x, 1.0), "radius must be from 2 to 16 pixels"),
        (lambda x, found, true: find_balls(x, math.nan), "radius must be"),
        (lambda x, found, true: find_balls(x, 17), "radius must be"),
        (lambda x, found, true: find_balls(x, 3.0, threshold=0.0), "threshold must be a number in"),
        (lambda x, found, true: find_balls(x, 3.0, most=0), "most must be a whole number"),
        (lambda x, found, true: count_share(found, 1.5), "num_balls must be a whole number"),
        (lambda x, found, true: count_share([], 1), "found must list"),
        (lambda x, found, true: count_share(true, 1), "found must list"),
        (lambda x, found, true: track([found[0], torch.zeros(2, 3)], 1), "frame 1"),
        (lambda x, found, true: track(found, 0), "num_balls"),
        (lambda x, found, true: position_error(found, true[:1]), "true_positions must hold 2 frames"),
        (lambda x, found, true: position_error(found, true[..., 0]), "true_positions must be a tensor"),
        (lambda x, found, true: position_error(found, true * math.inf), "true_positions must be finite"),
        (lambda x, found, true: velocity_error(found, true, true[:, :0]), "true_velocities must be a tensor"),
        (lambda x, found, true: velocity_error(found, true, true.repeat(1, 2, 1)), "like true_positions"),
        (lambda x, found, true: velocity_error(found[:1], true[:1], true[:1]), "at least 2 frames"),
        (lambda x, found, true: motion_energy(true[:1]), "at least 2 frames"),
        (lambda x, found, true: balls_outside(found, 3.0, (32, 32), tolerance=-1.0), "tolerance"),
        (lambda x, found, true: mass_error(x, x.repeat(2, 1, 1, 1)), "reference must hold 1 or 2 frames"),
        (lambda x, found, true: mass_error(x, torch.zeros_like(x)), "brightness above 0"),
        (lambda x, found, true: mass_error(x, 0.0), "brightness above 0"),
        (lambda x, found, true: ball_report(x[:1], 3.0, 1), "frames must be at least 2"),
        (lambda x, found, true: ball_report(x, 3.0, 1, None, true), "true_velocities needs true_positions"),
        (lambda x, found, true: ball_report(x, 3.0, 2, true), "true_positions must be"),
        (lambda x, found, true: ball_report(x, 3.0, 1).means(-1), "frames must be a whole number"),
    ],
)
def test_bad_arguments(call, message):
    places = torch.full((2, 1, 2), 15.0)
    with pytest.raises(InvalidInputError, match=message):
        call(drawn(places), list(places), places)


def test_without_scipy_balls_are_found_but_not_matched(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    found = find_balls(drawn([[[10.0, 12.0]]] * 2), RADIUS)
    assert count_share(found, 1) == 1
    with pytest.raises(ImportError, match=r"pip install 'gendiff\[metrics\]'"):
        track(found, 1)
