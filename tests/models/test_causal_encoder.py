"""The image encoder: shapes of all sizes in use, independence of batch mates, and sense of position."""

from __future__ import annotations

import pytest
import torch

from gendiff.models.causal_encoder import CausalEncoder


def make(size: int = 16, channels: int = 1, latent_dim: int = 5, style_dim: int = 3, **arguments) -> CausalEncoder:
    torch.manual_seed(0)
    widths = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    return CausalEncoder(size, channels, latent_dim, style_dim, **{**widths, **arguments}).requires_grad_(False)


def pictures(batch: int, channels: int, size: int) -> torch.Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [16, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("style_dim", [0, 8])
def test_shapes(size: int, channels: int, style_dim: int):
    encoder = make(size, channels, 11, style_dim, block_out_channels=(8, 16, 24))
    output = encoder(pictures(2, channels, size))
    assert output.mean.shape == output.logvar.shape == (2, 11)
    assert output.style_mean.shape == output.style_logvar.shape == (2, style_dim)
    assert len({tuple(row.tolist()) for row in output.mean}) == 2, "different pictures have different factors"


def test_the_default_widths_suit_the_sizes_in_use():
    for channels, size in ((3, 32), (1, 28)):
        torch.manual_seed(0)
        output = CausalEncoder(size, channels, 16)(pictures(2, channels, size))
        assert output.mean.shape == (2, 16) and output.style_mean.shape == (2, 0)


def test_more_levels_than_halvings():
    # 16 -> 8 -> 4, then the side stays
    output = make(block_out_channels=(8, 8, 8, 8, 16))(pictures(2, 1, 16))
    assert output.mean.isfinite().all() and output.mean.std() > 0


def test_a_picture_is_encoded_as_if_alone():
    encoder = make(32, 3).train().double()
    images = pictures(4, 3, 32).double()
    together = encoder(images)
    for i in range(4):
        alone = encoder(images[i : i + 1])
        for field in ("mean", "logvar", "style_mean", "style_logvar"):
            torch.testing.assert_close(alone[field][0], together[field][i], rtol=0, atol=1e-12)


def test_position_is_seen():
    encoder = make(32)
    image = torch.full((2, 1, 32, 32), -1.0)
    image[0, :, 12:16, 8:12] = 1
    image[1, :, 12:16, 16:20] = 1
    mean = encoder(image).mean
    # far from the edges, features that were pooled over the whole picture would be all but equal
    assert (mean[0] - mean[1]).abs().max() > 0.1 * mean.std()


def test_logvar_is_bounded():
    encoder = make()
    encoder.head.weight.data *= 1e4
    output = encoder(pictures(8, 1, 16))
    for logvar in (output.logvar, output.style_logvar):
        assert logvar.min() == -10 and logvar.max() == 4
    assert output.mean.abs().max() > 10, "means are not"


def test_tuple_form():
    encoder = make()
    images = pictures(2, 1, 16)
    output = encoder(images)
    plain = encoder(images, return_dict=False)
    assert isinstance(plain, tuple)
    for value, field in zip(plain, ("mean", "logvar", "style_mean", "style_logvar"), strict=True):
        assert torch.equal(value, output[field])


def test_save_and_load(tmp_path):
    encoder = make(28, 3, latent_dim=7, style_dim=2, block_out_channels=(6, 12, 18), norm_num_groups=3)
    encoder.save_pretrained(tmp_path)
    again = CausalEncoder.from_pretrained(tmp_path)
    assert again.config["block_out_channels"] == [6, 12, 18]
    images = pictures(2, 3, 28)
    assert torch.equal(again(images).mean, encoder(images).mean)
    assert torch.equal(again(images).style_logvar, encoder(images).style_logvar)
