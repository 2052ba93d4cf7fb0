"""Light steps in the pipeline: which branch is asked for what, what a cache keeps, and what callbacks see."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_masked import ORDERS, Calls, N, V, draw, seeded
from torch import Tensor

import gendiff
from gendiff.samplers.mask_schedules import reveal_counts
from gendiff.samplers.recap import ReCAPConfig, plan_groups

GUIDANCE = ["constant", "linear_step", "linear_open", "linear_revealed", "power_cosine"]

# Calls and caches


def planned(steps: int, recap: ReCAPConfig | None) -> dict[str, list[int]]:
    """Rows of each full and each light call of a branch that is asked at every step."""
    counts, prefix = reveal_counts(steps, N), 0 if recap is None or not recap.recompute_prefix else 1
    groups = plan_groups(steps, recap)
    light = [prefix + sum(counts[step] for step in group) for group in groups for _ in group[1:]]
    return {"full": [1 + N] * len(groups), "light": light}


@pytest.mark.parametrize(
    "recap",
    [
        None,
        ReCAPConfig(2, 2),
        ReCAPConfig(3, 1, recompute_prefix=False),
        ReCAPConfig(1, 0, layout="concat"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_each_branch_is_asked_as_planned(tiny_masked_pipeline, order, recap):
    pipe = tiny_masked_pipeline(scheduler={"order": order, "guidance_schedule": "constant"})
    calls = Calls(pipe)
    output = draw(pipe, recap=recap, guidance_scale=3.0)
    plan = planned(6, recap)
    assert output.stats.plan["calls"] == {"conditional": plan, "unconditional": plan}
    assert output.stats.plan["groups"] == plan_groups(6, recap)
    assert output.stats.network_calls == len(calls) == 12
    assert calls.labels == [[0, 1, 2], [3, 3, 3]] * 6
    widths = [0 if rows is None else rows.shape[1] for rows in calls.rows[::2]]
    prefix = 0 if recap is None or not recap.recompute_prefix else 1
    assert [prefix + width for width in widths if width] == plan["light"]
    assert [width == 0 for width in widths] == [step == group[0] for group in plan_groups(6, recap) for step in group]
    assert all(a is b or torch.equal(a, b) for a, b in zip(calls.rows[::2], calls.rows[1::2], strict=True))
    single = draw(pipe, recap=recap, guidance_scale=1.0).stats
    assert single.plan["calls"] == {"conditional": plan, "unconditional": {"full": [], "light": []}}
    assert output.stats.flops == 2 * single.flops
    assert output.stats.cache_bytes == 2 * single.cache_bytes


def test_light_steps_cost_their_share_of_rows(tiny_masked_pipeline):
    """Blocks and head do the same for each row, so FLOPs are rows; attention reads all keys."""
    pipe = tiny_masked_pipeline(long_skips=False)
    base = draw(pipe, guidance_scale=1.0).stats
    light = draw(pipe, guidance_scale=1.0, recap=ReCAPConfig(1, 0)).stats
    assert base.plan["revealed"][0] == [1, 2, 2, 3, 4, 4]
    assert light.plan["calls"]["conditional"] == {"full": [17] * 3, "light": [1 + 3, 1 + 5, 1 + 8]}
    rows = sum(sum(kind) for kind in light.plan["calls"]["conditional"].values())
    assert light.flops / base.flops == pytest.approx(rows / (6 * 17), rel=0.02)


@pytest.mark.parametrize("name", GUIDANCE)
def test_the_other_branch_is_also_asked_where_it_is_not_heard_if_a_light_step_will_read_its_cache(
    tiny_masked_pipeline, name
):
    pipe = tiny_masked_pipeline(scheduler={"guidance_schedule": name})
    calls = Calls(pipe)
    stats = draw(pipe, recap=ReCAPConfig(1, 0), guidance_scale=3.0).stats
    assert (stats.plan["guidance"][0] == 1) == (name in ("linear_step", "linear_open", "power_cosine"))
    assert stats.plan["calls"]["unconditional"] == stats.plan["calls"]["conditional"]
    assert calls.labels == [[0, 1, 2], [3, 3, 3]] * 6
    warm = draw(pipe, recap=ReCAPConfig(1, 1), guidance_scale=3.0).stats.plan
    missing = 1 if warm["guidance"][0] == 1 else 0
    assert len(warm["calls"]["conditional"]["full"]) - len(warm["calls"]["unconditional"]["full"]) == missing
    assert warm["calls"]["unconditional"]["light"] == warm["calls"]["conditional"]["light"]


def test_guidance_that_starts_at_one_is_that_of_two_whole_walks(tiny_masked_pipeline):
    """Each step by hand: full and light logits of both branches, weighed by that step's own strength."""
    pipe = tiny_masked_pipeline(dtype=torch.float64, scheduler={"order": "halton", "sampling_temperature": 1e-5})
    recap = ReCAPConfig(1, 0)
    output = draw(pipe, [1], recap=recap, guidance_scale=4.0)
    weights = output.stats.plan["guidance"]
    assert weights == pytest.approx([1.0, 1.6, 2.2, 2.8, 3.4, 4.0])
    scheduler, network = type(pipe.scheduler).from_config(pipe.scheduler.config), pipe.transformer
    scheduler.set_timesteps(6, N, recap)
    state = scheduler.start(torch.zeros(1, N, dtype=torch.long), torch.ones(1, N, dtype=torch.bool))
    conditions = [torch.tensor([1]), torch.tensor([3])]
    caches = [network.make_cache() for _ in conditions]
    for t in range(6):
        rows = state.group if state.group.shape[1] else None
        with torch.no_grad():
            wanted, other = (
                network(state.tokens, state.hidden, condition, cache=cache, rows=rows).sample
                for condition, cache in zip(conditions, caches, strict=True)
            )
        state = scheduler.step(other + weights[t] * (wanted - other), t, state, seeded()).prev_sample
    assert torch.equal(output.tokens, state.tokens)


@pytest.mark.parametrize("recompute", [True, False])
def test_rows_outside_of_the_group_stay_as_the_full_step_left_them(tiny_masked_pipeline, recompute):
    pipe = tiny_masked_pipeline(scheduler={"guidance_schedule": "constant"})
    calls, made, seen = Calls(pipe), [], []
    make = pipe.transformer.make_cache

    def spy(*args: Any, **kwargs: Any) -> Any:
        made.append(make(*args, **kwargs))
        return made[-1]

    pipe.transformer.make_cache = spy

    def look(pipe: Any, step: int, timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        kept = [[torch.stack(c.keys_values.read(layer)).clone() for layer in range(3)] for c in made]
        seen.append((inputs["light"], calls.rows[-1], kept))
        return {}

    recap = ReCAPConfig(2, 0, recompute_prefix=recompute)
    draw(pipe, recap=recap, guidance_scale=3.0, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["light"])
    assert len(made) == 2 and made[0] is not made[1]
    assert made[0].keys_values is not made[1].keys_values
    assert [light for light, *_ in seen] == [False, True, True] * 2
    for (_, _, before), (light, rows, after) in pairwise(seen):
        if not light:
            continue
        for branch in range(2):
            for old, new in zip(before[branch], after[branch], strict=True):
                for b in range(3):
                    group = [1 + place for place in rows[b].tolist() if place >= 0] + ([0] if recompute else [])
                    outside = [row for row in range(1 + N) if row not in group]
                    assert torch.equal(old[:, b, :, outside], new[:, b, :, outside])
                    assert not torch.equal(old[:, b, :, group], new[:, b, :, group])
    first, second = seen[0][2]
    assert not torch.equal(first[1], second[1]), "the branches have read different conditions"


def test_a_cache_may_be_kept_in_half_precision(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    whole = draw(pipe, recap=ReCAPConfig()).stats.cache_bytes
    assert draw(pipe, recap=ReCAPConfig(cache_dtype="bfloat16")).stats.cache_bytes * 2 == whole
    assert whole == 2 * 2 * 3 * 3 * (1 + N) * 16 * 4  # branches, keys and values, blocks, images, rows, width, bytes


# ReCAP on the network, callbacks, staleness


def test_recap_is_enabled_for_a_network_and_disabled_again(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    plain = draw(pipe)
    wanted = draw(pipe, recap=ReCAPConfig(2, 1))
    gendiff.enable_recap(pipe.transformer, ReCAPConfig(2, 1))
    enabled = draw(pipe)
    assert torch.equal(enabled.tokens, wanted.tokens) and enabled.stats.plan["groups"] == [[0], [1, 2, 3], [4, 5]]
    assert enabled.stats.plan["recap"] == ReCAPConfig(2, 1).to_dict()
    assert draw(pipe, recap=ReCAPConfig(1, 0)).stats.plan["groups"] == [[0, 1], [2, 3], [4, 5]], "the call wins"
    assert torch.equal(draw(pipe, recap=ReCAPConfig(0)).tokens, plain.tokens)
    gendiff.disable_recap(pipe.transformer)
    assert torch.equal(draw(pipe).tokens, plain.tokens) and "recap" not in draw(pipe).stats.plan
    gendiff.disable_recap(pipe.transformer)


def test_enabling_twice_replaces_and_says_so(tiny_masked_pipeline, caplog):
    pipe = tiny_masked_pipeline()
    gendiff.enable_recap(pipe.transformer)
    with caplog.at_level("INFO"):
        gendiff.enable_recap(pipe.transformer, ReCAPConfig(3, 2))
    assert "replaces the old one" in caplog.text
    assert draw(pipe).stats.plan["recap"] == ReCAPConfig(3, 2).to_dict()


def test_callbacks_see_every_step_full_or_light_and_revealed_tokens_never_change(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    seen: list[dict[str, Any]] = []

    def look(pipe: Any, step: int, timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        seen.append({"step": step, **{name: value for name, value in inputs.items()}})
        return inputs

    output = draw(
        pipe,
        recap=ReCAPConfig(2, 1),
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=["latents", "hidden", "light"],
    )
    assert [one["step"] for one in seen] == list(range(6))
    assert [one["light"] for one in seen] == [False, False, True, True, False, True]
    for t, one in enumerate(seen):
        assert torch.equal(one["latents"] == V, one["hidden"])
        assert torch.equal(one["hidden"], output.revealed_at > t)
        assert torch.equal(one["latents"][~one["hidden"]], output.tokens[~one["hidden"]])
    assert torch.equal(output.tokens, draw(pipe, recap=ReCAPConfig(2, 1)).tokens), "handing back changes nothing"


def test_a_callback_may_replace_what_is_revealed_but_not_reveal(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()

    def all_threes(pipe: Any, step: int, timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.full_like(inputs["latents"], 3)}

    output = draw(pipe, recap=ReCAPConfig(1, 0), callback_on_step_end=all_threes)
    assert (output.tokens == 3).all()
    assert sorted(output.revealed_at[0].unique().tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda tokens: tokens.float(), r"latents must be \(3, 16\) torch.int64, got \(3, 16\) torch.float32"),
        (lambda tokens: tokens[:1], r"latents must be \(3, 16\) torch.int64, got \(1, 16\) torch.int64"),
        (lambda tokens: torch.full_like(tokens, V), "latents must be from 0 to 15 where tokens are not hidden"),
        (lambda tokens: torch.full_like(tokens, -1), "latents must be from 0 to 15 where tokens are not hidden"),
    ],
)
def test_what_a_callback_hands_back_is_checked(tiny_masked_pipeline, replace, message):
    with pytest.raises(ValueError, match=message):
        draw(
            tiny_masked_pipeline(), callback_on_step_end=lambda p, i, t, inputs: {"latents": replace(inputs["latents"])}
        )


def test_staleness_is_measured_against_full_passes_and_changes_nothing(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline(scheduler={"guidance_schedule": "constant"})
    recap = ReCAPConfig(2, 1)
    generators = [seeded(), seeded()]
    plain = draw(pipe, recap=recap, generator=generators[0])
    states: list[tuple[Tensor, Tensor]] = []
    measured = draw(
        pipe,
        recap=recap,
        generator=generators[1],
        measure_staleness=True,
        callback_on_step_end=lambda p, i, t, inputs: states.append((inputs["latents"], inputs["hidden"])) or {},
        callback_on_step_end_tensor_inputs=["latents", "hidden"],
    )
    assert torch.equal(plain.tokens, measured.tokens)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert measured.stats.network_calls == plain.stats.network_calls and measured.stats.flops == plain.stats.flops
    found = measured.stats.plan["staleness"]
    assert [one["step"] for one in found] == [2, 3, 5]
    assert all(one["kl"] > 1e-4 and 0 <= one["top1_agreement"] <= 1 for one in found), "context was reused"
    # By hand, of the first light step: the cache is that of step 1's input.
    cache = pipe.transformer.make_cache()
    labels, group = torch.tensor([0, 1, 2]), (plain.revealed_at >= 1) & (plain.revealed_at <= 3)
    rows = group.int().argsort(dim=1, descending=True, stable=True)[:, : int(group.sum(dim=1)[0])]
    with torch.no_grad():
        pipe.transformer(states[0][0].clamp(max=V - 1), states[0][1], labels, cache=cache)
        tokens, hidden = states[1][0].clamp(max=V - 1), states[1][1]
        light = pipe.transformer(tokens, hidden, labels, cache=cache, rows=rows).sample.double().log_softmax(-1)
        full = pipe.transformer(tokens, hidden, labels).sample.double().log_softmax(-1)
    full = full.gather(1, rows[..., None].expand(-1, -1, V))
    counted = hidden.gather(1, rows)
    kl = (full.exp() * (full - light)).sum(dim=-1)[counted].mean().item()
    assert found[0]["kl"] == pytest.approx(kl, rel=1e-3)


def test_a_bound_on_staleness_ends_groups_early_and_says_what_it_measured(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    strict = draw(pipe, recap=ReCAPConfig(4, 0, max_staleness=0.0))
    assert strict.stats.plan["groups"] == [[0, 1], [2, 3], [4, 5]]
    assert len(strict.stats.plan["measured_change"]) == 3
    loose = draw(pipe, recap=ReCAPConfig(4, 0, max_staleness=1e9))
    fixed = draw(pipe, recap=ReCAPConfig(4, 0))
    assert loose.stats.plan["groups"] == fixed.stats.plan["groups"] == [[0, 1, 2, 3, 4], [5]]
    assert torch.equal(loose.tokens, fixed.tokens) and "measured_change" not in fixed.stats.plan
    assert strict.stats.flops > fixed.stats.flops
    calls = strict.stats.plan["calls"]["conditional"]
    assert (len(calls["full"]), len(calls["light"])) == (3, 3)
