"""Pictures from hidden tokens: what comes out, by whatever classes, seeds, precision and folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_masked import ORDERS, SIDE, N, V, draw, each, seeded

import gendiff
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.samplers.mask_schedules import reveal_counts
from gendiff.samplers.recap import ReCAPConfig

# What comes out


def test_a_picture_of_each_class_in_each_kind_of_output(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    tokens = draw(pipe).images
    assert tokens.shape == (3, N) and tokens.dtype == torch.long and tokens.min() >= 0 and tokens.max() < V
    tensor = draw(pipe, output_type="pt").images
    decoded = pipe.image_tokenizer.decode(tokens).clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(tensor, decoded)
    array = draw(pipe, output_type="np").images
    np.testing.assert_allclose(array, decoded.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    pils = draw(pipe, output_type="pil").images
    assert all(isinstance(image, Image.Image) and image.size == (SIDE, SIDE) and image.mode == "L" for image in pils)
    assert len(pils) == 3


def test_the_other_fields_of_the_output(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    output = draw(pipe, ["two", None, -1], num_images_per_prompt=2)
    assert output.class_labels.tolist() == [1, 1, -1, -1, -1, -1]
    assert torch.equal(output.images, output.tokens)
    counts = reveal_counts(6, N)
    assert [[int((row == t).sum()) for t in range(6)] for row in output.revealed_at] == [counts] * 6
    assert output.stats.plan["revealed"] == [counts] * 6
    assert pipe.num_timesteps == 6 and pipe.guidance_scale == 2.0
    images, tokens, labels, revealed, stats = draw(pipe, ["two", None, -1], num_images_per_prompt=2, return_dict=False)
    assert torch.equal(images, output.images) and torch.equal(tokens, output.tokens)
    assert torch.equal(labels, output.class_labels) and torch.equal(revealed, output.revealed_at)
    assert stats.flops == output.stats.flops > 0


def test_classes_by_number_by_name_and_none(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    by_name, by_number = draw(pipe, ["three", "one"]).tokens, draw(pipe, torch.tensor([2, 0])).tokens
    assert torch.equal(by_name, by_number)
    free = draw(pipe, None, unconditional=True, num_images_per_prompt=2)
    assert free.class_labels.tolist() == [-1, -1]
    assert torch.equal(free.tokens, draw(pipe, [None, None]).tokens)
    assert not torch.equal(free.tokens, draw(pipe, [0, 0]).tokens)


def test_guidance_does_nothing_where_there_is_no_class(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline(scheduler={"guidance_schedule": "constant"})
    plain = draw(pipe, [None], guidance_scale=1.0).tokens
    assert torch.equal(draw(pipe, [None], guidance_scale=5.0).tokens, plain)
    assert not torch.equal(draw(pipe, [1], guidance_scale=5.0).tokens, draw(pipe, [1], guidance_scale=1.0).tokens)


def test_guidance_is_the_formula_at_every_step(tiny_masked_pipeline):
    """One step: what is revealed is drawn from u + s (c - u)."""
    pipe = tiny_masked_pipeline(scheduler={"guidance_schedule": "constant", "sampling_temperature": 1e-4})
    tokens, hidden = torch.zeros(2, N, dtype=torch.long), torch.ones(2, N, dtype=torch.bool)
    with torch.no_grad():
        wanted = pipe.transformer(tokens, hidden, torch.tensor([0, 2])).sample
        other = pipe.transformer(tokens, hidden, torch.tensor([3, 3])).sample
    for scale in (0.0, 0.5, 1.0, 7.5):
        expected = (other + scale * (wanted - other)).argmax(dim=-1)
        drawn = draw(pipe, [0, 2], num_inference_steps=1, guidance_scale=scale)
        assert torch.equal(drawn.tokens, expected)


# The base decoder


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("order", ORDERS)
def test_no_light_steps_and_nothing_but_warmup_are_the_base_decoder_to_the_bit(tiny_masked_pipeline, order, scale):
    pipe = tiny_masked_pipeline(scheduler={"order": order})
    generators = [seeded() for _ in range(4)]
    recaps = [None, ReCAPConfig(0), ReCAPConfig(1, 6), ReCAPConfig(2, 9, anneal_over="group", resample_committed=True)]
    outputs = [
        draw(pipe, recap=recap, generator=generator, guidance_scale=scale)
        for recap, generator in zip(recaps, generators, strict=True)
    ]
    for output, generator in zip(outputs[1:], generators[1:], strict=True):
        assert torch.equal(output.tokens, outputs[0].tokens)
        assert torch.equal(output.revealed_at, outputs[0].revealed_at)
        assert torch.equal(generator.get_state(), generators[0].get_state())
        assert output.stats.plan["calls"] == outputs[0].stats.plan["calls"]
        assert output.stats.cache_bytes == 0 and output.stats.flops == outputs[0].stats.flops


@pytest.mark.parametrize("order", ORDERS)
def test_light_steps_that_find_nothing_stale_are_full_ones(tiny_masked_pipeline, order):
    """With all tokens in one group no row is reused, so light logits are full ones, whatever the layout."""
    pipe = tiny_masked_pipeline(dtype=torch.float64, scheduler={"order": order})
    outputs = []
    for layout in ("in_place", "concat"):
        recap = ReCAPConfig(9, 0, layout=layout)
        output = draw(pipe, recap=recap, guidance_scale=3.0, measure_staleness=True)
        measured = output.stats.plan["staleness"]
        assert len(measured) == 5
        assert all(step["kl"] < 1e-9 and step["top1_agreement"] == 1 for step in measured)
        outputs.append(output.tokens)
    assert torch.equal(*outputs)


# Reproducible


@pytest.mark.parametrize("recap", [None, ReCAPConfig(2, 1)])
@pytest.mark.parametrize("order", ORDERS)
def test_the_same_seeds_draw_the_same_alone_and_in_a_batch(tiny_masked_pipeline, order, recap):
    pipe = tiny_masked_pipeline(dtype=torch.float64, scheduler={"order": order, "halton_roll": True})
    labels = [0, 2, None, 1]
    together = draw(pipe, labels, generator=each(4), recap=recap).tokens
    assert torch.equal(together, draw(pipe, labels, generator=each(4), recap=recap).tokens)
    for b, label in enumerate(labels):
        assert torch.equal(draw(pipe, [label], generator=each(1, b), recap=recap).tokens[0], together[b])
    assert len({tuple(row) for row in draw(pipe, [1] * 4, generator=each(4)).tokens.tolist()}) == 4


def test_generators_of_the_module_are_left_alone(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    before = torch.get_rng_state()
    draw(pipe, recap=ReCAPConfig())
    assert torch.equal(torch.get_rng_state(), before)


# Modes, folders, components


def test_dropout_is_off_and_every_part_is_as_before_afterwards(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline(dropout=0.5)
    expected = draw(pipe).tokens
    pipe.transformer.train()
    pipe.transformer.blocks[1].eval()
    modes = [module.training for module in pipe.transformer.modules()]
    assert torch.equal(draw(pipe).tokens, expected)
    assert [module.training for module in pipe.transformer.modules()] == modes
    pipe.transformer.head_bias.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="step 1 of 6, a full one, are not finite"):
        draw(pipe)
    assert [module.training for module in pipe.transformer.modules()] == modes, "after an error as well"


def test_no_gradients_are_kept(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    output = draw(pipe, output_type="pt", recap=ReCAPConfig())
    assert not output.images.requires_grad
    assert torch.is_grad_enabled()


def test_saved_and_loaded_it_draws_the_same(tiny_masked_pipeline, tmp_path):
    names = [f"class {number}" for number in range(12)]
    scheduler = {"schedule": "arccos", "order": "halton", "guard": "ceil", "confidence_temperature": (2.0, 0.0)}
    pipe = tiny_masked_pipeline(names, scheduler=scheduler)
    pipe.save_pretrained(tmp_path)
    loaded = gendiff.load_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded, MaskedGenerationPipeline)
    assert loaded.class_names == names
    assert {k: v for k, v in loaded.transformer.config.items() if not k.startswith("_")} == {
        k: v for k, v in pipe.transformer.config.items() if not k.startswith("_")
    }
    recap = ReCAPConfig(2, 1, recompute_prefix=False)
    again = ReCAPConfig.from_dict(recap.to_dict())
    first, second = draw(pipe, ["class 2", "class 10"], recap=recap), draw(loaded, [2, 10], recap=again)
    assert torch.equal(first.tokens, second.tokens)
    assert second.stats.plan == first.stats.plan


def test_half_precision_weights_draw_finite_tokens(tiny_masked_pipeline):
    for dtype in (torch.bfloat16, torch.float16):
        pipe = tiny_masked_pipeline(dtype=dtype)
        output = draw(pipe, recap=ReCAPConfig(1, 1), guidance_scale=3.0, output_type="pt")
        assert output.images.dtype == torch.float32 and torch.isfinite(output.images).all()


def test_sizes_of_the_parts(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    assert pipe.num_tokens == N and pipe.num_classes == 3 and pipe.sample_shape == (1, SIDE, SIDE)
    assert not pipe.continuous and pipe.class_names == ["one", "two", "three"]
    colour = tiny_masked_pipeline((), channels=3, grid=2)
    assert colour.num_tokens == 4 and colour.sample_shape == (3, 4, 4) and colour.class_names == []
    assert draw(colour, [0], output_type="pil").images[0].mode == "RGB"
