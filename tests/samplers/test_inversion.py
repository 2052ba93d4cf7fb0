"""Inversion: which schemes undo their decoding, how exactly, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from torch import Tensor

from gendiff.samplers.inversion import (
    SCHEMES,
    EDICTInverseScheduler,
    EDICTScheduler,
    FixedPointInverseScheduler,
    Pair,
    forward_of,
    inverse_of,
)
from gendiff.samplers.loop import Step, sample

OURS = [EDICTScheduler, EDICTInverseScheduler, FixedPointInverseScheduler]
TYPES = ["epsilon", "v_prediction", "sample"]


def ddim(prediction_type: str = "v_prediction", **config) -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, prediction_type=prediction_type, **config)  # type: ignore[arg-type]


def picture(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype) * 2 - 1


def walk(predict: Callable, scheduler, steps: int, state):
    scheduler.set_timesteps(steps)
    return sample(predict, scheduler, state, progress=False)


def distance(a, b) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def unet_predictor(size: int, dtype: torch.dtype) -> Callable[[Tensor, Step], Tensor]:
    """An untrained conditional U-Net: nothing about it is smooth, small or close to invertible."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=size,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
        add_attention=False,
    ).eval()
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype)
    condition = torch.randn(2, 32).to(dtype)

    @torch.no_grad()
    def predict(state: Tensor, step: Step) -> Tensor:
        return unet(state, step.timestep, class_labels=condition).sample

    return predict


def contraction(state: Tensor, step: Step) -> Tensor:
    """A network that changes slowly (Lipschitz constant 0.3) and looks at its timestep."""
    return 0.3 * torch.sin(state + float(step.timestep) / 300)


def start(scheme: str, image: Tensor):
    return image if scheme == "ddim" else (image, image)


def noise_of(scheme: str, end):
    return end[0] if scheme == "fixed_point" else end


def picture_of(scheme: str, end) -> Tensor:
    return end[0] if scheme == "edict" else end


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"},
        {"set_alpha_to_one": False, "steps_offset": 1},
    ],
    ids=["leading", "trailing-cosine", "offset"],
)
@pytest.mark.parametrize("steps", [1, 7, 10])
def test_every_scheme_undoes_a_constant_epsilon(scheme: str, config: dict, steps: int):
    scheduler, image = ddim("epsilon", **config), picture(2, 1, 6, 5)
    epsilon = torch.randn(image.shape, generator=torch.Generator().manual_seed(2), dtype=image.dtype)
    noise = walk(lambda state, step: epsilon, inverse_of(scheduler, scheme), steps, start(scheme, image))
    back = walk(lambda state, step: epsilon, forward_of(scheduler, scheme), steps, noise_of(scheme, noise))
    assert (picture_of(scheme, back) - image).abs().max() <= 1e-10


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize(
    ("prediction_type", "dtype", "bound"),
    [
        ("v_prediction", torch.float64, 1e-10),
        ("v_prediction", torch.float32, 1e-4),
        ("sample", torch.float64, 1e-10),
        # epsilon divides by sqrt(alpha_bar), 1/157 at the start of this schedule, and rounding grows with it.
        ("epsilon", torch.float64, 1e-8),
    ],
)
def test_edict_undoes_an_untrained_unet(size: int, prediction_type: str, dtype: torch.dtype, bound: float):
    predict, scheduler = unet_predictor(size, dtype), ddim(prediction_type)
    decode, invert = forward_of(scheduler, "edict"), inverse_of(scheduler, "edict")
    image = picture(2, 3, size, size, dtype=dtype)
    noise = walk(predict, invert, 10, (image, image))
    back = walk(predict, decode, 10, noise)
    assert back[0].dtype == dtype
    assert distance(back, (image, image)) <= bound


@pytest.mark.parametrize(
    ("prediction_type", "dtype", "bound"),
    [
        ("v_prediction", torch.float64, 1e-10),
        ("v_prediction", torch.float32, 1e-4),
        ("epsilon", torch.float64, 1e-8),
        ("epsilon", torch.float32, 1e-4),
    ],
)
def test_edict_brings_a_pair_of_noises_back(prediction_type: str, dtype: torch.dtype, bound: float):
    # With betas that stop at alpha_bar = 0.36, float32 carries epsilon too.
    steps = 1000 if dtype == torch.float64 else 100
    predict, scheduler = unet_predictor(16, dtype), ddim(prediction_type, num_train_timesteps=steps)
    decode, invert = forward_of(scheduler, "edict"), inverse_of(scheduler, "edict")
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 2, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype)
    pair = walk(predict, decode, 10, noise)  # a stacked pair is a pair
    assert distance(walk(predict, invert, 10, pair), noise) <= bound * max(1, pair[0].abs().max())


def test_edict_needs_the_other_half_of_the_pair():
    predict, scheduler = unet_predictor(16, torch.float64), ddim()
    noise = picture(2, 2, 3, 16, 16)
    x, _ = walk(predict, forward_of(scheduler, "edict"), 10, noise)
    assert distance(walk(predict, inverse_of(scheduler, "edict"), 10, (x, x)), noise) > 1e-2


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_edict_without_mixing_is_ddim_for_a_constant_network(prediction_type: str):
    output, noise = 0.3 * picture(1, 1, 4, 4), picture(2, 1, 1, 4, 4)
    edict = EDICTScheduler(prediction_type=prediction_type, edict_p=1.0)
    pair = walk(lambda state, step: output, edict, 10, (noise[0], noise[1]))
    for half, begin in zip(pair, noise, strict=True):
        alone = walk(lambda state, step: output, ddim(prediction_type), 10, begin)
        torch.testing.assert_close(half, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("index", [0, 4, 9])
def test_an_edict_step_follows_the_equations(prediction_type: str, index: int):
    scheduler = EDICTScheduler(prediction_type=prediction_type, edict_p=0.8)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps is not None
    scheduler._step_index = 2 * index
    timestep = int(scheduler.timesteps[2 * index])
    levels = [float(scheduler.alphas_cumprod[timestep]), float(scheduler.alphas_cumprod[timestep - 100])]
    angle, angle_prev = (math.acos(math.sqrt(level)) for level in (levels[0], levels[1] if timestep else 1.0))
    turn = angle - angle_prev

    def move(state: Tensor, seen: Tensor, output: Tensor) -> Tensor:
        if prediction_type == "epsilon":
            clean = (state - math.sin(angle) * output) / math.cos(angle)
            return math.cos(angle_prev) * clean + math.sin(angle_prev) * output
        velocity = output if prediction_type == "v_prediction" else (math.cos(angle) * seen - output) / math.sin(angle)
        return math.cos(turn) * state - math.sin(turn) * velocity

    x, y, first, second = picture(4, 1, 1, 4, 4)
    assert scheduler.scale_model_input((x, y)) is y
    pair = scheduler.step(first, timestep, (x, y), return_dict=False)[0]
    assert scheduler.scale_model_input(pair) is pair[0]
    pair = scheduler.step(second, timestep, pair, return_dict=False)[0]

    x = move(x, y, first)
    y = move(y, x, second)
    x = 0.8 * x + 0.2 * y
    # DDIMScheduler rounds its coefficients to float32.
    torch.testing.assert_close(pair, (x, 0.8 * y + 0.2 * x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_fixed_point_converges_to_the_inverse_of_ddim(prediction_type: str, spacing: str):
    scheduler = ddim(prediction_type, timestep_spacing=spacing)
    image, errors = picture(1, 1, 6, 6), []
    for iterations in (1, 4, 60):
        invert = FixedPointInverseScheduler(
            prediction_type=prediction_type, timestep_spacing=spacing, num_iterations=iterations
        )
        noise, again = walk(contraction, invert, 30, (image, image))  # 1000 / 30 is uneven on purpose
        assert torch.equal(noise, again)
        errors.append(float((walk(contraction, scheduler, 30, noise) - image).abs().max()))
    assert errors[0] > 1e-3
    assert errors[0] > 10 * errors[1]
    assert errors[2] <= 1e-10


def test_one_iteration_is_ddim_inversion_for_epsilon():
    image, scheduler = picture(1, 1, 4, 4), ddim("epsilon", num_train_timesteps=100)
    once = FixedPointInverseScheduler.from_config(scheduler.config, num_iterations=1)
    noise = walk(contraction, once, 10, (image, image))[0]
    torch.testing.assert_close(noise, walk(contraction, inverse_of(scheduler, "ddim"), 10, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scheme", "decodes", "inverts"), [("ddim", 6, 6), ("edict", 12, 12), ("fixed_point", 6, 30)])
def test_predictions_are_counted(scheme: str, decodes: int, inverts: int):
    calls, image = [], picture(1, 1, 4, 4)

    def predict(state: Tensor, step: Step) -> Tensor:
        calls.append(int(step.timestep))
        return contraction(state, step)

    noise = walk(predict, inverse_of(ddim(), scheme), 6, start(scheme, image))
    assert len(calls) == inverts
    walk(predict, forward_of(ddim(), scheme), 6, noise_of(scheme, noise))
    assert len(calls) == inverts + decodes
    assert sorted(set(calls[:inverts])) == sorted(set(calls[inverts:]))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_grids_are_those_of_ddim(spacing: str, offset: int, steps: int):
    scheduler = ddim(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    expected = scheduler.timesteps.tolist()
    for scheme, repeats in (("edict", 2), ("fixed_point", 5)):
        invert = inverse_of(scheduler, scheme)
        invert.set_timesteps(steps)
        assert invert.timesteps.tolist() == [t for t in reversed(expected) for _ in range(repeats)]
    decode = forward_of(scheduler, "edict")
    decode.set_timesteps(steps)
    assert decode.timesteps.tolist() == [t for t in expected for _ in range(2)]
    assert torch.equal(decode.alphas_cumprod, scheduler.alphas_cumprod)


def test_steps_give_the_same_with_and_without_the_output_class():
    pair, output = (picture(1, 1, 2, 2), -picture(1, 1, 2, 2)), picture(1, 1, 2, 2)
    for scheduler in (EDICTScheduler(), EDICTInverseScheduler(), FixedPointInverseScheduler()):
        results: list[Pair] = []
        for return_dict in (True, False):
            scheduler.set_timesteps(3)
            assert scheduler.timesteps is not None
            result = scheduler.step(output, scheduler.timesteps[0], pair, return_dict=return_dict)
            results.append(result[0])
        assert distance(*results) == 0


def test_a_batch_row_is_what_it_is_alone():
    images, scheduler = picture(3, 1, 4, 4), ddim()
    noises = walk(contraction, inverse_of(scheduler, "edict"), 5, (images, images))
    alone = walk(contraction, inverse_of(scheduler, "edict"), 5, (images[1:2], images[1:2]))
    assert distance(alone, [half[1:2] for half in noises]) == 0


@pytest.mark.parametrize("kind", OURS)
def test_save_and_load_keep_every_setting(kind: Any, tmp_path):
    own: dict[str, Any] = {"num_iterations": 3} if kind is FixedPointInverseScheduler else {"edict_p": 0.9}
    settings: dict[str, Any] = {
        "num_train_timesteps": 200,
        "beta_start": 2e-4,
        "beta_end": 0.03,
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    scheduler = kind(**settings, **own)
    scheduler.save_pretrained(tmp_path)
    loaded: Any = kind.from_pretrained(tmp_path)
    image = picture(1, 1, 4, 4)
    assert all(loaded.config[name] == value for name, value in {**settings, **own}.items())
    first, second = (walk(contraction, one, 5, (image, image)) for one in (scheduler, loaded))
    assert distance(first, second) == 0


@pytest.mark.parametrize("kind", OURS)
def test_config_goes_to_ddim_and_back(kind: Any):
    scheduler = ddim("v_prediction", num_train_timesteps=300, beta_schedule="squaredcos_cap_v2", steps_offset=1)
    there = kind.from_config(scheduler.config)
    back: Any = DDIMScheduler.from_config(there.config)
    for name in DDIMScheduler().config:
        if not name.startswith("_"):
            assert back.config[name] == scheduler.config[name], name
    assert torch.equal(there.alphas_cumprod, back.alphas_cumprod)


def test_a_pipeline_with_edict_loads_again(tmp_path):
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
    )
    DDPMPipeline(unet, EDICTScheduler(edict_p=0.8)).save_pretrained(tmp_path)  # type: ignore[arg-type]
    scheduler = DDPMPipeline.from_pretrained(tmp_path).scheduler
    assert type(scheduler) is EDICTScheduler
    assert scheduler.config["edict_p"] == 0.8


def test_schemes_are_the_classes_they_say():
    assert type(forward_of(ddim(), "ddim")) is DDIMScheduler
    assert type(inverse_of(ddim(), "ddim")) is DDIMInverseScheduler
    assert type(forward_of(ddim(), "fixed_point")) is DDIMScheduler
    with pytest.raises(ValueError, match=r"edict, ddim, fixed_point, got 'exact'"):
        inverse_of(ddim(), "exact")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"clip_sample": True}, "clip_sample must be False"),
        ({"clip_sample": False, "thresholding": True}, "thresholding must be False"),
        ({"clip_sample": False, "timestep_spacing": "linspace"}, "got 'linspace'"),
    ],
)
def test_configurations_without_an_inverse_are_refused(config: dict, message: str):
    for kind in OURS:
        with pytest.raises(ValueError, match=message):
            kind(**config)
    for scheme in SCHEMES:
        with pytest.raises(ValueError, match=message):
            inverse_of(DDIMScheduler(**config), scheme)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("steps", [0, -1, 101])
def test_the_number_of_steps_is_checked(kind, steps: int):
    with pytest.raises(ValueError, match=rf"1\.\.100 .*got {steps}"):
        kind(num_train_timesteps=100).set_timesteps(steps)


def test_other_bad_settings_are_refused():
    with pytest.raises(ValueError, match="given as flow"):
        EDICTScheduler(prediction_type="flow").set_timesteps(5)
    with pytest.raises(ValueError, match=r"steps_offset=1 .* timestep 100"):
        EDICTScheduler(num_train_timesteps=100, steps_offset=1).set_timesteps(100)
    with pytest.raises(ValueError, match="cannot be inverted"):  # alpha_bar_T = 0 divides epsilon by zero
        EDICTScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing").set_timesteps(5)
    with pytest.raises(ValueError, match="num_iterations"):
        FixedPointInverseScheduler(num_iterations=0)
    for kind in (EDICTScheduler, EDICTInverseScheduler):
        for edict_p in (0.0, 1.1):
            with pytest.raises(ValueError, match="edict_p"):
                kind(edict_p=edict_p)


def test_zero_terminal_snr_is_fine_for_velocity():
    scheduler, image = ddim(rescale_betas_zero_snr=True, timestep_spacing="trailing"), picture(1, 1, 4, 4)
    noise = walk(contraction, inverse_of(scheduler, "edict"), 5, (image, image))
    assert distance(walk(contraction, forward_of(scheduler, "edict"), 5, noise), (image, image)) <= 1e-10


@pytest.mark.parametrize("kind", OURS)
def test_steps_out_of_turn_are_refused(kind):
    scheduler, image = kind(), picture(1, 1, 2, 2)
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(image, 0, (image, image))
    walk(contraction, scheduler, 3, (image, image))
    with pytest.raises(ValueError, match="are done; call set_timesteps to start anew"):
        sample(contraction, scheduler, (image, image), progress=False)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match=r"step 1 of .* got 333"):
        scheduler.step(image, 333, (image, image))
