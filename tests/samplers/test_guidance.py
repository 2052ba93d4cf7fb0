"""Guidance: its identities, what it costs, and the schedules of its strength."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from gendiff.samplers.guidance import guided, guided_jointly, interval, ramp
from gendiff.samplers.loop import Step, sample


class Counted:
    """The predictor `factor * state`, which counts its calls."""

    def __init__(self, factor: float):
        self.factor, self.calls = factor, 0

    def __call__(self, state: torch.Tensor, step: Step) -> torch.Tensor:
        self.calls += 1
        return self.factor * state


def steps(count: int) -> list[Step]:
    return [Step(index, count, torch.tensor(count - index)) for index in range(count)]


STATE = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_result_lies_on_the_line_through_both_predictions(scale: float):
    result = guided(Counted(2.0), Counted(-1.0), scale)(STATE, steps(1)[0])
    torch.testing.assert_close(result, (-1.0 + 3.0 * scale) * STATE, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("scale", "factor"), [(0, -1.0), (1, 2.0)])
def test_scale_zero_and_one_are_one_prediction_bit_for_bit(scale: int, factor: float):
    assert torch.equal(guided(Counted(2.0), Counted(-1.0), scale)(STATE, steps(1)[0]), factor * STATE)


@pytest.mark.parametrize(("scale", "calls"), [(0, (0, 1)), (1, (1, 0)), (1.0, (1, 0)), (0.5, (1, 1)), (4, (1, 1))])
def test_a_prediction_of_weight_zero_is_not_made(scale: float, calls: tuple[int, int]):
    positive, negative = Counted(2.0), Counted(-1.0)
    guided(positive, negative, scale)(STATE, steps(1)[0])
    assert (positive.calls, negative.calls) == calls


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_kept_predictions_are_made_at_the_steps_that_say_so_and_change_nothing(scale: float):
    positive, negative = Counted(2.0), Counted(-1.0)
    plain, asked = guided(Counted(2.0), Counted(-1.0), scale), []

    def keep(step: Step) -> bool:
        asked.append((step.index, positive.calls, negative.calls))
        return step.index == 1

    kept = guided(positive, negative, scale, keep)
    for step in steps(3):
        assert torch.equal(kept(STATE, step), plain(STATE, step))
    alone = {0.0: (1, 3), 1.0: (3, 1)}
    assert (positive.calls, negative.calls) == alone.get(scale, (3, 3))
    assert [index for index, *_ in asked] == [0, 1, 2]


def test_a_prediction_that_is_kept_up_is_made_in_the_same_order():
    """Positive before negative at every step, so that whatever counts both sees one pattern."""
    order: list[str] = []

    def named(name: str):
        return lambda state, step: order.append(name) or state

    for scale in (0.0, 0.5, 1.0):
        guided(named("positive"), named("negative"), scale, lambda step: True)(STATE, steps(1)[0])
    assert order == ["positive", "negative"] * 3


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_equal_predictions_are_left_alone_by_any_scale(scale: float):
    assert torch.equal(guided(Counted(2.0), Counted(2.0), scale)(STATE, steps(1)[0]), 2.0 * STATE)


def test_raw_outputs_may_be_guided_because_the_weights_sum_to_one():
    angle, scale = 0.7, 2.5
    positive, negative = Counted(0.3), Counted(-0.8)

    def epsilon_of(velocity):
        return lambda state, step: math.sin(angle) * state + math.cos(angle) * velocity(state, step)

    step = steps(1)[0]
    guided_epsilon = guided(epsilon_of(positive), epsilon_of(negative), scale)(STATE, step)
    torch.testing.assert_close(guided_epsilon, epsilon_of(guided(positive, negative, scale))(STATE, step))


def test_guidance_nests():
    inner = guided(Counted(2.0), Counted(1.0), 3.0)  # 1 + 3 * (2 - 1) = 4
    torch.testing.assert_close(guided(inner, Counted(0.0), 0.5)(STATE, steps(1)[0]), 2.0 * STATE)


class Stacked:
    """The predictions `2 state` and `-state` in one call, stacked, which counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, state: torch.Tensor, step: Step) -> torch.Tensor:
        self.calls += 1
        return torch.cat([2.0 * state, -1.0 * state])


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0, lambda step: 2.0 + step.index])
def test_predictions_of_one_call_are_guided_as_those_of_two(scale):
    for step in steps(3):
        apart = guided(Counted(2.0), Counted(-1.0), scale)(STATE, step)
        together = guided_jointly(Stacked(), scale)(STATE, step)
        assert together.shape == STATE.shape
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-14)


def test_a_joint_prediction_is_made_at_every_step_and_weight_one_is_the_positive_bit_for_bit():
    both = Stacked()
    predict = guided_jointly(both, lambda step: float(step.index))
    results = [predict(STATE, step) for step in steps(3)]
    assert both.calls == 3
    assert torch.equal(results[0], -1.0 * STATE) and torch.equal(results[1], 2.0 * STATE)


def test_an_interval_costs_only_the_steps_inside_it():
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    positive, negative = Counted(0.1), Counted(0.2)
    sample(guided(positive, negative, interval(3.0, 0.2, 0.6)), scheduler, STATE, progress=False)
    assert (positive.calls, negative.calls) == (10, 4)


def test_interval_includes_its_start_and_excludes_its_stop():
    strength = interval(3.0, 0.25, 0.75)
    assert [strength(step) for step in steps(4)] == [1.0, 3.0, 3.0, 1.0]
    assert [interval(3.0)(step) for step in steps(2)] == [3.0, 3.0]


def test_a_ramp_reaches_both_ends_and_is_symmetric():
    assert [ramp(0.0, 4.0)(step) for step in steps(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]
    cosine = [ramp(5.0, 1.0, "cosine")(step) for step in steps(5)]
    assert cosine == pytest.approx([5.0, 3.0 + math.sqrt(2), 3.0, 3.0 - math.sqrt(2), 1.0])
    assert ramp(2.0, 5.0)(steps(1)[0]) == 2.0


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
def test_a_bad_number_is_refused_before_any_work(scale: float):
    for build in (
        lambda: guided(Counted(1.0), Counted(2.0), scale),
        lambda: guided_jointly(Stacked(), scale),
        lambda: interval(scale),
        lambda: ramp(1.0, scale),
    ):
        with pytest.raises(ValueError, match="finite and at least 0"):
            build()


def test_a_bad_scheduled_value_names_its_step_and_makes_no_prediction():
    positive, negative = Counted(1.0), Counted(2.0)
    predict = guided(positive, negative, lambda step: 1.0 - step.index)
    predict(STATE, steps(3)[1])
    with pytest.raises(ValueError, match=r"scale at step 3 of 3 .* got -1.0"):
        predict(STATE, steps(3)[2])
    assert (positive.calls, negative.calls) == (0, 1)


def test_a_bad_scheduled_value_stops_a_joint_prediction_too():
    both = Stacked()
    with pytest.raises(ValueError, match=r"scale at step 2 of 3 .* got nan"):
        guided_jointly(both, lambda step: math.nan)(STATE, steps(3)[1])
    assert both.calls == 0


def test_bad_schedules_are_refused():
    for start, stop in ((0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="0 <= start < stop <= 1"):
            interval(2.0, start, stop)
    with pytest.raises(ValueError, match="linear, cosine"):
        ramp(1.0, 2.0, "square")  # type: ignore[arg-type]


def test_each_sample_may_have_its_own_strength_and_is_then_what_it_is_alone():
    weights = torch.tensor([1.0, 3.0])
    for together in (
        guided(Counted(2.0), Counted(-1.0), lambda step: weights)(STATE, steps(1)[0]),
        guided_jointly(lambda state, step: torch.cat([2 * state, -state]), weights)(STATE, steps(1)[0]),
    ):
        for b, weight in enumerate(weights.tolist()):
            alone = guided(Counted(2.0), Counted(-1.0), weight)(STATE[b : b + 1], steps(1)[0])
            assert torch.equal(together[b], alone[0])
    both = [Counted(2.0), Counted(-1.0)]
    assert torch.equal(guided(*both, torch.ones(2))(STATE, steps(1)[0]), 2 * STATE) and both[1].calls == 0
    with pytest.raises(ValueError, match="guidance scale must be finite and at least 0, got tensor"):
        guided(*both, torch.tensor([1.0, -1.0]))
