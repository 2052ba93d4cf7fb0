"""Counterfactuals with untrained networks: what holds for any weights, and what is refused before any work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.causal.intervention import InterventionError
from gendiff.causal.labels import embed
from gendiff.models.causal_encoder import CausalEncoder
from gendiff.models.causal_mechanisms import CausalMechanisms
from gendiff.models.latent_projection import LatentProjection
from gendiff.models.patch_unet import PatchUNet2DModel
from gendiff.pipelines.counterfactual import CounterfactualPipeline

DO = {"thickness": [1.0, 6.5], "digit": [2, 0]}
SCHEMES = ["edict", "ddim", "fixed_point"]
STEPS = 5


@pytest.fixture
def make(tiny_counterfactual_pipeline) -> Callable[..., CounterfactualPipeline]:
    """The tiny pipeline, with a gain as after training (it starts at zero) and conditions that matter."""

    def pipeline(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> CounterfactualPipeline:
        pipe = enliven(tiny_counterfactual_pipeline(*args, **kwargs))
        return pipe if dtype == torch.float32 else pipe.to(dtype)

    return pipeline


def enliven(pipe: CounterfactualPipeline) -> CounterfactualPipeline:
    generator = torch.Generator().manual_seed(7)
    for parameter in pipe.unet.gain.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    pipe.projection.out.weight.data *= 10
    pipe.encoder.head.weight.data *= 5
    return pipe


@pytest.fixture
def pipe(make) -> CounterfactualPipeline:
    return make()


def pictures(batch: int = 2, channels: int = 1, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, channels, size, size, generator=generator, dtype=torch.float64).to(dtype)


def ask(pipe: CounterfactualPipeline, *args: Any, **kwargs: Any) -> Any:
    return pipe(*args, **{"num_inference_steps": STEPS, "output_type": "pt", **kwargs})


def count_calls(pipe: CounterfactualPipeline) -> list[int]:
    """A list that grows by the batch size with every call of the decoder."""
    calls: list[int] = []
    pipe.unet.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    return calls


def refuse_work(pipe: CounterfactualPipeline) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("the decoder was called before the arguments were checked")

    pipe.unet.register_forward_pre_hook(fail)


# What abduction finds


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_edict_reconstructs_the_image(make, dtype: torch.dtype, bound: float):
    pipe = make(channels=3, dtype=dtype)
    image = pictures(2, 3, dtype=dtype)
    state = pipe.abduct(image, num_inference_steps=10)
    latents = pipe.reconstruct(state, output_type="latent").latents
    assert latents.shape == (2, 2, 3, 16, 16) and latents.dtype == dtype
    for half in latents:
        assert (half - (2 * image - 1)).abs().max() <= bound


def test_abduction_finds_latents_that_belong_together(make):
    pipe = make(mechanism="affine", dtype=torch.float64)
    image = pictures(2, dtype=torch.float64)
    state = pipe.abduct(image, num_inference_steps=2, inversion="ddim")
    posterior = pipe.encoder(2 * image - 1)
    assert torch.equal(state.u, posterior.mean) and torch.equal(state.style, posterior.style_mean)
    assert torch.equal(state.z, pipe.mechanisms(state.u))
    assert state.graph == pipe.graph and (state.scheme, state.num_inference_steps) == ("ddim", 2)
    assert state.noise.shape == image.shape and not torch.equal(state.noise, 2 * image - 1)


@pytest.mark.parametrize(
    ("scheme", "shape"), [("edict", (2, 3, 1, 16, 16)), ("ddim", (3, 1, 16, 16)), ("fixed_point", (3, 1, 16, 16))]
)
def test_noise_has_the_shape_of_its_scheme(pipe, scheme: str, shape: tuple):
    assert pipe.abduct(pictures(3), num_inference_steps=2, inversion=scheme).noise.shape == shape


def test_known_labels_replace_what_the_encoder_sees(make):
    pipe = make(dtype=torch.float64)
    image = pictures(dtype=torch.float64)
    plain = pipe.abduct(image, num_inference_steps=2)
    state = pipe.abduct(image, num_inference_steps=2, labels={"intensity": [100.0, 200.0], "digit": 1})
    out = pipe.reconstruct(state, output_type="latent")
    torch.testing.assert_close(out.factual["intensity"], torch.tensor([100.0, 200.0], dtype=torch.float64))
    assert out.factual["digit"].tolist() == [1.0, 1.0]
    slices = pipe.graph.slices
    expected = embed(pipe.graph["intensity"], out.factual["intensity"])
    torch.testing.assert_close(state.z[:, slices["intensity"]], expected)
    for name in ("thickness", "slant", "contrast"):
        assert torch.equal(state.z[:, slices[name]], plain.z[:, slices[name]])
    torch.testing.assert_close(pipe.mechanisms(state.u), state.z)
    # the decoder's noise is found under the corrected condition, so the image still comes back
    assert (out.latents[0] - (2 * image - 1)).abs().max() <= 1e-10
    assert not torch.equal(state.noise, plain.noise)


# The empty intervention


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_intervention_is_the_reconstruction_bit_for_bit(pipe, scheme: str):
    state = pipe.abduct(pictures(), STEPS, scheme)
    expected = pipe.reconstruct(state, output_type="pt")
    direct = ask(pipe, pictures(), {}, inversion=scheme)
    nothing = ask(pipe, pictures(), None, inversion=scheme)
    for out in (direct, nothing, pipe.predict(state, {}, output_type="pt")):
        assert torch.equal(out.latents, expected.latents) and torch.equal(out.images, expected.images)
        for name in pipe.graph.names:
            assert torch.equal(out.factual[name], out.counterfactual[name])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_leaves_an_empty_intervention_alone(pipe, scheme: str, scale: float):
    state = pipe.abduct(pictures(), STEPS, scheme)
    plain = pipe.reconstruct(state, output_type="latent").latents
    for mode in ("factual", "affected"):
        latents = pipe.predict(state, {}, scale, mode, output_type="latent").latents
        assert (latents - plain).abs().max() <= 1e-6


def test_ten_empty_interventions_in_a_row_return_the_image(make):
    pipe, image = make(dtype=torch.float64), pictures(dtype=torch.float64)
    again = image
    for _ in range(10):
        again = ask(pipe, again, {}).images.clamp(0, 1)
    assert (again - image).abs().max() <= 1e-10


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_guidance_weight_the_factual_image_is_returned(pipe, scheme: str):
    state = pipe.abduct(pictures(), STEPS, scheme)
    plain = pipe.reconstruct(state, output_type="latent").latents
    out = pipe.predict(state, DO, 0.0, output_type="latent")
    assert (out.latents - plain).abs().max() <= 1e-5
    assert out.counterfactual["thickness"].tolist() == pytest.approx(DO["thickness"], rel=1e-6)


# Interventions


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_intervention_moves_its_variable_its_descendants_and_the_image(pipe, scheme: str):
    state = pipe.abduct(pictures(), STEPS, scheme)
    out = pipe.predict(state, DO, output_type="pt")
    assert out.counterfactual["thickness"].tolist() == pytest.approx(DO["thickness"], rel=1e-6)
    assert out.counterfactual["digit"].tolist() == DO["digit"]
    assert torch.equal(out.counterfactual["slant"], out.factual["slant"])
    for name in ("intensity", "contrast"):
        assert (out.counterfactual[name] != out.factual[name]).all()
    difference = (out.images - pipe.reconstruct(state, output_type="pt").images).abs().amax(dim=(1, 2, 3))
    assert difference.min() > 1e-3


def test_one_call_is_abduction_then_prediction(pipe):
    out = ask(pipe, pictures(), DO, guidance_scale=2.0, guidance_mode="uncond", labels={"slant": 12.0})
    state = pipe.abduct(pictures(), STEPS, labels={"slant": 12.0})
    again = pipe.predict(state, DO, 2.0, "uncond", output_type="pt")
    assert torch.equal(out.images, again.images)
    assert torch.equal(out.state.noise, state.noise) and torch.equal(out.state.z, state.z)


def test_undoing_an_intervention_with_the_pair_returns_the_image(make):
    pipe, image = make(dtype=torch.float64), pictures(dtype=torch.float64)
    state = pipe.abduct(image, STEPS)
    changed = pipe.predict(state, {"slant": 25.0}, output_type="latent")
    assert (changed.latents[0] - (2 * image - 1)).abs().max() > 1e-3
    # The counterfactual's own state has the same causal and decoder noise, so asking for the factual value undoes it.
    back = pipe.predict(changed.state, {}, output_type="latent")
    assert (back.latents[0] - (2 * image - 1)).abs().max() <= 1e-10


@pytest.mark.parametrize("mode", ["factual", "affected", "uncond"])
def test_guidance_modes_contrast_with_what_they_say(make, mode: str):
    """One step, so that the result is affine in the network's output and each contrast can be computed by hand."""
    pipe = make(dtype=torch.float64)
    state = pipe.abduct(pictures(dtype=torch.float64), 1, "ddim")
    z = pipe.mechanisms.intervene(state.u, state.z, {"intensity": torch.tensor([80.0, 90.0], dtype=torch.float64)})
    affected = [True, True, False, False, True, True]  # thickness, slant, intensity, contrast, digit, style
    keep = torch.tensor([affected] * 2) if mode == "affected" else torch.zeros(2, 6, dtype=torch.bool)
    contrast = (state.z, state.style) if mode == "factual" else (z, state.style, keep)

    def decoded(*condition: Tensor) -> Tensor:
        scheduler: Any = DDIMScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(1)
        timestep = scheduler.timesteps[0]
        output = pipe.unet(state.noise, timestep, class_labels=pipe.projection(*condition)).sample
        return scheduler.step(output, timestep, state.noise).prev_sample

    positive, negative = decoded(z, state.style), decoded(*contrast)
    assert (positive - negative).abs().max() > 1e-3
    for scale in (0.0, 0.5, 1.0, 3.0):
        out = pipe.predict(state, {"intensity": [80.0, 90.0]}, scale, mode, output_type="latent")
        # the scheduler's coefficients are float32
        torch.testing.assert_close(out.latents, negative + scale * (positive - negative), rtol=1e-5, atol=1e-5)


def test_guidance_without_style(make):
    pipe = make(style_dim=0)
    images = [
        ask(pipe, pictures(), DO, guidance_scale=2.0, guidance_mode=mode).images for mode in ("affected", "uncond")
    ]
    assert not torch.equal(*images)


# Cost


@pytest.mark.parametrize(
    ("scheme", "abduction", "prediction"), [("edict", 2, 2), ("ddim", 1, 1), ("fixed_point", 5, 1)]
)
@pytest.mark.parametrize(("scale", "factor"), [(1.0, 1), (0.0, 1), (0.5, 2), (3.0, 2)])
def test_network_calls_are_counted(pipe, scheme: str, abduction: int, prediction: int, scale: float, factor: int):
    calls = count_calls(pipe)
    state = pipe.abduct(pictures(), STEPS, scheme)
    assert calls == [2] * abduction * STEPS
    calls.clear()
    out = pipe.predict(state, DO, scale, output_type="latent")
    assert len(calls) == prediction * STEPS * factor == out.stats.network_calls
    calls.clear()
    out = ask(pipe, pictures(), DO, guidance_scale=scale, inversion=scheme)
    assert len(calls) == (abduction + prediction * factor) * STEPS == out.stats.network_calls
    assert out.stats.plan == {"scheme": scheme, "num_inference_steps": STEPS}
    assert out.stats.flops > 0 and out.stats.seconds > 0


def test_operations_grow_with_calls_and_batch(pipe):
    few, many, wide = (
        ask(pipe, pictures(b), {}, num_inference_steps=n).stats.flops for b, n in ((1, 2), (1, 6), (3, 2))
    )
    assert many == 3 * few
    # the gain of a timestep that the batch shares is computed once
    assert 2.9 * few < wide <= 3 * few


# Batches and randomness


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("scale", "mode"), [(1.0, "factual"), (2.0, "affected")])
def test_an_image_gets_what_it_would_get_alone(make, scheme: str, scale: float, mode: str):
    pipe, image = make(channels=3, dtype=torch.float64), pictures(3, 3, dtype=torch.float64)
    values = [1.0, 3.0, 6.0]
    settings = {"guidance_scale": scale, "guidance_mode": mode, "inversion": scheme, "output_type": "latent"}
    together = ask(pipe, image, {"thickness": values}, **settings).latents
    for i in range(3):
        alone = ask(pipe, image[i : i + 1], {"thickness": values[i]}, **settings).latents
        assert (alone - together.narrow(-4, i, 1)).abs().max() <= 1e-8


def test_a_scalar_serves_the_whole_batch(pipe):
    scalar = ask(pipe, pictures(3), {"thickness": 2.0}).images
    assert torch.equal(scalar, ask(pipe, pictures(3), {"thickness": [2.0, 2.0, 2.0]}).images)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_abduction_uses_no_randomness(pipe, scheme: str):
    generator = torch.Generator().manual_seed(5)
    before, own = torch.get_rng_state(), generator.get_state()
    out = ask(pipe, pictures(), DO, inversion=scheme, generator=generator)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(generator.get_state(), own)
    assert torch.equal(ask(pipe, pictures(), DO, inversion=scheme).images, out.images)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_noise_follows_its_generators(pipe, scheme: str):
    def run(*seeds: int, rows: slice = slice(None)) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        settings = {"noise": "random", "inversion": scheme, "output_type": "pt"}
        return ask(pipe, pictures()[rows], {"slant": 5.0}, generator=generators, **settings).images

    together = run(3, 4)
    assert torch.equal(run(3, 4), together)
    assert (run(3, rows=slice(0, 1)) - together[:1]).abs().max() <= 1e-5
    assert (run(4, rows=slice(1, 2)) - together[1:]).abs().max() <= 1e-5
    assert not torch.equal(run(3, 5)[1], together[1])


def test_random_noise_is_not_the_images_own(pipe):
    calls = count_calls(pipe)
    out = ask(pipe, pictures(), {}, noise="random", generator=torch.Generator().manual_seed(0))
    assert len(calls) == 2 * STEPS, "nothing is inverted"
    assert (out.images - pictures()).abs().max() > 0.1
    assert torch.equal(out.state.noise[0], out.state.noise[1])
    assert torch.equal(out.state.u, pipe.abduct(pictures(), 1).u), "the causal noise still is"


# Drawing whole images


def test_samples_follow_the_stored_noise(make):
    pipe = make(dtype=torch.float64)
    graph, slices = pipe.graph, pipe.graph.slices
    generator = torch.Generator().manual_seed(2)
    u = torch.randn(400, graph.dim, generator=generator, dtype=torch.float64)
    u[:, slices["thickness"]] = u[:, [0]] * torch.tensor([0.5, -0.25], dtype=torch.float64) + 0.7  # rank one
    u[:, slices["intensity"]] = 0.3  # a deterministic effect
    pipe.mechanisms.store_noise(u)
    out = pipe.sample(500, num_inference_steps=1, generator=torch.Generator().manual_seed(3), output_type="latent")
    drawn = out.state.u[:, slices["thickness"]]
    torch.testing.assert_close(drawn[:, 1] - 0.7, -0.5 * (drawn[:, 0] - 0.7), rtol=0, atol=1e-6)
    assert drawn[:, 0].mean().item() == pytest.approx(u[:, 0].mean().item(), abs=0.08)
    assert drawn[:, 0].std().item() == pytest.approx(u[:, 0].std().item(), rel=0.12)
    assert (out.state.u[:, slices["intensity"]] - 0.3).abs().max() <= 1e-6
    assert torch.equal(out.state.z, pipe.mechanisms(out.state.u))


def test_sampled_classes_are_classes(pipe):
    out = pipe.sample(40, num_inference_steps=1, generator=torch.Generator().manual_seed(3), output_type="latent")
    block = out.state.z[:, pipe.graph.slices["digit"]]
    assert torch.equal(block, embed(pipe.graph["digit"], out.factual["digit"]))
    assert out.factual["digit"].unique().tolist() == [0.0, 1.0, 2.0]


def test_samples_are_pictures_that_follow_their_generators(pipe):
    def run(*seeds: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe.sample(len(seeds), STEPS, generators, output_type="pt").images

    images = run(1, 2, 3)
    assert images.shape == (3, 1, 16, 16) and images.min() >= 0 and images.max() <= 1
    assert (run(2) - images[1:2]).abs().max() <= 1e-5
    assert not torch.equal(images[0], images[1])
    calls = count_calls(pipe)
    assert len(pipe.sample(2, STEPS)["images"]) == 2
    assert len(calls) == STEPS


# Inputs, outputs, sizes


def test_output_types(pipe):
    tensor = ask(pipe, pictures(), DO).images
    array = ask(pipe, pictures(), DO, output_type="np").images
    pil = ask(pipe, pictures(), DO, output_type="pil").images
    latent = ask(pipe, pictures(), DO, output_type="latent").images
    assert tensor.shape == (2, 1, 16, 16) and tensor.min() >= 0 and tensor.max() <= 1
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(image, Image.Image) and image.size == (16, 16) and image.mode == "L" for image in pil)
    np.testing.assert_array_equal(np.asarray(pil[1]), (tensor[1, 0].numpy() * 255).round())
    torch.testing.assert_close(tensor, (latent[0] / 2 + 0.5).clamp(0, 1))
    assert latent.abs().max() > 1, "latents are not clamped"


def test_tuple_form_has_the_fields_in_order(pipe):
    out = ask(pipe, pictures(), DO)
    plain = ask(pipe, pictures(), DO, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 6
    assert torch.equal(plain[0], out.images) and torch.equal(plain[4], out.latents)
    assert plain[1].keys() == out.factual.keys() and plain[3].scheme == "edict"


def test_images_come_in_many_forms(make):
    pipe = make(channels=3)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pil = [Image.fromarray(picture) for picture in pixels]
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    expected = ask(pipe, tensor, {"slant": 5.0}).images
    for form in (pil, tuple(pil), tensor.numpy(), tensor.double()):
        assert (ask(pipe, form, {"slant": 5.0}).images - expected).abs().max() <= 1e-5
    assert (ask(pipe, pil[0], {"slant": 5.0}).images - expected[:1]).abs().max() <= 1e-5


MIXED = [
    Variable("size", loc=3.0, scale=2.0, low=0.0, high=9.0, dim=3),
    Variable("mirrored", kind="binary", dim=1),
    Variable("class", kind="categorical", num_classes=4),
    Variable("grey", loc=128.0, scale=90.0, dim=2),
]


def mixed_graph(count: int) -> CausalGraph:
    edges = [("mirrored", "class"), ("class", "grey"), ("size", "grey")]
    return CausalGraph(MIXED[:count], [edge for edge in edges if {*edge} <= {v.name for v in MIXED[:count]}])


def build(
    size: int,
    channels: int,
    graph: CausalGraph,
    style_dim: int = 0,
    widths: tuple[int, ...] = (8, 16),
    encoder_widths: tuple[int, ...] = (8, 16),
    **unet: Any,
) -> CounterfactualPipeline:
    torch.manual_seed(0)
    groups = 4 if widths[0] < 16 else 8
    pipe = CounterfactualPipeline(
        CausalEncoder(size, channels, graph.dim, style_dim, encoder_widths, groups).eval(),
        CausalMechanisms(graph.to_dict(), hidden_dim=8).eval(),
        LatentProjection([v.dim for v in graph.variables], 4 * widths[0], style_dim, 16).eval(),
        PatchUNet2DModel(size, channels, block_out_channels=widths, norm_num_groups=groups, **unet).eval(),
        DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False),
    )
    pipe.set_progress_bar_config(disable=True)
    return enliven(pipe)


@pytest.mark.parametrize("size", [16, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_sizes_channels_and_kinds(size: int, channels: int, count: int):
    graph = mixed_graph(count)
    pipe = build(size, channels, graph, style_dim=count - 1)
    image = pictures(2, channels, size)
    do = {"size": [1.0, 8.0], "mirrored": -1, "class": [3, 0], "grey": 40.0}
    asked = {name: do[name] for name in graph.names[-2:]}
    out = ask(pipe, image, asked, guidance_scale=1.5, num_inference_steps=2)
    assert out.images.shape == image.shape and out.images.isfinite().all()
    for name, value in asked.items():
        expected = torch.as_tensor(value, dtype=torch.float32).expand(2)
        torch.testing.assert_close(out.counterfactual[name], expected)
    back = pipe.reconstruct(out.state, output_type="pt").images
    assert (back - image).abs().max() <= 1e-4
    assert (out.images - back).abs().max() > 1e-3


def pendulum(size: int, channels: int) -> CounterfactualPipeline:
    variables = [
        Variable("angle", loc=1.5, scale=42.0, low=-40.0, high=43.0),
        Variable("light", loc=103.5, scale=44.0, low=60.0, high=147.0),
        Variable("shadow_len", loc=7.5, scale=4.5, low=3.0, high=12.58),
        Variable("shadow_pos", loc=11.0, scale=8.0, low=2.0, high=19.61),
    ]
    edges = [(cause, effect) for cause in ("angle", "light") for effect in ("shadow_len", "shadow_pos")]
    graph = CausalGraph(variables, edges)
    if size == 28:
        return build(size, channels, graph, 8, (32, 64), (16, 32, 64), patch_size=2)
    return build(size, channels, graph, 0, (48, 64, 96), (16, 32, 64), patch_size=2, attention_levels=(2,))


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1)])
def test_the_sizes_that_are_trained(size: int, channels: int):
    pipe, image = pendulum(size, channels).to(torch.float64), pictures(2, channels, size, torch.float64)
    state = pipe.abduct(image, num_inference_steps=10)
    assert (pipe.reconstruct(state, output_type="pt").images - image).abs().max() <= 1e-10
    out = pipe.predict(state, {"angle": [-30.0, 30.0]}, 2.0, output_type="pt")
    assert torch.equal(out.counterfactual["light"], out.factual["light"])
    assert (out.counterfactual["shadow_len"] != out.factual["shadow_len"]).all()
    pipe.to(torch.float32)
    state = pipe.abduct(image, num_inference_steps=10)
    assert (pipe.reconstruct(state, output_type="pt").images - image).abs().max() <= 1e-4


def test_a_plain_unet_will_do(make):
    pipe = make(channels=1)
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
        add_attention=False,
    )
    plain = CounterfactualPipeline(pipe.encoder, pipe.mechanisms, pipe.projection, unet.eval(), pipe.scheduler)
    plain.set_progress_bar_config(disable=True)
    out = ask(plain, pictures(), DO)
    assert (plain.reconstruct(out.state, output_type="pt").images - pictures()).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_move_a_float32_state(make, dtype: torch.dtype):
    pipe = make(dtype=dtype)
    with pytest.warns(UserWarning, match=f"weights are {dtype}; the sampler's state stays float32") as caught:
        out = ask(pipe, pictures(), DO)
    assert len(caught) == 1
    assert out.latents.dtype == out.state.noise.dtype == out.state.z.dtype == torch.float32
    back = pipe.reconstruct(out.state, output_type="pt").images
    # The rounded network is a network like any other, and EDICT undoes it up to the rounding of the state.
    assert (back - pictures()).abs().max() <= 1e-4
    assert (out.images - back).abs().max() > 1e-3


# Callbacks


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_callback_follows_the_prediction(pipe, scheme: str):
    seen = []

    def callback(owner: Any, index: int, timestep: Tensor, kwargs: dict) -> dict:
        seen.append((index, int(timestep), kwargs["latents"].shape, owner.guidance_scale, owner.num_timesteps))
        return kwargs

    out = ask(pipe, pictures(), DO, guidance_scale=2.0, inversion=scheme, callback_on_step_end=callback)
    halves = 2 if scheme == "edict" else 1
    assert [index for index, *_ in seen] == list(range(halves * STEPS))
    assert [timestep for _, timestep, *_ in seen][::halves] == [99, 79, 59, 39, 19]
    shape = (2, 2, 1, 16, 16) if scheme == "edict" else (2, 1, 16, 16)
    assert {row[2:] for row in seen} == {(shape, 2.0, halves * STEPS)}
    assert torch.equal(out.images, ask(pipe, pictures(), DO, guidance_scale=2.0, inversion=scheme).images)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_callback_may_replace_the_latents(pipe, scheme: str):
    def callback(owner: Any, index: int, timestep: Tensor, kwargs: dict) -> dict:
        last = index == owner.num_timesteps - 1
        return {"latents": torch.zeros_like(kwargs["latents"])} if last else {}

    out = ask(pipe, pictures(), DO, inversion=scheme, callback_on_step_end=callback, output_type="latent")
    assert out.images.shape[-4:] == (2, 1, 16, 16) and (out.images == 0).all()


# Saving


def test_save_and_load_give_the_same_answers(make, tmp_path):
    pipe = make(channels=3, mechanism="affine", style_dim=2, p_block=0.25, num_train_timesteps=80)
    pipe.mechanisms.store_noise(torch.randn(20, pipe.graph.dim, generator=torch.Generator().manual_seed(1)))
    pipe.save_pretrained(tmp_path)
    again = CounterfactualPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.graph == pipe.graph
    assert again.graph["intensity"] == Variable("intensity", loc=160.0, scale=96.0, low=64.0, high=255.0, dim=2)
    image = pictures(2, 3)
    for name in ("encoder", "mechanisms", "projection", "unet"):
        loaded, saved = getattr(again, name).state_dict(), getattr(pipe, name).state_dict()
        assert loaded.keys() == saved.keys() and all(torch.equal(loaded[key], saved[key]) for key in saved)
    for settings in ({}, {"guidance_scale": 2.0, "guidance_mode": "affected"}, {"inversion": "ddim"}):
        difference = ask(again, image, DO, **settings).images - ask(pipe, image, DO, **settings).images
        # The same bits in memory aligned otherwise: convolutions may pick another kernel, and round otherwise.
        assert difference.abs().max() <= 1e-5
    draws = [p.sample(2, 2, torch.Generator().manual_seed(4), output_type="pt").images for p in (again, pipe)]
    assert (draws[0] - draws[1]).abs().max() <= 1e-5


def test_a_stored_graph_cannot_be_replaced(make, tiny_graph, tmp_path):
    make().save_pretrained(tmp_path)
    graph = tiny_graph()
    variables = [replace(v, loc=3.0) if v.name == "thickness" else v for v in graph.variables]
    same = CausalMechanisms.from_pretrained(tmp_path, subfolder="mechanisms", graph=graph.to_dict())
    assert same.graph == graph
    for other in (CausalGraph(variables, graph.edges), graph.mutilate(["contrast"])):
        with pytest.raises(ValueError, match="graph"):
            CausalMechanisms.from_pretrained(tmp_path, subfolder="mechanisms", graph=other.to_dict())


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": torch.zeros(1, 3, 16, 16)}, ValueError, r"expected \(B,1,16,16\), got \(1,3,16,16\)"),
        ({"image": torch.zeros(1, 1, 28, 28)}, ValueError, r"expected \(B,1,16,16\), got \(1,1,28,28\)"),
        ({"image": torch.full((1, 1, 16, 16), -0.5)}, ValueError, r"\[0, 1\], got values from -0.5 to -0.5"),
        (
            {"interventions": {"thicknes": 3.0}},
            InterventionError,
            "unknown variable 'thicknes'.*Did you mean 'thickness'",
        ),
        ({"interventions": {"thickness": 12}}, InterventionError, r"thickness=12 is outside .*\[0.5, 7\]"),
        ({"interventions": {"thickness": [1.0] * 3}}, InterventionError, "expected scalar or 2 values, got 3"),
        ({"interventions": {"digit": 3}}, InterventionError, "digit must be one of the classes 0 to 2"),
        ({"interventions": {"digit": math.nan}}, InterventionError, "digit must be finite"),
        ({"labels": {"thicknes": 3.0}}, InterventionError, "unknown variable 'thicknes'"),
        ({"labels": {"thickness": [1.0, math.nan]}}, InterventionError, "thickness must be finite"),
        ({"labels": {"digit": 0.5}}, InterventionError, "digit is a class"),
        ({"num_inference_steps": 0}, ValueError, r"num_inference_steps must lie in 1\.\.100, got 0"),
        ({"num_inference_steps": 101}, ValueError, r"num_inference_steps must lie in 1\.\.100, got 101"),
        ({"num_inference_steps": 5.0}, ValueError, "num_inference_steps must be a whole number, got 5.0"),
        ({"num_inference_steps": True}, ValueError, "num_inference_steps must be a whole number, got True"),
        ({"inversion": "warp"}, ValueError, "inversion must be one of edict, ddim, fixed_point, got 'warp'"),
        ({"noise": "none"}, ValueError, "noise must be one of abducted, random, got 'none'"),
        ({"guidance_mode": "global"}, ValueError, "guidance_mode must be one of factual, affected, uncond"),
        ({"guidance_scale": -0.5}, ValueError, "guidance_scale must be finite and at least 0, got -0.5"),
        ({"guidance_scale": math.inf}, ValueError, "guidance_scale must be finite"),
        ({"guidance_scale": math.nan}, ValueError, "guidance_scale must be finite"),
        ({"output_type": "numpy"}, ValueError, "output_type must be one of pil, np, pt, latent, got 'numpy'"),
        (
            {"noise": "random", "generator": [torch.Generator()]},
            ValueError,
            "generator: expected one or a list of 2, got a list of 1",
        ),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["noise"]},
            ValueError,
            "callback_on_step_end_tensor_inputs has 'noise'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused_before_any_work(pipe, arguments: dict, error: type, message: str):
    refuse_work(pipe)
    with pytest.raises(error, match=message):
        ask(pipe, **{"image": pictures(), "interventions": {"slant": 5.0}, **arguments})


def test_abduct_predict_and_sample_check_too(pipe):
    state = pipe.abduct(pictures(), 2)
    refuse_work(pipe)
    for call, message in (
        (lambda: pipe.abduct(pictures(), 0), "num_inference_steps must lie in"),
        (lambda: pipe.abduct(pictures(), 2, "warp"), "inversion must be one of"),
        (lambda: pipe.abduct(pictures(), 2, labels={"colour": 1}), "unknown variable 'colour'"),
        (lambda: pipe.abduct(pictures(2, 3), 2), r"expected \(B,1,16,16\)"),
        (lambda: pipe.predict(state, {"colour": 1}), "unknown variable 'colour'"),
        (lambda: pipe.predict(state, {"slant": [1.0] * 3}), "expected scalar or 2 values, got 3"),
        (lambda: pipe.predict(state, None), "interventions must map names to values, got NoneType"),
        (lambda: pipe.predict(state, {}, guidance_scale=-1), "guidance_scale must be finite"),
        (lambda: pipe.predict(state, {}, guidance_mode="all"), "guidance_mode must be one of"),
        (lambda: pipe.predict(state, {}, output_type="jpg"), "output_type must be one of"),
        (lambda: pipe.sample(0), "batch_size must be at least 1, got 0"),
        (lambda: pipe.sample(2, 1000), "num_inference_steps must lie in"),
        (lambda: pipe.sample(2, 2, [torch.Generator()] * 3), "a list of 2, got a list of 3"),
        (lambda: pipe.sample(2, 2, output_type="jpg"), "output_type must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_extrapolation_warns_where_it_is_allowed(pipe):
    with pytest.warns(UserWarning, match="thickness=12 is outside the training range"):
        out = ask(pipe, pictures(), {"thickness": 12}, allow_extrapolation=True)
    assert out.counterfactual["thickness"].tolist() == pytest.approx([12.0, 12.0])
    with pytest.warns(UserWarning, match="thickness=12 is outside the training range"):
        pipe.predict(out.state, {"thickness": 12}, allow_extrapolation=True)


@pytest.mark.parametrize(("mode", "missing"), [("uncond", "p_uncond"), ("affected", "p_block")])
def test_guidance_that_was_not_trained_is_refused(make, mode: str, missing: str):
    pipe = make(**{missing: 0.0})
    refuse_work(pipe)
    with pytest.raises(ValueError, match=f"guidance_mode='{mode}' needs a model trained with {missing} > 0"):
        ask(pipe, pictures(), DO, guidance_mode=mode, guidance_scale=2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "warp"}, r"state\.scheme must be one of edict, ddim, fixed_point, got 'warp'"),
        ({"scheme": "ddim"}, r"state\.noise must have shape \(2, 1, 16, 16\), got \(2, 2, 1, 16, 16\)"),
        ({"num_inference_steps": 500}, r"num_inference_steps must lie in 1\.\.100, got 500"),
        ({"u": torch.zeros(3, 11)}, r"state\.z must have shape \(3, 11\), got \(2, 11\)"),
        ({"z": torch.zeros(3, 11)}, r"state\.z must have shape \(2, 11\), got \(3, 11\)"),
        ({"z": torch.zeros(2, 10)}, r"state\.z must have shape \(2, 11\), got \(2, 10\)"),
        ({"style": torch.zeros(2, 4)}, r"state\.style must have shape \(2, 3\), got \(2, 4\)"),
        ({"noise": torch.zeros(2, 3, 1, 16, 16)}, r"state\.noise must have shape \(2, 2, 1, 16, 16\)"),
        ({"noise": torch.zeros(2, 2, 3, 16, 16)}, r"state\.noise must have shape \(2, 2, 1, 16, 16\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_state_that_does_not_fit_is_refused(pipe, changes: dict, message: str):
    state = replace(pipe.abduct(pictures(), 2), **changes)
    refuse_work(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.predict(state, {})


def test_a_state_of_another_graph_is_refused(pipe, make, tiny_graph):
    graph = tiny_graph()
    variables = [replace(v, scale=3.0) if v.name == "thickness" else v for v in graph.variables]
    for other in (CausalGraph(variables, graph.edges), graph.mutilate(["contrast"])):
        state = make(graph=other).abduct(pictures(), 1)
        with pytest.raises(ValueError, match=r"state\.graph"):
            pipe.predict(state, {})
    foreign = make(channels=3).abduct(pictures(2, 3), 1)
    with pytest.raises(ValueError, match=r"state\.noise must have shape"):
        pipe.predict(foreign, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timestep_spacing": "linspace"}, "timestep_spacing must be 'leading' or 'trailing'"),
        ({"clip_sample": True}, "clip_sample must be False"),
        ({"thresholding": True}, "thresholding must be False"),
    ],
)
def test_a_schedule_without_inverse_is_refused(make, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make(**settings)
    pipe = make()
    pipe.scheduler = DDIMScheduler(**{"clip_sample": False, **settings})
    refuse_work(pipe)
    with pytest.raises(ValueError, match=message):
        ask(pipe, pictures(), DO)


def test_components_that_do_not_fit_are_refused(make):
    pipe = make()
    parts = dict(pipe.components)
    dims = [variable.dim for variable in pipe.graph.variables]
    for name, part, message in (
        ("encoder", CausalEncoder(28, 1, 11, 3, (8,)), "encoder.sample_size must be 16 .* got 28"),
        ("encoder", CausalEncoder(16, 3, 11, 3, (8,)), "encoder.in_channels must be 1 .* got 3"),
        ("encoder", CausalEncoder(16, 1, 10, 3, (8,)), "encoder.latent_dim must be 11 .* got 10"),
        ("projection", LatentProjection([4, 4, 3], 32, 3), r"projection.block_dims must be \[2, 2, 2, 2, 3\]"),
        ("projection", LatentProjection(dims, 32, 2), "projection.style_dim must be 3 .* got 2"),
        ("projection", LatentProjection(dims, 24, 3), "projection.embed_dim must be 32 .* got 24"),
        ("mechanisms", CausalMechanisms(mixed_graph(4).to_dict()), "encoder.latent_dim must be 10 .* got 11"),
    ):
        with pytest.raises(ValueError, match=message):
            CounterfactualPipeline(**{**parts, name: part})


def test_a_side_that_does_not_halve_is_refused():
    graph = mixed_graph(1)
    blocks = 4
    unet = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,) * blocks,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * blocks,
        up_block_types=("UpBlock2D",) * blocks,
        class_embed_type="identity",
        add_attention=False,
    )
    with pytest.raises(ValueError, match="side must be a multiple of 8 for 4 levels, got 28"):
        CounterfactualPipeline(
            CausalEncoder(28, 1, graph.dim, 0, (8,)),
            CausalMechanisms(graph.to_dict()),
            LatentProjection([3], 32),
            unet,
            DDIMScheduler(clip_sample=False),
        )
