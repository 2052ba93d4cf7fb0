"""The condition: dropped blocks are learned vectors, and what is dropped has no influence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gendiff.models.latent_projection import LatentProjection

DIMS = [2, 3, 4]


def make(style_dim: int = 5, **arguments: Any) -> LatentProjection:
    torch.manual_seed(0)
    return LatentProjection(DIMS, 16, style_dim, **{"hidden_dim": 12, **arguments}).requires_grad_(False)


def latents(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 9, generator=generator), torch.randn(batch, 5, generator=generator)


def test_keeping_everything_is_the_plain_condition():
    projection, (z, style) = make(), latents()
    condition = projection(z, style)
    assert condition.shape == (4, 16)
    assert torch.equal(projection(z, style, torch.ones(4, 4, dtype=torch.bool)), condition)


@pytest.mark.parametrize("dropped", range(4))
def test_a_dropped_block_is_replaced_by_its_null(dropped: int):
    projection, (z, style) = make(), latents()
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[:, dropped] = False
    flat = torch.cat([z, style], dim=1)
    edges = [0, 2, 5, 9, 14]
    place = slice(edges[dropped], edges[dropped + 1])
    flat[:, place] = projection.null[place]
    expected = projection(flat[:, :9], flat[:, 9:])
    assert torch.equal(projection(z, style, keep), expected)
    assert not torch.equal(expected, projection(z, style))


def test_dropping_everything_leaves_one_condition_that_is_not_the_one_of_zeros():
    projection, (z, style) = make(), latents()
    condition = projection(z, style, torch.zeros(4, 4, dtype=torch.bool))
    torch.testing.assert_close(condition, condition[:1].expand_as(condition))
    zeros = projection(torch.zeros(1, 9), torch.zeros(1, 5))
    assert (condition[0] - zeros[0]).abs().max() > 1e-2


def test_each_sample_drops_its_own_blocks():
    projection, (z, style) = make(), latents()
    keep = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    together = projection(z, style, keep)
    for i in range(4):
        alone = projection(z[i : i + 1], style[i : i + 1], keep[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])


def test_the_style_may_be_absent():
    projection, (z, _) = make(style_dim=0), latents()
    condition = projection(z)
    assert torch.equal(projection(z, torch.zeros(4, 0)), condition)
    dropped = projection(z, torch.zeros(4, 0), torch.tensor([[True, False, True]] * 4))
    assert not torch.equal(dropped, condition)


def test_drawn_masks_have_the_asked_probabilities():
    projection = make(p_uncond=0.3, p_block=0.2)
    keep = projection.draw_keep(20_000, torch.Generator().manual_seed(2))
    assert keep.shape == (20_000, 4) and keep.dtype == torch.bool
    # standard error below 0.0035 for each of these shares
    assert keep.float().mean().item() == pytest.approx(0.7 * 0.8, abs=0.015)
    everything = (~keep).all(dim=1).float().mean().item()
    assert everything == pytest.approx(0.3 + 0.7 * 0.2**4, abs=0.015)
    assert torch.equal(keep, projection.draw_keep(20_000, torch.Generator().manual_seed(2)))


def test_without_dropout_nothing_is_dropped():
    assert make(p_uncond=0.0, p_block=0.0).draw_keep(50, torch.Generator().manual_seed(3)).all()


def test_the_null_is_trained_by_dropped_blocks_only():
    projection, (z, style) = make().requires_grad_(True), latents()
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[1, 2] = False
    projection(z, style, keep).square().sum().backward()
    gradient = projection.null.grad
    assert gradient is not None
    assert (gradient[5:9] != 0).all()
    assert (gradient[:5] == 0).all() and (gradient[9:] == 0).all()


def test_save_and_load(tmp_path):
    projection, (z, style) = make(hidden_dim=7, p_uncond=0.25, p_block=0.0), latents()
    projection.save_pretrained(tmp_path)
    again = LatentProjection.from_pretrained(tmp_path)
    assert (again.config["p_uncond"], again.config["p_block"]) == (0.25, 0.0)
    keep = torch.tensor([[True, False, True, False]] * 4)
    assert torch.equal(again(z, style, keep), projection(z, style, keep))


@pytest.mark.parametrize("name", ["p_uncond", "p_block"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_bad_probabilities_are_refused(name: str, value: float):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\), got {value}"):
        LatentProjection(DIMS, 16, **{name: value})  # type: ignore[arg-type]
