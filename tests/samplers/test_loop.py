"""The contract of `sample`, and that nothing else in the library walks a scheduler."""

import ast
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

import gendiff
from gendiff.samplers.loop import Step, sample


class Countdown:
    """A scheduler-shaped toy: subtracts the prediction and records what it is asked."""

    def __init__(self, count=3):
        self.timesteps = torch.arange(count).flip(0) * 10
        self.log = []

    def step(self, prediction, timestep, state, return_dict=True, factor=1.0):
        self.log.append(("step", int(timestep)))
        return (state - factor * prediction,)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def one(state, step):
    return torch.ones_like(state)


def test_the_order_of_events_and_what_they_see():
    scheduler, seen = Countdown(3), []

    def predict(state, step):
        scheduler.log.append(("predict", int(step.timestep)))
        seen.append((step.index, step.count, step.progress, state.item()))
        return state / 2

    def on_step_end(step, state):
        scheduler.log.append(("end", int(step.timestep)))
        seen.append(state.item())

    assert sample(predict, scheduler, torch.tensor([8.0]), on_step_end=on_step_end, progress=False).item() == 1
    assert scheduler.log == [(event, t) for t in (20, 10, 0) for event in ("predict", "step", "end")]
    assert seen == [(0, 3, 0, 8), 4, (1, 3, 1 / 3, 4), 2, (2, 3, 2 / 3, 2), 1]


def test_callback_may_replace_the_state():
    def replace_first(step, state):
        return torch.tensor([100.0]) if step.index == 0 else None

    assert sample(one, Countdown(3), torch.tensor([0.0]), on_step_end=replace_first, progress=False).item() == 98


def test_callback_may_replace_the_last_state():
    final = sample(one, Countdown(2), torch.zeros(1), on_step_end=lambda step, state: state + 10, progress=False)
    assert final.item() == 18


def test_the_start_is_not_changed_in_place():
    start = randn(2, 3)
    before = start.clone()
    sample(one, Countdown(), start, progress=False)
    assert torch.equal(start, before)


def test_step_kwargs_reach_the_scheduler():
    assert sample(one, Countdown(3), torch.zeros(1), progress=False, factor=2.0).item() == -6


def test_scheduler_decides_what_the_predictor_sees():
    class Scaled(Countdown):
        def scale_model_input(self, state, timestep):
            return state * 0 + timestep

    seen = []
    sample(lambda x, step: seen.append(x.item()) or x * 0, Scaled(2), torch.ones(1), progress=False)
    assert seen == [10, 0]


def test_progress_may_be_any_wrapper():
    scheduler, passed = Countdown(4), []

    def bar(iterable):
        for item in iterable:
            yield item
            passed.append(int(item))

    sample(one, scheduler, torch.zeros(1), progress=bar)
    assert passed == [30, 20, 10, 0]


def test_progress_bar_is_shown_unless_switched_off(capfd):
    sample(one, Countdown(4), torch.zeros(1), progress=False)
    assert capfd.readouterr().err == ""
    sample(one, Countdown(4), torch.zeros(1))
    assert "4/4" in capfd.readouterr().err


def test_tuples_of_states_walk_together():
    class Swap(Countdown):
        def step(self, prediction, timestep, state, return_dict=True):
            x, (y, tokens) = state
            return ((y - prediction, (x, tokens + 1)),)

    start = (torch.zeros(2), (torch.ones(2), torch.zeros(3, dtype=torch.long)))
    x, (y, tokens) = sample(lambda state, step: 0.5, Swap(2), start, progress=False)
    assert torch.equal(x, torch.full((2,), -0.5)) and torch.equal(y, torch.full((2,), 0.5))
    assert torch.equal(tokens, torch.full((3,), 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_state_must_stay_finite(dtype, bad):
    scheduler = Countdown(5)

    def predict(state, step):
        return torch.full_like(state, bad if step.index == 2 else 0)

    with pytest.raises(FloatingPointError, match=rf"step 3 of 5 \(timestep 20, {dtype}\)"):
        sample(predict, scheduler, torch.zeros(2, dtype=dtype), progress=False)
    assert len(scheduler.log) == 3


def test_every_tensor_of_a_tuple_must_stay_finite():
    class Keep(Countdown):
        def step(self, prediction, timestep, state, return_dict=True):
            return (state,)

    for start in [
        (torch.zeros(2), torch.tensor(torch.nan)),
        (torch.zeros(2), (torch.zeros(2), torch.tensor(torch.inf))),
    ]:
        with pytest.raises(FloatingPointError, match="step 1 of 3"):
            sample(lambda state, step: 0, Keep(), start, progress=False)


@pytest.mark.parametrize("timesteps", [None, torch.empty(0)])
def test_missing_timesteps_are_named(timesteps):
    scheduler = Countdown()
    scheduler.timesteps = timesteps
    with pytest.raises(ValueError, match="Countdown has no timesteps; call set_timesteps"):
        sample(one, scheduler, torch.zeros(1), progress=False)


STOCHASTIC = [
    (DDIMScheduler(clip_sample=False), {"eta": 1.0}),
    (DDPMScheduler(clip_sample=False), {}),
    (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), {}),
]


@pytest.mark.parametrize("scheduler, kwargs", STOCHASTIC, ids=lambda value: type(value).__name__)
def test_a_list_of_generators_gives_each_sample_what_it_gets_alone(scheduler, kwargs):
    start, seeds = randn(3, 1, 4, 2), (7, 8, 9)

    def draw(state, generators):
        scheduler.set_timesteps(6)
        return sample(lambda x, step: 0.1 * x, scheduler, state, generator=generators, progress=False, **kwargs)

    together = draw(start, [torch.Generator().manual_seed(seed) for seed in seeds])
    alone = [draw(start[i : i + 1], [torch.Generator().manual_seed(seed)]) for i, seed in enumerate(seeds)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, draw(start, [torch.Generator().manual_seed(seed + 1) for seed in seeds]))


def test_noise_comes_from_the_generator_alone():
    scheduler, start = DDPMScheduler(clip_sample=False), randn(2, 1, 4, 2)
    results = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        scheduler.set_timesteps(4)
        generator = torch.Generator().manual_seed(3)
        results.append(sample(lambda x, step: 0 * x, scheduler, start, generator=generator, progress=False))
    assert torch.equal(*results)


def test_generator_is_kept_from_schedulers_that_draw_nothing():
    assert sample(one, Countdown(3), torch.zeros(1), generator=torch.Generator(), progress=False).item() == -3


def test_progress_of_a_step():
    assert [Step(i, 4, torch.tensor(0)).progress for i in range(4)] == [0, 0.25, 0.5, 0.75]


def walks(source):
    """Lines of Python `source` that walk a scheduler.

    That is a loop or comprehension over something's `.timesteps` (also through enumerate, zip or a progress bar),
    and a call `scheduler.step(prediction, timestep, ...)`, however the timesteps got there. A learning rate's
    `scheduler.step()` takes no arguments. A module of schedulers holds numbers and no network: it may go over its
    own grid to tabulate it. Comments and strings are no code.
    """
    nodes, found = list(ast.walk(ast.parse(source))), set()
    of_schedulers = any(
        isinstance(node, ast.ClassDef) and "SchedulerMixin" in map(ast.unparse, node.bases) for node in nodes
    )
    for node in nodes:
        if isinstance(node, ast.For | ast.comprehension) and not of_schedulers:
            found |= {node.iter.lineno for part in ast.walk(node.iter) if "timesteps" in names(part)}
        if isinstance(node, ast.Call) and "step" in names(node.func) and len(node.args) >= 2:
            owner = getattr(node.func, "value", None)
            found |= {node.lineno for name in names(owner) if name.endswith("scheduler")}
    return sorted(found)


def names(node):
    return [getattr(node, field) for field in ("attr", "id") if hasattr(node, field)]


@pytest.mark.parametrize(
    "source",
    [
        "for t in scheduler.timesteps: pass",
        "for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)): pass",
        "for t in reversed(s.timesteps[1:]): pass",
        "x = [f(t) for t in zip(s.timesteps, y)]",
        "timesteps = s.timesteps\nfor t in timesteps: pass",
        "while todo: x = pipe.scheduler.step(v, todo.pop(), x)[0]",
        "class S(SchedulerMixin): pass\nwhile todo: x = scheduler.step(v, todo.pop(), x)[0]",
    ],
)
def test_the_search_finds_walks(source):
    assert walks(source)


def test_the_search_passes_over_what_is_none():
    assert not walks(
        "# for t in scheduler.timesteps\nx = 'for t in s.timesteps:'\nlr_scheduler.step()\nn = len(s.timesteps)"
    )


def test_only_the_loop_walks_timesteps():
    package = Path(gendiff.__file__).parent
    found = {file.relative_to(package).as_posix(): walks(file.read_text()) for file in package.rglob("*.py")}
    assert [file for file, lines in found.items() if lines] == ["samplers/loop.py"]
