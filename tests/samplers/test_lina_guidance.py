"""The contrast as a guider, in a modular pipeline of diffusers as it is."""

from __future__ import annotations

import pytest
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.modular_pipelines import BlockState
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep

from gendiff.samplers.contrast import CausalContrast
from gendiff.samplers.lina_guidance import LINAGuidance
from gendiff.samplers.prompt_embeds import PromptEmbeds

WHOLE = (1.0, 0.0)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
    ).eval()
    for parameter in transformer.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    pipe = WanCoreDenoiseStep().init_pipeline()
    pipe.update_components(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def texts(count=3, rows=1):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 4, 8, generator=generator) for _ in range(count)]


def run(pipe, guider, steps=4, images=1):
    """Final latents, and how often the denoiser was called at each step."""
    calls = []
    pipe.update_components(guider=guider)
    handle = pipe.transformer.register_forward_hook(lambda module, args, output: calls.append(guider._step))
    prompt, negative, _ = texts()
    try:
        end = pipe(
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            num_inference_steps=steps,
            num_videos_per_prompt=images,
            height=16,
            width=16,
            num_frames=5,
            generator=torch.Generator().manual_seed(0),
            output="latents",
        )
    finally:
        handle.remove()
    return end, [calls.count(step) for step in range(steps)]


def guider_of(pipe, counterfactual=None, factual=None, **settings):
    guider = LINAGuidance(**settings)
    minus = texts()[2] if counterfactual is None else counterfactual
    guider.set_conditions(
        PromptEmbeds(minus), None if factual is None else PromptEmbeds(factual), scheduler=pipe.scheduler
    )
    return guider


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_without_strength_it_is_classifier_free_guidance(pipe, scale):
    plain, plain_calls = run(pipe, ClassifierFreeGuidance(guidance_scale=scale))
    for guider in (
        LINAGuidance(guidance_scale=scale),
        guider_of(pipe, guidance_scale=scale, lam=0.0),
        guider_of(pipe, guidance_scale=scale, lam=3.0, window=(0.001, 0.0)),
    ):
        end, calls = run(pipe, guider)
        assert torch.equal(end, plain)
        assert calls == plain_calls == [1 if scale == 1 else 2] * 4


def test_it_asks_once_more_inside_the_window_and_twice_with_a_factual_prompt(pipe):
    pipe.scheduler.set_timesteps(4)
    inside = [1.0 >= sigma > 0.8 for sigma in pipe.scheduler.sigmas[:-1]]
    assert inside == [True, True, False, False]
    _, calls = run(pipe, guider_of(pipe, guidance_scale=3.0, lam=1.0, window=(1.0, 0.8)))
    assert calls == [3, 3, 2, 2]
    _, calls = run(pipe, guider_of(pipe, None, texts()[0], guidance_scale=3.0, lam=1.0, window=(1.0, 0.8)))
    assert calls == [4, 4, 2, 2]
    _, calls = run(pipe, guider_of(pipe, guidance_scale=1.0, lam=1.0, window=(1.0, 0.8)))
    assert calls == [2, 2, 1, 1]


def test_stating_the_prompt_as_the_factual_one_changes_nothing(pipe):
    short, _ = run(pipe, guider_of(pipe, guidance_scale=3.0, lam=1.0), images=2)
    long, _ = run(pipe, guider_of(pipe, None, texts()[0], guidance_scale=3.0, lam=1.0), images=2)
    torch.testing.assert_close(short, long)
    swapped, _ = run(pipe, guider_of(pipe, texts()[0], texts()[2], guidance_scale=3.0, lam=1.0), images=2)
    assert not torch.allclose(short, swapped, atol=1e-2)


@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_the_term_is_lam_delta_whatever_guidance_says(pipe, scale, rescale):
    generator = torch.Generator().manual_seed(0)
    cond, uncond, minus = (torch.randn(2, 3, 4, generator=generator) for _ in range(3))
    uncond = None if scale == 1 else uncond
    plain = ClassifierFreeGuidance(guidance_scale=scale, guidance_rescale=rescale)
    guider = guider_of(pipe, guidance_scale=scale, guidance_rescale=rescale, lam=2.0, window=WHOLE)
    pipe.scheduler.set_timesteps(4)
    for one in (plain, guider):
        one.set_state(1, 4, pipe.scheduler.timesteps[1])
    added = guider.forward(cond, uncond, pred_neg=minus).pred - plain.forward(cond, uncond).pred
    torch.testing.assert_close(added, 2 * (cond - minus), atol=1e-5, rtol=1e-5)


def test_projections_and_momentum(pipe):
    generator = torch.Generator().manual_seed(0)
    cond, uncond, minus, last = (torch.randn(2, 3, 4, generator=generator) for _ in range(4))
    pipe.scheduler.set_timesteps(4)
    guider = guider_of(pipe, guidance_scale=3.0, lam=1.0, window=WHOLE, projection="orthogonal")
    guider.set_state(0, 4, pipe.scheduler.timesteps[0])
    added = guider.forward(cond, uncond, pred_neg=minus).pred - (uncond + 3 * (cond - uncond))
    assert ((added * (cond - uncond)).flatten(1).sum(1).abs() < 1e-4).all()
    with pytest.raises(ValueError, match="needs guidance_scale"):
        guider.forward(cond, pred_neg=minus)

    guider = guider_of(pipe, guidance_scale=1.0, lam=1.0, window=WHOLE, projection="momentum", momentum=0.5)
    for _ in range(2):  # a new run forgets the last one
        seen = []
        for step, other in enumerate((minus, last)):
            guider.set_state(step, 4, pipe.scheduler.timesteps[step])
            seen.append(guider.forward(cond, pred_neg=other).pred - cond)
        torch.testing.assert_close(seen[0], cond - minus)
        torch.testing.assert_close(seen[1], cond - last + 0.5 * (cond - minus))


def test_what_a_pipeline_hands_in_is_exchanged_by_name():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    guider = LINAGuidance(guidance_scale=3.0, lam=1.0)
    mask = torch.tensor([[1, 1, 1, 0]])
    embeds, negative, minus = texts(rows=2)
    guider.set_conditions(PromptEmbeds(minus[:1], torch.ones(1, 5), mask), scheduler=scheduler)
    guider.set_state(0, 2, scheduler.timesteps[0])
    pair = torch.zeros(2, 5), torch.zeros(2, 5)
    # As SDXL hands in its own, and another input that every batch shares.
    data = {"prompt_embeds": (embeds, negative), "text_embeds": pair, "time_ids": (torch.zeros(2, 6), torch.ones(2, 6))}
    cond, uncond, told = guider.prepare_inputs(data)
    assert torch.equal(told.prompt_embeds, minus[:1].expand(2, -1, -1))
    assert torch.equal(told.text_embeds, torch.ones(2, 5))
    assert torch.equal(told.time_ids, cond.time_ids)
    assert torch.equal(cond.prompt_embeds, embeds)
    assert torch.equal(uncond.prompt_embeds, negative)
    state = BlockState(embeds=embeds, other=negative, words=torch.ones(2, 4))
    fields = {"encoder_hidden_states": ("embeds", "other"), "encoder_hidden_states_mask": "words"}
    guider.set_conditions(PromptEmbeds(minus, mask=torch.zeros(2, 4)), scheduler=scheduler)
    told = guider.prepare_inputs_from_block_state(state, fields)[2]
    assert torch.equal(told.encoder_hidden_states, minus)
    assert torch.equal(told.encoder_hidden_states_mask, torch.zeros(2, 4))


def test_what_does_not_fit_is_named(pipe):
    with pytest.raises(ValueError, match="set_conditions was not called"):
        run(pipe, LINAGuidance(lam=1.0))
    with pytest.raises(ValueError, match=r"\(1, 4, 8\).*got \(1, 3, 8\)"):
        run(pipe, guider_of(pipe, texts()[2][:, :3], lam=1.0))
    guider = guider_of(pipe, lam=1.0)
    pipe.scheduler.set_timesteps(2)
    guider.set_state(0, 2, pipe.scheduler.timesteps[0])
    pooled = {"encoder_hidden_states": (texts()[0], texts()[1]), "text_embeds": (torch.zeros(1, 5),) * 2}
    with pytest.raises(ValueError, match="text_embeds"):
        guider.prepare_inputs(pooled)
    with pytest.raises(ValueError, match="no prompt"):
        guider.prepare_inputs({"image_embeds": (texts()[0], texts()[1])})
    for settings, message in [({"lam": -1.0}, "lam"), ({"window": (0.2, 0.5)}, "window"), ({"clip": 0.0}, "clip")]:
        with pytest.raises(ValueError, match=message):
            LINAGuidance(**settings)


def test_it_saves_loads_and_copies(pipe, tmp_path):
    settings = {"guidance_scale": 3.0, "lam": 1.5, "window": (0.9, 0.2), "projection": "clip", "clip": 2.0}
    guider = guider_of(pipe, **settings)
    guider.save_pretrained(tmp_path)
    loaded = LINAGuidance.from_pretrained(tmp_path)
    assert loaded.intervention == guider.intervention
    assert loaded.contrast == guider.contrast == CausalContrast("clip", 2.0)
    loaded.set_conditions(PromptEmbeds(texts()[2]), scheduler=pipe.scheduler)
    assert torch.equal(run(pipe, loaded)[0], run(pipe, guider)[0])
    assert guider.new(lam=3.0).intervention.lam == 3.0
    assert LINAGuidance.from_config(guider.config).intervention == guider.intervention
