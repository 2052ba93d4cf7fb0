"""An image as token grids from coarse to fine: convolutional encoder and decoder around a residual quantiser.

After NFIG (Huang et al. 2025, arXiv 2503.07076): stage k is given the frequencies up to its band. With bands "none" it
is the tokenizer of VAR (Tian et al. 2024, arXiv 2404.02905), whose weights load into it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F

from gendiff.nn.bands import band_maps, band_radii, coefficient_counts, lowpasses
from gendiff.nn.residual_quantizer import QuantizedStages, ResidualQuantizer, smoother_of_stages
from gendiff.nn.stages import check_stages
from gendiff.nn.wide import wide

logger = logging.getLogger(__name__)

STEMS = ("conv", "patch2")


@dataclass
class FrequencyVQEncoderOutput(BaseOutput):
    """An encoded image.

    Attributes:
        tokens: K tensors (B, n_k) int64, coarse to fine.
        f_hat: (B, C, N, N) float32, the sum of all decoded stages.
        f: (B, C, N, N) float32, the map that was quantised.
    """

    tokens: list[Tensor]
    f_hat: Tensor
    f: Tensor


@dataclass
class FrequencyVQOutput(BaseOutput):
    """A forward for training.

    Attributes:
        sample: (B, C, S, S) reconstruction, about -1 .. 1, not clamped.
        vq_loss: how far codes are from the map and the map from its codes, 0-dim.
        feature_loss: mean squared error of f_hat to f, 0-dim; NFIG's additional term.
        quantized: tokens, sums and grids of all stages.
    """

    sample: Tensor
    vq_loss: Tensor
    feature_loss: Tensor
    quantized: QuantizedStages


@dataclass(frozen=True)
class BandReport:
    """How the stages share the frequencies of the latent map.

    Attributes:
        radii: K - 1 numbers; None where each stage is given all frequencies.
        coefficients: of the N^2 coefficients, how many are in each band.
        empty: stages whose band holds none; they can only refine what the stages before them missed.
    """

    radii: tuple[float, ...] | None
    coefficients: list[int]
    empty: list[int]


class FrequencyVQModel(ModelMixin, ConfigMixin):
    """Tokenizer for next-frequency and next-scale prediction.

    Args:
        sample_size: S, side of the images.
        in_channels: of the images.
        stages: side p_k of each token grid, never decreasing; the last must be N = S / stride, where the stride is 2
            for each level but the first, and 2 more with the stem "patch2".
        latent_channels: C, also the width of the codebook.
        codebook_size: V.
        block_out_channels: width of each level of encoder and decoder.
        layers_per_block: residual blocks of a level of the encoder; the decoder has one more.
        norm_num_groups: of all group norms.
        stem: "conv": the first level runs at full resolution; "patch2": at half of it, several times cheaper.
        band_spacing: which frequencies stage k is given, see `gendiff.nn.bands.band_radii`.
        allow_empty_bands: False refuses a spacing that leaves a stage without any frequency.
        num_phi: convolutions that smooth decoded stages, shared among the K; from 1 to K.
        phi_ratio: share of the smoothed stage, 0 = no convolutions.
        phi_index: for each stage, which convolution; None for the nearest tick, see `smoother_of_stages`.
        cosine_codes: nearest code by angle.

    Raises:
        ValueError: values that do not fit together; named in the message.
    """

    _supports_gradient_checkpointing = True
    no_weight_decay: ClassVar[tuple[str, ...]] = ("codebook",)
    """What a training that decays matrices alone leaves as it is: codes are places, not weights."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        stages: Sequence[int] = (1, 2, 3, 4, 6, 8),
        latent_channels: int = 16,
        codebook_size: int = 256,
        block_out_channels: Sequence[int] = (24, 48),
        layers_per_block: int = 2,
        norm_num_groups: int = 8,
        stem: str = "patch2",
        band_spacing: str | Sequence[float] = "area",
        allow_empty_bands: bool = True,
        num_phi: int = 4,
        phi_ratio: float = 0.5,
        phi_index: Sequence[int] | None = None,
        cosine_codes: bool = False,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}.")
        self.stride = 2 ** (len(block_out_channels) - 1) * (2 if stem == "patch2" else 1)
        if sample_size % self.stride:
            raise ValueError(f"sample_size must be a multiple of the stride {self.stride}, got {sample_size}.")
        stages = check_stages(stages, sample_size // self.stride)
        if num_phi < 1:
            raise ValueError(f"num_phi must be from 1 to {len(stages)}, got {num_phi}; phi_ratio=0 has none.")
        if not 0 <= phi_ratio <= 1:
            raise ValueError(f"phi_ratio must be from 0 (no convolutions) to 1, got {phi_ratio}.")
        num_phi = min(num_phi, len(stages))
        if phi_index is None:
            phi_index = smoother_of_stages(len(stages), num_phi)
        if len(phi_index) != len(stages) or not all(0 <= index < num_phi for index in phi_index):
            raise ValueError(
                f"phi_index must have {len(stages)} numbers, one for each stage, from 0 to {num_phi - 1}, got "
                f"{list(phi_index)}."
            )
        self.radii = band_radii(band_spacing, stages)
        self.register_to_config(
            stages=list(stages),
            num_phi=num_phi,
            phi_index=list(phi_index),
            band_spacing=band_spacing if isinstance(band_spacing, str) else list(band_spacing),
        )
        levels = len(block_out_channels)
        self.encoder = Encoder(
            in_channels,
            latent_channels,
            ("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
            tuple(block_out_channels),
            layers_per_block,
            norm_num_groups,
            double_z=False,
        )
        self.decoder = Decoder(
            latent_channels,
            in_channels,
            ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
            tuple(block_out_channels),
            layers_per_block,
            norm_num_groups,
        )
        if stem == "patch2":
            self.encoder.conv_in = nn.Conv2d(in_channels, block_out_channels[0], 4, stride=2, padding=1)
            wide_out = nn.Conv2d(block_out_channels[0], 4 * in_channels, 3, padding=1)
            self.decoder.conv_out = nn.Sequential(wide_out, nn.PixelShuffle(2))  # type: ignore[assignment]
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.quantizer = ResidualQuantizer(
            stages, latent_channels, codebook_size, phi_index, smooth_ratio=phi_ratio, cosine=cosine_codes
        )
        self._check_bands(allow_empty_bands)

    @property
    def stages(self) -> tuple[int, ...]:
        """Side of each token grid."""
        return self.quantizer.stages

    def encode(self, x: Tensor) -> FrequencyVQEncoderOutput:
        """Images (B, C, S, S) in [-1, 1] to tokens.

        Raises:
            ValueError: not images of this size, not floating, out of range, or not finite.
        """
        self._check_images(x)
        f = self._features(x)
        quantized = self.quantizer.quantize(lowpasses(f, self.radii, len(self.stages)))
        return FrequencyVQEncoderOutput(quantized.tokens, quantized.sums[-1], f)

    def decode(self, tokens: Sequence[Tensor] | None = None, f_hat: Tensor | None = None) -> Tensor:
        """Images (B, C, S, S), clamped to [-1, 1].

        Args:
            tokens: of the first stages, at least one, (B, n_k) each; later stages then add nothing.
            f_hat: (B, C, N, N), a sum of stages, instead of tokens.

        Raises:
            ValueError: tokens of a wrong number, shape or range; names the stage.
        """
        if (tokens is None) == (f_hat is None):
            raise ValueError("decode needs either tokens or f_hat, not both.")
        if f_hat is None:
            assert tokens is not None
            self.check_tokens(tokens)
            f_hat = self.quantizer.sums(tokens)[-1]
        return self._reconstruct(f_hat).clamp(-1, 1)

    def tokens_to_inputs(self, tokens: Sequence[Tensor]) -> Tensor:
        """What the transformer reads for stages 1 .. k, given tokens of stages 0 .. k - 1: (B, n_1 + .. + n_k, C).

        Tokens of the last stage, if given, are read by nobody and may be left out.

        Raises:
            ValueError: as in `decode`; or tokens of a model of one stage, whose transformer reads nothing.
        """
        self.check_tokens(tokens)
        if len(self.stages) == 1:
            raise ValueError("tokens of a model of one stage are read by nobody.")
        sums = self.quantizer.sums(list(tokens)[: len(self.stages) - 1])
        return torch.cat([self.quantizer.next_input(total, k + 1) for k, total in enumerate(sums)], dim=1)

    def bands(self, f: Tensor) -> list[Tensor]:
        """The bands f_k of a map (B, C, N, N), float32 or float64; they add up to it. One band, all, for "none"."""
        return band_maps(f, self.radii)

    def band_report(self) -> BandReport:
        """Radii, number of coefficients and empty bands."""
        if self.radii is None:
            return BandReport(None, [self.stages[-1] ** 2] * len(self.stages), [])
        counts = coefficient_counts(self.radii, self.stages[-1])
        return BandReport(self.radii, counts, [k for k, count in enumerate(counts) if not count])

    def forward(self, x: Tensor, last_stage: Tensor | None = None, beta: float = 0.25) -> FrequencyVQOutput:
        """Reconstruct, with gradients straight through the quantiser.

        Args:
            x: (B, C, S, S) in [-1, 1].
            last_stage: (B,) int64, decode only stages 0 .. last_stage of each image; None for all.
            beta: weight of the term that draws the map towards its codes.
        """
        f = self._features(x)
        targets = lowpasses(f, self.radii, len(self.stages))
        quantized = self.quantizer.quantize(targets)
        pairs = list(zip(quantized.sums, targets, strict=True))
        codes_to_map = torch.stack([F.mse_loss(total, target.detach()) for total, target in pairs]).mean()
        map_to_codes = torch.stack([F.mse_loss(total.detach(), target) for total, target in pairs]).mean()
        f_hat = quantized.sums[-1]
        feature_loss = F.mse_loss(f_hat, f)
        if last_stage is not None:
            sums = torch.stack(quantized.sums)
            f_hat = sums[last_stage, torch.arange(len(x), device=x.device)]
        sample = self._reconstruct(f + (f_hat - f).detach())
        return FrequencyVQOutput(sample, codes_to_map + beta * map_to_codes, feature_loss, quantized)

    def check_tokens(self, tokens: Sequence[Tensor]) -> None:
        """Raise ValueError unless `tokens` are those of the first stages: count, shape and range."""
        if not 1 <= len(tokens) <= len(self.stages):
            raise ValueError(f"tokens must be of 1 to {len(self.stages)} stages, got {len(tokens)}.")
        for stage, codes in enumerate(tokens):
            self.check_stage_tokens(stage, codes, len(tokens[0]))

    def check_stage_tokens(self, stage: int, codes: Tensor, batch: int) -> None:
        """Raise ValueError unless `codes` are tokens of `stage` for `batch` images: shape and range."""
        expected, size = (batch, self.stages[stage] ** 2), self.config["codebook_size"]
        if codes.dtype != torch.int64 or tuple(codes.shape) != expected:
            raise ValueError(
                f"tokens of stage {stage} must be int64 {expected}, got {codes.dtype} {tuple(codes.shape)}."
            )
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= size:
            raise ValueError(f"tokens of stage {stage} must be from 0 to {size - 1}, got {low} to {high}.")

    def _features(self, x: Tensor) -> Tensor:
        """The map (B, C, N, N) that is quantised, at least float32."""
        f = self.quant_conv(self.encoder(x))
        return f.to(wide(f.dtype))

    def _reconstruct(self, f_hat: Tensor) -> Tensor:
        dtype = self.post_quant_conv.weight.dtype
        return self.decoder(self.post_quant_conv(f_hat.to(dtype)))

    def _check_bands(self, allow_empty: bool) -> None:
        report = self.band_report()
        if not report.empty:
            return
        text = (
            f"band_spacing {self.config['band_spacing']!r} leaves stages {report.empty} without any frequency, with "
            f"radii {[round(radius, 3) for radius in report.radii or ()]}"
        )
        if not allow_empty:
            raise ValueError(f"{text}; use another spacing, or allow_empty_bands=True.")
        if text not in _WARNED:
            _WARNED.add(text)
            logger.warning("%s: they only refine what earlier stages missed.", text)

    def _check_images(self, x: Tensor) -> None:
        config = self.config
        expected = (config["in_channels"], config["sample_size"], config["sample_size"])
        if not x.is_floating_point():
            raise ValueError(
                f"images must be floating point in [-1, 1], got {x.dtype}; the image processor makes them."
            )
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"images must be (B, {', '.join(map(str, expected))}), {self.stages[-1]} times the stride "
                f"{self.stride}, got {tuple(x.shape)}."
            )
        if not torch.isfinite(x).all():
            raise ValueError("images must be finite, got NaN or infinity.")
        low, high = float(x.min()), float(x.max())
        if low < -1.001 or high > 1.001:
            raise ValueError(
                f"images must be in [-1, 1], got {low:.3g} to {high:.3g}; the image processor scales them."
            )


_WARNED: set[str] = set()
"""Warnings given already: one for each choice of bands, not one for each load."""
