"""ReCAP's plan: which steps are full and which are light, what that costs, and its settings as words and numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gendiff.samplers.mask_schedules import reveal_counts
from gendiff.samplers.recap import ReCAPConfig, full_equivalents, group_stop, plan_groups

PUBLISHED = [
    # T, F, full and light steps, the whole in full steps, and over T: MaskGIT-r at 256 tokens, its recipe's counts.
    (32, 12, 22, 10, 22.9, 0.72),
    (24, 10, 17, 7, 17.9, 0.75),
    (20, 10, 15, 5, 15.8, 0.79),
    (16, 8, 12, 4, 12.8, 0.80),
    (16, 0, 8, 8, 9.0, 0.56),
]


@pytest.mark.parametrize(("steps", "warmup", "full", "light", "cost", "share"), PUBLISHED)
def test_published_plans_and_what_they_cost(steps, warmup, full, light, cost, share):
    groups = plan_groups(steps, ReCAPConfig(num_light_steps=1, num_warmup_groups=warmup))
    assert (len(groups), steps - len(groups)) == (full, light)
    counts = reveal_counts(steps, 256, "pow2.5", "borrow_last")
    found = full_equivalents(groups, counts, 256, prefix=1, rows=1)
    assert found == pytest.approx(cost, abs=0.05)
    assert found / steps == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("warmup", [0, 1, 3, 9, 40])
@pytest.mark.parametrize("light", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 16])
def test_groups_hold_every_step_once_and_light_ones_start_behind_the_warmup(steps: int, light: int, warmup: int):
    config = ReCAPConfig(num_light_steps=light, num_warmup_groups=warmup)
    groups = plan_groups(steps, config)
    assert [step for group in groups for step in group] == list(range(steps))
    for number, group in enumerate(groups):
        room = 1 + light if number >= warmup else 1
        assert len(group) == room or (number == len(groups) - 1 and 1 <= len(group) < room)
        assert group_stop(group[0], number, steps, config) == group[-1] + 1


@pytest.mark.parametrize("config", [None, ReCAPConfig(0), ReCAPConfig(0, 3), ReCAPConfig(4, 6), ReCAPConfig(4, 9)])
def test_no_light_steps_or_nothing_but_warmup_is_the_base_plan(config):
    assert plan_groups(6, config) == [[0], [1], [2], [3], [4], [5]]


def test_a_plan_by_hand():
    assert plan_groups(9, ReCAPConfig(2, 2)) == [[0], [1], [2, 3, 4], [5, 6, 7], [8]]
    assert plan_groups(5, ReCAPConfig(9, 0)) == [[0, 1, 2, 3, 4]]


def test_costs_by_hand():
    """N = 20, P = 4: a full step is 24 rows; light ones are 5 + 4 rows, twice, then 6 + 4 rows; or without prefix."""
    groups, counts = [[0], [1, 2, 3], [4, 5]], [9, 2, 1, 2, 3, 3]
    assert full_equivalents(groups, counts, 20, prefix=4, rows=4) == pytest.approx(3 + (2 * 9 + 10) / 24)
    assert full_equivalents(groups, counts, 20, prefix=4, rows=0) == pytest.approx(3 + (2 * 5 + 6) / 24)
    assert full_equivalents([[0], [1]], [10, 10], 20, prefix=4, rows=4) == 2


# Settings

OTHER = ReCAPConfig(
    num_light_steps=3,
    num_warmup_groups=2,
    recompute_prefix=False,
    light_head_steps=10,
    resample_committed=True,
    anneal_over="group",
    layout="concat",
    cache_dtype="bfloat16",
    max_staleness=0.25,
)


@pytest.mark.parametrize("config", [ReCAPConfig(), OTHER])
def test_settings_pass_through_json_and_through_words(config: ReCAPConfig):
    values = json.loads(json.dumps(config.to_dict()))
    assert ReCAPConfig.from_dict(values) == config
    assert ReCAPConfig.parse(",".join(f"{name}={value}" for name, value in values.items())) == config


def test_every_setting_of_the_other_one_differs_from_the_default():
    assert all(value != getattr(OTHER, name) for name, value in ReCAPConfig().to_dict().items())


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("", ReCAPConfig()),
        ("light=2", ReCAPConfig(2)),
        ("light=1,warmup=8", ReCAPConfig(1, 8)),
        (" light = 1 , warmup = 8 , ", ReCAPConfig(1, 8)),
        ("bound=0.5", ReCAPConfig(max_staleness=0.5)),
        ("bound=1e-3, recompute_prefix=False", ReCAPConfig(max_staleness=1e-3, recompute_prefix=False)),
        ("bound=inf", ReCAPConfig(max_staleness=float("inf"))),
        ("bound=none", ReCAPConfig()),
        ("layout=concat,anneal_over=group", ReCAPConfig(layout="concat", anneal_over="group")),
        ("cache_dtype=float16,resample_committed=TRUE", ReCAPConfig(cache_dtype="float16", resample_committed=True)),
    ],
)
def test_settings_from_words(text: str, config: ReCAPConfig):
    assert ReCAPConfig.parse(text) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_light_steps": -1}, "num_light_steps must be a whole number of at least 0, got -1"),
        ({"num_light_steps": 1.0}, "num_light_steps must be a whole number of at least 0, got 1.0"),
        ({"num_light_steps": True}, "num_light_steps must be a whole number of at least 0, got True"),
        ({"num_light_steps": None}, "num_light_steps must be a whole number of at least 0, got None"),
        ({"num_warmup_groups": -2}, "num_warmup_groups must be a whole number of at least 0, got -2"),
        ({"num_warmup_groups": "3"}, "num_warmup_groups must be a whole number of at least 0, got '3'"),
        ({"light_head_steps": 0}, "light_head_steps must be a whole number of at least 1, got 0"),
        ({"light_head_steps": 2.5}, "light_head_steps must be a whole number of at least 1, got 2.5"),
        ({"layout": "inplace"}, "layout must be one of in_place, concat, got 'inplace'"),
        ({"anneal_over": "steps"}, "anneal_over must be one of step, group, got 'steps'"),
        ({"cache_dtype": "fp16"}, "cache_dtype must be one of None, float32, bfloat16, float16, got 'fp16'"),
        ({"max_staleness": -0.1}, "max_staleness must be at least 0, got -0.1"),
        ({"max_staleness": float("nan")}, "max_staleness must be at least 0, got nan"),
        ({"max_staleness": "1"}, "max_staleness must be at least 0, got '1'"),
        ({"max_staleness": True}, "max_staleness must be at least 0, got True"),
        ({"recompute_prefix": 1}, "recompute_prefix must be True or False, got 1"),
        ({"resample_committed": "no"}, "resample_committed must be True or False, got 'no'"),
        ({"num_light_step": 1}, "recap has 'num_light_step'; known: num_light_steps, num_warmup_groups, "),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ReCAPConfig.from_dict(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("light", "recap must be name=value, separated by commas, got 'light'"),
        ("light=1 warmup=2", "num_light_steps must be a whole number of at least 0, got '1 warmup=2'"),
        ("lihgt=1", "recap has 'lihgt'; known: num_light_steps, "),
        ("light=", "num_light_steps must be a whole number of at least 0, got ''"),
        ("light=one", "num_light_steps must be a whole number of at least 0, got 'one'"),
        ("light=1.5", "num_light_steps must be a whole number of at least 0, got 1.5"),
        ("light=1,light=2", "recap says num_light_steps twice"),
        ("light=1,num_light_steps=2", "recap says num_light_steps twice"),
        ("recompute_prefix=maybe", "recompute_prefix must be True or False, got 'maybe'"),
    ],
)
def test_bad_words_are_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        ReCAPConfig.parse(text)


def test_only_light_steps_make_a_config_active():
    assert ReCAPConfig().active and not ReCAPConfig(num_light_steps=0).active
