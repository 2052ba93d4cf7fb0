"""Hidden tokens around what is known: known ones stay, whatever the mask, the order and the precision."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tiny_masked import ORDERS, SIDE, Calls, N, V, draw, each, picture, seeded
from torch import Tensor

import gendiff
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.samplers.mask_schedules import GUIDANCE_SCHEDULES, reveal_counts
from gendiff.samplers.recap import ReCAPConfig

SMALLEST = {"num_layers": 1, "long_skips": False, "num_attention_heads": 1, "attention_head_dim": 4, "mlp_ratio": 1.0}


def masks(hidden: Tensor) -> Tensor:
    """Masks (B, 1, 8, 8) of hidden tokens (B, 16), each a patch of 2 x 2."""
    return hidden.view(-1, 1, 4, 4).float().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def random_hidden(batch: int, seed: int = 1) -> Tensor:
    """(B, 16) with any number of hidden ones, none and all among them."""
    share = torch.linspace(0, 1, batch)[:, None]
    return torch.rand(batch, N, generator=seeded(seed)) < share


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ORDERS)
def test_known_tokens_stay_under_a_thousand_masks(tiny_masked_pipeline, order, dtype):
    settings = {"order": order, "confidence_temperature": 10.0}
    pipe = tiny_masked_pipeline(dtype=dtype, scheduler=settings, **SMALLEST)
    hidden, images = random_hidden(1000), picture(1000)
    known = pipe.image_tokenizer.encode((2 * images - 1).to(dtype))
    for recap in (None, ReCAPConfig(1, 1)):
        options = {"image": images, "mask_image": masks(hidden), "mask_dilation": 0, "guidance_scale": 1.0}
        output = draw(pipe, [1] * 1000, num_inference_steps=4, recap=recap, **options)
        assert torch.equal(output.tokens[~hidden], known[~hidden])
        assert torch.equal(output.revealed_at >= 0, hidden)
        assert (output.tokens[hidden] != known[hidden]).any() and output.tokens.max() < V
        sizes = hidden.sum(dim=1).tolist()
        assert output.stats.plan["revealed"] == [
            counts + [0] * (4 - len(counts)) for counts in (reveal_counts(4, size) for size in sizes)
        ]


def test_an_empty_mask_gives_the_picture_back_without_a_call(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    calls, images = Calls(pipe), picture(2)
    output = draw(pipe, [0, 1], image=images, mask_image=torch.zeros(1, 1, SIDE, SIDE), recap=ReCAPConfig())
    assert torch.equal(output.tokens, pipe.image_tokenizer.encode(2 * images - 1))
    assert len(calls) == 0 and output.stats.network_calls == 0 and output.stats.flops == 0
    assert (output.revealed_at == -1).all()
    assert output.stats.plan["groups"] == [] and output.stats.plan["revealed"] == [[], []]
    assert draw(pipe, [0, 1], latents=output.tokens).stats.network_calls == 0


def test_an_empty_mask_beside_others_keeps_its_picture(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    hidden = torch.stack([torch.zeros(N), torch.ones(N)]).bool()
    options = {"image": picture(2), "mask_image": masks(hidden), "mask_dilation": 0}
    output = draw(pipe, [0, 1], recap=ReCAPConfig(), **options)
    assert torch.equal(output.tokens[0], pipe.image_tokenizer.encode(2 * picture(2) - 1)[0])
    assert (output.revealed_at[1] >= 0).all()


def test_what_a_mask_touches_is_hidden_and_rings_around_it(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 3, 4] = 0.5  # in the patch of row 1, column 2
    shown = {}
    for rings in (0, 1, 2):
        output = draw(pipe, [0], image=picture(), mask_image=mask, mask_dilation=rings)
        shown[rings] = (output.revealed_at[0] >= 0).view(4, 4).int().tolist()
    assert shown[0] == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert shown[1] == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert shown[2] == [[1, 1, 1, 1]] * 4
    mask[..., 3, 4] = 0.49
    assert (draw(pipe, [0], image=picture(), mask_image=mask).revealed_at < 0).all()


def test_what_is_under_the_mask_is_never_seen(tiny_masked_pipeline):
    """Neither by the network nor in the result, also where only a part of a patch is masked."""
    pipe = tiny_masked_pipeline()
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 3:6, 3:6] = 1
    image = picture()
    options = {"mask_image": mask, "mask_dilation": 0}
    first = draw(pipe, [0], image=image, **options).tokens
    assert torch.equal(draw(pipe, [0], image=torch.where(mask > 0, 1 - image, image), **options).tokens, first)


def test_the_tokenizer_gets_the_picture_with_black_under_the_mask(tiny_masked_pipeline, monkeypatch):
    """A convolution would carry what is there into tokens that count as known."""
    pipe, given = tiny_masked_pipeline(), []
    encode, image, mask = pipe.image_tokenizer.encode, picture(2), torch.zeros(2, 1, SIDE, SIDE)
    mask[0, :, 3:6, 3:6], mask[1, :, :, 7] = 1, 0.7
    monkeypatch.setattr(pipe.image_tokenizer, "encode", lambda images: given.append(images) or encode(images))
    draw(pipe, [0, 1], image=image, mask_image=mask)
    assert torch.equal(given[0], torch.where(mask > 0, -1.0, 2 * image - 1))


def test_pixels_outside_of_the_mask_are_put_back_on_request(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    image, mask = picture(2), torch.zeros(2, 1, SIDE, SIDE)
    mask[..., 2:5, 1:4] = 1
    options = {"image": image, "mask_image": mask, "output_type": "pt"}
    plain, blended = draw(pipe, [0, 1], **options), draw(pipe, [0, 1], blend_pixels=True, **options)
    assert torch.equal(plain.tokens, blended.tokens)
    kept = (mask == 0).expand(2, 1, SIDE, SIDE)
    torch.testing.assert_close(blended.images[kept], image[kept], rtol=0, atol=1e-6)
    torch.testing.assert_close(blended.images[~kept], plain.images[~kept])
    assert not torch.allclose(plain.images[kept], image[kept], atol=1e-2)


def test_pictures_and_masks_of_any_kind(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    pixels = (picture() * 255).byte()
    mask = masks(random_hidden(3)[1:2])
    pil, pil_mask = Image.fromarray(pixels[0, 0].numpy()), Image.fromarray((mask[0, 0] * 255).byte().numpy())
    found = [
        draw(pipe, [0, 1], image=image, mask_image=one, mask_dilation=0).tokens
        for image, one in (
            (pixels / 255, mask),
            ((pixels / 255).numpy(), mask.numpy()),
            (pil, pil_mask),
            ([pil, pil], [pil_mask, pil_mask]),
        )
    ]
    assert all(torch.equal(tokens, found[0]) for tokens in found[1:])


def test_a_margin_around_the_picture_is_never_hidden_by_a_mask_inside(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    padded = gendiff.models.masked.patch_vq.PatchVQTokenizer(4, 1, 2, V, padding=2)
    padded.codebook.data.uniform_(-1, 1, generator=seeded())
    pipe = MaskedGenerationPipeline(pipe.transformer, padded, pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    options = {"image": picture()[..., :4, :4], "mask_image": torch.ones(1, 1, 4, 4), "mask_dilation": 0}
    shown = draw(pipe, [0], **options).revealed_at.view(4, 4) >= 0
    assert shown.int().tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_given_tokens_are_kept_and_the_rest_is_drawn(tiny_masked_pipeline):
    pipe = tiny_masked_pipeline()
    latents = torch.randint(0, V, (3, N), generator=seeded())
    hidden = random_hidden(3)
    hidden[1, ::2] = True
    before = latents.masked_fill(hidden, V)
    given = before.clone()
    output = draw(pipe, latents=given, recap=ReCAPConfig())
    assert torch.equal(output.tokens[~hidden], latents[~hidden]) and output.tokens.max() < V
    assert torch.equal(output.revealed_at >= 0, hidden)
    assert torch.equal(given, before), "it is not written to"
    nothing = torch.full((3, N), V)
    assert torch.equal(draw(pipe, latents=nothing).tokens, draw(pipe).tokens)


@pytest.mark.parametrize("recap", [None, ReCAPConfig(2, 1)])
@pytest.mark.parametrize("schedule", GUIDANCE_SCHEDULES)
def test_guided_images_that_hide_different_numbers_of_tokens_are_what_they_are_alone(
    tiny_masked_pipeline, schedule, recap
):
    pipe = tiny_masked_pipeline(dtype=torch.float64, scheduler={"guidance_schedule": schedule})
    known = torch.randint(V, (4, N), generator=seeded(5))
    for b, count in enumerate((1, 12, 16, 4)):
        known[b, :count] = V
    together = draw(pipe, [0, 1, 2, 1], latents=known, generator=each(4), recap=recap, guidance_scale=3.0).tokens
    for b, label in enumerate((0, 1, 2, 1)):
        options = {"latents": known[b : b + 1], "generator": each(1, b), "recap": recap, "guidance_scale": 3.0}
        assert torch.equal(draw(pipe, [label], **options).tokens[0], together[b])
