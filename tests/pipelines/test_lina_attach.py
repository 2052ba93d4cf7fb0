"""An intervention under a pipeline of diffusers: exactly absent when off, exactly what it says when on, gone after."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import tiny_diffusers as tiny
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from gendiff.pipelines.lina_attach import attach
from gendiff.pipelines.lina_conditions import Conditions, prompt_conditions
from gendiff.samplers.contrast import CausalContrast
from gendiff.samplers.energy import EnergySteering
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.prompt_embeds import PromptEmbeds
from gendiff.samplers.warps import WarpSpec

# diffusers' schedulers hand tensors to numpy in the way of its first version.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT, OTHER = "a red ball on the left", "a red ball on the right"
GRID = [9.0, 3.0, 1.0, 0.3, 0.0]
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,
    "pndm": PNDMScheduler,
}


@pytest.fixture(scope="module")
def pipe():
    return tiny.stable_diffusion()


@pytest.fixture(autouse=True)
def plain_scheduler(request):
    pipe = request.getfixturevalue("pipe")
    before = pipe.scheduler
    yield
    pipe.scheduler = before


def run(pipe, prompt=PROMPT, steps=3, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    settings = {"height": 16, "width": 16, "guidance_scale": 3.0, "output_type": "latent", **options}
    return pipe(prompt, num_inference_steps=steps, generator=generator, **settings).images


def scheduler_of(name, pipe):
    # PNDM as Stable Diffusion uses it: its Runge-Kutta start needs four steps.
    given = {"skip_prk_steps": True} if name == "pndm" else {}
    return SCHEDULERS[name].from_config(pipe.scheduler.config, **given)


def hooks(module):
    return len(module._forward_hooks), len(module._forward_pre_hooks)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_off_is_absent(pipe, name):
    pipe.scheduler = scheduler = scheduler_of(name, pipe)
    with tiny.counted(pipe.unet) as plain_count:
        plain = run(pipe)
    conditions = prompt_conditions(pipe, PROMPT, OTHER)
    for off in (Intervention(), Intervention(lam=5.0, warp=WarpSpec("moebius", 3.0), gate=False)):
        with tiny.counted(pipe.unet) as count, attach(pipe, off, conditions) as attached:
            assert pipe.scheduler is scheduler
            assert hooks(pipe.unet) == (0, 0)
            assert torch.equal(run(pipe), plain)
        assert (count.calls, count.rows) == (plain_count.calls, plain_count.rows)
        assert attached.nfe is None


@pytest.mark.parametrize("name", SCHEDULERS)
def test_after_the_block_nothing_is_left(pipe, name):
    pipe.scheduler = scheduler = scheduler_of(name, pipe)
    plain, config = run(pipe), dict(pipe.config)
    with attach(pipe, Intervention(lam=1.0), prompt_conditions(pipe, PROMPT, OTHER)):
        assert pipe.scheduler is not scheduler
        assert isinstance(pipe.scheduler, SCHEDULERS[name])
        assert pipe.scheduler.config == scheduler.config
        changed = run(pipe)
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert pipe.scheduler is scheduler
    assert "step" not in vars(scheduler)
    assert dict(pipe.config) == config
    assert hooks(pipe.unet) == (0, 0)
    assert torch.equal(run(pipe), plain)


def test_after_an_exception_nothing_is_left(pipe):
    plain, scheduler = run(pipe), pipe.scheduler

    def fail(pipe, index, timestep, tensors):
        raise KeyboardInterrupt

    conditions = prompt_conditions(pipe, PROMPT, OTHER)
    with pytest.raises(KeyboardInterrupt), attach(pipe, Intervention(lam=1.0), conditions):
        run(pipe, callback_on_step_end=fail)
    assert pipe.scheduler is scheduler
    assert hooks(pipe.unet) == (0, 0)
    assert torch.equal(run(pipe), plain)
    with attach(pipe, Intervention(lam=1.0), conditions):
        run(pipe)


@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("images", [1, 2])
def test_the_term_is_lam_delta_whatever_guidance_says(pipe, scale, images):
    conditions, seen = prompt_conditions(pipe, PROMPT, OTHER), []
    pipe.scheduler = scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    plain_step = scheduler.step

    def spied(model_output, timestep, sample, **options):
        seen.append((model_output, timestep, sample))
        return plain_step(model_output, timestep, sample, **options)

    # The attached copy copies this as well, so it hears what the scheduler is told in the end.
    scheduler.step = spied
    run(pipe, steps=1, guidance_scale=scale, num_images_per_prompt=images)
    with attach(pipe, Intervention(lam=2.0, window=(1.0, 0.0)), conditions):
        run(pipe, steps=1, guidance_scale=scale, num_images_per_prompt=images)
    (plain, timestep, latents), (pushed, _, again) = seen
    assert torch.equal(latents, again)
    with torch.no_grad():
        said = [
            pipe.unet(latents, timestep, encoder_hidden_states=text.embeds.repeat(images, 1, 1)).sample
            for text in (conditions.prompt, conditions.counterfactual)
        ]
    torch.testing.assert_close(pushed - plain, 2.0 * (said[0] - said[1]), atol=1e-5, rtol=1e-5)


def test_rows_are_counted(pipe):
    conditions = prompt_conditions(pipe, PROMPT, OTHER)
    cases = [
        (Intervention(lam=1.0, window=(1.0, 0.4)), conditions),
        (Intervention(rho=0.1, window=(1.0, 0.0)), Conditions(energy=EnergySteering(square))),
        (Intervention(lam=1.0), prompt_conditions(pipe, PROMPT, OTHER, factual_prompt="a red ball")),
    ]
    for intervention, given in cases:
        with tiny.counted(pipe.unet) as count, attach(pipe, intervention, given) as attached:
            run(pipe, num_images_per_prompt=2)
            run(pipe, num_images_per_prompt=2)
        assert 2 * attached.rows == count.rows
        assert attached.nfe == count.rows / 4


def square(clean):
    return clean.flatten(1).square().mean(1)


def test_the_window_is_in_noise_shares(pipe):
    conditions = prompt_conditions(pipe, PROMPT, OTHER)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(6)
    shares = pipe.scheduler.sigmas[:-1] / (1 + pipe.scheduler.sigmas[:-1])
    inside = int(((shares <= 0.8) & (shares > 0.4)).sum())
    assert 0 < inside < 6
    with attach(pipe, Intervention(lam=1.0, window=(0.8, 0.4)), conditions) as attached:
        run(pipe, steps=6)
    assert attached.nfe == 12 + inside


@pytest.mark.parametrize(("name", "options"), [("ddim", {"eta": 1.0}), ("euler", {"sigmas": GRID})])
def test_options_of_the_scheduler_still_reach_it(pipe, name, options):
    pipe.scheduler = scheduler_of(name, pipe)
    with_options, without = run(pipe, **options), run(pipe)
    assert not torch.equal(with_options, without)
    # A term of 1e-30 changes no bit, but takes the whole way through the wrapped step.
    with attach(pipe, Intervention(lam=1e-30), prompt_conditions(pipe, PROMPT, OTHER)):
        assert torch.equal(run(pipe, **options), with_options)
        assert torch.equal(run(pipe), without)


def test_runs_are_reproducible(pipe):
    conditions = prompt_conditions(pipe, PROMPT, OTHER, contrast=CausalContrast("momentum"))
    with attach(pipe, Intervention(lam=1.0), conditions):
        first, other, again = run(pipe), run(pipe, seed=1), run(pipe)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_several_prompts_are_repeated_as_the_pipeline_repeats_its_own(pipe):
    prompts, others = [PROMPT, "a blue ball on the right"], [OTHER, "a blue ball on the left"]
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    intervention = Intervention(lam=1.0)
    with attach(pipe, intervention, prompt_conditions(pipe, prompts, others)):
        together = run(pipe, prompts, num_images_per_prompt=2, latents=noise)
    for i in range(2):
        with attach(pipe, intervention, prompt_conditions(pipe, prompts[i], others[i])):
            alone = run(pipe, prompts[i], num_images_per_prompt=2, latents=noise[2 * i : 2 * i + 2])
        torch.testing.assert_close(together[2 * i : 2 * i + 2], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_edited_prompt_is_as_if_it_were_the_prompt_and_only_inside_the_window(pipe, scale):
    conditions = prompt_conditions(pipe, PROMPT)
    edited = prompt_conditions(pipe, OTHER).prompt
    conditions = Conditions(prompt=conditions.prompt, edited=edited)
    everywhere, never = Intervention({"side": 1.0}, window=(1.0, 0.0)), Intervention({"side": 1.0}, window=(0.001, 0.0))
    for images in (1, 2):
        options = {"num_images_per_prompt": images, "guidance_scale": scale}
        with attach(pipe, everywhere, conditions):
            changed = run(pipe, **options)
        assert torch.equal(changed, run(pipe, OTHER, **options))
        with attach(pipe, never, conditions):
            assert torch.equal(run(pipe, **options), run(pipe, **options))
        with attach(pipe, Intervention({"side": 1.0}, window=(1.0, 0.5)), conditions):
            partly = run(pipe, **options)
        assert not torch.equal(partly, changed)
        assert not torch.equal(partly, run(pipe, **options))


def test_the_users_own_callback_is_called_as_ever(pipe):
    seen = []

    def watch(pipe, index, timestep, tensors):
        seen.append(sorted(tensors))
        return tensors

    conditions = Conditions(prompt=prompt_conditions(pipe, PROMPT).prompt, edited=prompt_conditions(pipe, OTHER).prompt)
    with attach(pipe, Intervention({"side": 1.0}, window=(1.0, 0.0)), conditions):
        changed = run(pipe, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    assert seen == [["latents", "prompt_embeds"]] * 3
    assert torch.equal(changed, run(pipe, OTHER))


def test_the_energy_goes_down(pipe):
    plain = run(pipe)
    intervention = Intervention(rho=0.3, window=(1.0, 0.0))
    with attach(pipe, intervention, Conditions(energy=EnergySteering(square, "size", start=1.0))):
        steered = run(pipe)
    assert square(steered) < square(plain)


def test_a_warp_moves_the_steps_and_refuses_a_grid_of_the_users(pipe):
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(3)
    sigmas = pipe.scheduler.sigmas
    with attach(pipe, Intervention(warp=WarpSpec("moebius", 2.0))) as attached:
        run(pipe)
        warped = attached.scheduler.sigmas
        with pytest.raises(ValueError, match=r"sigmas.*warp.*choose one"):
            run(pipe, sigmas=GRID)
    assert len(warped) == len(sigmas)
    assert torch.all(warped[1:-1] > sigmas[1:-1])
    assert attached.nfe == 6


def test_one_at_a_time(pipe):
    conditions = prompt_conditions(pipe, PROMPT, OTHER)
    with attach(pipe, Intervention(lam=1.0), conditions):
        for inner in (Intervention(lam=2.0), Intervention()):
            with pytest.raises(RuntimeError, match="already attached"), attach(pipe, inner, conditions):
                pass
    with attach(pipe, Intervention(lam=1.0), conditions):
        pass


def test_pipelines_without_a_route_are_refused(pipe, tiny_image_pipeline):
    with pytest.raises(TypeError, match="ImageGenerationPipeline offers no route"):
        ExitStack().enter_context(attach(tiny_image_pipeline(), Intervention(lam=1.0)))


def test_what_is_missing_is_named(pipe):
    embeds = prompt_conditions(pipe, PROMPT).prompt
    cases = [
        (Intervention(lam=1.0), None, "lam = 1 needs conditions.counterfactual"),
        (Intervention({"side": 0.5}), None, "conditions.edited"),
        (Intervention(rho=0.5), Conditions(counterfactual=embeds), "rho = 0.5 needs conditions.energy"),
    ]
    for intervention, conditions, message in cases:
        with pytest.raises(ValueError, match=message), attach(pipe, intervention, conditions):
            pass
    with pytest.raises(ValueError, match="edited must have the shape of prompt"):
        Conditions(prompt=embeds, edited=PromptEmbeds(embeds.embeds[:, :5]))


def test_embeddings_that_do_not_fit_are_named_with_both_shapes(pipe):
    embeds = prompt_conditions(pipe, PROMPT).prompt.embeds
    for wrong, message in [
        (embeds[:, :5], r"\(1, 12, 16\) torch.float32 on cpu, got \(1, 5, 16\)"),
        (embeds.double(), "float32.*got.*float64"),
    ]:
        conditions = Conditions(counterfactual=PromptEmbeds(wrong))
        with pytest.raises(ValueError, match=message), attach(pipe, Intervention(lam=1.0), conditions):
            run(pipe)
    conditions = prompt_conditions(pipe, [PROMPT, PROMPT], [OTHER, OTHER])
    with pytest.raises(ValueError, match="2 prompts do not divide"), attach(pipe, Intervention(lam=1.0), conditions):
        run(pipe)


def test_another_prompt_than_the_conditions_is_noticed(pipe):
    conditions = Conditions(prompt=prompt_conditions(pipe, PROMPT).prompt, edited=prompt_conditions(pipe, OTHER).prompt)
    with pytest.raises(ValueError, match="another prompt"), attach(pipe, Intervention({"side": 1.0}), conditions):
        run(pipe, "a blue mirror")


def test_a_projection_about_guidance_needs_some(pipe):
    conditions = prompt_conditions(pipe, PROMPT, OTHER, contrast=CausalContrast("clip"))
    with attach(pipe, Intervention(lam=1.0), conditions):
        run(pipe)
        with pytest.raises(ValueError, match="no unconditional prediction"):
            run(pipe, guidance_scale=1.0)


def test_a_pipeline_that_hands_in_the_negative_is_refused(pipe):
    conditions = prompt_conditions(pipe, PROMPT, OTHER)
    with attach(pipe, Intervention(lam=1.0), conditions):
        # Some pipelines of diffusers negate what their denoiser says; a later hook does the same here.
        handle = pipe.unet.register_forward_hook(lambda module, args, output: (-output[0],))
        try:
            with pytest.raises(TypeError, match="StableDiffusionPipeline hands something else"):
                run(pipe)
        finally:
            handle.remove()
