"""Starting from an image: the stages, or the part of the picture, that are kept come out as they went in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gendiff.pipelines.known_stages import known_stages
from gendiff.pipelines.next_frequency import NextFrequencyPipeline

SHIPPED = [(28, (1, 2, 3, 4, 5, 7)), (32, (1, 2, 3, 4, 6, 8))]


@pytest.fixture
def pipe(tiny_next_frequency_pipeline) -> NextFrequencyPipeline:
    return tiny_next_frequency_pipeline()


def draw(pipe: NextFrequencyPipeline, labels: Any = 0, seed: int = 0, **options: Any) -> Any:
    return pipe(labels, generator=torch.Generator().manual_seed(seed), output_type="pt", **options)


def picture(side: int = 16, batch: int = 1, channels: int = 1) -> Tensor:
    """(B, C, S, S) in [0, 1], whole 255ths, as a file would hold it."""
    numbers = torch.randint(0, 256, (batch, channels, side, side), generator=torch.Generator().manual_seed(9))
    return numbers / 255


def half(side: int = 16) -> Tensor:
    """A mask: the right half is drawn anew."""
    mask = torch.zeros(1, 1, side, side)
    mask[..., side // 2 :] = 1
    return mask


@torch.no_grad()
def reconstructed(pipe: NextFrequencyPipeline, image: Tensor) -> tuple[list[Tensor], Tensor]:
    tokens = pipe.vqvae.encode(2 * image - 1).tokens
    return tokens, pipe.vqvae.decode(tokens) / 2 + 0.5


def all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("spacing", ["none", "linear", "area", "nyquist"])
@pytest.mark.parametrize(("side", "stages"), SHIPPED)
def test_keeping_all_stages_is_the_reconstruction_and_none_is_plain_sampling(
    tiny_next_frequency_pipeline, side: int, stages, spacing: str
):
    pipe = tiny_next_frequency_pipeline(side=side, stages=stages, band_spacing=spacing)
    image = picture(side, 2)
    tokens, images = reconstructed(pipe, image)
    output = draw(pipe, [0, 1], image=image, keep_stages=len(stages))
    assert all_equal(output.tokens, tokens) and torch.equal(output.images, images)
    assert output.stats.plan["keep_stages"] == len(stages)
    plain, free = draw(pipe, [0, 1]), draw(pipe, [0, 1], image=image, keep_stages=0)
    assert all_equal(free.tokens, plain.tokens) and torch.equal(free.images, plain.images)


def test_the_first_stages_are_the_images_and_the_rest_is_drawn_after_them(pipe):
    image = picture(batch=2)
    tokens, _ = reconstructed(pipe, image)
    plain = draw(pipe, [0, 1])
    for kept in range(1, 4):
        output = draw(pipe, [0, 1], image=image, keep_stages=kept)
        assert all_equal(output.tokens[:kept], tokens[:kept]) and not torch.equal(output.tokens[kept], tokens[kept])
        assert not torch.equal(output.tokens[kept], plain.tokens[kept])
        with torch.no_grad():
            assert torch.equal(output.images, pipe.vqvae.decode(output.tokens) / 2 + 0.5)
        other = draw(pipe, [0, 1], seed=1, image=image, keep_stages=kept)
        assert all_equal(other.tokens[:kept], tokens[:kept]) and not torch.equal(other.tokens[-1], output.tokens[-1])
    preview = draw(pipe, [0, 1], image=image, keep_stages=4, num_stages=2)
    assert len(preview.tokens) == 2 and all_equal(preview.tokens, tokens[:2])


@pytest.mark.parametrize(
    ("strength", "kept"),
    [(0, 4), (0.1, 4), (0.12, 4), (0.125, 4), (0.13, 3), (0.25, 3), (0.5, 2), (0.8, 1), (0.9, 0), (1, 0), (1.0, 0)],
)
def test_strength_is_the_share_of_stages_drawn_anew(pipe, strength: float, kept: int):
    image = picture()
    output = draw(pipe, 0, image=image, strength=strength)
    assert output.stats.plan["keep_stages"] == kept
    assert all_equal(output.tokens, draw(pipe, 0, image=image, keep_stages=kept).tokens)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(("side", "stages"), SHIPPED)
def test_tokens_that_a_mask_keeps_are_the_images(tiny_next_frequency_pipeline, side: int, stages, smooth: bool):
    pipe = tiny_next_frequency_pipeline(side=side, stages=stages)
    image = picture(side, 2)
    tokens, _ = reconstructed(pipe, image)
    output = draw(pipe, [0, 1], image=image, mask_image=half(side), smooth=smooth)
    plain = draw(pipe, [0, 1], image=image, keep_stages=1, smooth=smooth)
    moved = 0
    for k, side_k in enumerate(stages):
        drawn = output.tokens[k].argmax(dim=-1) if smooth else output.tokens[k]
        drawn, given = (codes.view(2, side_k, side_k) for codes in (drawn, tokens[k]))
        # Rows of tokens whose middle lies left of the edge; the middle one of an odd number is at it, and not kept.
        kept = side_k // 2 if side_k > 1 else 1
        assert torch.equal(drawn[..., :kept], given[..., :kept])
        moved += int((drawn[..., kept:] != given[..., kept:]).sum())
    assert moved > 10 and len(plain.tokens) == len(output.tokens)


def test_a_mask_of_all_keeps_the_first_token_and_of_nothing_everything(pipe):
    image = picture()
    tokens, images = reconstructed(pipe, image)
    everything = draw(pipe, 0, image=image, mask_image=torch.zeros(1, 1, 16, 16))
    assert all_equal(everything.tokens, tokens) and torch.equal(everything.images, images)
    nothing = draw(pipe, 0, image=image, mask_image=torch.ones(1, 1, 16, 16))
    assert all_equal(nothing.tokens, draw(pipe, 0, image=image, keep_stages=1).tokens)


def test_a_mask_and_kept_stages_go_together(pipe):
    image = picture()
    tokens, _ = reconstructed(pipe, image)
    output = draw(pipe, 0, image=image, mask_image=half(), keep_stages=3)
    assert all_equal(output.tokens[:3], tokens[:3])
    last, given = output.tokens[3].view(4, 4), tokens[3].view(4, 4)
    assert torch.equal(last[:, :2], given[:, :2]) and not torch.equal(last, given)
    assert output.stats.plan["keep_stages"] == 3


def test_the_keep_mask_is_resized_and_halved():
    stages = (1, 2, 4)
    tokens = [torch.zeros(1, side * side, dtype=torch.int64) for side in stages]
    quarter = torch.zeros(1, 1, 8, 8)
    quarter[..., :4, :4] = 1  # drawn anew: the upper left quarter
    known = known_stages(tokens, stages, 0, quarter)
    assert [pair[1].tolist() for pair in known] == [  # type: ignore[index]
        [[True]],  # at most three tokens are kept whole
        [[False, True, True, True]],
        [[False, False, True, True, False, False, True, True] + [True] * 8],
    ]
    soft = known_stages(tokens, stages, 0, torch.full((1, 1, 8, 8), 0.5))
    assert [bool(pair[1].any()) for pair in soft] == [True, False, False]  # type: ignore[index]
    assert known_stages(tokens, stages, 2, None)[2] is None


def test_kept_pixels_may_be_put_back(pipe):
    image, mask = picture(batch=2), half()
    plain = draw(pipe, [0, 1], image=image, mask_image=mask)
    blended = draw(pipe, [0, 1], image=image, mask_image=mask, blend_pixels=True)
    assert all_equal(plain.tokens, blended.tokens)
    assert (blended.images[..., :8] - image[..., :8]).abs().max() <= 1e-6
    assert torch.equal(blended.images[..., 8:], plain.images[..., 8:])
    soft = draw(pipe, [0, 1], image=image, mask_image=torch.full((1, 1, 16, 16), 0.25), blend_pixels=True)
    redrawn = draw(pipe, [0, 1], image=image, mask_image=torch.full((1, 1, 16, 16), 0.25))
    assert (soft.images - (0.25 * redrawn.images + 0.75 * image)).abs().max() <= 1e-6


def test_one_image_and_one_mask_serve_a_batch(pipe):
    image = picture()
    one = draw(pipe, [0, 1, 2], image=image, mask_image=half())
    each = draw(pipe, [0, 1, 2], image=image.expand(3, -1, -1, -1), mask_image=half().expand(3, -1, -1, -1))
    assert all_equal(one.tokens, each.tokens)
    images = picture(batch=2)
    masks = torch.cat([half(), 1 - half()])
    both = draw(pipe, [0, 1], image=images, mask_image=masks)
    tokens, _ = reconstructed(pipe, images)
    last, given = both.tokens[-1].view(2, 4, 4), tokens[-1].view(2, 4, 4)
    assert torch.equal(last[0, :, :2], given[0, :, :2]) and torch.equal(last[1, :, 2:], given[1, :, 2:])


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_kind_are_the_same_image(tiny_next_frequency_pipeline, channels: int):
    pipe = tiny_next_frequency_pipeline(channels=channels)
    image = picture(channels=channels)
    pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    as_file = Image.fromarray(pixels.squeeze())
    options = {"keep_stages": 2, "mask_image": half()}
    expected = draw(pipe, 0, image=image, **options)
    kinds = [as_file, [as_file], image.numpy(), image[0], image[0].numpy(), image.double()]
    for kind in kinds:
        output = draw(pipe, 0, image=kind, **options)
        assert all_equal(output.tokens, expected.tokens) and torch.equal(output.images, expected.images)
    masks = [Image.fromarray((half()[0, 0] * 255).byte().numpy()), half()[0], half().numpy()]
    for mask in masks:
        assert all_equal(draw(pipe, 0, image=image, keep_stages=2, mask_image=mask).tokens, expected.tokens)


def test_rounding_is_no_error(pipe):
    """Pixels a little outside [0, 1] are clipped, not taken for pixels of another range."""
    image = picture()
    tokens, _ = reconstructed(pipe, image)
    off = image.clone()
    off[image == 0] -= 3e-4
    off[image == 1] += 3e-4
    assert (off != image).any()
    assert all_equal(draw(pipe, 0, image=off, keep_stages=4).tokens, tokens)
    array = np.asarray(off)
    assert all_equal(draw(pipe, 0, image=array, keep_stages=4).tokens, tokens)


def test_what_is_kept_costs_the_same_steps(pipe):
    with_image = draw(pipe, 0, image=picture(), keep_stages=2)
    assert with_image.stats.network_calls == draw(pipe, 0).stats.network_calls == 4


def test_edits_keep_images_of_a_batch_apart(pipe):
    images = picture(batch=2)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = pipe([0, 2], image=images, mask_image=half(), generator=generators, output_type="pt")
    alone = pipe(2, image=images[1:], mask_image=half(), generator=[torch.Generator().manual_seed(2)], output_type="pt")
    assert all(torch.equal(a[1:], b) for a, b in zip(both.tokens, alone.tokens, strict=True))
