"""The text-to-image pipeline: interventions that are exactly absent when off, and each prompt by itself."""

from __future__ import annotations

import pytest
import torch

import gendiff
from gendiff.models.lina_predictor import LINAPredictor
from gendiff.pipelines.lina import LINAPipeline
from gendiff.pipelines.lina_steered import SteeredPipeline
from gendiff.samplers.action_box import PRESETS
from gendiff.samplers.contrast import CausalContrast
from gendiff.samplers.energy import EnergySteering
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.warps import WarpSpec

PROMPTS = [
    "a tall red pole, low sun on the right, a plant near left",
    "a short blue pole, high sun on the left, a plant far right",
]
STRONG = Intervention(lam=2.0, window=(1.0, 0.4))


def draw(pipe, prompt=PROMPTS, **arguments):
    count = (1 if isinstance(prompt, str) else len(prompt)) * arguments.get("num_images_per_prompt", 1)
    generator = [torch.Generator().manual_seed(i) for i in range(count)]
    return pipe(prompt, **{"num_inference_steps": 4, "generator": generator, "output_type": "latent", **arguments})


@pytest.fixture
def tiny_lina():
    from gendiff.data.shadow_world import ShadowWorld
    from gendiff.training.lina import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = build({"transformer": {"num_layers": 1, "num_attention_heads": 2}}, ShadowWorld(num_images=96))
        # Zero at first, which would hide every mistake.
        torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.3)
    return pipe


@pytest.fixture
def pipe(tiny_lina):
    tiny_lina.set_progress_bar_config(disable=True)
    return tiny_lina


@pytest.mark.parametrize(
    "identity", [Intervention(), Intervention(lam=5.0, gate=False), Intervention(window=(0.9, 0.1))]
)
def test_the_identity_changes_no_bit_and_costs_nothing(pipe, identity):
    plain, same = draw(pipe, intervention="off"), draw(pipe, intervention=identity)
    assert torch.equal(plain.images, same.images)
    assert plain.stats.network_calls == same.stats.network_calls and plain.nfe == same.nfe == [8.0, 8.0]


def test_each_strength_changes_the_images(pipe):
    plain = draw(pipe, intervention="off").images
    for one in (STRONG, Intervention(alpha={"side": 0.5}), Intervention(warp=WarpSpec("moebius", 2.0))):
        assert (draw(pipe, intervention=one).images - plain).abs().mean() > 1e-4


def test_contrast_costs_one_row_in_each_step_of_the_window(pipe):
    output = draw(pipe, intervention=STRONG)
    active = sum(STRONG.acts_at(share) for share in output.schedule[0])
    assert 0 < active < 4
    assert output.nfe == [8.0 + active] * 2


def test_a_warp_keeps_number_and_start_of_the_steps(pipe):
    plain, warped = (draw(pipe, intervention=one) for one in ("off", Intervention(warp=WarpSpec("moebius", 2.0))))
    assert len(plain.schedule[0]) == len(warped.schedule[0]) == 4
    assert plain.schedule[0][0] == warped.schedule[0][0] == 1.0
    assert warped.schedule[0][1] > plain.schedule[0][1]


def test_prompts_with_interventions_of_their_own_are_drawn_as_alone(pipe):
    ones = [STRONG, Intervention(alpha={"side": 0.5}, warp=WarpSpec("moebius", 2.0))]
    together = draw(pipe, intervention=ones, num_images_per_prompt=2)
    for i, one in enumerate(ones):
        generator = [torch.Generator().manual_seed(2 * i + k) for k in range(2)]
        alone = draw(pipe, PROMPTS[i], intervention=one, num_images_per_prompt=2, generator=generator)
        assert (together.images[2 * i : 2 * i + 2] - alone.images).abs().max() < 1e-5
        assert together.interventions[i] == one and together.nfe[i] == alone.nfe[0]


def test_guidance_and_contrast_add_up(pipe):
    """The term on top of guidance is lam * delta, whatever the strength of guidance."""
    noise = torch.randn(2, *pipe.sample_shape, generator=torch.Generator().manual_seed(5))
    for scale in (1.0, 3.0, 8.0):
        images = [
            draw(pipe, num_inference_steps=1, intervention=one, guidance_scale=scale, latents=noise).images
            for one in (Intervention(), Intervention(lam=1.0), Intervention(lam=2.0))
        ]
        # One step from s = 1 to 0 is linear in the prediction.
        assert (images[2] - images[0] - 2 * (images[1] - images[0])).abs().max() < 1e-5
        assert (images[1] - images[0]).abs().max() > 1e-4


def test_what_the_grammar_contrasts_can_be_said_by_hand(pipe):
    other = [text.replace("right", "LEFT").replace("left", "right").replace("LEFT", "left") for text in PROMPTS]
    given = draw(pipe, intervention=STRONG, counterfactual_prompt=other).images
    # Flipping the sun alone is the grammar's own choice; `other` moves the plant as well.
    assert (given - draw(pipe, intervention=STRONG).images).abs().max() > 1e-5
    flipped = [
        "a tall red pole, low sun on the left, a plant near left",
        "a short blue pole, high sun on the right, a plant far right",
    ]
    assert torch.equal(
        draw(pipe, intervention=STRONG, counterfactual_prompt=flipped).images, draw(pipe, intervention=STRONG).images
    )


def test_an_untrained_predictor_is_the_identity(pipe):
    width = pipe.text_encoder.config.hidden_size
    pipe.register_modules(predictor=LINAPredictor(width, PRESETS["small"].box(["side"]).to_dict()))
    automatic, plain = draw(pipe), draw(pipe, intervention="off")
    assert torch.equal(automatic.images, plain.images) and automatic.nfe == plain.nfe
    assert automatic.interventions == [Intervention()] * 2


def test_an_open_gate_applies_what_the_predictor_says(pipe):
    predictor = LINAPredictor(pipe.text_encoder.config.hidden_size, PRESETS["small"].box(["side"]).to_dict())
    with torch.no_grad():
        predictor.out.bias.copy_(torch.tensor([0.0, 0.3, 0.0, 0.0, 0.0, 5.0]))
    pipe.register_modules(predictor=predictor)
    output = draw(pipe)
    assert output.interventions[0].lam == pytest.approx(8 * torch.tensor(0.3).tanh().item(), rel=1e-5)
    assert torch.equal(output.images, draw(pipe, intervention=output.interventions).images)


def test_save_and_load_draw_the_same(pipe, tmp_path):
    pipe.register_modules(
        predictor=LINAPredictor(pipe.text_encoder.config.hidden_size, PRESETS["small"].box(["side"]).to_dict())
    )
    pipe.save_pretrained(tmp_path / "saved")
    loaded = gendiff.load_pipeline(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded, LINAPipeline) and loaded.grammar == pipe.grammar
    assert loaded.config["world"] == "shadow-world" and len(loaded.cooccurrence) == len(pipe.cooccurrence) > 0
    assert torch.equal(draw(loaded).images, draw(pipe).images)
    assert torch.equal(draw(loaded, intervention=STRONG).images, draw(pipe, intervention=STRONG).images)


def test_energy_steers_towards_what_it_asks_for(pipe):
    energy = EnergySteering(lambda images: (images.mean((1, 2, 3)) - 0.5).square(), "brightness", start=1.0)
    plain = draw(pipe, intervention="off").images.mean((1, 2, 3))
    steered = draw(pipe, intervention=Intervention(rho=0.3, window=(1.0, 0.0)), energy=energy).images.mean((1, 2, 3))
    assert ((steered - 0.5).abs() < (plain - 0.5).abs()).all()


def test_from_pipe_wraps_a_pipeline_of_diffusers(pipe):
    from gendiff.oracles.mode_world import ModeWorld

    assert isinstance(LINAPipeline.from_pipe(ModeWorld().pipeline()), SteeredPipeline)


def test_a_callback_sees_and_replaces_latents(pipe):
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append(index)
        return {"latents": torch.zeros_like(tensors["latents"])}

    images = draw(pipe, callback_on_step_end=callback).images
    assert seen == [0, 1, 2, 3] and not images.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a tall pink pole, low sun on the right, a plant near left"}, "pink"),
        ({"prompt": []}, "prompt"),
        ({"intervention": "on"}, "auto, off"),
        ({"intervention": "auto"}, "needs a predictor"),
        ({"intervention": [STRONG]}, "each of 2"),
        ({"intervention": Intervention(alpha={"colours": 1.0})}, "colours.*Did you mean 'colour'"),
        ({"intervention": Intervention(rho=0.1)}, "needs energy"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"output_type": "jpg"}, "output_type"),
        ({"counterfactual_prompt": ["a", "b", "c"]}, "each of 2"),
        ({"latents": torch.zeros(1, 3, 4, 4)}, "latents"),
        ({"contrast": CausalContrast(mask=torch.ones(5, 5)), "intervention": STRONG}, "mask"),
    ],
)
def test_bad_input_is_named_before_any_work(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(pipe, **arguments)


def test_a_predictor_for_another_embedding_is_refused(pipe):
    components = {**pipe.components, "predictor": LINAPredictor(7, PRESETS["small"].box(["side"]).to_dict())}
    with pytest.raises(ValueError, match="width 7"):
        LINAPipeline(**components, grammar=pipe.config["grammar"])
