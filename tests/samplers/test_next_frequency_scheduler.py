"""Drawing the codes of a stage: filters, one uniform number a token, and what stays when something is known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from gendiff.errors import NotFiniteError
from gendiff.samplers.next_frequency import (
    NextFrequencyScheduler,
    check_filters,
    draw_tokens,
    filter_logits,
    guidance_by_stage,
    gumbel_weights,
)

V = 24


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(batch: int = 3, count: int = 5, spread: float = 2.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(batch, count, V, generator=seeded(seed))


def step(given: Tensor, stage: int = 1, **options: Any) -> Tensor:
    options.setdefault("generator", seeded(0))
    return NextFrequencyScheduler((1, 2, 3)).step(given, stage, (), return_dict=False, **options)[0][-1]


# Filters


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (V, 0.0), (0, 1.0), (V, 1.0), (V + 5, 1.0)])
def test_filters_that_let_all_through_change_nothing(top_k: int, top_p: float):
    assert torch.equal(filter_logits(logits(), top_k, top_p), logits())


def test_the_k_best_are_kept_with_all_that_equal_the_last_of_them():
    kept = filter_logits(torch.tensor([0.0, 3.0, 1.0, 2.0, 2.0, -1.0]), 2, 0.0)
    assert kept.tolist() == [-math.inf, 3.0, -math.inf, 2.0, 2.0, -math.inf]
    for k in (1, 7, V - 1):
        filtered = filter_logits(logits(), k, 0.0)
        assert torch.equal(filtered.isfinite().sum(dim=-1), torch.full((3, 5), k))
        best = logits().topk(k, dim=-1).indices
        assert filtered.gather(-1, best).isfinite().all()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99])
def test_the_tail_of_probability_is_cut(top_p: float):
    filtered = filter_logits(logits(), 0, top_p)
    for row, found in zip(logits().flatten(0, 1), filtered.flatten(0, 1), strict=True):
        order = sorted(range(V), key=lambda code: row[code].item())
        probability, below, dropped = row.double().softmax(dim=0), 0.0, set()
        for code in order[:-1]:  # the best one stays whatever it weighs
            below += probability[code].item()
            if below <= 1 - top_p:
                dropped.add(code)
        assert {code for code in range(V) if found[code] == -math.inf} == dropped
        kept = [code for code in range(V) if code not in dropped]
        assert torch.equal(found[kept], row[kept])
        assert probability[kept].sum() >= top_p - 1e-6


def test_the_k_best_come_first_and_their_share_is_of_what_is_left():
    probability = torch.tensor([0.4, 0.3, 0.2, 0.1])
    both = filter_logits(probability.log(), 2, 0.6)
    # Of 0.4 and 0.3 alone, 0.3 / 0.7 is above 1 - 0.6; in all four, 0.1 + 0.2 is below 0.4 and 0.6 is not.
    assert both.isfinite().tolist() == [True, True, False, False]
    assert filter_logits(probability.log(), 2, 0.55).isfinite().tolist() == [True, False, False, False]
    assert filter_logits(probability.log(), 0, 0.55).isfinite().tolist() == [True, True, False, False]


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 0.0), (10, 0.7), (V - 1, 0.9), (1, 0.5), (0, 0.6)])
def test_ties_are_cut_as_one_row_after_another_would_be(top_k: int, top_p: float):
    whole = logits(seed=6).round()  # of few values, so that most rows are tied somewhere
    filtered = filter_logits(whole, top_k, top_p)
    assert torch.equal(filtered[filtered.isfinite()], whole[filtered.isfinite()])
    for row, found in zip(whole.flatten(0, 1), filtered.flatten(0, 1), strict=True):
        values = sorted(row.tolist(), reverse=True)
        values = [value for value in values if not top_k or value >= values[top_k - 1]]
        if top_p:
            probability, below = torch.tensor(values).double().softmax(dim=0), 0.0
            while len(values) > 1 and below + probability[len(values) - 1].item() <= 1 - top_p:
                below += probability[len(values) - 1].item()
                values.pop()
        assert sorted(found[found.isfinite()].tolist(), reverse=True) == values


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-12}, {"top_p": 1e-6}, {"temperature": 1e-6}])
def test_the_best_code_alone(options: dict):
    for seed in range(5):
        assert torch.equal(step(logits(), generator=seeded(seed), **options), logits().argmax(dim=-1))


def test_filters_that_let_all_through_draw_the_same():
    plain = step(logits())
    for options in ({"top_k": V}, {"top_p": 1.0}, {"top_k": V, "top_p": 1.0}, {"top_k": 0, "top_p": 0.0}):
        assert torch.equal(step(logits(), **options), plain)


def test_the_schedulers_own_filters_serve_a_call_that_names_none():
    scheduler = NextFrequencyScheduler((1, 2, 3), top_k=1)
    best = logits().argmax(dim=-1)
    assert torch.equal(scheduler.step(logits(), 1, (), seeded(0)).prev_sample[-1], best)
    drawn = [scheduler.step(logits(), 1, (), seeded(0), top_k=0).prev_sample[-1] for _ in range(2)]
    assert torch.equal(*drawn) and not torch.equal(drawn[0], best)
    wide = NextFrequencyScheduler((1, 2, 3), top_p=1e-9)
    assert torch.equal(wide.step(logits(), 1, (), seeded(0)).prev_sample[-1], best)
    # The 900 of published settings are for 4096 codes; a smaller book has no more than it has.
    published = NextFrequencyScheduler((1, 2, 3), top_k=900)
    assert torch.equal(published.step(logits(), 1, (), seeded(0)).prev_sample[-1], drawn[0])


# Draws


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 0.0, 1.0), (6, 0.0, 1.0), (0, 0.8, 1.0), (9, 0.9, 2.0)]
)
def test_codes_are_drawn_as_often_as_they_are_probable(top_k: int, top_p: float, temperature: float):
    count = 40_000
    row = logits(1, 1, spread=1.0)
    wide = row.expand(1, count, V)
    drawn = step(wide, top_k=top_k, top_p=top_p, temperature=temperature)[0]
    expected = filter_logits(row / temperature, top_k, top_p)[0, 0].double().softmax(dim=0)
    seen = drawn.bincount(minlength=V)
    assert not seen[expected == 0].any()
    allowed = expected > 0
    statistic = chisquare(seen[allowed].numpy(), (expected[allowed] / expected.sum() * count).numpy())
    assert statistic.pvalue > 0.01


@pytest.mark.parametrize("number", [0.0, 1e-30, 0.5, 1 - 2**-24, 0.99999999])
def test_a_masked_code_is_never_drawn_even_by_extreme_numbers(number: float, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, number))
    generator = torch.Generator().manual_seed(0)
    for size in (4, 1024, 4096):
        row = torch.randn(1, 1, size, generator=generator)
        for start, stop in ((0, size // 4), (size // 2, size), (1, size - 1), (1, size), (0, size - 1)):
            given = row.clone()
            given[..., start:stop] = -math.inf
            drawn = draw_tokens(given, None)
            assert drawn.shape == (1, 1) and given[0, 0, drawn.item()].isfinite()


def test_each_token_takes_one_number_of_the_generator():
    generator, other = seeded(7), seeded(7)
    step(logits(3, 5), generator=generator)
    torch.rand(3, 5, generator=other)
    assert torch.equal(generator.get_state(), other.get_state())


def test_with_a_generator_each_a_draw_does_not_depend_on_its_mates():
    together = step(logits(), generator=[seeded(seed) for seed in (5, 6, 7)])
    for row in range(3):
        assert torch.equal(step(logits()[row : row + 1], generator=[seeded(5 + row)])[0], together[row])
    assert torch.equal(step(logits(), generator=seeded(1)), step(logits(), generator=seeded(1)))
    assert not torch.equal(step(logits(spread=0.1), generator=seeded(1)), step(logits(spread=0.1), generator=seeded(2)))


def test_temperature_evens_out():
    cold, hot = (step(logits(1, 2000, seed=4), temperature=t) for t in (0.3, 3.0))
    best = logits(1, 2000, seed=4).argmax(dim=-1)
    assert (cold == best).float().mean() > 0.7 > 0.4 > (hot == best).float().mean()


def test_half_precision_logits_are_drawn_in_full():
    assert torch.equal(step(logits().half()), step(logits().half().float()))


# Weights for the eye


def test_smooth_weights_are_a_softmax_that_sharpens_from_stage_to_stage():
    largest = []
    for stage in range(3):
        weights = step(logits(), stage, smooth=True)
        ratio = stage / 2
        uniform = torch.rand(3, 5, V, generator=seeded(0))
        gumbel = -torch.log(-torch.log(uniform))
        tau = max(0.27 * (1 - 0.95 * ratio), 0.005)
        expected = ((logits() * (1 + ratio) + gumbel) / tau).softmax(dim=-1)
        torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 5))
        largest.append(weights.amax(dim=-1).mean().item())
    assert largest == sorted(largest) and largest[-1] > 0.99


def test_smooth_weights_keep_the_filters_and_the_generators():
    weights = step(logits(), smooth=True, top_k=3)
    assert not weights[filter_logits(logits(), 3, 0.0) == -math.inf].any()
    together = step(logits(), smooth=True, generator=[seeded(seed) for seed in (5, 6, 7)])
    assert torch.equal(step(logits()[1:2], smooth=True, generator=[seeded(6)])[0], together[1])


def test_weights_stay_finite_at_extreme_numbers(monkeypatch):
    for number in (0.0, 1 - 2**-24):
        monkeypatch.setattr(torch, "rand", lambda *shape, number=number, **_: torch.full(shape, number))
        assert gumbel_weights(filter_logits(logits(), 3, 0.0), 1.0, None).isfinite().all()


# What is known


@pytest.mark.parametrize("smooth", [False, True])
def test_known_tokens_take_the_place_of_drawn_ones(smooth: bool):
    tokens = torch.arange(15).view(3, 5)
    some = torch.tensor([[True, False, True, False, False]])
    free = step(logits(), smooth=smooth)
    whole = torch.nn.functional.one_hot(tokens, V).float() if smooth else tokens
    mixed = step(logits(), smooth=smooth, known=[None, (tokens, some), None])
    assert torch.equal(mixed[:, [0, 2]], whole[:, [0, 2]]) and torch.equal(mixed[:, [1, 3, 4]], free[:, [1, 3, 4]])
    each = torch.zeros(3, 5, dtype=torch.bool)
    each[1] = True
    mixed = step(logits(), smooth=smooth, known=[None, (tokens, each), None])
    assert torch.equal(mixed[1], whole[1]) and torch.equal(mixed[[0, 2]], free[[0, 2]])
    assert torch.equal(step(logits(), smooth=smooth, known=[(tokens, some), None, None]), free)


# The walk


def test_it_walks_the_stages_and_appends_their_codes(tmp_path):
    scheduler = NextFrequencyScheduler((1, 2, 4), top_k=5, top_p=0.9)
    assert scheduler.timesteps.tolist() == [0, 1, 2] and scheduler.num_stages == 3
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == [0, 1]
    scheduler.set_timesteps()
    assert scheduler.timesteps.tolist() == [0, 1, 2]
    first = (torch.zeros(3, 1, dtype=torch.int64),)
    second = scheduler.step(logits(3, 4), torch.tensor(1), first, seeded(0)).prev_sample
    assert len(second) == 2 and second[0] is first[0] and second[1].dtype == torch.int64
    assert scheduler.scale_model_input(second, torch.tensor(1)) is second
    scheduler.save_pretrained(tmp_path)
    loaded = NextFrequencyScheduler.from_pretrained(tmp_path)
    assert loaded.config["stages"] == [1, 2, 4] and loaded.config["top_k"] == 5 and loaded.config["top_p"] == 0.9


def test_guidance_grows_as_in_the_published_code():
    for cfg, count in itertools.product((0.0, 1.5, 4.0), (2, 6, 10)):
        weights = guidance_by_stage(1 + cfg, "linear", count)
        # (1 + t) cond - t unc with t = cfg k / (K - 1)
        assert weights == pytest.approx([1 + cfg * k / (count - 1) for k in range(count)])
    assert guidance_by_stage(2.5, "constant", 3) == [2.5, 2.5, 2.5]
    assert guidance_by_stage(2.5, [1, 0, 3.5], 3) == [1.0, 0.0, 3.5]
    assert guidance_by_stage(2.5, "linear", 1) == [2.5]  # a ramp of one step is at its end
    assert guidance_by_stage(0, "linear", 3) == [1.0, 0.5, 0.0]


# Bad input


GOOD: dict[str, Any] = {"scale": 2.5, "schedule": "linear"}
BAD_GUIDANCE = [
    ({"scale": math.nan}, "guidance_scale must be finite and at least 0, got nan"),
    ({"scale": math.inf}, "guidance_scale must be finite and at least 0, got inf"),
    ({"scale": -0.5}, "guidance_scale must be finite and at least 0, got -0.5"),
    ({"scale": "2"}, "guidance_scale must be finite and at least 0, got '2'"),
    ({"scale": None}, "guidance_scale must be finite and at least 0, got None"),
    ({"scale": math.nan, "schedule": "constant"}, "guidance_scale must be finite and at least 0, got nan"),
    ({"schedule": "cosine"}, "guidance_schedule must be one of linear, constant, or 3 numbers, got 'cosine'"),
    ({"schedule": [1.0, 2.0]}, r"guidance_schedule must be 3 numbers, one for each stage, .* got \[1.0, 2.0\]"),
    ({"schedule": [1.0, math.nan, 2.0]}, "guidance_schedule must be 3 numbers, .* finite and at least 0, got .*nan"),
    ({"schedule": [1.0, -1.0, 2.0]}, "guidance_schedule must be 3 numbers"),
    ({"schedule": [1.0, "2", 2.0]}, "guidance_schedule must be 3 numbers"),
]


@pytest.mark.parametrize(("options", "message"), BAD_GUIDANCE)
def test_bad_guidance_is_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        guidance_by_stage(**{**GOOD, **options}, num_stages=3)


BAD_STEPS = [
    ({"top_k": -1}, r"top_k must be a whole number from 0 \(off\) to 24, got -1"),
    ({"top_k": V + 1}, r"top_k must be a whole number from 0 \(off\) to 24, got 25"),
    ({"top_k": 2.0}, "top_k must be a whole number .* got 2.0"),
    ({"top_k": True}, "top_k must be a whole number .* got True"),
    ({"top_p": -0.1}, r"top_p must be from 0 \(off\) to 1, got -0.1"),
    ({"top_p": 1.1}, r"top_p must be from 0 \(off\) to 1, got 1.1"),
    ({"top_p": math.nan}, "top_p must be from 0 .* got nan"),
    ({"top_p": "all"}, "top_p must be from 0 .* got 'all'"),
    ({"temperature": 0.0}, "temperature must be above 0 and finite, got 0.0"),
    ({"temperature": -1}, "temperature must be above 0 and finite, got -1"),
    ({"temperature": math.nan}, "temperature must be above 0 and finite, got nan"),
    ({"temperature": math.inf}, "temperature must be above 0 and finite, got inf"),
    ({"temperature": "1"}, "temperature must be above 0 and finite, got '1'"),
]


@pytest.mark.parametrize(("options", "message"), BAD_STEPS)
def test_a_bad_step_is_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        step(logits(), **options)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_that_are_not_finite_are_named_with_their_stage(value: float, dtype: torch.dtype):
    spoiled = logits().to(dtype)
    spoiled[1, 2, 3] = value
    message = f"logits of stage 1 are not finite .{dtype}.: use float32 or bfloat16"
    for kind in (RuntimeError, FloatingPointError, NotFiniteError):
        with pytest.raises(kind, match=message):
            step(spoiled)


@pytest.mark.parametrize("count", [0, 4, -1, 2.0, True, "2"])
def test_a_bad_number_of_stages_is_named(count: Any):
    with pytest.raises(ValueError, match=f"num_stages must be a whole number from 1 to 3, got {count!r}"):
        NextFrequencyScheduler((1, 2, 3)).set_timesteps(count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": (2, 1)}, r"stages must be positive whole numbers that never decrease, got \[2, 1\]"),
        ({"top_k": -2}, r"top_k must be a whole number from 0 \(off\) to V, got -2"),
        ({"top_p": 2.0}, r"top_p must be from 0 \(off\) to 1, got 2.0"),
    ],
)
def test_a_bad_config_is_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        NextFrequencyScheduler(**options)


def test_good_filters_pass():
    for top_k, top_p in itertools.product((0, 1, V), (0, 0.5, 1)):
        check_filters(top_k, top_p, V)
