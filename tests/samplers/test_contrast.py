"""Causal contrast: projections, windows and masks, what it costs, and that it is the same under any guidance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gendiff.samplers.contrast import PROJECTIONS, CausalContrast, contrasted, difference
from gendiff.samplers.guidance import guided, guided_jointly
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import Step, sample
from gendiff.samplers.noise_levels import noise_level, noise_share
from gendiff.samplers.remembered import remembered

WINDOW = (1.0, 0.3)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


DELTA, GUIDE, STATE = randn(3, 2, 4, 5), randn(3, 2, 4, 5, seed=1), randn(3, 2, 4, 5, seed=2)


class Counted:
    """A fixed nonlinear function of the state, which counts its calls."""

    def __init__(self, seed: int):
        self.weight, self.calls = randn(2, 4, 5, seed=seed), 0

    def __call__(self, state: Tensor, step: Step) -> Tensor:
        self.calls += 1
        return (state * self.weight.to(state)).sin()


def steps(count: int) -> list[Step]:
    return [Step(index, count, torch.tensor(count - index)) for index in range(count)]


def even(step: Step) -> float:
    return 1 - step.progress


def flow(count: int) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - index / count for index in range(count)])
    return scheduler


def lengths(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)


def test_none_is_lam_times_delta_in_the_window_and_nothing_outside():
    contrast = CausalContrast()
    torch.testing.assert_close(contrast.term(DELTA, None, 0.7, 2.5, WINDOW), 2.5 * DELTA)
    for share, acts in ((1.0, 1), (1.0000001, 1), (0.31, 1), (0.3, 0), (0.1, 0)):
        assert torch.equal(contrast.term(DELTA, None, share, 1.0, WINDOW), acts * DELTA)
    assert not contrast.term(DELTA, None, 0.95, 1.0, (0.9, 0.3)).any()


@pytest.mark.parametrize("projection", ["orthogonal", "clip+orthogonal"])
@pytest.mark.parametrize("along", [0.0, 1.0, 1e4])
def test_orthogonal_leaves_nothing_along_the_guide_in_any_sample(projection: str, along: float):
    term = CausalContrast(projection, clip=0.5).term(DELTA + along * GUIDE, GUIDE, 0.9, 2.0, WINDOW)
    inner = (term * GUIDE).flatten(1).sum(1) / (lengths(term) * lengths(GUIDE))
    assert lengths(term).min() > 0.1 and inner.abs().max() < 1e-5


def test_orthogonal_keeps_what_is_orthogonal_already():
    part = CausalContrast("orthogonal").term(DELTA, GUIDE, 0.9, 1.0, WINDOW)
    torch.testing.assert_close(CausalContrast("orthogonal").term(part, GUIDE, 0.9, 1.0, WINDOW), part)
    unguided = torch.cat([torch.zeros_like(GUIDE[:1]), GUIDE[1:]])
    assert torch.equal(CausalContrast("orthogonal").term(DELTA, unguided, 0.9, 1.0, WINDOW)[0], DELTA[0])


@pytest.mark.parametrize("projection", ["clip", "clip+orthogonal"])
@pytest.mark.parametrize("lam", [0.1, 3.0, 100.0])
def test_clip_bounds_each_sample_and_leaves_short_ones_alone(projection: str, lam: float):
    scaled = DELTA * torch.tensor([0.01, 1.0, 30.0]).view(3, 1, 1, 1)
    term = CausalContrast(projection, clip=1.5).term(scaled, GUIDE, 0.9, lam, WINDOW)
    free = CausalContrast("orthogonal" if "orthogonal" in projection else "none").term(scaled, GUIDE, 0.9, lam, WINDOW)
    bound = 1.5 * lengths(GUIDE)
    assert (lengths(term) <= bound * (1 + 1e-6)).all()
    short = lengths(free) <= bound
    assert torch.equal(term[short], free[short])
    torch.testing.assert_close(lengths(term)[~short], bound[~short])
    assert not CausalContrast("clip").term(DELTA, torch.zeros_like(GUIDE), 0.9, lam, WINDOW).any()


def test_a_ramp_falls_evenly_through_the_window():
    contrast = CausalContrast(shape="ramp")
    weights = [contrast.weight(share, (0.9, 0.5)) for share in (0.95, 0.9, 0.7, 0.6, 0.5)]
    assert weights == pytest.approx([0, 1, 0.5, 0.25, 0])
    torch.testing.assert_close(contrast.term(DELTA, None, 0.7, 2.0, (0.9, 0.5)), DELTA)


def test_each_sample_may_have_its_own_strength():
    lam = torch.tensor([0.0, 1.0, 4.0])
    for projection in ("none", "clip+orthogonal"):
        contrast = CausalContrast(projection, clip=1.0)
        together = contrast.term(DELTA, GUIDE, 0.9, lam, WINDOW)
        for b, own in enumerate(lam.tolist()):
            alone = contrast.term(DELTA[b : b + 1], GUIDE[b : b + 1], 0.9, own, WINDOW)
            torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 5), (1, 1, 4, 5), (3, 1, 4, 5), (2, 4, 5)])
def test_a_mask_says_where(shape: tuple[int, ...]):
    mask = (randn(*shape, seed=3) > 0).float()
    torch.testing.assert_close(CausalContrast(mask=mask).term(DELTA, None, 0.9, 2.0, WINDOW), 2 * DELTA * mask)
    packed, rows = randn(3, 20, 8), torch.arange(20)[:, None] < 7
    assert torch.equal(CausalContrast(mask=rows).term(packed, None, 0.9, 1.0, WINDOW), packed * rows)


@pytest.mark.parametrize("shape", [(5, 4), (4, 1), (1, 1), (2, 1, 4, 5), (1, 3, 1, 4, 5)])
def test_a_mask_of_another_size_is_refused_with_both_shapes(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=rf"mask of shape \({shape[0]}, .*predictions of shape \(3, 2, 4, 5\)"):
        CausalContrast(mask=torch.ones(shape)).term(DELTA, None, 0.9, 1.0, WINDOW)


def test_a_mask_of_zeros_warns_and_skips_the_term():
    with pytest.warns(UserWarning, match=r"mask of shape \(4, 5\) is all zero"):
        contrast = CausalContrast(mask=torch.zeros(4, 5))
    assert not contrast.term(DELTA, None, 0.9, 1.0, WINDOW).any()
    base = Counted(1)
    assert contrasted(base, base, base, contrast=contrast, intervention=Intervention(lam=1.0), share=even) is base


def test_half_precision_is_computed_in_float32_and_comes_back_as_it_was():
    plus, minus = (256 + randn(2, 3, 4)).bfloat16(), (256 + randn(2, 3, 4, seed=4)).bfloat16()
    delta = difference(plus, minus)
    assert delta.dtype == torch.float32 and torch.equal(delta, plus.float() - minus.float())
    term = CausalContrast("orthogonal").term(DELTA.bfloat16(), GUIDE.bfloat16(), 0.9, 2.0, WINDOW)
    exact = CausalContrast("orthogonal").term(DELTA.bfloat16().double(), GUIDE.bfloat16().double(), 0.9, 2.0, WINDOW)
    assert term.dtype == torch.bfloat16 and exact.dtype == torch.float64
    torch.testing.assert_close(term, exact.bfloat16())
    said = contrasted(*three(), contrast=CausalContrast(), intervention=Intervention(lam=1.0), share=even)
    assert said(STATE.bfloat16(), steps(2)[0]).dtype == torch.bfloat16


def three() -> tuple[Counted, Counted, Counted]:
    return Counted(1), Counted(2), Counted(3)


def test_predictions_that_differ_in_kind_are_refused_with_both():
    for other, named in (
        (DELTA[:2], r"\(2, 2, 4, 5\) torch.float32"),
        (DELTA.double(), r"\(3, 2, 4, 5\) torch.float64"),
    ):
        with pytest.raises(ValueError, match=rf"got \(3, 2, 4, 5\) torch.float32 on cpu and {named}"):
            difference(DELTA, other)
    with pytest.raises(ValueError, match=r"on cpu and .* on meta"):
        difference(DELTA, DELTA.to("meta"))


@pytest.mark.parametrize("intervention", [Intervention(), Intervention(lam=2.0, gate=False), Intervention(rho=1.0)])
def test_without_strength_or_with_a_shut_gate_nothing_is_wrapped(intervention: Intervention):
    base = Counted(1)
    assert contrasted(base, *three()[1:], contrast=CausalContrast(), intervention=intervention, share=even) is base


def test_contrast_is_paid_for_inside_its_window_only():
    base, plus, minus = three()
    null = Counted(4)
    make = {"intervention": Intervention(lam=1.0, window=(0.9, 0.3)), "share": even, "unconditional": null}
    walk = contrasted(base, plus, minus, contrast=CausalContrast(), **make)
    for step in steps(10):
        said = walk(STATE, step)
        if not 0.9 >= even(step) > 0.3:
            assert torch.equal(said, Counted(1)(STATE, step))
    assert (base.calls, plus.calls, minus.calls, null.calls) == (10, 6, 6, 0)
    contrasted(base, plus, minus, contrast=CausalContrast("clip"), **make)(STATE, steps(10)[2])
    assert null.calls == 1


def test_a_remembered_network_is_shared_by_guidance_and_contrast():
    conditional, null, minus = three()
    plus, base = remembered(conditional), remembered(null)
    walk = contrasted(
        guided(plus, base, 3.0),
        plus,
        minus,
        contrast=CausalContrast("clip+orthogonal"),
        intervention=Intervention(lam=1.0, window=(1.0, 0.5)),
        share=even,
        unconditional=base,
    )
    for step in steps(10):
        walk(STATE, step)
    assert (conditional.calls, null.calls, minus.calls) == (10, 10, 5)


@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("projection", ["none", "clip+orthogonal"])
def test_the_added_term_is_the_same_under_any_guidance_and_any_driver(scale: float, projection: str):
    conditional, null, minus = three()
    contrast, intervention, step = CausalContrast(projection), Intervention(lam=2.0), steps(4)[1]
    make: dict[str, Any] = {
        "contrast": contrast, "intervention": intervention, "share": even, "unconditional": null
    }  # fmt: skip
    plus, base = conditional(STATE, step), null(STATE, step)
    term = contrast.term(difference(plus, minus(STATE, step)), difference(plus, base), even(step), 2.0, WINDOW)
    expected = base + scale * (plus - base) + term

    def both(state: Tensor, at: Step) -> Tensor:
        return torch.cat([conditional(state, at), null(state, at)])

    def rows(state: Tensor, at: Step) -> Tensor:
        """The term is added to each row, as from outside a pipeline."""
        return both(state, at) + torch.cat([term, term])

    def pushed(predictor: Callable[[Tensor, Step], Tensor]) -> Callable[[Tensor, Step], Tensor]:
        return contrasted(predictor, conditional, minus, **make)

    drivers = {
        "two calls": pushed(guided(conditional, null, scale)),
        "one batched call": pushed(guided_jointly(both, scale)),
        "rows": guided_jointly(rows, scale),
        "each side pushed": guided(pushed(conditional), pushed(null), scale),
        "distilled": pushed(lambda state, at: base + scale * (plus - base)),
    }
    for name, driver in drivers.items():
        torch.testing.assert_close(driver(STATE, step), expected, rtol=0, atol=1e-5, msg=name)


def test_swapped_prompts_push_the_other_way():
    base, plus, minus = three()
    make: dict[str, Any] = {"contrast": CausalContrast(), "intervention": Intervention(lam=1.5), "share": even}
    step = steps(3)[0]
    there = contrasted(base, plus, minus, **make)(STATE, step) - base(STATE, step)
    back = contrasted(base, minus, plus, **make)(STATE, step) - base(STATE, step)
    torch.testing.assert_close(there, -back, rtol=0, atol=1e-6)


def test_momentum_sums_up_along_a_walk_and_forgets_at_its_start():
    base, plus, minus = three()
    contrast = CausalContrast("momentum", momentum=-0.5)
    walk = contrasted(base, plus, minus, contrast=contrast, intervention=Intervention(lam=2.0), share=even)
    states = [randn(3, 2, 4, 5, seed=10 + index, dtype=torch.float64) for index in range(4)]
    for _ in range(2):  # two walks of one predictor
        running = torch.zeros_like(states[0])
        for state, step in zip(states, steps(10), strict=False):
            running = plus(state, step) - minus(state, step) - 0.5 * running
            torch.testing.assert_close(walk(state, step), base(state, step) + 2 * running)


def test_a_walk_with_contrast_and_a_real_scheduler_differs_only_from_inside_the_window_on():
    base, plus, minus = three()
    scheduler = flow(8)
    intervention = Intervention(lam=1.0, window=(0.7, 0.3))
    walk = contrasted(
        base,
        plus,
        minus,
        contrast=CausalContrast(),
        intervention=intervention,
        share=lambda step: noise_share(noise_level(scheduler, step)),
    )
    seen: list[list[Tensor]] = []
    for predict in (base, walk):
        seen.append([])
        sample(predict, scheduler, STATE, progress=False, on_step_end=lambda step, state: seen[-1].append(state))
        scheduler.set_timesteps(sigmas=[1 - index / 8 for index in range(8)])
    same = [torch.equal(a, b) for a, b in zip(*seen, strict=True)]
    assert same == [True] * 3 + [False] * 5  # s = 1, .875, .75 lie above the window


def test_settings_survive_json_and_bad_ones_are_refused():
    contrast = CausalContrast("momentum", clip=2.0, momentum=0.25, shape="ramp")
    assert CausalContrast.from_json(contrast.to_json()) == contrast and hash(contrast) == hash(CausalContrast(
        "momentum", clip=2.0, momentum=0.25, shape="ramp"))  # fmt: skip
    assert CausalContrast(mask=torch.ones(2, 2)) == CausalContrast()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"projection": "square"}, "projection must be one of none, .* got 'square'"),
        ({"shape": "cosine"}, "shape must be one of box, ramp, got 'cosine'"),
        ({"clip": 0.0}, "clip must be finite and above 0, got 0.0"),
        ({"momentum": 1.0}, r"momentum must be in \(-1, 1\), got 1.0"),
        ({"mask": torch.tensor([0.0, math.nan])}, r"mask must lie within \[0, 1\]"),
        ({"mask": torch.tensor([0.0, 2.0])}, "got values from 0 to 2"),
        ({"strength": 2.0}, "a contrast has no 'strength'; known: projection"),
    ]
    for values, message in wrong:
        with pytest.raises(ValueError, match=message):
            CausalContrast.from_dict(values) if "mask" not in values else CausalContrast(**values)


@pytest.mark.parametrize("lam", [-1.0, math.inf, math.nan, torch.tensor([1.0, -1.0, 0.0])])
def test_a_bad_strength_is_refused(lam: float | Tensor):
    with pytest.raises(ValueError, match=r"lam must be finite and at least 0, got .*; swap"):
        CausalContrast().term(DELTA, None, 0.9, lam, WINDOW)
    with pytest.raises(ValueError, match=r"lam must be one number or \(3,\).* got \(2,\)"):
        CausalContrast().term(DELTA, None, 0.9, torch.ones(2), WINDOW)


@pytest.mark.parametrize("projection", [name for name in PROJECTIONS if "clip" in name or "orthogonal" in name])
def test_a_projection_on_the_guide_needs_one(projection: str):
    with pytest.raises(ValueError, match="needs the guide"):
        CausalContrast(projection).term(DELTA, None, 0.9, 1.0, WINDOW)
    with pytest.raises(ValueError, match=r"guide has shape \(2, 2, 4, 5\)"):
        CausalContrast(projection).term(DELTA, GUIDE[:2], 0.9, 1.0, WINDOW)
    base = Counted(1)
    with pytest.raises(ValueError, match="pass unconditional"):
        contrasted(
            base, base, base, contrast=CausalContrast(projection), intervention=Intervention(lam=1.0), share=even
        )
    assert base.calls == 0


def test_remembered_asks_again_where_the_answer_may_differ():
    network = Counted(1)
    ask, (first, second) = remembered(network), steps(2)
    state = STATE.clone()
    assert ask(state, first) is ask(state, Step(0, 2, torch.tensor(2))) and network.calls == 1
    expected = [lambda: ask(state, second), lambda: ask(state.clone(), second), lambda: ask(state.mul_(2), second)]
    for count, again in enumerate(expected, start=2):
        again()
        assert network.calls == count
    leaf = STATE.clone().requires_grad_()
    with torch.no_grad():
        assert not ask(leaf, first).requires_grad
    assert ask(leaf, first).requires_grad
    with torch.inference_mode():
        inside = STATE + 0
        assert torch.equal(ask(inside, first), network(STATE, first))
        assert ask(inside, first) is ask(inside, first)
    pair = (STATE, STATE.clone())
    twice = remembered(lambda both, step: both[0] + both[1])
    assert twice(pair, first) is twice(pair, first)
    pair[1].zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(twice(pair, first), STATE)
