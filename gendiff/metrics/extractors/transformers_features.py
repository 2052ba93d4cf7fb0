"""DINOv2 and CLIP from a local folder of `transformers`: FD-DINOv2 and CMMD.

Sources: Stein et al. 2023, "Exposing flaws of generative model evaluation metrics and their unfair treatment of
diffusion models" (NeurIPS), for FD-DINOv2; Jayasumana et al. 2024, "Rethinking FID: towards a better evaluation metric
for image generation" (CVPR), for CMMD.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from gendiff.errors import WeightsCorruptError
from gendiff.metrics.extractors.base import FeatureExtractor, with_sha
from gendiff.metrics.weights import FoundWeights, locate_weights

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of the channels in [0, 1] that each network was trained with."""

DINOV2_L14 = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14}
CLIP_L14_336 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 336,
    "projection_dim": 768,
}
"""What a folder's config must say to be called by the plain name."""


class DinoV2Extractor(FeatureExtractor):
    """The class token after the last norm, 1024 numbers for ViT-L/14.

    Args:
        weights: folder with config.json and safetensors; None is `$GENDIFF_WEIGHTS_DIR/dinov2-l14`. A model of another
            shape is taken, with its hash in the id.

    Raises:
        ImportError: transformers is missing.
        WeightsNotFoundError, WeightsCorruptError, UnsafeFileError: see `locate_weights`.
    """

    SIDE = 224

    def __init__(self, weights: str | Path | None = None) -> None:
        found, model = _load("dinov2-l14", weights, "Dinov2Model")
        super().__init__(
            id=_id("dinov2-l14", found, model.config, DINOV2_L14),
            dim=model.config.hidden_size,
            input_spec=f"RGB, bicubic antialiased to {self.SIDE}x{self.SIDE}, in bytes, ImageNet mean and deviation",
            weights_sha256=found.sha256,
        )
        self.model = model
        _add_normalisation(self, *IMAGENET)

    def extract(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=_prepared(self, images, self.SIDE)).last_hidden_state[:, 0]


class ClipExtractor(FeatureExtractor):
    """Projected image embeddings of length 1, 768 numbers for ViT-L/14@336.

    Args:
        weights: folder with config.json and safetensors; None is `$GENDIFF_WEIGHTS_DIR/clip-l14-336`. A model of
            another shape is taken, with its hash in the id.

    Raises:
        ImportError, WeightsNotFoundError, WeightsCorruptError, UnsafeFileError: as for `DinoV2Extractor`.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        found, model = _load("clip-l14-336", weights, "CLIPVisionModelWithProjection")
        side = model.config.image_size
        super().__init__(
            id=_id("clip-l14-336", found, model.config, CLIP_L14_336),
            dim=model.config.projection_dim,
            input_spec=f"RGB, centre square, bicubic antialiased to {side}x{side}, in bytes, CLIP mean and deviation",
            weights_sha256=found.sha256,
        )
        self.side = side
        self.model = model
        _add_normalisation(self, *CLIP)

    def extract(self, images: Tensor) -> Tensor:
        embeddings = self.model(pixel_values=_prepared(self, centre_square(images), self.side)).image_embeds
        return F.normalize(embeddings, dim=-1)


def make_dinov2(name: str, weights: str | Path | None) -> DinoV2Extractor:
    """Factory of the registry."""
    return DinoV2Extractor(weights)


def make_clip(name: str, weights: str | Path | None) -> ClipExtractor:
    """Factory of the registry."""
    return ClipExtractor(weights)


def centre_square(images: Tensor) -> Tensor:
    """The largest square in the middle of images (..., H, W)."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def _load(name: str, weights: str | Path | None, class_name: str) -> tuple[FoundWeights, Any]:
    found = locate_weights(name, weights)
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f'{name} needs the package "transformers": pip install "gendiff[metrics]".') from error
    logging = transformers.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = getattr(transformers, class_name).from_pretrained(
            found.path, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsCorruptError(
            f"{found.path} cannot be read as {class_name}: {str(error).splitlines()[0]}"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise WeightsCorruptError(f"{found.path} is not a whole {class_name}: {missing[0]} is missing.")
    return found, model


def _id(name: str, found: FoundWeights, config: Any, published: dict[str, int]) -> str:
    """The plain name for a model of the published shape, else with its hash."""
    same = all(getattr(config, key, None) == value for key, value in published.items())
    return name if same else with_sha(name, found.sha256)


def _add_normalisation(module: FeatureExtractor, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    module.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
    module.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)


def _prepared(module: Any, images: Tensor, side: int) -> Tensor:
    """What a network reads of images. Both metrics were published with PIL's bicubic, which works on bytes.

    So does PyTorch's for uint8, on the CPU: all but 1 byte in 200 are PIL's, where resizing floats and rounding them
    changes 1 in 5. Images are therefore resized on the CPU, wherever the network is.
    """
    pixels = F.interpolate(images.cpu(), size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return (pixels.to(images.device).float() / 255 - module.mean) / module.std
