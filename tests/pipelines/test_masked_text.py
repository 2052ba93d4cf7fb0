"""Text to image with aMUSEd's parts: our pipeline around them, with ReCAP, saved and loaded again."""

from __future__ import annotations

import pytest
import torch

import gendiff
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.samplers.recap import ReCAPConfig

PROMPTS = ["a red hat", "two blue cats"]


@pytest.fixture(scope="module")
def pipe(tiny_amused) -> MaskedGenerationPipeline:
    made = MaskedGenerationPipeline.from_amused(tiny_amused)
    made.set_progress_bar_config(disable=True)
    return made


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(2)]


def drawn(pipe: MaskedGenerationPipeline, **options):
    defaults = {"num_inference_steps": 6, "guidance_scale": 3.0, "generator": generators(), "output_type": "pt"}
    return pipe(prompt=PROMPTS, **(defaults | options))


def test_texts_steer_the_picture_and_no_light_step_is_the_base(pipe):
    base = drawn(pipe)
    assert base.images.shape == (2, 3, 8, 8) and base.tokens.max() < 20
    off = drawn(pipe, recap=ReCAPConfig(num_light_steps=0))
    assert torch.equal(base.tokens, off.tokens)
    assert not torch.equal(base.tokens, drawn(pipe, negative_prompt="bad").tokens)
    assert base.stats.plan["calls"]["unconditional"]["full"] == [16] * 6
    assert drawn(pipe, guidance_scale=1.0).stats.plan["calls"]["unconditional"]["full"] == []


def test_light_steps_compute_the_group_alone_and_cost_less(pipe):
    base, light = drawn(pipe), drawn(pipe, recap=ReCAPConfig(num_light_steps=1))
    calls = light.stats.plan["calls"]
    assert calls["conditional"] == calls["unconditional"]
    assert len(calls["conditional"]["full"]) == 3 and len(calls["conditional"]["light"]) == 3
    assert light.stats.flops < base.stats.flops and light.stats.cache_bytes > 0


def test_a_text_of_a_batch_is_drawn_as_alone(pipe):
    recap = ReCAPConfig(num_light_steps=1)
    both = drawn(pipe, recap=recap)
    alone = pipe(prompt=PROMPTS[1], num_inference_steps=6, guidance_scale=3.0, generator=[generators()[1]], recap=recap)
    assert torch.equal(both.tokens[1], alone.tokens[0])


def test_saved_and_loaded_it_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = gendiff.load_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(drawn(loaded).images, drawn(pipe).images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": []}, "prompt must be a text or a list of texts"),
        ({"prompt": "a", "class_labels": 3}, "class_labels must be None: the model knows no classes, got 3"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, "negative_prompt must be one, or one for each of 2"),
    ],
)
def test_bad_texts_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(**options)
