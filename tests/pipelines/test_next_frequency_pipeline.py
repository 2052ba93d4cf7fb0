"""Images over stages: what is drawn follows from the arguments alone, and equals the loop written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gendiff
from gendiff.pipelines.next_frequency import NextFrequencyPipeline
from gendiff.pipelines.stage_walk import StageWalk
from gendiff.pipelines.stats import Meter

SHIPPED = [(28, (1, 2, 3, 4, 5, 7)), (32, (1, 2, 3, 4, 6, 8))]


@pytest.fixture
def pipe(tiny_next_frequency_pipeline) -> NextFrequencyPipeline:
    return tiny_next_frequency_pipeline()


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe: NextFrequencyPipeline, labels: Any = 0, seed: int = 0, **options: Any) -> Any:
    """The output with images as tensors, from one generator unless others are given."""
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    return pipe(labels, output_type=options.pop("output_type", "pt"), **options)


def same(a: Any, b: Any, images: bool = True) -> bool:
    tokens = all(torch.equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))
    return tokens and (not images or torch.equal(a.images, b.images))


class Calls(list):
    """What the transformer of a pipeline is called with, while the `with` lasts."""

    def __init__(self, pipe: NextFrequencyPipeline) -> None:
        self.model = pipe.transformer

    def __enter__(self) -> Calls:
        def note(_, arguments, options) -> None:
            self.append({"inputs": arguments[0], "labels": arguments[1], **options})

        self.hook = self.model.register_forward_pre_hook(note, with_kwargs=True)
        return self

    def __exit__(self, *_) -> None:
        self.hook.remove()


@torch.no_grad()
def by_hand(pipe: NextFrequencyPipeline, label: int, scale: float, seed: int) -> tuple[list[Tensor], Tensor]:
    """Section by section what generation is, without cache, scheduler or the pipeline's helpers."""
    vqvae, model, generator = pipe.vqvae, pipe.transformer, torch.Generator().manual_seed(seed)
    book, stages = vqvae.quantizer.codebook.weight, vqvae.stages
    labels = torch.tensor([label, pipe.num_classes])
    total = torch.zeros(1, 8, stages[-1], stages[-1])
    tokens, inputs = [], []
    for k, side in enumerate(stages):
        seen = torch.cat(inputs, dim=1).repeat(2, 1, 1) if inputs else None
        named, unnamed = model(seen, labels).sample[:, -side * side :].chunk(2)
        guided = unnamed + (1 + (scale - 1) * k / (len(stages) - 1)) * (named - unnamed)
        mass = guided[0].softmax(dim=-1).cumsum(dim=-1)
        number = torch.rand(1, side * side, generator=generator)[0]
        codes = (mass <= number[:, None] * mass[:, -1:]).sum(dim=-1)[None]
        said = book[codes].transpose(1, 2).reshape(1, 8, side, side)
        if k < len(stages) - 1:
            said = F.interpolate(said, size=(stages[-1], stages[-1]), mode="bicubic", align_corners=False)
        conv = vqvae.quantizer.phi[vqvae.quantizer.smoother_index[k]]
        total = total + 0.5 * said + 0.5 * conv(said)
        tokens.append(codes)
        if k < len(stages) - 1:
            inputs.append(F.adaptive_avg_pool2d(total, stages[k + 1]).flatten(2).transpose(1, 2))
    return tokens, vqvae.decode(f_hat=total) / 2 + 0.5


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize(("side", "stages"), SHIPPED)
def test_it_is_the_loop_written_by_hand(tiny_next_frequency_pipeline, side: int, stages, scale: float):
    pipe = tiny_next_frequency_pipeline(side=side, stages=stages)
    tokens, images = by_hand(pipe, 1, scale, seed=5)
    output = draw(pipe, 1, seed=5, guidance_scale=scale)
    assert all(torch.equal(a, b) for a, b in zip(output.tokens, tokens, strict=True))
    assert (output.images - images).abs().max() <= 1e-5
    assert len({int(code) for code in torch.cat(tokens, dim=1)[0]}) > 10  # not one code everywhere


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("side", "stages"), SHIPPED)
def test_the_loop_reads_what_training_reads(tiny_next_frequency_pipeline, side: int, stages, use_cache, dtype):
    pipe = tiny_next_frequency_pipeline(side=side, stages=stages, dtype=dtype)
    with Calls(pipe) as calls:
        output = draw(pipe, [0, 2], use_cache=use_cache)
    with torch.no_grad():
        inputs = pipe.vqvae.tokens_to_inputs(output.tokens)
    assert calls[0]["inputs"] is None and inputs.dtype == dtype and len(calls) == len(stages)
    counts, start = [p * p for p in stages], 0
    for k in range(1, len(stages)):
        first = start if use_cache else 0
        expected = inputs[:, first : start + counts[k]].repeat(2, 1, 1)
        assert torch.equal(calls[k]["inputs"], expected)
        start += counts[k]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(("side", "stages"), SHIPPED)
def test_a_cache_changes_no_image(tiny_next_frequency_pipeline, side: int, stages, scale: float):
    pipe = tiny_next_frequency_pipeline(side=side, stages=stages)
    a, b = (draw(pipe, [0, 1, None], use_cache=cached, guidance_scale=scale) for cached in (True, False))
    assert same(a, b)
    rows, length = (3 if scale == 1 else 6), sum(p * p for p in stages)
    keys_values = 2 * 2 * rows * length * 32 * 4  # layers, keys and values, rows, tokens, width, bytes
    modulations = rows * (2 * 6 + 2) * 32 * 4
    assert a.stats.cache_bytes == keys_values + modulations and b.stats.cache_bytes == 0
    assert a.stats.network_calls == b.stats.network_calls == len(stages)
    assert a.stats.flops < b.stats.flops


def test_no_guidance_costs_nothing_and_is_the_class_alone(pipe):
    with Calls(pipe) as calls:
        plain = draw(pipe, [0, 2], guidance_scale=1.0)
    assert [call["labels"].tolist() for call in calls] == [[0, 2]] * 4
    for options in ({"guidance_schedule": [1.0] * 4}, {"guidance_scale": 1.0, "guidance_schedule": "constant"}):
        assert same(draw(pipe, [0, 2], **options), plain)
    # With the rows of no class beside it, but of no weight.
    weighed = [1.0, 1.0, 1.0, 1.0000001]
    with Calls(pipe) as calls:
        beside = draw(pipe, [0, 2], guidance_schedule=weighed)
    assert [call["labels"].tolist() for call in calls] == [[0, 2, 3, 3]] * 4
    assert same(beside, plain, images=False) and (beside.images - plain.images).abs().max() <= 1e-5


def test_guidance_grows_from_nothing_at_the_first_stage(pipe):
    labels = [0, 1, 2] * 8
    plain, linear, constant = (
        draw(pipe, labels, guidance_scale=scale, guidance_schedule=schedule)
        for scale, schedule in ((1.0, "linear"), (6.0, "linear"), (6.0, "constant"))
    )
    assert torch.equal(linear.tokens[0], plain.tokens[0])
    assert not torch.equal(linear.tokens[1], plain.tokens[1])
    assert not torch.equal(constant.tokens[0], plain.tokens[0])
    assert linear.stats.plan["guidance"] == pytest.approx([1.0, 1 + 5 / 3, 1 + 10 / 3, 6.0])
    by_numbers = draw(pipe, labels, guidance_schedule=[1.0, 1 + 5 / 3, 1 + 10 / 3, 6.0])
    assert same(by_numbers, linear)


def test_guidance_of_zero_is_no_class_at_all(pipe):
    ignored = draw(pipe, 1, guidance_scale=0.0, guidance_schedule="constant")
    assert same(ignored, draw(pipe, None, guidance_scale=1.0), images=False)


@pytest.mark.parametrize(("side", "stages"), SHIPPED)
def test_an_image_does_not_depend_on_its_batch_mates(tiny_next_frequency_pipeline, side: int, stages):
    pipe = tiny_next_frequency_pipeline(side=side, stages=stages)
    together = draw(pipe, [0, 2, None], generator=seeded(5, 6, 7))
    for row, label in enumerate([0, 2, None]):
        alone = draw(pipe, label, generator=seeded(5 + row))
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone.tokens, together.tokens, strict=True))
        assert (alone.images[0] - together.images[row]).abs().max() <= 1e-5
    assert same(draw(pipe, 0, generator=torch.Generator().manual_seed(5)), draw(pipe, 0, generator=seeded(5)))


def test_the_same_seed_draws_the_same_and_another_another(pipe):
    assert same(draw(pipe, 0, seed=3), draw(pipe, 0, seed=3))
    assert not same(draw(pipe, 0, seed=3), draw(pipe, 0, seed=4))
    assert not same(draw(pipe, 0, seed=3), draw(pipe, 1, seed=3))
    torch.manual_seed(0)
    first = draw(pipe, 0, generator=None)
    assert not same(first, draw(pipe, 0, generator=None))


@pytest.mark.parametrize(("side", "stages"), SHIPPED)
def test_a_preview_is_the_beginning_of_the_picture(tiny_next_frequency_pipeline, side: int, stages):
    pipe = tiny_next_frequency_pipeline(side=side, stages=stages)
    whole = draw(pipe, [0, 1])
    assert same(draw(pipe, [0, 1], num_stages=len(stages)), whole)
    with torch.no_grad():
        for count in range(1, len(stages)):
            part = draw(pipe, [0, 1], num_stages=count)
            assert len(part.tokens) == count == part.stats.network_calls
            assert all(torch.equal(a, b) for a, b in zip(part.tokens, whole.tokens, strict=False))
            assert torch.equal(part.images, pipe.vqvae.decode(whole.tokens[:count]) / 2 + 0.5)
            assert part.stats.plan["stages"] == list(stages[:count])
    assert len(draw(pipe, [0, 1]).tokens) == len(stages)  # the next call walks all again


def test_filters_that_let_all_through_change_nothing_and_one_code_is_the_best(pipe):
    plain = draw(pipe, [0, 1])
    for options in ({"top_k": 32}, {"top_p": 1.0}, {"top_k": 0, "top_p": 0}, {"temperature": 1}):
        assert same(draw(pipe, [0, 1], **options), plain)
    best = draw(pipe, [0, 1], seed=1, top_k=1)
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}):
        assert same(draw(pipe, [0, 1], seed=2, **options), best)
    assert not same(best, plain)


def test_the_schedulers_filters_serve_a_call_that_names_none(pipe):
    best = draw(pipe, 0, top_k=1)
    pipe.scheduler = type(pipe.scheduler)(pipe.scheduler.config["stages"], top_k=1)
    assert same(draw(pipe, 0, seed=8), best) and not same(draw(pipe, 0, seed=8, top_k=0), best)


def test_classes_by_number_name_array_and_none(pipe):
    by_number = draw(pipe, [1, 0, None])
    for labels in (["two", "one", None], (1, 0, -1), [1, 0, 3], torch.tensor([1, 0, 3]), np.array([1, 0, -1])):
        output = draw(pipe, labels)
        assert output.class_labels.tolist() == [1, 0, -1] and same(output, by_number)
    assert same(draw(pipe, np.int64(2)), draw(pipe, "three"))
    several = draw(pipe, ["two", 0], num_images_per_prompt=2)
    assert several.class_labels.tolist() == [1, 1, 0, 0] and several.images.shape == (4, 1, 16, 16)
    assert not torch.equal(several.images[0], several.images[1])


def test_every_kind_of_output_is_the_same_picture(tiny_next_frequency_pipeline):
    pipe = tiny_next_frequency_pipeline(channels=3)
    tensor = draw(pipe, [0, 1]).images
    assert tensor.shape == (2, 3, 16, 16) and tensor.min() >= 0 and tensor.max() <= 1
    assert np.array_equal(draw(pipe, [0, 1], output_type="np").images, tensor.permute(0, 2, 3, 1).numpy())
    for picture, image in zip(draw(pipe, [0, 1], output_type="pil").images, tensor, strict=True):
        assert np.array_equal(np.asarray(picture), (image.permute(1, 2, 0) * 255).round().byte().numpy())
    output = draw(pipe, [0, 1], output_type="latent")
    with torch.no_grad():
        assert torch.equal(output.images, pipe.vqvae.quantizer.sums(output.tokens)[-1])
        assert torch.equal(pipe.vqvae.decode(f_hat=output.images) / 2 + 0.5, tensor)
    as_tuple = pipe([0, 1], output_type="pt", generator=torch.Generator().manual_seed(0), return_dict=False)
    assert torch.equal(as_tuple[0], tensor) and as_tuple[1].tolist() == [0, 1] and len(as_tuple) == 4


def test_smooth_pictures_mix_codes(pipe):
    output = draw(pipe, [0, 1], smooth=True)
    assert [tuple(weights.shape) for weights in output.tokens] == [(2, p * p, 32) for p in (1, 2, 3, 4)]
    for weights in output.tokens:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:2]))
    assert output.images.isfinite().all() and not torch.equal(output.images, draw(pipe, [0, 1]).images)
    assert same(output, draw(pipe, [0, 1], smooth=True))
    uncached = draw(pipe, [0, 1], smooth=True, use_cache=False)  # weights feel what rounding does not move a code by
    assert (uncached.images - output.images).abs().max() <= 1e-3
    assert len(draw(pipe, 0, smooth=True, num_stages=2).tokens) == 2


@pytest.mark.parametrize("spacing", ["none", [0.5, 1.5, 2.0]])
def test_it_loads_as_it_was_saved(tiny_next_frequency_pipeline, spacing, tmp_path):
    names = [f"class {number}" for number in range(12)]  # a sorted "10" would stand before "2"
    pipe = tiny_next_frequency_pipeline(names, band_spacing=spacing)
    pipe.scheduler = type(pipe.scheduler)(pipe.scheduler.config["stages"], top_k=20, top_p=0.95)
    pipe.save_pretrained(tmp_path)
    loaded = gendiff.pipeline("next-frequency", tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded, NextFrequencyPipeline) and loaded.class_names == names
    for part in ("vqvae", "transformer"):
        saved, found = getattr(pipe, part).state_dict(), getattr(loaded, part).state_dict()
        assert saved.keys() == found.keys() and all(torch.equal(saved[name], found[name]) for name in saved)
    assert same(draw(loaded, ["class 2", "class 10"]), draw(pipe, [2, 10]))
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert same(draw(loaded, 0, image=x, keep_stages=4), draw(pipe, 0, image=x, keep_stages=4))


def test_without_names_classes_have_numbers(tiny_next_frequency_pipeline):
    pipe = tiny_next_frequency_pipeline()
    plain = NextFrequencyPipeline(pipe.vqvae, pipe.transformer, pipe.scheduler)
    plain.set_progress_bar_config(disable=True)
    assert plain.class_names == [] and plain.num_classes == 3 and plain.num_stages == 4
    assert plain.sample_shape == (1, 16, 16) and same(draw(plain, 2), draw(pipe, "three"))


def test_a_run_inside_a_run_disturbs_neither(pipe):
    outer, inner = draw(pipe, [0, 1], seed=1), draw(pipe, 2, seed=2, num_stages=2, guidance_scale=4.0)
    found = []

    def between(pipe, index, timestep, kwargs):
        found.append(draw(pipe, 2, seed=2, num_stages=2, guidance_scale=4.0))
        return {}

    again = draw(pipe, [0, 1], seed=1, callback_on_step_end=between)
    assert same(again, outer) and len(found) == 4 and all(same(one, inner) for one in found)
    assert again.stats.plan == outer.stats.plan and again.stats.network_calls == 4


def test_two_walks_in_turn_disturb_neither(pipe):
    """The predictors of two runs, called one after the other at every stage."""
    scheduler, vqvae, model = pipe.scheduler, pipe.vqvae, pipe.transformer

    def walk(label: int) -> StageWalk:
        return StageWalk(vqvae, model, torch.tensor([label]), 1, True, Meter())

    def codes(turns: list[tuple[StageWalk, tuple, torch.Generator]], stage: int) -> list:
        step = gendiff.samplers.loop.Step(stage, 4, torch.tensor(stage))
        return [
            (one, scheduler.step(one(state, step), stage, state, generator).prev_sample, generator)
            for one, state, generator in turns
        ]

    with torch.no_grad():
        alone = [[(walk(label), (), torch.Generator().manual_seed(label))] for label in (0, 1)]
        turns = [(walk(label), (), torch.Generator().manual_seed(label)) for label in (0, 1)]
        for stage in range(4):
            alone = [codes(one, stage) for one in alone]
            turns = codes(turns, stage)
    for apart, together in zip(alone, turns, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(apart[0][1], together[1], strict=True))


def test_an_exception_in_a_callback_leaves_the_pipeline_as_it_was(pipe):
    before = draw(pipe, [0, 1])

    def stop(pipe, index, timestep, kwargs):
        if index == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, [0, 1], callback_on_step_end=stop, num_stages=3)
    assert same(draw(pipe, [0, 1]), before)


def test_a_callback_sees_the_codes_and_may_replace_the_latest(pipe):
    seen, plain = [], draw(pipe, [0, 1])

    def note(pipe, index, timestep, kwargs):
        seen.append((index, int(timestep), len(kwargs["latents"])))
        assert pipe.num_timesteps == 4 and pipe.guidance_scale == 3.0
        return kwargs

    assert same(
        draw(pipe, [0, 1], callback_on_step_end=note, guidance_scale=3.0), draw(pipe, [0, 1], guidance_scale=3.0)
    )
    assert seen == [(k, k, k + 1) for k in range(4)]

    def zero(pipe, index, timestep, kwargs):
        codes = kwargs["latents"]
        return {"latents": (*codes[:-1], torch.zeros_like(codes[-1]))} if index == 1 else {}

    changed = draw(pipe, [0, 1], callback_on_step_end=zero)
    assert torch.equal(changed.tokens[0], plain.tokens[0]) and not changed.tokens[1].any()
    with torch.no_grad():
        assert torch.equal(changed.images, pipe.vqvae.decode(changed.tokens) / 2 + 0.5)


BAD_CODES = [
    (lambda codes: (torch.zeros_like(codes[0]) + 1, *codes[1:]), "at stage 1 alone; stage 0 is in use already"),
    (lambda codes: codes[:1], "latents must be the codes of 2 stages, got 1"),
    (lambda codes: (codes[0], codes[1][:, :3]), r"tokens of stage 1 must be int64 \(2, 4\), got torch.int64 \(2, 3\)"),
    (lambda codes: (codes[0], codes[1] + 32), "tokens of stage 1 must be from 0 to 31"),
    (lambda codes: (codes[0], torch.ones(2, 4, 31)), r"weights of stage 1 must be \(2, 4, 32\), got \(2, 4, 31\)"),
]


@pytest.mark.parametrize(("replace", "message"), BAD_CODES)
def test_a_callback_that_returns_no_codes_is_told(pipe, replace, message: str):
    def change(pipe, index, timestep, kwargs):
        codes = kwargs["latents"]
        return {"latents": replace(codes)} if index == 1 else {}

    with pytest.raises(ValueError, match=message):
        draw(pipe, [0, 1], callback_on_step_end=change, generator=seeded(11, 12))


def test_half_precision_keeps_sums_in_full(tiny_next_frequency_pipeline):
    pipe = tiny_next_frequency_pipeline(dtype=torch.bfloat16)
    output = draw(pipe, [0, 1], output_type="latent")
    assert output.images.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(output.images, pipe.vqvae.quantizer.sums(output.tokens)[-1])
    assert draw(pipe, [0, 1]).images.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_network_that_breaks_down_is_named_with_its_stage_and_precision(tiny_next_frequency_pipeline, dtype):
    pipe = tiny_next_frequency_pipeline(dtype=dtype)
    pipe.transformer.word_embed.weight.data[0, 0] = float("nan")  # felt from stage 1 on
    with pytest.raises(RuntimeError, match=rf"logits of stage 1 are not finite \({dtype}\): use float32 or bfloat16"):
        draw(pipe, 0)


def test_a_model_of_one_stage_is_fully_guided(tiny_next_frequency_pipeline):
    pipe = tiny_next_frequency_pipeline(stages=(4,))
    output = draw(pipe, [0, 1], guidance_scale=4.0)
    assert output.images.shape == (2, 1, 16, 16) and output.stats.plan["guidance"] == [4.0]
    assert same(output, draw(pipe, [0, 1], guidance_scale=4.0, guidance_schedule="constant"))
