"""Given frames as people hand them over, checked, as one tensor; and finished ones in the form that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from .images import pil_to_array
from .registry import suggest

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Given:
    """First frames, checked.

    Attributes:
        name: of the argument they came in.
        frames: (B, T, C, H, W) in [-1, 1], or as the network sees them.
        encoded: whether they are as the network sees them.
    """

    name: str
    frames: Tensor
    encoded: bool

    def __len__(self) -> int:
        """Frames of each video."""
        return self.frames.shape[1]


def check_output_type(output_type: str) -> None:
    """Raise ValueError unless `output_type` is one of `OUTPUT_TYPES`."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type has {output_type!r}; {suggest(output_type, OUTPUT_TYPES)}")


def check_given(
    image: Any,
    video: Any,
    latents: Any,
    sample_shape: tuple[int, int, int],
    latent_shape: tuple[int, int, int],
    encoded: bool,
) -> Given | None:
    """First frames from one of three arguments, checked; None for none of them.

    Args:
        image, video: see `given_frames`.
        latents: see `check_latents`.
        sample_shape: (C, H, W) in pixels.
        latent_shape: (C, H, W) as the network sees a frame.
        encoded: whether the network sees pixels.

    Raises:
        ValueError: several of them, or one that cannot be used.
    """
    named = {"image": image, "video": video, "latents": latents}
    names = [name for name, value in named.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"pass exactly one of image, video and latents, got {', '.join(names)}.")
    if not names:
        return None
    if latents is not None:
        return Given("latents", check_latents(latents, latent_shape), encoded=True)
    frames = given_frames(image, video, sample_shape)
    assert frames is not None
    return Given(names[0], frames, encoded)


@torch.no_grad()
def encode_frames(given: Given, vae: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Given frames as the network sees them, (B, T, C, H, W); each is encoded by itself."""
    frames = given.frames.detach().to(device, dtype)
    if given.encoded:
        return frames
    latents = vae.encode(frames.flatten(0, 1).to(vae.dtype)).latent_dist.mode()
    latents = (latents - (vae.config.get("shift_factor") or 0)) * vae.config["scaling_factor"]
    return latents.to(dtype).unflatten(0, frames.shape[:2])


@torch.no_grad()
def decode_frames(latents: Tensor, vae: Any) -> Tensor:
    """Frames (B, T, C, H, W) in [0, 1]; each is decoded by itself."""
    frames = latents
    if vae is not None:
        flat = latents.flatten(0, 1) / vae.config["scaling_factor"] + (vae.config.get("shift_factor") or 0)
        frames = vae.decode(flat.to(vae.dtype), return_dict=False)[0].unflatten(0, latents.shape[:2])
    return (frames / 2 + 0.5).clamp(0, 1)


def given_frames(image: Any, video: Any, frame_shape: tuple[int, int, int]) -> Tensor | None:
    """Frames (B, T, C, H, W) in [-1, 1] from `image` or `video`; None for neither. Nothing is resized or clipped.

    Args:
        image: first frames: a PIL image, a list of them (one for each video), or a tensor or array (C, H, W) or
            (B, C, H, W) in [0, 1].
        video: first frames of one video as a list of PIL images, of several as a list of such lists, or a tensor or
            array (T, C, H, W) or (B, T, C, H, W) in [0, 1].
        frame_shape: (C, H, W) that the model was made for.

    Raises:
        ValueError: another shape or type, or a value that is not in [0, 1]; the first bad frame is named.
    """
    if image is None and video is None:
        return None
    name, given = ("image", image) if video is None else ("video", video)
    frames = _from_pil(name, given, frame_shape[0])
    if not isinstance(frames, Tensor):
        raise ValueError(f"{name} must be PIL images or a tensor or array, got {type(given).__name__}.")
    if not frames.is_floating_point():
        raise ValueError(f"{name} must hold floats in [0, 1], got {frames.dtype}; divide uint8 by 255.")
    if name == "image":
        frames = (frames[None] if frames.ndim == 3 else frames).unsqueeze(1)
    elif frames.ndim == 4:
        frames = frames[None]
    check_shape(name, frames, frame_shape)
    bad = ~((frames >= 0) & (frames <= 1)).flatten(2).all(2)
    if bad.any():
        sample, frame = (int(part[0]) for part in bad.nonzero(as_tuple=True))
        raise ValueError(f"{name} must lie in [0, 1] and be finite; frame {frame} of video {sample} does not.")
    return 2 * frames - 1


def check_latents(latents: Any, frame_shape: tuple[int, int, int]) -> Tensor:
    """Given frames as the network sees them, (B, T, C, H, W).

    Raises:
        ValueError: another shape, or not finite; the first bad frame is named.
    """
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        raise ValueError(f"latents must be a tensor of floats, got {type(latents).__name__}.")
    check_shape("latents", latents, frame_shape)
    bad = ~torch.isfinite(latents).flatten(2).all(2)
    if bad.any():
        sample, frame = (int(part[0]) for part in bad.nonzero(as_tuple=True))
        raise ValueError(f"latents must be finite; frame {frame} of video {sample} is not.")
    return latents


def check_shape(name: str, frames: Tensor, frame_shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless `frames` is (B, T, *frame_shape) with at least one frame."""
    if frames.ndim != 5 or tuple(frames.shape[2:]) != frame_shape or 0 in frames.shape[:2]:
        axes = "B" if name == "image" else "B,T"
        got = tuple(frames.squeeze(1).shape) if name == "image" and frames.ndim == 5 else tuple(frames.shape)
        wanted = ",".join(map(str, frame_shape))
        raise ValueError(f"{name}: expected ({axes},{wanted}), got ({','.join(map(str, got))}); nothing is resized.")


def convert_frames(frames: Tensor, output_type: str) -> Any:
    """Frames (B, T, C, H, W) in [0, 1] as "pt" (themselves), "np" (B, T, H, W, C) or "pil" (a list for each video)."""
    if output_type in ("pt", "latent"):
        return frames
    arrays = frames.permute(0, 1, 3, 4, 2).cpu().float().numpy()
    if output_type == "np":
        return arrays
    return [VaeImageProcessor.numpy_to_pil(video) for video in arrays]


def _from_pil(name: str, given: Any, channels: int) -> Any:
    if isinstance(given, np.ndarray):
        return torch.from_numpy(given.copy())
    if isinstance(given, Image.Image):
        given = [given]
    if not isinstance(given, list | tuple):
        return given
    nested = [list(video) if isinstance(video, list | tuple) else video for video in given]
    if name == "video" and nested and all(isinstance(item, Image.Image) for item in nested):
        nested = [nested]
    if len({isinstance(video, list) for video in nested}) > 1:
        raise ValueError(f"{name} must be one list of PIL images or one list for each video, got a mixture.")
    flat: list[Any] = [item for video in nested for item in (video if isinstance(video, list) else [video])]
    if not flat or not all(isinstance(item, Image.Image) for item in flat):
        raise ValueError(f"{name} must be PIL images or a tensor or array, got a list of something else.")
    arrays = [torch.from_numpy(pil_to_array(item, channels).copy()) for item in flat]
    if len({array.shape for array in arrays}) > 1 or len({len(v) for v in nested if isinstance(v, list)}) > 1:
        raise ValueError(f"{name}: all frames must have one size, and all videos one length.")
    stacked = torch.stack(arrays)
    return stacked.unflatten(0, (len(nested), -1)) if isinstance(nested[0], list) else stacked
