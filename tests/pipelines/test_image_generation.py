"""Images by class: what the pipeline draws follows from its arguments alone, and equals the loop written by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import gendiff
from gendiff.oracles.gaussian import Gaussian, exact_predictor
from gendiff.pipelines.image_generation import ImageGenerationPipeline
from gendiff.samplers.loop import sample
from gendiff.samplers.solvers import SOLVERS, solver

NAMES = ["circle", "square", "star"]
SCHEDULE = {
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


@pytest.fixture
def pipe(tiny_image_pipeline) -> ImageGenerationPipeline:
    return tiny_image_pipeline(NAMES)


def draw(pipe, labels=None, steps=4, seeds=(0,), **options):
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(labels, num_inference_steps=steps, generator=generator, output_type="latent", **options).images


def test_it_is_diffusers_loop_written_by_hand(pipe):
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(4)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        with torch.no_grad():
            named = pipe.unet(x, t, class_labels=torch.tensor([2])).sample
            unnamed = pipe.unet(x, t, class_labels=torch.tensor([3])).sample
        x = scheduler.step(unnamed + 2.5 * (named - unnamed), t, x).prev_sample
    assert torch.allclose(draw(pipe, "star", guidance_scale=2.5), x, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch_mates(pipe):
    together = draw(pipe, [0, 2, 1], seeds=(5, 6, 7))
    for i, label in enumerate([0, 2, 1]):
        assert torch.allclose(draw(pipe, label, seeds=(5 + i,))[0], together[i], atol=1e-5)


def test_the_class_and_the_guidance_change_the_image(pipe):
    base = draw(pipe, "circle")
    assert torch.equal(base, draw(pipe, 0))
    for other in (draw(pipe, "square"), draw(pipe, None), draw(pipe, "circle", guidance_scale=3.0)):
        assert (other - base).abs().max() > 1e-3


def test_guidance_of_one_is_free(pipe):
    assert pipe("star", num_inference_steps=4).stats.network_calls == 4
    assert pipe("star", num_inference_steps=4, guidance_scale=2.0).stats.network_calls == 8


def test_operations_are_counted_once_for_each_shape(pipe, monkeypatch):
    first = pipe("star", num_inference_steps=2).stats
    monkeypatch.setattr("gendiff.pipelines.stats.FlopCounterMode", None)  # not watched again
    second = pipe("circle", num_inference_steps=3).stats
    assert first.flops > 0 and second.flops == 3 * first.flops // 2
    with pytest.raises(TypeError):
        pipe(["star", "star"], num_inference_steps=1)


def test_labels_and_their_images_stand_next_to_one_another(pipe):
    output = pipe(["star", 0], num_images_per_prompt=2, num_inference_steps=1, output_type="pt")
    assert output.class_labels.tolist() == [2, 2, 0, 0]
    assert output.images.shape == (4, 1, 8, 8) and output.images.min() >= 0 and output.images.max() <= 1
    assert pipe(num_images_per_prompt=3, num_inference_steps=1).class_labels.tolist() == [-1, -1, -1]


def test_given_latents_are_used_as_they_are(pipe):
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    first = pipe([0, 1], latents=latents, num_inference_steps=3, output_type="latent").images
    assert torch.equal(first, pipe([0, 1], latents=latents, num_inference_steps=3, output_type="latent").images)
    alone = pipe(1, latents=latents[1:], num_inference_steps=3, output_type="latent").images
    assert torch.allclose(first[1:], alone, atol=1e-5)


def test_a_callback_may_replace_the_latents(pipe):
    seen = []

    def zero(pipe, index, timestep, kwargs):
        seen.append(index)
        return {"latents": torch.zeros_like(kwargs["latents"])}

    assert not draw(pipe, 0, callback_on_step_end=zero).any()
    assert seen == [0, 1, 2, 3]


def test_it_loads_as_it_was_saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    for loaded in (gendiff.load_pipeline(tmp_path / "model"), gendiff.pipeline("image-generation", tmp_path / "model")):
        loaded.set_progress_bar_config(disable=True)
        assert loaded.class_names == NAMES
        assert torch.allclose(draw(loaded, "square"), draw(pipe, "square"), atol=1e-5)


def test_names_keep_their_numbers_when_there_are_more_than_ten(tiny_image_pipeline, tmp_path):
    names = [f"class {number}" for number in range(12)]  # a sorted "10" would stand before "2"
    tiny_image_pipeline(names).save_pretrained(tmp_path / "model")
    assert gendiff.pipeline("image-generation", tmp_path / "model").class_names == names


def test_without_classes_nothing_is_asked_of_the_network(tiny_image_pipeline):
    pipe = tiny_image_pipeline([])
    assert draw(pipe).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="class_labels must be None: the model knows no classes, got 0"):
        pipe(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": 4}, "class_labels must be 0 to 2, or a name, got 4"),
        ({"class_labels": "squar"}, "Did you mean 'square'"),
        ({"class_labels": []}, "class_labels must hold at least one"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number"),
        ({"num_inference_steps": 101}, "num_inference_steps must be a whole number from 1 to 100, got 101"),
        ({"guidance_scale": -1.0, "class_labels": 0}, "guidance_scale must be at least 0"),
        ({"guidance_scale": 2.0}, "needs class_labels"),
        ({"output_type": "jpg"}, "output_type has 'jpg'"),
        ({"latents": torch.zeros(1, 1, 4, 4)}, r"latents must be \(1, 1, 8, 8\), got \(1, 1, 4, 4\)"),
        ({"generator": [torch.Generator()] * 2}, "one generator for each of 1 images, got 2"),
    ],
)
def test_bad_input_is_named_before_any_work(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(**options)


def test_names_must_fit_the_network(pipe):
    with pytest.raises(ValueError, match="num_class_embeds = 2"):
        ImageGenerationPipeline(pipe.unet, pipe.scheduler, class_names=["one"])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2
def test_solvers_reach_the_exact_answer_and_the_second_order_one_sooner():
    data = Gaussian(torch.tensor([1.0, -2.0]), torch.diag(torch.tensor([0.25, 4.0])))
    trained = DDIMScheduler(**SCHEDULE | {"num_train_timesteps": 1000})
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    error = {}
    for name in SOLVERS:
        scheduler = solver(name, trained)
        for steps in (10, 100):
            scheduler.set_timesteps(steps)
            result = sample(exact_predictor(data, scheduler), scheduler, noise, progress=False)
            error[name, steps] = (result - data.transport(noise, (0.0, 1.0))).abs().mean().item()
    assert all(error[name, 100] < 0.03 for name in SOLVERS), error
    assert error["dpm-solver++", 10] < 0.5 * error["ddim", 10], error


def test_solvers_keep_the_noise_levels_of_training():
    trained = DDIMScheduler(**SCHEDULE)
    for name in SOLVERS:
        made = solver(name, trained)
        assert torch.equal(made.alphas_cumprod, trained.alphas_cumprod)
        assert made.config["prediction_type"] == "v_prediction"
    assert isinstance(solver("dpm-solver++", trained), DPMSolverMultistepScheduler)
    with pytest.raises(ValueError, match="Did you mean 'ddim'"):
        solver("ddimm", trained)
