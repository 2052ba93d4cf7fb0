"""Steps over hidden tokens: what is revealed when, and that it is drawn as the equations say."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from token_walks import ORACLE, ORDERS, PLANS, SIZES, N, V, Walk, check_walk, config, hiding, known, seeded, walk
from torch import Tensor

from gendiff.errors import NotFiniteError
from gendiff.samplers.masked import MaskedScheduler, MaskedState, staleness
from gendiff.samplers.recap import ReCAPConfig


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_every_walk_reveals_what_its_plan_says_and_changes_nothing_else(order: str, plan, sizes: list[int]):
    hidden, tokens = hiding(sizes, N), known()
    for schedule, guard, steps in (("cosine", "clamp", 6), ("arccos", "ceil", 20), ("pow2.5", "borrow_last", 9)):
        scheduler = MaskedScheduler(schedule, order, guard)
        record = walk(scheduler, ORACLE, hidden, steps, config(plan), seeded(), tokens)
        assert record.counts.shape[1] == min(steps, max(sizes))
        assert record.groups == scheduler.plan
        check_walk(record, hidden, tokens)


@pytest.mark.parametrize("options", [{}, {"resample_committed": True, "anneal_over": "group", "max_staleness": 0.0}])
@pytest.mark.parametrize("order", ORDERS)
def test_a_plan_without_light_steps_is_the_base_decoder_to_the_bit(order: str, options: dict[str, Any]):
    hidden, tokens, generators = hiding([16, 3, 9], N), known(), [seeded() for _ in range(4)]
    recaps = [None, ReCAPConfig(0, **options), ReCAPConfig(2, 6, **options), ReCAPConfig(3, 99, **options)]
    walks = [
        walk(MaskedScheduler(order=order), ORACLE, hidden, 6, recap, generator, tokens)
        for recap, generator in zip(recaps, generators, strict=True)
    ]
    for other, generator in zip(walks[1:], generators[1:], strict=True):
        assert torch.equal(other.tokens, walks[0].tokens)
        assert torch.equal(generator.get_state(), generators[0].get_state())
        assert all(torch.equal(a, b) for a, b in zip(other.said, walks[0].said, strict=True))
        assert other.groups == walks[0].groups == [[t] for t in range(6)]


# Orders that are known beforehand


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("order", ["halton", "random"])
def test_the_order_is_followed_and_upcoming_tells_it(order: str, plan):
    """Step t reveals pi[u - M_(t-1) : u - M_t] of the places that were hidden, in the order pi."""
    hidden, tokens = hiding([16, 3, 9], N), known()
    scheduler = MaskedScheduler(order=order)
    record = walk(scheduler, ORACLE, hidden, 6, config(plan), seeded(), tokens)
    orders = record.states[0].order.argsort(dim=1).tolist()
    places = [[place for place in orders[b] if hidden[b, place]] for b in range(len(hidden))]
    scheduler.set_timesteps(6, hidden.sum(dim=1), config(plan))
    done = [0] * len(hidden)
    for t, (before, after) in enumerate(pairwise(record.states)):
        told = scheduler.upcoming(before, t)
        for b, count in enumerate(record.counts[:, t].tolist()):
            expected = places[b][done[b] : done[b] + count]
            assert [place for place in told[b].tolist() if place >= 0] == expected
            assert sorted(expected) == (before.hidden & ~after.hidden)[b].nonzero().flatten().tolist()
            done[b] += count


def test_a_first_part_of_haltons_order_is_the_same_for_any_number_of_steps():
    hidden = torch.ones(1, N, dtype=torch.bool)
    firsts = []
    for steps in (2, 4, 16):
        record = walk(MaskedScheduler(order="halton"), ORACLE, hidden, steps, None, seeded())
        shown = [state.hidden.logical_not()[0] for state in record.states]
        firsts.append({int(after.sum()): after.nonzero().flatten().tolist() for after in shown})
    for few in firsts[:2]:
        assert all(firsts[2][count] == places for count, places in few.items())


def test_a_roll_starts_each_image_somewhere_else_in_the_same_order():
    hidden = torch.ones(8, N, dtype=torch.bool)
    plain = MaskedScheduler(order="halton").start(torch.zeros(8, N).long(), hidden).order.argsort(dim=1).tolist()
    rolled = MaskedScheduler(order="halton", halton_roll=True).start(torch.zeros(8, N).long(), hidden, seeded())
    rows = rolled.order.argsort(dim=1).tolist()
    assert len({tuple(row) for row in plain}) == 1 and len({tuple(row) for row in rows}) > 3
    for row in rows:
        start = plain[0].index(row[0])
        assert row == plain[0][start:] + plain[0][:start]


def test_random_orders_are_uniform():
    order = MaskedScheduler(order="random").start(
        torch.zeros(6000, 4).long(), torch.ones(6000, 4, dtype=torch.bool), seeded()
    )
    first = torch.bincount(order.order.argmin(dim=1), minlength=4)
    assert ((first - 1500).abs() < 5 * math.sqrt(6000 * 3 / 16)).all()


# Continuous tokens


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("order", ["halton", "random"])
def test_continuous_tokens_are_placed_where_they_were_asked_for(order: str, plan):
    hidden, channels = hiding([16, 3, 9], N), 2
    tokens = torch.randn(3, N, channels, generator=seeded(1))
    scheduler = MaskedScheduler(order=order)
    counts = scheduler.set_timesteps(6, hidden.sum(dim=1), config(plan))
    state = scheduler.start(tokens, hidden, seeded())
    for t in range(6):
        rows = scheduler.upcoming(state, t)
        # Each value says where it belongs and when it was drawn.
        values = torch.stack([rows.float(), torch.full(rows.shape, float(t))], dim=-1)
        before, state = state, scheduler.step(values, t, state).prev_sample
        new = before.hidden & ~state.hidden
        assert torch.equal(new.sum(dim=1), counts[:, t])
        assert torch.equal(state.tokens[~new], before.tokens[~new])
        assert torch.equal(state.tokens[new][:, 0].long(), new.nonzero()[:, 1])
        assert (state.tokens[new][:, 1] == t).all()
    assert not state.hidden.any() and torch.equal(state.tokens[~hidden], tokens[~hidden])
    assert scheduler.groups == scheduler.plan


def test_continuous_tokens_know_no_confidence_and_values_must_fit():
    tokens, hidden = torch.zeros(2, N, 3), torch.ones(2, N, dtype=torch.bool)
    with pytest.raises(ValueError, match="order must be halton or random for continuous tokens, got 'confidence'"):
        MaskedScheduler().start(tokens, hidden)
    scheduler = MaskedScheduler(order="random")
    scheduler.set_timesteps(4, [N, N])
    state = scheduler.start(tokens, hidden, seeded())
    with pytest.raises(ValueError, match=r"model_output must be \(2, 2, 3\), got \(2, 16, 3\)"):
        scheduler.step(torch.zeros(2, N, 3), 0, state)


# A bound on staleness


def test_a_bound_of_zero_ends_every_group_at_its_first_light_step_and_an_endless_one_none():
    hidden, tokens = hiding([16, 9], N), known(batch=2)
    scheduler = MaskedScheduler()
    fixed = walk(scheduler, ORACLE, hidden, 8, ReCAPConfig(3, 1), seeded(), tokens)
    endless = walk(scheduler, ORACLE, hidden, 8, ReCAPConfig(3, 1, max_staleness=math.inf), seeded(), tokens)
    strict = walk(scheduler, ORACLE, hidden, 8, ReCAPConfig(3, 1, max_staleness=0), seeded(), tokens)
    assert fixed.groups == endless.groups == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert torch.equal(fixed.tokens, endless.tokens)
    assert strict.groups == [[0], [1, 2], [3, 4], [5, 6], [7]]
    check_walk(strict, hidden, tokens)


def test_nothing_ends_where_nothing_changes():
    logits = torch.randn(2, N, V, generator=seeded(4))
    hidden = torch.ones(2, N, dtype=torch.bool)
    recap = ReCAPConfig(3, 0, max_staleness=0)
    record = walk(MaskedScheduler(), lambda *_: logits, hidden, 8, recap, seeded())
    assert record.groups == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert record.changes == [0.0] * 6


@pytest.mark.parametrize("bound", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("order", ORDERS)
def test_a_group_ends_at_the_light_step_whose_change_is_above_the_bound(order: str, bound: float):
    hidden, tokens = hiding([16, 9, 2], N), known()
    scheduler = MaskedScheduler(order=order, sampling_temperature=0.5)
    record = walk(scheduler, ORACLE, hidden, 12, ReCAPConfig(4, 1, max_staleness=bound), seeded(), tokens)
    check_walk(record, hidden, tokens)
    light = [step for group in record.groups for step in group[1:]]
    assert len(light) == len(record.changes)
    changes = dict(zip(light, record.changes, strict=True))
    for number, group in enumerate(record.groups[1:], 1):
        assert all(changes[step] <= bound for step in group[1:-1])
        ended = len(group) > 1 and changes[group[-1]] > bound
        whole = len(group) == 5 or number == len(record.groups) - 1
        assert ended or whole
    for group in record.groups:
        for step in group[1:]:
            assert changes[step] == pytest.approx(direct_change(record, group[0], step), abs=1e-4)


def direct_change(record: Walk, full: int, light: int) -> float:
    """KL of what the full step said of the rows still hidden from what the light step says, worst image's mean."""
    state, worst = record.states[light], 0.0
    for b, row in enumerate(state.group.tolist()):
        found = []
        for column, place in enumerate(row):
            if place >= 0 and state.hidden[b, place]:
                p = record.said[full][b, place].double().log_softmax(dim=0)
                q = record.said[light][b, column].double().log_softmax(dim=0)
                found.append(float((p.exp() * (p - q)).sum()))
        worst = max(worst, sum(found) / max(len(found), 1))
    return worst


def test_staleness_by_hand():
    p = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], [[1 / 3] * 3] * 2]).log()
    q = torch.tensor([[[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]], [[1 / 3] * 3] * 2]).log()
    kl, same = staleness(p, q, torch.tensor([[True, True], [False, False]]))
    assert kl.tolist() == pytest.approx([0.25 * math.log(2) / 2, 0.0], abs=1e-6)
    assert same.tolist() == [0.5, 1.0]
    assert staleness(p, q, torch.tensor([[True, False], [True, False]]))[0][0].item() == pytest.approx(
        0.25 * math.log(2), abs=1e-6
    )


# Guidance


def test_guidance_follows_what_is_revealed():
    scheduler = MaskedScheduler("linear", guidance_schedule="linear_revealed")
    scheduler.set_timesteps(4, [16, 16])
    assert scheduler.guidance(3.0) == pytest.approx([1.5, 2.0, 2.5, 3.0])
    scheduler.set_timesteps(4, [16, 8])
    assert scheduler.guidance(3.0) == pytest.approx([1.5, 2.0, 2.5, 3.0])
    scheduler.set_timesteps(4, [16, 2, 0])
    expected = [[1.5, 2.0, 1.0], [2.0, 3.0, 1.0]]
    assert [strength.tolist() for strength in scheduler.guidance(3.0)[:2]] == expected, "each by its own steps"
    assert scheduler.guidance(3.0)[3] == 3.0
    for name in ("constant", "linear_step", "linear_open", "power_cosine"):
        scheduler = MaskedScheduler(guidance_schedule=name)
        scheduler.set_timesteps(7, 256)
        assert scheduler.guidance(1.0) == [1.0] * 7
        assert len(scheduler.guidance(2.0)) == 7


# Errors


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("light", "message"), [(False, "step 1 of 4, a full one"), (True, "step 2 of 4, a light one")])
def test_logits_that_are_not_finite_name_the_step_and_its_kind(light: bool, message: str, value: float):
    calls = 0

    def broken(tokens: Tensor, hidden: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        said = ORACLE(tokens, hidden)
        if calls == 1 + light:
            said[1, :, 4] = value
        return said.half()

    hidden = torch.ones(2, N, dtype=torch.bool)
    with pytest.raises(NotFiniteError, match=rf"{message}, are not finite \(torch.float16\)") as error:
        walk(MaskedScheduler(), broken, hidden, 4, ReCAPConfig(1, 0), seeded())
    assert isinstance(error.value, RuntimeError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cos"}, "schedule must be one of cosine, .*, got 'cos'"),
        ({"order": "raster"}, "order must be one of confidence, halton, random, got 'raster'"),
        ({"guard": "none"}, "guard must be one of clamp, ceil, borrow_last, got 'none'"),
        ({"score": "prob"}, "score must be one of log_prob, logit, got 'prob'"),
        ({"sampling_schedule": "linear"}, "sampling_schedule must be one of constant, sqrt, annealed, got 'linear'"),
        ({"guidance_schedule": "none"}, "guidance_schedule must be one of constant, .*, got 'none'"),
        ({"confidence_temperature": -1}, r"confidence_temperature must be a number of at least 0, or .* got -1"),
        ({"confidence_temperature": [1.0]}, r"confidence_temperature must be .*, got \[1.0\]"),
        ({"confidence_temperature": (1.0, math.nan)}, r"confidence_temperature must be .*, got \(1.0, nan\)"),
        ({"confidence_temperature": "hot"}, "confidence_temperature must be .*, got 'hot'"),
        ({"confidence_temperature": None}, "confidence_temperature must be .*, got None"),
        ({"sampling_temperature": 0}, "sampling_temperature must be above 0 and finite, got 0"),
        ({"sampling_temperature": math.inf}, "sampling_temperature must be above 0 and finite, got inf"),
        ({"sampling_temperature": None}, "sampling_temperature must be above 0 and finite, got None"),
        ({"halton_roll": "yes"}, "halton_roll must be True or False, got 'yes'"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        MaskedScheduler(**options)


def test_halton_needs_a_square_grid():
    with pytest.raises(ValueError, match="order 'halton' needs a square grid, got 12 tokens"):
        MaskedScheduler(order="halton").start(torch.zeros(1, 12).long(), torch.ones(1, 12, dtype=torch.bool))


def test_what_confidence_will_reveal_is_not_known_before():
    scheduler = MaskedScheduler()
    scheduler.set_timesteps(4, [N])
    state = scheduler.start(torch.zeros(1, N).long(), torch.ones(1, N, dtype=torch.bool))
    with pytest.raises(ValueError, match="not known before it where confidence decides"):
        scheduler.upcoming(state, 0)


def test_settings_are_saved_and_read_again(tmp_path):
    scheduler = MaskedScheduler("pow2.5", "halton", "ceil", (2.0, 0.5), 0.8, "sqrt", "power_cosine", "logit", True)
    scheduler.save_pretrained(tmp_path)
    again = MaskedScheduler.from_pretrained(tmp_path)
    defaults = MaskedScheduler().config
    for name, value in scheduler.config.items():
        if not name.startswith("_"):
            assert value != defaults[name]
            found = again.config[name]
            assert (tuple(found) if isinstance(found, list) else found) == value
    hidden = hiding([16, 9], N)
    runs = [walk(one, ORACLE, hidden, 5, ReCAPConfig(1, 1), seeded()).tokens for one in (scheduler, again)]
    assert torch.equal(*runs)


def test_a_tuple_is_returned_on_request_and_nothing_is_asked_of_what_is_known():
    scheduler = MaskedScheduler()
    assert scheduler.set_timesteps(4, [0, 0]).shape == (2, 0)
    assert len(scheduler.timesteps) == 0 and scheduler.plan == []
    scheduler.set_timesteps(4, N)
    state = scheduler.start(torch.zeros(1, N).long(), torch.ones(1, N, dtype=torch.bool))
    returned = scheduler.step(torch.zeros(1, N, V), torch.tensor(0), state, seeded(), return_dict=False)
    assert isinstance(returned, tuple) and isinstance(returned[0], MaskedState)
    assert scheduler.scale_model_input(state, 0) is state


def test_what_every_token_would_be_is_returned_as_well():
    tokens, hidden = known(batch=2), hiding([9, 12], N)
    scheduler = MaskedScheduler()
    scheduler.set_timesteps(4, hidden.sum(dim=1))
    state = scheduler.start(tokens, hidden)
    output = scheduler.step(ORACLE(tokens, hidden), 0, state, seeded())
    new = hidden & ~output.prev_sample.hidden
    assert torch.equal(output.pred_original_sample[~hidden], tokens[~hidden])
    assert torch.equal(output.pred_original_sample[new], output.prev_sample.tokens[new])
    assert (output.pred_original_sample[hidden] != tokens[hidden]).any()
