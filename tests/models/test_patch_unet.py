"""The patched U-Net: it is a plain U-Net on rearranged pixels."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from gendiff.models.patch_unet import PatchUNet2DModel


def make(size: int = 16, channels: int = 3, patch_size: int = 1, **arguments) -> PatchUNet2DModel:
    torch.manual_seed(0)
    settings = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}
    return PatchUNet2DModel(size, channels, patch_size, **{**settings, **arguments}).eval().requires_grad_(False)


def with_gain(model: PatchUNet2DModel) -> PatchUNet2DModel:
    """As after training: the gain starts at zero."""
    for i, parameter in enumerate(model.gain.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5 + i))
    return model


def inputs(size: int = 16, channels: int = 3, width: int = 32, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, channels, size, size, generator=generator)
    return sample, torch.tensor([3, 870])[:batch], torch.randn(batch, width, generator=generator)


def plain(model: PatchUNet2DModel) -> UNet2DModel:
    """diffusers' own network for 3 channels with attention at the second level, with the weights of `model`."""
    channels = 3 * model.config["patch_size"] ** 2
    unet = UNet2DModel(
        sample_size=16 // model.config["patch_size"],
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    unet.load_state_dict(model.unet.state_dict())
    return unet.eval().requires_grad_(False)


def test_patches_of_one_pixel_are_the_plain_network():
    model = make(patch_size=1, layers_per_block=2, attention_levels=(1,))
    sample, timestep, condition = inputs()
    expected = plain(model)(sample, timestep, class_labels=condition).sample
    assert torch.equal(model(sample, timestep, class_labels=condition).sample, expected)
    assert expected.std() > 1e-2


def test_patches_are_the_plain_network_on_rearranged_pixels():
    model = make(patch_size=2, layers_per_block=2, attention_levels=(1,))
    sample, timestep, condition = inputs()
    unet = plain(model)
    expected = pixel_shuffle(unet(pixel_unshuffle(sample, 2), timestep, class_labels=condition).sample, 2)
    assert torch.equal(model(sample, timestep, class_labels=condition).sample, expected)


@pytest.mark.parametrize(
    ("size", "channels", "patch_size", "widths", "attention"),
    [
        (32, 3, 2, (16, 24, 32), (2,)),
        (28, 1, 2, (16, 24), ()),
        (28, 1, 1, (8, 16, 16), (1, 2)),
        (64, 3, 4, (8, 16), ()),
    ],
)
def test_shapes_in_use(size: int, channels: int, patch_size: int, widths: tuple, attention: tuple):
    model = make(size, channels, patch_size, block_out_channels=widths, norm_num_groups=8, attention_levels=attention)
    sample, timestep, condition = inputs(size, channels, width=4 * widths[0])
    prediction = model(sample, timestep, class_labels=condition).sample
    assert prediction.shape == sample.shape
    assert torch.equal(model(sample, timestep, class_labels=condition, return_dict=False)[0], prediction)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_gain_adds_a_share_of_the_sample_that_depends_on_the_timestep(patch_size: int):
    model = make(patch_size=patch_size, channels=3)
    sample, timestep, condition = inputs()
    without = model(sample, timestep, class_labels=condition).sample
    added = with_gain(model)(sample, timestep, class_labels=condition).sample - without
    share = (added * sample).sum(dim=(2, 3)) / sample.square().sum(dim=(2, 3))  # (B, C)
    torch.testing.assert_close(added, share[:, :, None, None] * sample, rtol=1e-4, atol=1e-4)
    assert (share[0] - share[1]).abs().min() > 1e-3, "two timesteps, two gains"
    assert share[0].unique().numel() == 3, "and one for each channel"
    other_condition = model(sample, timestep, class_labels=condition.flip(0)).sample
    without_gain = make(patch_size=patch_size)(sample, timestep, class_labels=condition.flip(0)).sample
    torch.testing.assert_close(other_condition - without_gain, added, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_sample_timestep_and_condition_all_count(patch_size: int):
    model = make(patch_size=patch_size)
    sample, timestep, condition = inputs()
    prediction = model(sample, timestep, class_labels=condition).sample
    for changed in (
        model(sample.flip(0), timestep, class_labels=condition).sample,
        model(sample, timestep.flip(0), class_labels=condition).sample,
        model(sample, timestep, class_labels=condition.flip(0)).sample,
    ):
        assert (changed - prediction).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_a_single_timestep_serves_the_whole_batch():
    model = with_gain(make(patch_size=2))
    sample, _, condition = inputs()
    expected = model(sample, torch.tensor([7, 7]), class_labels=condition).sample
    for timestep in (7, torch.tensor(7)):
        torch.testing.assert_close(model(sample, timestep, class_labels=condition).sample, expected)


def test_a_row_is_what_it_is_alone():
    model = with_gain(make(patch_size=2, attention_levels=(1,))).double()
    sample, timestep, condition = inputs()
    together = model(sample.double(), timestep, class_labels=condition.double()).sample
    for i in range(2):
        row = slice(i, i + 1)
        alone = model(sample[row].double(), timestep[row], class_labels=condition[row].double()).sample
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-12)


def test_save_and_load(tmp_path):
    arguments = {"block_out_channels": (6, 12, 18), "layers_per_block": 2, "attention_levels": (0, 2)}
    model = with_gain(make(24, 1, 3, norm_num_groups=3, attention_head_dim=6, **arguments))
    model.save_pretrained(tmp_path)
    # without gradients, as for `model`: attention takes another kernel with them
    again = PatchUNet2DModel.from_pretrained(tmp_path).requires_grad_(False)
    assert again.config["patch_size"] == 3 and list(again.config["attention_levels"]) == [0, 2]
    sample, timestep, condition = inputs(24, 1, width=24)
    expected = model(sample, timestep, class_labels=condition).sample
    assert torch.equal(again(sample, timestep, class_labels=condition).sample, expected)


@pytest.mark.parametrize(
    ("size", "patch_size", "widths", "factor"), [(28, 1, (8,) * 4, 8), (30, 2, (8, 8), 4), (32, 3, (8,), 3)]
)
def test_a_side_that_does_not_halve_is_refused(size: int, patch_size: int, widths: tuple, factor: int):
    with pytest.raises(ValueError, match=rf"sample_size must be a multiple of {factor} .* got {size}"):
        make(size, 1, patch_size, block_out_channels=widths)


@pytest.mark.parametrize(("levels", "limit"), [((0,), 8), ((1,), 16), ((0, 1), 8)])
def test_a_level_narrower_than_a_head_is_refused(levels: tuple, limit: int):
    with pytest.raises(ValueError, match=rf"attention_head_dim must be at most {limit}, .* got 32"):
        make(attention_levels=levels, attention_head_dim=32)
    make(attention_levels=levels, attention_head_dim=limit)
    make(attention_levels=(), attention_head_dim=32)
