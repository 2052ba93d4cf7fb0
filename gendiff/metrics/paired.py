"""PSNR, SSIM and LPIPS of samples whose target is known, for each pair and, in video, for each frame index.

Images are uint8 (B, C, H, W), videos uint8 (B, F, C, H, W), with C = 1 or 3; pair i is `samples[i]`, `targets[i]`. What
is scored are the bytes one would save, so the data range is 255 by type and never guessed from the data.

Sources: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity" (IEEE TIP) for
SSIM, by torchmetrics; Zhang et al. 2018 for LPIPS, by lpips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.metrics.rows import whole_number

METRICS = ("psnr", "ssim", "lpips")
DATA_RANGE = 255.0
SSIM_WINDOW = 11
"""Side in pixels of SSIM's Gaussian window; its standard deviation of 1.5 px is cut at 3.5 of them."""
SSIM_SIGMA = 1.5


@dataclass(frozen=True)
class PairedResult:
    """A paired metric with what it was measured under.

    Attributes:
        metric: "psnr" (dB, higher is better), "ssim" (at most 1, higher is better) or "lpips" (0 is equal).
        values: float64 (B,) for images, (B, F) for videos, on the CPU; PSNR of an equal pair is inf.
        mean: over all values. An equal pair counts with the highest PSNR that a differing pair can have
            (`conditions["equal_pairs_count_as"]`), so that the mean stays finite and never falls when a pair improves.
        std: over pairs (unbiased, a video counting as the mean of its frames); None where there is one pair.
        per_frame: mean over videos at each frame index, the drift curve; None for images.
        equal_pairs: how many pairs (for videos: frames) are equal byte for byte.
        conditions: data range, window, network, hashes, shape and number of pairs: what the number depends on.
    """

    metric: str
    values: Tensor
    mean: float
    std: float | None
    per_frame: tuple[float, ...] | None
    equal_pairs: int
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; an infinite value becomes the word "inf"."""
        return {
            "metric": self.metric,
            "mean": self.mean,
            "std": self.std,
            "per_frame": None if self.per_frame is None else list(self.per_frame),
            "equal_pairs": self.equal_pairs,
            "values": _jsonable(self.values.tolist()),
            "conditions": dict(self.conditions),
        }


def psnr(samples: Tensor, targets: Tensor) -> PairedResult:
    """Peak signal-to-noise ratio, 10 log10(255^2 / MSE) in dB, the MSE over all values of a pair.

    Args:
        samples: uint8 (B, C, H, W) or (B, F, C, H, W).
        targets: of the same shape and type.

    Raises:
        InvalidInputError: shapes or types differ, or are not those above.
    """
    _check_pair(samples, targets)
    from torchmetrics.functional.image import peak_signal_noise_ratio

    values = _by_batch(
        samples,
        targets,
        lambda a, b: peak_signal_noise_ratio(a, b, data_range=DATA_RANGE, reduction="none", dim=(1, 2, 3)),
    )
    # The smallest error two differing pairs of bytes can have: one value, one grey level.
    ceiling = 10 * math.log10(DATA_RANGE**2 * math.prod(samples.shape[-3:]))
    return _result("psnr", values, samples, targets, {"equal_pairs_count_as": ceiling}, ceiling)


def ssim(samples: Tensor, targets: Tensor) -> PairedResult:
    """Structural similarity with a Gaussian window of 11 px (sigma 1.5 px), K1 = 0.01, K2 = 0.03, range 255.

    The covariances are those of the window's weights (not unbiased), the mean is over the pixels whose window lies
    inside the image, and channels are averaged: as scikit-image with `gaussian_weights=True,
    use_sample_covariance=False`.

    Args:
        samples: uint8 (B, C, H, W) or (B, F, C, H, W), with sides of at least 11 px.
        targets: of the same shape and type.

    Raises:
        InvalidInputError: shapes or types differ or are not those above.
    """
    _check_pair(samples, targets)
    if min(samples.shape[-2:]) < SSIM_WINDOW:
        raise InvalidInputError(
            f"samples are {_size(samples)}, SSIM needs sides of at least its window of {SSIM_WINDOW} px."
        )
    from torchmetrics.functional.image import structural_similarity_index_measure

    margin = SSIM_WINDOW // 2

    def similarity(first: Tensor, second: Tensor) -> Tensor:
        _, whole = structural_similarity_index_measure(
            first, second, sigma=SSIM_SIGMA, data_range=DATA_RANGE, reduction="none", return_full_image=True
        )
        # torchmetrics also averages windows that reach over the edge into mirrored pixels; the paper does not.
        return whole[..., margin:-margin, margin:-margin].mean((1, 2, 3))

    conditions = {
        "window": SSIM_WINDOW,
        "window_sigma": SSIM_SIGMA,
        "k1": 0.01,
        "k2": 0.03,
        "border": "windows inside the image",
    }
    return _result("ssim", _by_batch(samples, targets, similarity), samples, targets, conditions)


def lpips(
    samples: Tensor,
    targets: Tensor,
    net: str = "alex",
    weights: str | Path | None = None,
    resize: int | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> PairedResult:
    """Learned perceptual distance: 0 for equal images, and larger where deep features differ.

    Args:
        samples: uint8 (B, C, H, W) or (B, F, C, H, W); grey is repeated to 3 channels.
        targets: of the same shape and type.
        net: "alex" (sides of at least 31 px) or "vgg" (16 px). Values of the two cannot be compared.
        weights: torchvision state dict of the backbone; None searches for it.
        resize: side in pixels both are first resized to, bilinear with antialiasing; None leaves them. Part of the
            conditions: values at different sizes cannot be compared.
        batch_size: images in one pass, which changes no value beyond rounding.
        device: where the network runs; None is the CPU.

    Raises:
        InvalidInputError: shapes, types or a number are not those above.
        WeightsNotFoundError: no backbone on this machine.
        WeightsCorruptError: the file is not this backbone.
    """
    from gendiff.metrics.lpips_network import SMALLEST_SIDE, load_lpips

    _check_pair(samples, targets)
    whole_number("batch_size", batch_size, 1)
    if resize is not None:
        whole_number("resize", resize, 1)
    smallest = SMALLEST_SIDE.get(net, 0)
    if min(samples.shape[-2:] if resize is None else (resize,)) < smallest:
        got = f"samples are {_size(samples)}" if resize is None else f"resize is {resize}"
        raise InvalidInputError(f"{got}, LPIPS {net} needs sides of at least {smallest} px; pass resize=64.")
    network, found = load_lpips(net, weights, device)

    def distance(first: Tensor, second: Tensor) -> Tensor:
        # float32 is the network's own type; only the averages are taken in float64.
        pair = [_to_network(images, resize).to(device or "cpu") for images in (first, second)]
        return network(*pair).reshape(-1).double().cpu()

    values = _by_batch(samples, targets, distance, batch_size)
    conditions = {
        "net": net,
        "lpips_version": "0.1",
        "weights_sha256": found.sha256,
        "published_weights": found.official,  # of another backbone the number is no LPIPS to compare with papers
        "resize": resize,
    }
    return _result("lpips", values, samples, targets, conditions)


def paired(
    samples: Tensor, targets: Tensor, metrics: Sequence[str] = METRICS, **lpips_arguments: Any
) -> dict[str, PairedResult]:
    """Several paired metrics by name.

    Args:
        samples: uint8 (B, C, H, W) or (B, F, C, H, W).
        targets: of the same shape and type.
        metrics: names out of "psnr", "ssim", "lpips".
        lpips_arguments: passed on to `lpips`.

    Raises:
        InvalidInputError: an unknown metric, or what a metric raises.
        WeightsNotFoundError: LPIPS is asked for and its backbone is not on this machine.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics or isinstance(metrics, str):
        raise InvalidInputError(f"metrics must be a list of names out of {', '.join(METRICS)}, got {metrics!r}.")
    _check_pair(samples, targets)
    functions: dict[str, Callable[[], PairedResult]] = {
        "psnr": lambda: psnr(samples, targets),
        "ssim": lambda: ssim(samples, targets),
        "lpips": lambda: lpips(samples, targets, **lpips_arguments),
    }
    return {name: functions[name]() for name in metrics}


def _result(
    metric: str,
    values: Tensor,
    samples: Tensor,
    targets: Tensor,
    conditions: dict[str, Any],
    ceiling: float | None = None,
) -> PairedResult:
    finite = values if ceiling is None else values.clamp(max=ceiling)
    is_video = samples.ndim == 5
    by_pair = finite.mean(1) if is_video else finite
    return PairedResult(
        metric=metric,
        values=values,
        mean=finite.mean().item(),
        std=by_pair.std().item() if len(by_pair) > 1 else None,
        per_frame=tuple(finite.mean(0).tolist()) if is_video else None,
        equal_pairs=int((samples == targets).flatten(values.ndim).all(-1).sum()),
        conditions={
            "pairs": len(samples),
            "frames": samples.shape[1] if is_video else None,
            "shape": list(samples.shape[-3:]),
            "data_range": DATA_RANGE,
            "dtype": "uint8",
            **conditions,
        },
    )


def _by_batch(
    samples: Tensor, targets: Tensor, measure: Callable[[Tensor, Tensor], Tensor], batch_size: int = 64
) -> Tensor:
    """Values of `measure`, float64 (B,) or (B, F), given float64 images (b, C, H, W) in 0 to 255 in small batches."""
    leading = samples.shape[: samples.ndim - 3]
    pairs = [images.reshape(-1, *images.shape[-3:]).cpu() for images in (samples, targets)]
    with torch.inference_mode():
        parts = [
            measure(first.double(), second.double())
            for first, second in zip(*(images.split(batch_size) for images in pairs), strict=True)
        ]
    return torch.cat(parts).double().reshape(leading).clone()  # an inference tensor could not be used for much else


def _to_network(images: Tensor, resize: int | None) -> Tensor:
    """(b, C, H, W) in 0 to 255 as LPIPS reads them: float32 (b, 3, H, W) in [-1, 1]."""
    images = (images / 127.5 - 1).float().expand(-1, 3, -1, -1)
    if resize is None:
        return images
    return torch.nn.functional.interpolate(
        images, (resize, resize), mode="bilinear", align_corners=False, antialias=True
    )


def _check_pair(samples: Tensor, targets: Tensor) -> None:
    for name, images in (("samples", samples), ("targets", targets)):
        if not isinstance(images, Tensor):
            raise InvalidInputError(f"{name} must be a uint8 tensor, got {type(images).__name__}.")
    if samples.shape != targets.shape or samples.dtype != targets.dtype:
        raise InvalidInputError(
            f"samples {tuple(samples.shape)} {samples.dtype} and targets {tuple(targets.shape)} {targets.dtype} "
            "must have one shape and one type."
        )
    if samples.dtype != torch.uint8:
        raise InvalidInputError(f"samples and targets must be uint8, the bytes one would save, got {samples.dtype}.")
    if samples.ndim not in (4, 5) or samples.shape[-3] not in (1, 3) or samples.numel() == 0:
        raise InvalidInputError(
            f"samples and targets must be (B, C, H, W) or (B, F, C, H, W) with C = 1 or 3 and not empty, "
            f"got {tuple(samples.shape)}."
        )


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]}x{images.shape[-1]} px"


def _jsonable(values: Any) -> Any:
    if isinstance(values, list):
        return [_jsonable(value) for value in values]
    return values if math.isfinite(values) else "inf"
