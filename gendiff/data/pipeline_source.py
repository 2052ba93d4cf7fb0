"""Images straight from a pipeline: image i depends on the seed and on i, not on who reads how many at a time.

Seeds follow NVlabs/edm: one generator for each image, seeded by its index.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendiff.data.image_source import ImageSource
from gendiff.data.pipeline_call import CallCounter, call_settings, networks_of, undisturbed, weights_hash
from gendiff.data.pixels import CHANNELS, from_pil, from_unit
from gendiff.errors import InvalidInputError

SEEDS = 2**32
COUNTS = ("num_images", "batch_size", "num_images_per_prompt", "num_videos_per_prompt", "num_samples")
"""What pipelines call the number of images, in the order in which names are looked for."""
RESERVED = ("generator", "output_type", "return_dict", "class_labels", "latents", *COUNTS)
"""Arguments of a pipeline that this source gives itself."""
OVERSHOOT = 1e-3
"""How far outside [0, 1] a decoder's rounding may reach before it counts as a mistake."""


class PipelineSource(ImageSource):
    """Images that a pipeline makes when they are read.

    The network's rounding depends on the shape of its batch and on the number of threads, and that flips bytes. So
    images are computed in fixed blocks of `batch_size` consecutive indices, whoever reads them, by `threads` threads;
    the last block is filled up with images of further seeds, which are dropped. The same source gives the same bytes
    for every reading order and number of processes on one machine; another `batch_size`, number of threads or device
    is another source, which differs by single grey levels.

    Args:
        pipeline: diffusers-like: its call takes a list of generators, `output_type` and one of `COUNTS`, and returns
            `.images`, floats in [0, 1], uint8 or pictures.
        num: number of images.
        seed: image i uses `torch.Generator().manual_seed((seed + i) mod 2^32)`, on the CPU, so that its noise does
            not depend on the device.
        batch_size: images in a block.
        labels: None, a class for each image, "random" (drawn from the image's generator before its noise) or
            "balanced" (i mod the number of classes).
        num_classes: of "random" and "balanced"; None asks the pipeline's `class_names`.
        threads: of torch during a call on the CPU; None leaves torch's setting, and a launcher of several processes
            changes that.
        resize: (H, W) to bring images to.
        call_kwargs: further arguments of the pipeline's call, e.g. `num_inference_steps=50`.

    Raises:
        InvalidInputError: an argument out of range, or one that the pipeline does not take.
    """

    kind = "pipeline"

    def __init__(
        self,
        pipeline: Any,
        num: int,
        seed: int = 0,
        batch_size: int = 8,
        labels: str | Sequence[int] | Tensor | None = None,
        *,
        num_classes: int | None = None,
        threads: int | None = 1,
        resize: tuple[int, int] | None = None,
        **call_kwargs: Any,
    ):
        super().__init__(type(pipeline).__name__, resize)
        _check_whole("num", num, 1)
        _check_whole("seed", seed, 0)
        _check_whole("batch_size", batch_size, 1)
        if threads is not None:
            _check_whole("threads", threads, 1)
        self._pipeline, self._num, self._seed = pipeline, num, seed
        self.block, self._threads, self._call_kwargs = batch_size, threads, call_kwargs
        self._parameters = _parameters(pipeline, call_kwargs)
        self._asked, self._labels = self._check_labels(labels, num_classes)
        self._count = next((name for name in COUNTS if name in self._parameters), None)
        if self._count is None and self._labels is None:
            raise InvalidInputError(f"{self.name} takes none of {', '.join(COUNTS)}; pass labels for every image.")
        self._cached: tuple[int, Tensor] | None = None
        self._cost = {"images": 0, "calls": 0, "network_calls": 0, "flops": 0, "seconds": 0.0}
        self._flops_known = True
        self._weights_hash: str | None = None
        self.note(f"floats in [0, 1] became bytes by round(255 x); blocks of {batch_size}")

    def __len__(self) -> int:
        return self._num

    def load(self, indices: Sequence[int]) -> list[Tensor]:
        return [self._block(index // self.block)[index % self.block] for index in indices]

    def labels(self, count: int) -> Tensor | None:
        """Classes that were asked for, (count,) int64."""
        if self._labels is None:
            return None
        return torch.tensor([self._label(index, self._generator(index)) for index in range(count)])

    def stats(self) -> dict[str, Any]:
        """What this process has spent on images so far.

        Returns: `images` made (those that filled a block up included), `calls` of the pipeline, `network_calls` of
            its denoising network, `flops` (None if the pipeline does not report them) and `seconds`.
        """
        return {**self._cost, "flops": self._cost["flops"] if self._flops_known and self._cost["calls"] else None}

    def facts(self) -> dict[str, Any]:
        if self._weights_hash is None:
            self._weights_hash = weights_hash(self._pipeline)
        return {
            **call_settings(self._pipeline, self._parameters, self._call_kwargs),
            "weights_sha256": self._weights_hash,
            "seeds": [self._seed, (self._seed + self._num - 1) % SEEDS],
            "labels": self._asked,
            "block": self.block,
            "threads": self._used_threads() or torch.get_num_threads(),
        }

    def where(self, index: int) -> str:
        return f"image {index} (seed {(self._seed + index) % SEEDS}) of {self.name}"

    def _block(self, number: int) -> Tensor:
        if self._cached is None or self._cached[0] != number:
            images = self._make(number * self.block)
            self._cached = (number, images)
            # Of any block: otherwise a process would make the first one, which is not its own, to learn the size.
            self._size = self._size or (images.shape[2], images.shape[3])
        return self._cached[1]

    def _make(self, first: int) -> Tensor:
        indices = range(first, first + self.block)
        generators = [self._generator(index) for index in indices]
        arguments: dict[str, Any] = {"output_type": "pt", "return_dict": True}
        arguments = {name: value for name, value in arguments.items() if name in self._parameters}
        if self._labels is not None:
            # A list of labels says how many images there are; a count beside it would multiply them.
            labels = zip(indices, generators, strict=True)
            arguments["class_labels"] = [self._label(index, generator) for index, generator in labels]
            if self._count == "batch_size":
                arguments["batch_size"] = self.block
        elif self._count is not None:
            arguments[self._count] = self.block
        start = time.perf_counter()
        with (
            torch.no_grad(),
            undisturbed(self._pipeline, self._used_threads(), (self._seed + first) % SEEDS),
            CallCounter(self._pipeline) as counter,
        ):
            output = self._pipeline(**arguments, generator=generators, **self._call_kwargs)
        self._account(output, counter.calls, time.perf_counter() - start)
        return self._to_bytes(output.images if hasattr(output, "images") else output[0], first)

    def _to_bytes(self, images: Any, first: int) -> Tensor:
        if isinstance(images, list | tuple) and images and not isinstance(images[0], Tensor | np.ndarray):
            tensor = torch.stack([from_pil(image) for image in images])
        elif isinstance(images, np.ndarray):
            tensor = torch.from_numpy(images)
            tensor = tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor
        else:
            tensor = torch.stack(list(images)) if isinstance(images, list | tuple) else images
        shape = tuple(getattr(tensor, "shape", ()))
        if len(shape) != 4 or shape[0] != self.block or shape[1] not in CHANNELS:
            raise InvalidInputError(
                f"{self.name} returned images of shape {shape or type(tensor).__name__}; expected {self.block} images "
                f"(B, C, H, W) or, as an array, (B, H, W, C) with C in {CHANNELS}."
            )
        if tensor.dtype == torch.uint8:
            return tensor.cpu()
        return from_unit(tensor, self.name, first, OVERSHOOT)

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed((self._seed + index) % SEEDS)

    def _label(self, index: int, generator: torch.Generator) -> int:
        assert self._labels is not None
        if isinstance(self._labels, list):
            return self._labels[index % len(self._labels)]
        if self._asked == "balanced":
            return index % self._labels
        return int(torch.randint(self._labels, (1,), generator=generator))

    def _used_threads(self) -> int | None:
        return self._threads if _device(self._pipeline).type == "cpu" else None

    def _account(self, output: Any, network_calls: int, seconds: float) -> None:
        stats = getattr(output, "stats", None)
        self._flops_known &= hasattr(stats, "flops")
        self._cost["images"] += self.block
        self._cost["calls"] += 1
        self._cost["network_calls"] += getattr(stats, "network_calls", network_calls)
        self._cost["flops"] += getattr(stats, "flops", 0)
        self._cost["seconds"] += seconds

    def _check_labels(self, labels: Any, num_classes: int | None) -> tuple[str, list[int] | int | None]:
        """How labels were asked for, and the list of them or the number of classes."""
        if labels is None:
            return "none", None
        if "class_labels" not in self._parameters:
            raise InvalidInputError(f"labels are given, but {self.name} takes no class_labels.")
        if isinstance(labels, str):
            if labels not in ("random", "balanced"):
                raise InvalidInputError(f"labels must be None, 'random', 'balanced' or a list, got {labels!r}.")
            classes = len(getattr(self._pipeline, "class_names", ())) if num_classes is None else num_classes
            if num_classes is None and classes == 0:
                # Embeddings of the network do not tell: one of them may stand for "no class".
                raise InvalidInputError(f"labels={labels!r} needs num_classes: {self.name} names no classes.")
            _check_whole("num_classes", classes, 1)
            return labels, classes
        given = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
        if len(given) != self._num:
            raise InvalidInputError(f"labels must be one for each of {self._num} images, got {len(given)}.")
        for label in given:
            _check_whole("a label", label, 0)
        return "list", given


def _device(pipeline: Any) -> torch.device:
    device = getattr(pipeline, "_execution_device", None) or getattr(pipeline, "device", None)
    if device is None:
        parameter = next((p for network in networks_of(pipeline).values() for p in network.parameters()), None)
        return torch.device("cpu") if parameter is None else parameter.device
    return torch.device(device)


def _parameters(pipeline: Any, call_kwargs: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    """Parameters of the pipeline's call by name, checked to take what is given."""
    if not callable(pipeline):
        raise InvalidInputError(f"pipeline must be callable, got {type(pipeline).__name__}.")
    name = type(pipeline).__name__
    parameters = dict(inspect.signature(pipeline).parameters)
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if "generator" not in parameters:
        raise InvalidInputError(f"{name} takes no generator, so its images cannot be made again; it cannot be scored.")
    for argument in call_kwargs:
        if argument in RESERVED:
            raise InvalidInputError(f"{argument} is set by PipelineSource; use num, seed, batch_size or labels.")
        if argument not in parameters and not open_ended:
            raise InvalidInputError(f"{name} takes no {argument!r}; it takes {', '.join(parameters)}.")
    return parameters


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidInputError(f"{name} must be a whole number of at least {least}, got {value!r}.")
