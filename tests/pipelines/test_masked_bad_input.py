"""Bad input: one line that names the argument, what it got and what would do, before any network is called."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_masked import SIDE, V, picture, seeded
from torch import nn

import gendiff
from gendiff.models.masked.mage import MAGETransformer2DModel
from gendiff.models.masked.mar import MARTransformer2DModel
from gendiff.models.masked.maskgit import MaskGITTransformer2DModel
from gendiff.models.masked.patch_vq import PatchVQTokenizer
from gendiff.models.masked.pixel_patches import PixelPatchTokenizer
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.samplers.masked import MaskedScheduler
from gendiff.samplers.recap import ReCAPConfig

IMAGE = picture()
MASK = torch.ones(1, 1, SIDE, SIDE)


def untouchable(pipe: MaskedGenerationPipeline) -> MaskedGenerationPipeline:
    """Each part of it fails when it is called."""

    def fail(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a model was called")

    for part in pipe.transformer.modules():
        part.register_forward_pre_hook(fail)
    pipe.image_tokenizer.encode = pipe.image_tokenizer.decode = fail
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(tiny_masked_pipeline) -> MaskedGenerationPipeline:
    return untouchable(tiny_masked_pipeline())


@pytest.fixture
def unlabelled() -> MaskedGenerationPipeline:
    network = MAGETransformer2DModel(4, 16, 0, num_encoder_layers=1, num_decoder_layers=1, num_attention_heads=1)
    return untouchable(MaskedGenerationPipeline(network, PatchVQTokenizer(8, 1, 2, 16), MaskedScheduler()))


def continuous(order: str = "random") -> MaskedGenerationPipeline:
    network = MARTransformer2DModel(4, 4, 3, 1, 1, 1, 16, num_buffer_rows=2, head_width=16, head_layers=1)
    return untouchable(MaskedGenerationPipeline(network, PixelPatchTokenizer(8, 1, 2), MaskedScheduler(order=order)))


def spoiled(value: float, mask: bool = False) -> torch.Tensor:
    image = (MASK if mask else IMAGE).clone()
    image[0, 0, 3, 4] = value
    return image


KNOWN = {"image": IMAGE, "mask_image": MASK}
CALLS: list[tuple[dict[str, Any], str]] = [
    ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of at least 1, got 0"),
    ({"num_inference_steps": 4.0}, "num_inference_steps must be a whole number of at least 1, got 4.0"),
    ({"num_inference_steps": True}, "num_inference_steps must be a whole number of at least 1, got True"),
    ({"num_inference_steps": None}, "num_inference_steps must be a whole number of at least 1, got None"),
    ({"guidance_scale": -0.5}, "guidance_scale must be finite and at least 0, got -0.5"),
    ({"guidance_scale": math.nan}, "guidance_scale must be finite and at least 0, got nan"),
    ({"guidance_scale": math.inf}, "guidance_scale must be finite and at least 0, got inf"),
    ({"guidance_scale": "3"}, "guidance_scale must be finite and at least 0, got '3'"),
    ({"class_labels": 3}, "class_labels must be 0 to 2, or a name, got 3"),
    ({"class_labels": [0, -2]}, "class_labels must be 0 to 2, or a name, got -2"),
    ({"class_labels": "tow"}, "class_labels has 'tow'; known: one, two, three. Did you mean 'two'"),
    ({"class_labels": []}, "class_labels must hold at least one class, got none"),
    ({"class_labels": None}, "class_labels is missing: give a class, or unconditional=True to draw without one"),
    ({"unconditional": True}, "class_labels must be None if unconditional, got [0, 1]"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number of at least 1, got 0"),
    ({"num_images_per_prompt": 1.5}, "num_images_per_prompt must be a whole number of at least 1, got 1.5"),
    ({"generator": [seeded()]}, "generator must hold one generator for each of 2 images, got 1"),
    ({"generator": [seeded()] * 2, "num_images_per_prompt": 2}, "one generator for each of 4 images, got 2"),
    ({"generator": 0}, "generator must be a torch.Generator, or a list of one for each image, got int"),
    ({"generator": [seeded(), 1]}, "generator must be a torch.Generator, or a list of one for each image, got int"),
    ({"output_type": "jpg"}, "output_type has 'jpg'; known: pil, np, pt, tokens"),
    ({"output_type": None}, "output_type has None; known: pil, np, pt, tokens"),
    ({"image": IMAGE}, "image and mask_image go together, got image without mask_image"),
    ({"mask_image": MASK}, "image and mask_image go together, got mask_image without image"),
    ({**KNOWN, "mask_dilation": -1}, "mask_dilation must be a whole number of at least 0, got -1"),
    ({**KNOWN, "mask_dilation": 0.5}, "mask_dilation must be a whole number of at least 0, got 0.5"),
    ({**KNOWN, "mask_image": torch.ones(1, 1, 7, 8)}, "mask_image: expected (B,1,8,8), got (1,1,7,8)"),
    ({**KNOWN, "mask_image": torch.ones(1, 3, 8, 8)}, "mask_image: expected (B,1,8,8), got (1,3,8,8)"),
    ({**KNOWN, "mask_image": torch.ones(1, 4, 4)}, "mask_image: expected (B,1,8,8), got (1,1,4,4)"),
    ({**KNOWN, "mask_image": MASK.expand(3, -1, -1, -1)}, "mask_image must be one, or one for each of 2 images, got 3"),
    ({**KNOWN, "mask_image": spoiled(1.5, True)}, "mask_image must lie in [0, 1], got values from 1 to 1.5"),
    ({**KNOWN, "mask_image": spoiled(-0.5, True)}, "mask_image must lie in [0, 1], got values from -0.5 to 1"),
    ({**KNOWN, "mask_image": spoiled(math.nan, True)}, "mask_image must lie in [0, 1], got values from nan to nan"),
    ({**KNOWN, "mask_image": MASK > 0}, "mask_image must hold floats in [0, 1], got torch.bool"),
    ({**KNOWN, "mask_image": "mask.png"}, "mask_image must be a PIL image, a list of them, a tensor or array, got str"),
    ({**KNOWN, "image": picture(3)}, "image must be one, or one for each of 2 images, got 3"),
    ({**KNOWN, "image": torch.rand(1, 1, 16, 16)}, "image: expected (B,1,8,8), got (1,1,16,16)"),
    ({**KNOWN, "image": spoiled(-1.0)}, "image must lie in [0, 1], got values from -1 to "),
    ({**KNOWN, "image": spoiled(math.nan)}, "image must lie in [0, 1], got values from nan to nan"),
    ({**KNOWN, "image": (IMAGE * 255).byte().numpy()}, "image must hold floats in [0, 1], got uint8"),
    ({**KNOWN, "image": []}, "image must be a PIL image, a non-empty list of PIL images, or a tensor or array"),
    ({**KNOWN, "image": Image.new("L", (9, 8))}, "image: expected (B,1,8,8), got (1,1,8,9)"),
    ({**KNOWN, "latents": torch.zeros(2, 16).long()}, "latents and image both say what is known"),
    ({"blend_pixels": True}, "blend_pixels needs image and mask_image, which say what is put back"),
    ({"latents": torch.zeros(2, 16)}, "latents must be (2, 16) int64, got (2, 16) torch.float32"),
    ({"latents": torch.zeros(1, 16).long()}, "latents must be (2, 16) int64, got (1, 16) torch.int64"),
    ({"latents": torch.zeros(2, 4, 4).long()}, "latents must be (2, 16) int64, got (2, 4, 4) torch.int64"),
    ({"latents": np.zeros((2, 16), dtype=np.int64)}, "latents must be (2, 16) int64, got a ndarray"),
    ({"latents": torch.full((2, 16), V + 1)}, "latents must be from 0 to 16, which stands for hidden, got 17 to 17"),
    ({"latents": torch.full((2, 16), -1)}, "latents must be from 0 to 16, which stands for hidden, got -1 to -1"),
    ({"recap": "light=1"}, "recap must be a ReCAPConfig or None, got str"),
    ({"recap": {"num_light_steps": 1}}, "recap must be a ReCAPConfig or None, got dict"),
    ({"recap": ReCAPConfig(light_head_steps=5)}, "light_head_steps must be None: no diffusion head here, got 5"),
    ({"num_head_steps": 1}, "num_head_steps must be a whole number from 2 to 1000, got 1"),
    ({"num_head_steps": 2.5}, "num_head_steps must be a whole number from 2 to 1000, got 2.5"),
    ({"head_temperature": -1.0}, "head_temperature must be finite and at least 0, got -1.0"),
    ({"head_temperature": math.nan}, "head_temperature must be finite and at least 0, got nan"),
    ({"prompt": "a dog"}, "prompt must be None: the model reads no text, got 'a dog'"),
    ({"negative_prompt": "a dog"}, "negative_prompt must be None: the model reads no text, got 'a dog'"),
    (
        {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["latent"]},
        "callback_on_step_end_tensor_inputs has 'latent'; known: latents, hidden, light. Did you mean 'latents'",
    ),
    ({"callback_on_step_end": 3}, "callback_on_step_end must be callable or None, got int"),
]


@pytest.mark.parametrize(("options", "message"), CALLS, ids=[message for _, message in CALLS])
def test_a_bad_argument_is_named_before_anything_runs(pipe, options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        pipe(**{"class_labels": [0, 1], "generator": seeded(), **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [1.5, [0, 2.0], True, torch.tensor([0.0]), torch.tensor([True])])
def test_a_class_is_a_whole_number_or_a_name(pipe, label):
    with pytest.raises(TypeError, match="class_labels must be whole numbers or names, got"):
        pipe(label)


def test_a_model_without_classes_is_given_none(unlabelled):
    with pytest.raises(ValueError, match="class_labels must be None: the model knows no classes, got 0"):
        unlabelled(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recap": ReCAPConfig(light_head_steps=26)}, "light_head_steps must be 2 to 25, got 26"),
        ({"recap": ReCAPConfig(light_head_steps=11), "num_head_steps": 10}, "light_head_steps must be 2 to 10, got 11"),
        ({"recap": ReCAPConfig(light_head_steps=1)}, "light_head_steps must be 2 to 25, got 1"),
        ({"recap": ReCAPConfig(max_staleness=0.1)}, "max_staleness must be None: it is measured on logits"),
        ({"latents": torch.zeros(1, 16).long()}, "latents must be None: tokens of this model are vectors"),
    ],
)
def test_what_a_diffusion_head_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        continuous()(0, **options)


def test_one_layout_needs_as_many_hidden_tokens_in_each_image(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the network was called"))
    latents = torch.full((2, 16), V)
    latents[0, :10] = 3
    with pytest.raises(ValueError, match="layout must be in_place where images hide different numbers of tokens, got"):
        pipe([0, 1], latents=latents, recap=ReCAPConfig(layout="concat"))


def test_a_cache_wider_than_the_network_is_remarked_on(tiny_masked_pipeline, caplog):
    pipe = tiny_masked_pipeline(dtype=torch.bfloat16)
    pipe([0], num_inference_steps=2, recap=ReCAPConfig(cache_dtype="float32"), output_type="tokens")
    assert "cache_dtype float32 is wider than the network's torch.bfloat16" in caplog.text
    caplog.clear()
    pipe([0], num_inference_steps=2, recap=ReCAPConfig(cache_dtype="float16"), output_type="tokens")
    assert not caplog.text


# Parts that do not fit together


def network(**settings: Any) -> MaskGITTransformer2DModel:
    sizes = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 4}
    return MaskGITTransformer2DModel(**{"sample_size": 4, "codebook_size": 16, "num_classes": 3, **sizes, **settings})


@pytest.mark.parametrize(
    ("settings", "names", "message"),
    [
        ({"sample_size": 5}, (), "transformer and image_tokenizer must agree on the grid, got 25 and 16 tokens"),
        ({"codebook_size": 17}, (), "transformer and image_tokenizer must agree on codebook_size, got 17 and 16"),
        ({}, ("one", "two"), "class_names must be 3, one for each class, got 2"),
    ],
)
def test_parts_must_fit_together(settings, names, message):
    with pytest.raises(ValueError, match=message):
        MaskedGenerationPipeline(network(**settings), PatchVQTokenizer(8, 1, 2, 16), MaskedScheduler(), names)


def test_kinds_of_tokens_must_fit_together():
    with pytest.raises(ValueError, match="must agree on codebook_size, got 16 and None"):
        MaskedGenerationPipeline(network(), PixelPatchTokenizer(8, 1, 2), MaskedScheduler(order="random"))
    with pytest.raises(ValueError, match="scheduler must have order halton or random for continuous tokens"):
        continuous(order="confidence")
    with pytest.raises(ValueError, match=r"sample_size \+ 2 padding must be a multiple of patch_size 3, got 8"):
        PatchVQTokenizer(8, 1, 3, 16)


def test_recap_needs_a_network_that_can(tiny_unet):
    supported = "one of MaskGITTransformer2DModel, HaltonTransformer2DModel, MAGETransformer2DModel, MARTransformer2D"

    def around(other: Any) -> MaskedGenerationPipeline:
        return MaskedGenerationPipeline(other, PatchVQTokenizer(8, 1, 2, 16), MaskedScheduler())

    for use in (gendiff.enable_recap, around):
        for other, name in ((tiny_unet(), "PatchUNet2DModel"), (nn.Linear(2, 2), "Linear")):
            with pytest.raises(TypeError, match=f"transformer must be {supported}.*make_cache.*, got {name}"):
                use(other)
    with pytest.raises(ValueError, match="config must be a ReCAPConfig or None, got dict"):
        gendiff.enable_recap(network(), {"num_light_steps": 1})  # pyright: ignore[reportArgumentType]
