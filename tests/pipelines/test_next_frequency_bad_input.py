"""Bad input: one line that names the argument, what it got and what would do, before any network is called."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gendiff.models.next_frequency import NextFrequencyTransformer2DModel
from gendiff.pipelines.next_frequency import NextFrequencyPipeline
from gendiff.samplers.next_frequency import NextFrequencyScheduler

IMAGE = torch.full((1, 1, 16, 16), 0.5)
MASK = torch.ones(1, 1, 16, 16)


def spoiled(value: float) -> torch.Tensor:
    image = IMAGE.clone()
    image[0, 0, 3, 4] = value
    return image


@pytest.fixture
def pipe(tiny_next_frequency_pipeline) -> NextFrequencyPipeline:
    """Each network of it fails when it is called."""
    pipe = tiny_next_frequency_pipeline()
    for model in (pipe.vqvae, pipe.transformer):
        for part in model.modules():
            part.register_forward_pre_hook(lambda module, _: pytest.fail(f"{type(module).__name__} was called"))
    return pipe


KEPT = {"image": IMAGE, "keep_stages": 2}
CALLS: list[tuple[dict[str, Any], str]] = [
    ({"class_labels": 4}, "class_labels must be 0 to 2, or a name, got 4"),
    ({"class_labels": [0, -2]}, "class_labels must be 0 to 2, or a name, got -2"),
    ({"class_labels": "tow"}, "class_labels has 'tow'; known: one, two, three. Did you mean 'two'"),
    ({"class_labels": []}, "class_labels must hold at least one class, got none"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number of at least 1, got 0"),
    ({"num_images_per_prompt": 1.5}, "num_images_per_prompt must be a whole number of at least 1, got 1.5"),
    ({"guidance_scale": math.nan}, "guidance_scale must be finite and at least 0, got nan"),
    ({"guidance_scale": -1.0}, "guidance_scale must be finite and at least 0, got -1.0"),
    ({"guidance_scale": "3"}, "guidance_scale must be finite and at least 0, got '3'"),
    ({"guidance_schedule": "square"}, "guidance_schedule must be one of linear, constant, or 4 numbers, got 'square'"),
    (
        {"guidance_schedule": [1.0, 2.0]},
        r"guidance_schedule must be 4 numbers, one for each stage, .* got \[1.0, 2.0\]",
    ),
    ({"guidance_schedule": [1, 2, 3, math.nan]}, "guidance_schedule must be 4 numbers"),
    ({"top_k": -1}, r"top_k must be a whole number from 0 \(off\) to 32, got -1"),
    ({"top_k": 33}, r"top_k must be a whole number from 0 \(off\) to 32, got 33"),
    ({"top_k": 0.5}, "top_k must be a whole number .* got 0.5"),
    ({"top_p": 1.5}, r"top_p must be from 0 \(off\) to 1, got 1.5"),
    ({"top_p": -0.5}, r"top_p must be from 0 \(off\) to 1, got -0.5"),
    ({"top_p": math.nan}, "top_p must be from 0 .* got nan"),
    ({"temperature": 0}, "temperature must be above 0 and finite, got 0"),
    ({"temperature": -1.0}, "temperature must be above 0 and finite, got -1.0"),
    ({"temperature": math.nan}, "temperature must be above 0 and finite, got nan"),
    ({"temperature": None}, "temperature must be above 0 and finite, got None"),
    ({"num_stages": 0}, "num_stages must be a whole number from 1 to 4, got 0"),
    ({"num_stages": 5}, "num_stages must be a whole number from 1 to 4, got 5"),
    ({"num_stages": 2.0}, "num_stages must be a whole number from 1 to 4, got 2.0"),
    ({"generator": [torch.Generator()] * 3}, "generator must hold one generator for each of 2 images, got 3"),
    ({"generator": 7}, "generator must be a torch.Generator, or a list of one for each image, got int"),
    ({"generator": [torch.Generator(), 7]}, "generator must be a torch.Generator, .* got int"),
    ({"output_type": "jpg"}, "output_type has 'jpg'; known: pil, np, pt, latent"),
    ({"output_type": None}, "output_type has None; known: pil, np, pt, latent"),
    ({"mask_image": MASK}, "mask_image needs image: without one there is nothing to keep"),
    ({"keep_stages": 2}, "keep_stages needs image"),
    ({"strength": 0.5}, "strength needs image"),
    ({"blend_pixels": True}, "blend_pixels needs image"),
    ({"image": IMAGE}, "image needs keep_stages, strength or mask_image, which say what of it is kept"),
    ({**KEPT, "strength": 0.5}, "keep_stages 2 and strength 0.5 say the same thing: give one of them"),
    ({"keep_stages": 2, "strength": 0.5}, "keep_stages 2 and strength 0.5 say the same thing"),
    ({**KEPT, "keep_stages": 5}, "keep_stages must be a whole number from 0 to 4, got 5"),
    ({**KEPT, "keep_stages": -1}, "keep_stages must be a whole number from 0 to 4, got -1"),
    ({**KEPT, "keep_stages": 1.0}, "keep_stages must be a whole number from 0 to 4, got 1.0"),
    ({"image": IMAGE, "strength": 1.5}, "strength must be from 0 to 1, got 1.5"),
    ({"image": IMAGE, "strength": math.nan}, "strength must be from 0 to 1, got nan"),
    ({"image": IMAGE, "strength": True}, "strength must be from 0 to 1, got True"),
    ({**KEPT, "blend_pixels": True}, "blend_pixels needs mask_image, which says where"),
    ({**KEPT, "image": IMAGE[..., :15]}, r"image: expected \(B,1,16,16\), got \(1,1,16,15\)"),
    ({**KEPT, "image": torch.zeros(1, 1, 20, 20)}, r"image: expected \(B,1,16,16\), got \(1,1,20,20\)"),
    ({**KEPT, "image": torch.zeros(1, 3, 16, 16)}, r"image: expected \(B,1,16,16\), got \(1,3,16,16\)"),
    ({**KEPT, "image": Image.new("L", (16, 12))}, r"image: expected \(B,1,16,16\), got \(1,1,12,16\)"),
    ({**KEPT, "image": torch.zeros(3, 1, 16, 16)}, "image must be one, or one for each of 2 images, got 3"),
    ({**KEPT, "image": IMAGE.byte()}, r"image must hold floats in \[0, 1\], got torch.uint8; divide uint8 by 255"),
    ({**KEPT, "image": np.zeros((1, 1, 16, 16), dtype=np.uint8)}, r"image must hold floats in \[0, 1\], got uint8"),
    ({**KEPT, "image": spoiled(1.01)}, r"image must lie in \[0, 1\], got values from 0.5 to 1.01"),
    ({**KEPT, "image": spoiled(-0.01)}, r"image must lie in \[0, 1\], got values from -0.01 to 0.5"),
    ({**KEPT, "image": spoiled(-1.0).numpy()}, r"image must lie in \[0, 1\], got values from -1 to 0.5"),
    ({**KEPT, "image": spoiled(math.nan)}, r"image must lie in \[0, 1\], got values from nan"),
    ({**KEPT, "image": "cat.png"}, "image must be a PIL image, a list of them, a tensor or array, got str"),
    ({**KEPT, "image": []}, "image must be a PIL image, a non-empty list"),
    ({**KEPT, "mask_image": MASK[..., :8]}, r"mask_image: expected \(B,1,16,16\), got \(1,1,16,8\)"),
    ({**KEPT, "mask_image": 2 * MASK}, r"mask_image must lie in \[0, 1\], got values from 2 to 2"),
    ({**KEPT, "mask_image": -MASK}, r"mask_image must lie in \[0, 1\], got values from -1 to -1"),
    ({**KEPT, "mask_image": MASK.bool()}, r"mask_image must hold floats in \[0, 1\], got torch.bool"),
    ({**KEPT, "mask_image": MASK.expand(3, 1, 16, 16)}, "mask_image must be one, or one for each of 2 images, got 3"),
    ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["noise"]}, "has 'noise'; known: latents"),
]


@pytest.mark.parametrize(("arguments", "message"), CALLS, ids=[message[:40] for _, message in CALLS])
def test_a_call_names_what_is_wrong(pipe, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message) as raised:
        pipe(**{"class_labels": [0, 1], **arguments})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "labels", [True, [0, False], 1.0, [1.5], torch.tensor([1.0]), torch.tensor([True]), [[0], [1]]]
)
def test_a_class_is_a_number_or_a_name(pipe, labels: Any):
    with pytest.raises(TypeError, match="class_labels must be whole numbers or names, got "):
        pipe(labels)


def test_a_bad_call_changes_nothing(tiny_next_frequency_pipeline):
    pipe = tiny_next_frequency_pipeline()

    def draw():
        return pipe(0, generator=torch.Generator().manual_seed(0), output_type="pt")

    before = draw()
    for arguments, _ in CALLS:
        with pytest.raises(ValueError):
            pipe(**{"class_labels": [0, 1], "num_stages": 2, **arguments})
    assert torch.equal(draw().images, before.images) and pipe.num_timesteps == 4


COMPONENTS = [
    ({"stages": (1, 2, 4)}, r"vqvae and transformer must agree on stages, got \[1, 2, 3, 4\] and \[1, 2, 4\]"),
    ({"codebook_size": 64}, "vqvae and transformer must agree on codebook_size, got 32 and 64"),
    ({"latent_channels": 16}, "vqvae and transformer must agree on latent_channels, got 8 and 16"),
]


@pytest.mark.parametrize(("change", "message"), COMPONENTS)
def test_components_that_do_not_fit_are_named_with_both_values(pipe, change: dict, message: str):
    fitting = {"stages": (1, 2, 3, 4), "codebook_size": 32, "latent_channels": 8, "num_classes": 3}
    other = NextFrequencyTransformer2DModel(**{**fitting, **change}, num_layers=1, num_attention_heads=1)
    with pytest.raises(ValueError, match=message):
        NextFrequencyPipeline(pipe.vqvae, other, pipe.scheduler)


def test_a_scheduler_and_names_that_do_not_fit_are_named(pipe):
    scheduler = NextFrequencyScheduler((1, 4))
    with pytest.raises(ValueError, match=r"scheduler and vqvae must agree on stages, got \[1, 4\] and \[1, 2, 3, 4\]"):
        NextFrequencyPipeline(pipe.vqvae, pipe.transformer, scheduler)
    with pytest.raises(ValueError, match="class_names must be 3, one for each class, got 2"):
        NextFrequencyPipeline(pipe.vqvae, pipe.transformer, pipe.scheduler, class_names=["a", "b"])


def test_a_folder_with_weights_missing_is_refused(tiny_next_frequency_pipeline, tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_next_frequency_pipeline().save_pretrained(tmp_path)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["lvl_embed.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lvl_embed\.weight"):
        NextFrequencyPipeline.from_pretrained(tmp_path)
