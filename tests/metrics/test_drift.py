from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from gendiff.errors import InvalidInputError
from gendiff.metrics.drift import drift, sharpness
from gendiff.metrics.paired import psnr


def test_the_slope_of_a_line_is_its_slope():
    found = drift([3 + 0.5 * frame for frame in range(8)])
    assert found.slope == pytest.approx(0.5)
    assert found.window == 2
    assert (found.first, found.last) == (pytest.approx(3.25), pytest.approx(6.25))
    assert found.counted == (1,) * 8


def test_the_slope_is_that_of_least_squares():
    series = np.random.default_rng(0).normal(size=31)
    assert drift(series).slope == pytest.approx(np.polyfit(np.arange(31), series, 1)[0])


def test_frames_without_a_value_are_left_out():
    series = torch.arange(12, dtype=torch.float64) * 2
    series[[0, 5, 11]] = math.nan
    found = drift(series, window=3)
    assert found.slope == pytest.approx(2)
    assert (found.first, found.last) == (pytest.approx(3), pytest.approx(19))
    assert found.counted == (0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0)
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["curve"][:2] == [None, 2.0]


def test_several_videos_are_averaged_first():
    series = torch.tensor([[1.0, 2.0, math.nan, 4.0], [3.0, math.nan, math.nan, 8.0]])
    found = drift(series, window=1)
    assert found.curve[:2] == (2.0, 2.0) and math.isnan(found.curve[2]) and found.curve[3] == 6.0
    assert found.counted == (2, 1, 0, 2)
    assert (found.first, found.last) == (2.0, 6.0)
    assert found.slope == pytest.approx(np.polyfit([0, 1, 3], [2, 2, 6], 1)[0])


def test_without_values_there_is_no_drift():
    found = drift([math.nan, math.nan])
    assert (found.slope, found.first, found.last) == (None, None, None)
    assert drift([1.0]).slope is None


def test_psnr_of_a_video_with_growing_noise_drifts_down():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(40, 215, (2, 12, 1, 16, 16), generator=generator).float()
    noise = torch.randn(target.shape, generator=generator) * torch.arange(1, 13)[:, None, None, None]
    found = psnr((target + noise).round().clamp(0, 255).byte(), target.byte())
    drifted = drift(found.values)
    assert drifted.curve == pytest.approx(found.per_frame)
    assert drifted.slope is not None and drifted.slope < -1
    assert drifted.first is not None and drifted.last is not None and drifted.first > drifted.last + 8


def test_sharpness_in_closed_form():
    ramp = torch.arange(5.0)[:, None].expand(5, 7)[None, None]  # 1 a row, 0 a column
    assert sharpness(torch.cat([ramp, 2 * ramp])).tolist() == [1.0, 4.0]
    assert sharpness(torch.zeros(3, 3, 4, 4)).tolist() == [0.0, 0.0, 0.0]


def test_sharpness_falls_with_blur():
    frame = np.random.default_rng(0).random((24, 24))
    blurred = torch.from_numpy(np.stack([gaussian_filter(frame, sigma) for sigma in (0, 0.5, 1, 2)]))[:, None]
    values = sharpness(blurred)
    assert (values.diff() < 0).all()
    assert drift(values).slope < 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: drift([]), "not empty"),
        (lambda: drift(3.0), r"\(F,\) or \(B, F\)"),
        (lambda: drift(torch.zeros(2, 2, 2)), r"got \(2, 2, 2\)"),
        (lambda: drift("abc"), "got str"),
        (lambda: drift([1.0, math.inf]), "frame 1 is infinite"),
        (lambda: drift([1.0, 2.0], window=3), "window must be a whole number from 1 to 2"),
        (lambda: drift([1.0, 2.0], window=0), "window"),
        (lambda: sharpness(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)), "floating"),
        (lambda: sharpness(torch.zeros(1, 4, 4)), "floating"),
        (lambda: sharpness(torch.zeros(1, 1, 1, 4)), "at least 2 px"),
        (lambda: sharpness(torch.full((2, 1, 4, 4), math.nan)), "frame 0 is not"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
