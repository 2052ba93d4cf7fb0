"""The same intervention under families of diffusers pipelines that call their denoiser in different ways."""

from __future__ import annotations

import functools
import inspect

import pytest
import tiny_diffusers as tiny
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline

from gendiff.oracles.mode_world import ModeWorld
from gendiff.pipelines.lina_attach import attach
from gendiff.pipelines.lina_conditions import Conditions, prompt_conditions
from gendiff.pipelines.lina_families import denoisers, encode, valid_tokens
from gendiff.samplers.contrast import CausalContrast, contrasted
from gendiff.samplers.energy import EnergySteering
from gendiff.samplers.guidance import guided
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import sample
from gendiff.samplers.noise_levels import noise_level, noise_share
from gendiff.samplers.prompt_embeds import PromptEmbeds
from gendiff.samplers.warps import WarpSpec

# diffusers' schedulers hand tensors to numpy in the way of its first version.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT, OTHER = "a red ball on the left", "a red ball on the right"
WHOLE = (1.0, 0.0)


@functools.cache
def made(name, **settings):
    build, options = tiny.FAMILIES[name]
    return build(**settings), options


@pytest.fixture(params=tiny.FAMILIES)
def family(request):
    return made(request.param)


@pytest.fixture
def wan():
    return made("wan")


@pytest.fixture
def flux():
    return made("flux")


def run(family, prompt=PROMPT, steps=3, **options):
    pipe, small = family
    generator = torch.Generator().manual_seed(0)
    given = {**small, "generator": generator, "output_type": "latent", "return_dict": False, **options}
    return pipe(prompt, num_inference_steps=steps, **given)[0]


def conditions_of(family, prompt=PROMPT, other=OTHER, **options):
    pipe, small = family
    length = {"max_sequence_length": small["max_sequence_length"]} if "max_sequence_length" in small else {}
    return prompt_conditions(pipe, prompt, other, **length, **options)


def per_prompt(pipe, count):
    name = "num_videos_per_prompt" if "num_videos_per_prompt" in inspect.signature(pipe.__call__).parameters else ""
    return {name or "num_images_per_prompt": count}


@pytest.fixture
def told(monkeypatch):
    """`told(pipe)`: a list that grows by what a scheduler of the pipeline's class is told at each step."""

    def listen(pipe):
        kind, seen = type(pipe.scheduler), []
        plain = kind.step

        @functools.wraps(plain)
        def step(self, model_output, *args, **options):
            seen.append(model_output)
            return plain(self, model_output, *args, **options)

        monkeypatch.setattr(kind, "step", step)
        return seen

    return listen


def test_off_is_absent_and_on_leaves_nothing_behind(family):
    pipe = family[0]
    modules, scheduler, conditions = denoisers(pipe), pipe.scheduler, conditions_of(family)
    with tiny.counted(*modules) as plain_count:
        plain = run(family)
    with tiny.counted(*modules) as count, attach(pipe, Intervention(lam=1.0, gate=False), conditions):
        assert torch.equal(run(family), plain)
    assert (count.calls, count.rows) == (plain_count.calls, plain_count.rows)
    with attach(pipe, Intervention(lam=1.0), conditions):
        assert not torch.allclose(run(family), plain, atol=1e-3)
    assert pipe.scheduler is scheduler
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert torch.equal(run(family), plain)


def test_only_the_prompt_is_exchanged(family, told):
    pipe, calls = family[0], []
    denoiser = denoisers(pipe)[0]
    conditions = conditions_of(family)
    handle = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    seen = told(pipe)
    run(family, steps=1)
    args, kwargs = calls[0]
    with attach(pipe, Intervention(lam=2.0, window=WHOLE), conditions):
        run(family, steps=1)
    handle.remove()
    minus, pooled = conditions.counterfactual, "pooled_projections"
    both = len(kwargs["encoder_hidden_states"]) == 2  # rows: no prompt, prompt
    empty = kwargs["encoder_hidden_states"][:1] if both else minus.embeds[:0]
    kwargs = {**kwargs, "encoder_hidden_states": torch.cat([empty, minus.embeds])}
    if pooled in kwargs:
        kwargs[pooled] = torch.cat([kwargs[pooled][: len(empty)], minus.pooled])
    if kwargs.get("added_cond_kwargs"):
        texts = torch.cat([kwargs["added_cond_kwargs"]["text_embeds"][: len(empty)], minus.pooled])
        kwargs["added_cond_kwargs"] = {**kwargs["added_cond_kwargs"], "text_embeds": texts}
    with torch.no_grad():
        plus, minus = (denoiser(*args, **asked)[0][-1:] for asked in (calls[0][1], kwargs))
    torch.testing.assert_close(seen[1] - seen[0], 2 * (plus - minus), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("driver", ["batched", "two calls", "distilled", "distilled and guided"])
def test_the_term_is_the_same_for_all_scales_and_drivers(wan, flux, told, driver, scale):
    """One step from one start: what is added is lam * delta, and delta knows nothing of guidance."""
    family, options = (
        {
            "batched": made("sd3"),
            "two calls": wan,
            "distilled": made("flux", guidance_embeds=False),
            "distilled and guided": made("flux", guidance_embeds=False),
        }[driver],
        {"guidance_scale": scale},
    )
    if driver == "distilled and guided":
        options = {"true_cfg_scale": scale, "negative_prompt": "a blue mirror"}
    pipe, conditions = family[0], conditions_of(family)
    seen, terms = told(pipe), []
    for given in ({**options}, {"guidance_scale": 1.0}):
        run(family, steps=1, **given)
        with attach(pipe, Intervention(lam=0.5, window=WHOLE), conditions):
            run(family, steps=1, **given)
        terms.append(seen[-1] - seen[-2])
    assert terms[0].abs().max() > 1e-3
    torch.testing.assert_close(terms[0], terms[1], atol=1e-5, rtol=1e-5)


def test_rows_are_counted(family):
    pipe = family[0]
    two = per_prompt(pipe, 2)
    for intervention, given in [
        (Intervention(lam=1.0), conditions_of(family, factual_prompt="a red ball")),
        (Intervention(rho=0.1, window=WHOLE), Conditions(energy=EnergySteering(square, start=1.0))),
    ]:
        with tiny.counted(*denoisers(pipe)) as count, attach(pipe, intervention, given) as attached:
            run(family, **two)
        assert attached.rows == count.rows
        assert attached.nfe == count.rows / 2


def square(clean):
    return clean.flatten(1).square().mean(1)


def test_an_edited_prompt_is_as_if_it_were_the_prompt(family):
    pipe = family[0]
    prompt, edited = conditions_of(family).prompt, conditions_of(family, OTHER).prompt
    with attach(pipe, Intervention({"side": 1.0}, window=WHOLE), Conditions(prompt=prompt, edited=edited)):
        changed = run(family)
    assert torch.equal(changed, run(family, OTHER))
    assert not torch.equal(changed, run(family))


def test_a_missing_pooled_vector_is_named(family):
    pipe = family[0]
    conditions = Conditions(counterfactual=PromptEmbeds(conditions_of(family).counterfactual.embeds))
    if conditions_of(family).counterfactual.pooled is None:
        with attach(pipe, Intervention(lam=1.0), conditions):
            run(family)
        return
    message = f"{type(pipe).__name__} reads a pooled vector.*pooled_prompt_embeds"
    with pytest.raises(ValueError, match=message), attach(pipe, Intervention(lam=1.0), conditions):
        pass


def test_valid_tokens_are_those_of_the_text(family):
    pipe, small = family
    length = {"max_sequence_length": small["max_sequence_length"]} if "max_sequence_length" in small else {}
    said = encode(pipe, ["a ball", PROMPT], **length)
    valid = valid_tokens(pipe, ["a ball", PROMPT], said)
    assert valid.shape == said.embeds.shape[:2]
    assert valid.sum(1).tolist() == [4, 8]  # with the marks of begin and end


def test_flow_schedules_are_warped(flux, wan):
    intervention = Intervention(warp=WarpSpec("moebius", 2.0))
    for family in (flux, wan):
        pipe = family[0]
        run(family, steps=6)
        plain = pipe.scheduler.sigmas
        with attach(pipe, intervention) as attached:
            run(family, steps=6)
        assert (attached.scheduler.sigmas[1:-1] > plain[1:-1]).all()
        torch.testing.assert_close(attached.scheduler.sigmas[[0, -1]], plain[[0, -1]])
    with attach(flux[0], intervention), pytest.raises(ValueError, match="choose one"):
        run(flux, steps=2, sigmas=[1.0, 0.3])


def test_given_sigmas_reach_a_flow_scheduler(flux):
    plain = run(flux, sigmas=[1.0, 0.8, 0.3])
    assert not torch.equal(plain, run(flux))
    with attach(flux[0], Intervention(lam=1e-30), conditions_of(flux)):
        assert torch.equal(run(flux, sigmas=[1.0, 0.8, 0.3]), plain)


def test_a_distilled_model_has_a_guide_if_it_is_given_one(flux):
    pipe, contrast = flux[0], CausalContrast("clip", clip=0.5)
    conditions = conditions_of(flux, contrast=contrast)
    none = conditions_of(flux, "").prompt
    with attach(pipe, Intervention(lam=4.0), conditions), pytest.raises(ValueError, match=r"conditions\.unconditional"):
        run(flux)
    given = Conditions(counterfactual=conditions.counterfactual, unconditional=none, contrast=contrast)
    with attach(pipe, Intervention(lam=4.0, window=WHOLE), given) as attached:
        clipped = run(flux)
    assert attached.nfe == 3 * 3
    with attach(pipe, Intervention(lam=4.0, window=WHOLE), conditions_of(flux)):
        assert not torch.equal(clipped, run(flux))


def test_both_experts_are_heard():
    family = tiny.wan(boundary_ratio=0.9), tiny.FAMILIES["wan"][1]
    pipe = family[0]
    with (
        tiny.counted(pipe.transformer) as high,
        tiny.counted(pipe.transformer_2) as low,
        attach(pipe, Intervention(lam=1.0, window=WHOLE), conditions_of(family)) as attached,
    ):
        run(family, steps=4)
    assert high.rows and low.rows
    assert high.rows + low.rows == attached.rows == 3 * 4


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_a_walk_that_begins_in_the_midst_is_at_its_own_noise_levels(scheduler):
    pipe = tiny.stable_diffusion()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    conditions = prompt_conditions(pipe, PROMPT, OTHER)

    def run(**options):
        return pipe(PROMPT, image=image, strength=0.5, num_inference_steps=8, guidance_scale=1.0, **options)

    pipe.scheduler.set_timesteps(8)
    shares = [noise_share(noise_level(pipe.scheduler, step)) for step in steps_of(pipe.scheduler)][4:]
    inside = sum(0.45 >= share > 0.1 for share in shares)
    assert 0 < inside < 4
    with attach(pipe, Intervention(lam=1.0, window=(0.45, 0.1)), conditions) as attached:
        run(output_type="latent")
    assert attached.nfe == 4 + inside
    # The prompt's window opens and shuts at the same steps.
    heard = []
    given = Conditions(prompt=conditions.prompt, edited=conditions.counterfactual)
    with attach(pipe, Intervention({"side": 1.0}, window=(0.45, 0.1)), given):
        handle = pipe.unet.register_forward_pre_hook(
            lambda module, args, kwargs: heard.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
        run(output_type="latent")
        handle.remove()
    assert [torch.equal(one, given.edited.embeds) for one in heard] == [0.45 >= share > 0.1 for share in shares]


def steps_of(scheduler):
    from gendiff.samplers.loop import Step

    return [Step(i, len(scheduler.timesteps), timestep) for i, timestep in enumerate(scheduler.timesteps)]


@pytest.mark.parametrize(
    ("scale", "projection"),
    [(1.0, "none"), (1.0, "momentum"), (3.0, "none"), (3.0, "momentum"), (3.0, "orthogonal"), (3.0, "clip+orthogonal")],
)
def test_it_is_what_wrapped_predictors_do(scale, projection):
    """An exact network, once as a pipeline with `attach`, once as predictors around one another."""
    world = ModeWorld()
    pipe, contrast, intervention = world.pipeline(), CausalContrast(projection), Intervention(lam=1.5)
    prompt, other = world.prompt(2), world.counterfactual(2)
    noise = torch.randn(8, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 10, "guidance_scale": scale, "num_images_per_prompt": 8}
    with attach(pipe, intervention, prompt_conditions(pipe, prompt, other, contrast=contrast)):
        attached = pipe(prompt, latents=noise, **options).images

    scheduler = pipe.scheduler
    scheduler.set_timesteps(10)
    said = {text: world.predictor(text, scheduler) for text in (prompt, other, "")}
    predict = contrasted(
        guided(said[prompt], said[""], scale),
        said[prompt],
        said[other],
        contrast=contrast,
        intervention=intervention,
        share=lambda step: noise_share(noise_level(scheduler, step)),
        unconditional=said[""],
    )
    with torch.no_grad():
        wrapped = sample(predict, scheduler, noise, progress=False)
    torch.testing.assert_close(attached, wrapped, atol=1e-5, rtol=1e-5)
