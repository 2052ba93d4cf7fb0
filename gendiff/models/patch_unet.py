"""A U-Net that works on patches: the same call as `UNet2DModel` at a fraction of its cost."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn


class PatchUNet2DModel(ModelMixin, ConfigMixin):
    """`UNet2DModel` on space-to-depth patches, conditioned by one vector through adaptive group norm.

    Each p x p patch becomes p * p * C channels of a grid p times smaller, so the convolutions cost about p * p times
    less; this is what makes training and sampling practical on two CPU cores. A learned gain g(t) for each channel adds
    g(t) * sample to the prediction: velocity and noise hold p * p * C independent numbers in a patch, which the narrow
    grid would otherwise have to carry through every layer. It starts at 0.

    Args:
        sample_size: side of the square image in pixels.
        in_channels: C, channels of the image, and of the prediction.
        patch_size: p; 1 gives the plain U-Net.
        block_out_channels: width of each level; the side halves between levels.
        layers_per_block: residual blocks at each level.
        attention_levels: levels with self-attention, 0 = finest.
        attention_head_dim: width of an attention head.
        norm_num_groups: groups of every GroupNorm.

    Raises:
        ValueError: the side is not a multiple of patch_size * 2 ** (levels - 1), or a level with attention is narrower
            than one head.

    Source: Dhariwal & Nichol 2021 (adaptive group norm); Karras et al. 2022 (a skip scaled by the noise level).
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        patch_size: int = 2,
        block_out_channels: tuple[int, ...] = (48, 64, 96),
        layers_per_block: int = 1,
        attention_levels: tuple[int, ...] = (),
        attention_head_dim: int = 32,
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        levels = len(block_out_channels)
        factor = patch_size * 2 ** (levels - 1)
        if sample_size % factor:
            raise ValueError(
                f"sample_size must be a multiple of {factor} (patch_size * 2^(levels - 1)), got {sample_size}."
            )
        channels = in_channels * patch_size**2
        attends = [level in attention_levels for level in range(levels)]
        # The middle attends wherever any level does, and is as wide as the last. diffusers would build zero heads.
        attended = [w for w, attend in zip(block_out_channels, attends, strict=True) if attend]
        if attended and attention_head_dim > min(*attended, block_out_channels[-1]):
            raise ValueError(
                f"attention_head_dim must be at most {min(*attended, block_out_channels[-1])}, the width of the "
                f"narrowest level with attention, got {attention_head_dim}."
            )
        self.unet = UNet2DModel(
            sample_size=sample_size // patch_size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            add_attention=any(attends),
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )
        self.gain = nn.Linear(4 * block_out_channels[0], in_channels)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.gain.bias)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Prediction (B, C, S, S) for a noisy `sample` (B, C, S, S).

        Args:
            timestep: scalar or (B,).
            class_labels: condition e (B, 4 * block_out_channels[0]), added to the time embedding.
        """
        patches = nn.functional.pixel_unshuffle(sample, self.config["patch_size"])
        prediction = self.unet(patches, timestep, class_labels=class_labels, return_dict=False)[0]
        prediction = nn.functional.pixel_shuffle(prediction, self.config["patch_size"])
        prediction = prediction + self._gain(sample, timestep)[:, :, None, None] * sample
        if not return_dict:
            return (prediction,)
        return UNet2DOutput(sample=prediction)

    def _gain(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """Gain (B or 1, C) of the sample in the prediction."""
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        embedding = self.unet.time_embedding(self.unet.time_proj(timesteps).to(sample.dtype))
        return self.gain(nn.functional.silu(embedding))
