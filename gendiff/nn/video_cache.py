"""What a causal video transformer keeps of clean frames: keys and values over time, and of the last frames in space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gendiff.nn.kv_cache import KVSnapshot, RingKVCache

_Method = TypeVar("_Method", bound=Callable)


def _opaque(method: _Method) -> _Method:
    """Compiled code calls `method` without looking inside: it counts frames, and each count would be compiled anew."""
    return torch.compiler.disable(method)  # type: ignore[return-value]


@dataclass(frozen=True)
class CacheView:
    """How new frames see the cached ones and themselves in one forward; see `VideoKVCache.view`.

    Attributes:
        mask: (T, K) bool, True = may attend; None = all may.
        query_positions: (T,) int64, rank of each new frame.
        key_positions: (K,) int64, rank of the frame in each column.
        frames: (T,) int64, how many frames were written before each new one.
    """

    mask: Tensor | None
    query_positions: Tensor
    key_positions: Tensor
    frames: Tensor


@dataclass(frozen=True)
class VideoSnapshot:
    """A committed state of a `VideoKVCache`; it stays as it is whatever the cache does later.

    Attributes:
        make: sizes of the cache, which another must share to be restored to this state.
        temporal: keys and values over time.
        spatial: of the last frames in space; None without references.
    """

    make: tuple[int, ...]
    temporal: KVSnapshot
    spatial: KVSnapshot | None


class VideoKVCache:
    """Keys and values of the clean frames of one batch of videos, for one condition.

    Args:
        num_layers: blocks D.
        window: W, most clean frames kept, sinks among them.
        chunk: most frames appended at a time behind a full window.
        sinks: first frames that never leave, 0 .. W - 1.
        tokens: key rows that a frame takes in a layer: 1 where each site has its own batch entry, S where all tokens
            of all frames attend jointly.
        references: P', last frames whose spatial keys are kept as well; 0 for none.
        sites: S, spatial tokens of a frame; used with `references`.
        layout: "dynamic" hands attention the rows that are there; "static" always all slots with a mask, so that
            every call has one shape and compiled code is never compiled again.

    Raises:
        ValueError: a number out of its range, or an unknown layout.
    """

    def __init__(
        self,
        num_layers: int,
        window: int,
        chunk: int,
        sinks: int = 0,
        tokens: int = 1,
        references: int = 0,
        sites: int = 1,
        layout: str = "dynamic",
    ) -> None:
        if layout not in ("dynamic", "static"):
            raise ValueError(f"layout must be dynamic or static, got {layout!r}.")
        counts = {"window": window, "chunk": chunk, "tokens": tokens, "sites": sites}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not 0 <= sinks < window:
            raise ValueError(f"sinks must be 0 .. window - 1 = {window - 1}, got {sinks}.")
        if references < 0:
            raise ValueError(f"references must be at least 0, got {references}.")
        self.window, self.sinks, self.tokens, self.references = window, sinks, tokens, references
        self._sites, self._frames, self._static = sites, window + chunk, layout == "static"
        self._make = (num_layers, window, chunk, sinks, tokens, references, sites)
        self.temporal = RingKVCache(num_layers, (window + chunk) * tokens, static=self._static)
        # Twice P': new frames come in behind the old ones before these leave.
        self.spatial = RingKVCache(num_layers, 2 * references * sites) if references else None

    @property
    def num_frames(self) -> int:
        """Clean frames that a chunk can see now."""
        return self.temporal.length // self.tokens

    @property
    def total_written(self) -> int:
        """Clean frames written so far, those that have left among them."""
        return self.temporal.next_position // self.tokens

    @property
    def cost_key(self) -> tuple[int, int]:
        """What the cost of attending to this cache depends on."""
        return self.num_frames, self.spatial.length if self.spatial is not None else 0

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self.temporal.nbytes + (self.spatial.nbytes if self.spatial is not None else 0)

    @_opaque
    def view(self, num_new: int, whole_chunk: bool, device: torch.device | str = "cpu") -> CacheView:
        """How `num_new` frames, once appended, see the cache and themselves.

        Args:
            num_new: frames of the forward.
            whole_chunk: whether a new frame sees all new ones, or only its past.
            device: of the result.

        Raises:
            ValueError: more frames than there is room for.
        """
        held, first = self.num_frames, self.total_written
        if not 1 <= num_new <= self._frames - held:
            raise ValueError(f"num_new must be 1 .. {self._frames - held}, behind {held} frames kept, got {num_new}.")
        frames = torch.tensor(self.temporal.columns(num_new * self.tokens, self.tokens))
        queries, new = torch.arange(held, held + num_new), torch.arange(first, first + num_new)
        seen = frames >= 0
        ranks = (seen & (frames < frames[:, None])).sum(dim=1)  # frames that are there and earlier
        mask = seen.expand(num_new, -1) if whole_chunk else seen & (frames <= new[:, None])
        # A mask that comes and goes would be two shapes for a compiler.
        needed = self._static or not mask.all()
        return CacheView(mask.to(device) if needed else None, *(part.to(device) for part in (queries, ranks, new)))

    @_opaque
    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new frames, see `KVCache.append`; rows are in the order of `view`."""
        return self.temporal.append(layer, k, v)

    @_opaque
    def keep_references(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store spatial keys and values (B, T, S, h, d) of clean frames; only the last P' are kept."""
        if self.spatial is not None:
            last = slice(-self.references, None)
            self.spatial.append(layer, *(part[:, last].flatten(1, 2).transpose(1, 2) for part in (k, v)))

    @_opaque
    def read_references(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Spatial keys and values (B, P' S, h, d) of the last P' clean frames; if fewer, the first again."""
        if self.spatial is None or not self.spatial.length:
            return None
        k, v = (part.transpose(1, 2) for part in self.spatial.read(layer))
        missing = self.references - self.spatial.length // self._sites
        if missing > 0:
            k, v = (torch.cat([part[:, : self._sites].repeat(1, missing, 1, 1), part], dim=1) for part in (k, v))
        return k, v

    def commit(self) -> None:
        """Keep the frames appended since the last commit, and let the oldest leave."""
        self.temporal.commit()
        self.temporal.evict(self.sinks * self.tokens, self.window * self.tokens)
        if self.spatial is not None:
            self.spatial.commit()
            self.spatial.evict(0, self.references * self._sites)

    def rollback(self) -> None:
        """Drop the frames appended since the last commit, exactly."""
        self.temporal.rollback()
        if self.spatial is not None:
            self.spatial.rollback()

    def snapshot(self) -> VideoSnapshot:
        """Remember the committed state, for free; memory is copied when it is next written to."""
        spatial = self.spatial.snapshot() if self.spatial is not None else None
        return VideoSnapshot(self._make, self.temporal.snapshot(), spatial)

    def restore(self, snapshot: VideoSnapshot) -> None:
        """Return to a state of this cache, or of one of the same make.

        Raises:
            ValueError: it is of a cache of another make.
        """
        if snapshot.make != self._make:
            names = "num_layers, window, chunk, sinks, tokens, references, sites"
            raise ValueError(f"snapshot is of a cache of ({names}) {snapshot.make}, expected {self._make}.")
        self.temporal.restore(snapshot.temporal)
        if self.spatial is not None and snapshot.spatial is not None:
            self.spatial.restore(snapshot.spatial)
