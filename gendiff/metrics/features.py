"""Features of the images of a source: read ahead, computed in float32, split among processes, returned in order.

Rows depend on the shape of the batch by rounding (about 1e-6), so batches are aligned: batch b holds the images from
`b * batch_size` on, whichever process computes it. One process and several return the same rows, bit for bit, on equal
hardware with equally many threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gendiff.data.image_source import ImageSource
from gendiff.errors import InvalidInputError
from gendiff.metrics.processes import each_its_share, process_state
from gendiff.metrics.rows import whole_number

if TYPE_CHECKING:
    from gendiff.metrics.extractors.base import FeatureExtractor

READ_AHEAD = 2
"""Batches a reading thread may be ahead of the network."""


@dataclass(frozen=True)
class Extracted:
    """What a network says of N images.

    Attributes:
        features: (N, d) float64.
        logits: (N, classes) float64; None unless asked for.
    """

    features: np.ndarray
    logits: np.ndarray | None = None


def extract_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    batch_size: int = 64,
    num: int | None = None,
    workers: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """Features of the first `num` images, (N, d) float64, by index; the same on every process.

    Args:
        source: what to read.
        extractor: takes uint8 (B, 3, H, W), returns (B, d); runs where it lies.
        batch_size: images at a time, rounded up to whole blocks of the source.
        num: how many; None for all.
        workers: threads that read ahead where the source gains by it.
        progress: show a bar, on the main process.

    Raises:
        InvalidInputError: `num` is not from 1 to the size of the source, another argument is out of range, an image
            cannot be read, or a feature is NaN or infinite; the first such image is named.
    """
    return extract(source, extractor, batch_size, num, workers, progress).features


def extract(
    source: ImageSource,
    extractor: FeatureExtractor,
    batch_size: int = 64,
    num: int | None = None,
    workers: int = 0,
    progress: bool = True,
    with_logits: bool = False,
) -> Extracted:
    """As `extract_features`, with the network's logits of the same reading if they are asked for."""
    batches = aligned_batches(source, batch_size, num)
    whole_number("workers", workers, 0)
    extractor.eval()

    def work(share: Sequence[range]) -> tuple[list[np.ndarray], list[np.ndarray], dict[int, bytes]]:
        features, logits = [], []
        with _bar(share, extractor.id, progress) as bar:
            for indices, images in _read_ahead(source, share, workers):
                rows, scores = extractor.features_and_logits(images) if with_logits else (extractor(images), None)
                features.append(_checked(rows, source, indices, extractor.dim))
                if scores is not None:
                    logits.append(_checked(scores, source, indices))
                bar.update(len(indices))
        known = source.known_digests()
        return features, logits, {index: known[index] for indices in share for index in indices if index in known}

    shares = each_its_share(batches, work)
    for _, _, digests in shares:
        source.learn_digests(digests)
    return Extracted(
        _in_order([features for features, _, _ in shares]),
        _in_order([logits for _, logits, _ in shares]) if with_logits else None,
    )


def read_digests(source: ImageSource, batch_size: int = 256, num: int | None = None) -> list[bytes]:
    """sha256 of each of the first `num` images, read by all processes together.

    Raises:
        InvalidInputError: as `extract_features`.
    """

    def work(share: Sequence[range]) -> dict[int, bytes]:
        return {index: found for batch in share for index, found in zip(batch, source.digests(batch), strict=True)}

    for hashes in each_its_share(aligned_batches(source, batch_size, num), work):
        source.learn_digests(hashes)
    return source.digests(range(len(source) if num is None else num))


def aligned_batches(source: ImageSource, batch_size: int, num: int | None = None) -> list[range]:
    """Indices of each batch; all but the last hold equally many, a multiple of the source's block.

    Raises:
        InvalidInputError: `batch_size` is below 1, or `num` is not from 1 to the size of the source.
    """
    whole_number("batch_size", batch_size, 1)
    total = len(source) if num is None else whole_number("num", num, 1)
    if total > len(source):
        raise InvalidInputError(f"num={total} images are asked for, but {source.name} holds {len(source)}.")
    step = -(-batch_size // source.block) * source.block
    return [range(start, min(start + step, total)) for start in range(0, total, step)]


def _read_ahead(source: ImageSource, batches: Sequence[range], workers: int) -> Iterator[tuple[range, Tensor]]:
    """Batches in order, read by threads while the caller works on earlier ones."""
    if workers == 0 or not source.threaded or len(batches) < 2:
        yield from ((indices, source.read(indices)) for indices in batches)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[range, Future[Tensor]]] = deque()
        try:
            for indices in batches:
                waiting.append((indices, pool.submit(source.read, indices)))
                if len(waiting) > READ_AHEAD * workers:
                    first, images = waiting.popleft()
                    yield first, images.result()
            while waiting:
                first, images = waiting.popleft()
                yield first, images.result()
        finally:
            for _, images in waiting:
                images.cancel()


def _bar(share: Sequence[range], name: str, progress: bool) -> Any:
    from tqdm.auto import tqdm

    shown = progress and process_state().is_main_process
    return tqdm(total=sum(map(len, share)), desc=name, unit="image", disable=not shown)


def _checked(rows: Tensor, source: ImageSource, indices: range, dim: int | None = None) -> np.ndarray:
    """Rows as float32 on the CPU, where their shape and every number in them is right."""
    if rows.ndim != 2 or len(rows) != len(indices) or (dim is not None and rows.shape[1] != dim):
        wanted = f"({len(indices)}, {'classes' if dim is None else dim})"
        raise InvalidInputError(f"the extractor returned {tuple(rows.shape)} for {len(indices)} images, not {wanted}.")
    array = rows.detach().float().cpu().numpy()
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        index = indices[int(np.argmin(finite))]
        raise InvalidInputError(f"features of {source.where(index)} are NaN or infinite (first of such images).")
    return array


def _in_order(shares: list[list[np.ndarray]]) -> np.ndarray:
    """Batches b = rank, rank + world, .. of each process as one array by index."""
    longest = max(map(len, shares))
    batches = [share[turn] for turn in range(longest) for share in shares if turn < len(share)]
    return np.concatenate(batches).astype(np.float64)


def device_of(extractor: torch.nn.Module) -> torch.device:
    """Where a network's weights lie; the CPU for one without any."""
    tensor = next(extractor.parameters(), next(extractor.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device
