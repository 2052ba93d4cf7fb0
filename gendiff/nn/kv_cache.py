"""Key/value caches: what attention need not compute again, as one contract with three storages.

`RingKVCache` is for video (a window that slides, sinks that stay), `AppendKVCache` for stages (all of them stay),
`ScatterKVCache` for ReCAP (all rows are there, a few are computed anew). A cache belongs to one call or session.

**Pass.** A forward visits layers 0 .. L - 1 in order and hands each layer's keys and values to `append` or `scatter`,
which return all that this layer's attention may read. Then `commit()` keeps the rows and `rollback()` drops them, also
after an exception halfway: a denoising step rolls back its noisy chunk, the pass that writes the clean one commits.

**Positions.** A row keeps its number (`positions`) and its slot for life, whatever is evicted before it. Keys are
stored as given, so RoPE is right in two ways: rotate new keys by `next_position`, `next_position + 1`, ... before
`append`; or append them unrotated and rotate what `append` returns, by `positions` or by rank 0 .. length - 1.

**Gradients.** Use it under `torch.no_grad` or `torch.inference_mode`, also in turn. Memory is written again and again,
so backward could not trust it: tensors that require grad are refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVSnapshot:
    """A committed state of a cache; whatever the cache does later leaves it alone. Made by `KVCache.snapshot`."""

    storage: tuple[str, int, int]  # class, num_layers, capacity
    stores: tuple[Tensor | None, ...]
    sinks: int
    start: int
    stop: int


class KVCache(ABC):
    """Keys and values of all attention layers of a network, for one batch.

    The first append takes a layer's memory, once; the first of all fixes batch, heads, head dim, dtype and device.

    Args:
        num_layers: attention layers L.
        capacity: most rows a layer holds at a time, uncommitted ones included: window + chunk, or all stages.

    Raises: ValueError, here and in all methods, before anything has changed.
    """

    def __init__(self, num_layers: int, capacity: int):
        _check_count("num_layers", num_layers, 1)
        _check_count("capacity", capacity, 1)
        self.num_layers = num_layers
        self.capacity = capacity
        self._storage = (type(self).__name__, num_layers, capacity)
        self._stores: list[Tensor | None] = [None] * num_layers  # each (keys and values, B, H, capacity, d)
        self._shared = [False] * num_layers  # with a snapshot: to be copied before the next write
        # A layer holds positions 0 .. sinks - 1 and start .. stop - 1.
        self._sinks = 0
        self._start = 0
        self._stops = [0] * num_layers
        self._committed = 0  # the stop of every layer at the last commit
        # Every scatter since the last commit: layer, rows as given, entries of `_entries`, the values before it.
        self._overwritten: list[tuple[int, Tensor, tuple[Tensor, Tensor | None], Tensor]] = []

    @abstractmethod
    def scatter(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrite rows and return what `layer` may read, see `ScatterKVCache.scatter`."""

    @abstractmethod
    def evict(self, sinks: int, window: int) -> None:
        """Drop the oldest rows behind the sinks, see `RingKVCache.evict`."""

    @property
    def length(self) -> int:
        """Rows that attention may read now, uncommitted ones included."""
        return self._sinks + self._stops[0] - self._start

    @property
    def positions(self) -> list[int]:
        """How many rows were appended before each row that may be read, in order (sinks, window, chunk)."""
        return [*range(self._sinks), *range(self._start, self._stops[0])]

    @property
    def next_position(self) -> int:
        """Position of the first row of the next pass."""
        return self._stops[0]

    @property
    def nbytes(self) -> int:
        """Bytes held now, with memory shared with a snapshot and with old rows that a rollback would put back."""
        stores = sum(store.nbytes for store in self._stores if store is not None)
        return stores + sum(old.nbytes for *_, old in self._overwritten)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add rows behind the last one and return what `layer` may read, the new rows last.

        Args:
            layer: 0 .. L - 1, in order within a pass.
            k: keys (B, H, R, d), R >= 1 and the same in all layers of the pass.
            v: values, like `k`.

        Returns: keys and values (B, H, length, d). They may be views of the cache: never write to them, and use them
        before the next call that changes it.
        """
        self._check_layout(k, v)
        if layer != self._append_turn:
            raise ValueError(f"layer {layer} is out of order, expected layer {self._append_turn}.")
        first, rows = self._stops[layer], k.shape[2]
        if layer > 0 and first + rows != self._stops[0]:
            raise ValueError(f"k has {rows} rows in layer {layer}, expected {self._stops[0] - first} as in layer 0.")
        if layer == 0 and self.length + rows > self.capacity:
            raise ValueError(
                f"k has {rows} rows, expected at most {self.capacity} - {self.length} (capacity - length)."
            )
        slots = self._slots(first, first + rows)
        sizes = [piece.stop - piece.start for piece in slots]
        for part, new in zip(self._writable(layer, k), (k, v), strict=True):
            for piece, chunk in zip(slots, new.split(sizes, dim=2), strict=True):
                part[:, :, piece] = chunk
        self._stops[layer] = first + rows
        return self.read(layer)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, length, d) that `layer` may read now; the same caveat as for `append`."""
        _check_count("layer", layer, 0, self.num_layers - 1)
        store = self._stores[layer]
        if store is None:
            raise ValueError(f"layer {layer} has no rows to read yet; append some first.")
        slots = self._slots(self._start, self._stops[layer])
        if self._sinks:
            slots.insert(0, slice(0, self._sinks))
        parts = [store[:, :, :, piece] for piece in slots]
        k, v = parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)
        return k, v

    def commit(self) -> None:
        """Keep what was appended and scattered since the last commit; every pass must have visited all layers."""
        missing = self._append_turn or self._scatter_turn
        if missing:
            raise ValueError(f"commit in mid-pass: layer {missing} of {self.num_layers} comes next; or roll back.")
        self._committed = self._stops[0]
        self._overwritten.clear()

    def rollback(self) -> None:
        """Drop what was appended and scattered since the last commit, exactly."""
        for layer, _, (places, _), old in reversed(self._overwritten):
            store = self._stores[layer]
            assert store is not None  # it was written to
            self._writable(layer, store[0]).view(2, -1, store.shape[4]).index_copy_(1, places, old)
        self._overwritten.clear()
        self._stops = [self._committed] * self.num_layers

    def reset(self) -> None:
        """Forget all rows, committed ones too, and keep the memory for the next ones."""
        self._overwritten.clear()
        self._stops = [0] * self.num_layers
        self._sinks = self._start = self._committed = 0

    def snapshot(self) -> KVSnapshot:
        """Remember the committed state. Free at first: a layer's memory is copied when it is next written to.

        To fork a video, restore the snapshot into a new cache of the same class, layers and capacity.
        """
        self._check_settled("snapshot")
        self._shared = [True] * self.num_layers
        return KVSnapshot(self._storage, tuple(self._stores), self._sinks, self._start, self._committed)

    def restore(self, snapshot: KVSnapshot) -> None:
        """Return to `snapshot`, of this cache or of one alike, as often as wanted. Uncommitted rows are dropped."""
        if snapshot.storage != self._storage:
            raise ValueError(f"snapshot is of (class, layers, capacity) {snapshot.storage}, expected {self._storage}.")
        if self._stores[0] is not None and snapshot.stores[0] is not None:
            _check_same("snapshot", _layout(snapshot.stores[0][0]), "the cache", _layout(self._stores[0][0]))
        self.rollback()
        self._stores = list(snapshot.stores)
        self._shared = [True] * self.num_layers
        self._sinks, self._start, self._committed = snapshot.sinks, snapshot.start, snapshot.stop
        self._stops = [snapshot.stop] * self.num_layers

    @property
    def _append_turn(self) -> int:
        """Layer to append to next: the first that lags behind layer 0, which leads every pass."""
        return next((layer for layer, stop in enumerate(self._stops) if stop != self._stops[0]), 0)

    @property
    def _scatter_turn(self) -> int:
        return (self._overwritten[-1][0] + 1) % self.num_layers if self._overwritten else 0

    def _slots(self, first: int, stop: int) -> list[slice]:
        """Where positions first .. stop - 1 behind the sinks lie: one slice, or two where the ring wraps."""
        begin = self._sinks + (first - self._sinks) % (self.capacity - self._sinks)
        end = begin + stop - first
        if end <= self.capacity:
            return [slice(begin, end)]
        return [slice(begin, self.capacity), slice(self._sinks, self._sinks + end - self.capacity)]

    def _writable(self, layer: int, like: Tensor) -> Tensor:
        store = self._stores[layer]
        if store is None or self._shared[layer]:
            with torch.inference_mode(False):  # a tensor born in inference mode could not be written outside of it
                shape = (2, *like.shape[:2], self.capacity, like.shape[3])
                store = self._new_store(like, shape) if store is None else store.clone()
            self._stores[layer], self._shared[layer] = store, False
        return store

    def _new_store(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        # Zeros, not whatever lies there: a masked slot that holds NaN would still spoil a softmax average.
        return like.new_zeros(shape)

    def _check_layout(self, k: Tensor, v: Tensor) -> None:
        for name, tensor in (("k", k), ("v", v)):
            if tensor.ndim != 4:
                raise ValueError(f"{name} must be (batch, heads, rows, head dim), got shape {tuple(tensor.shape)}.")
            if torch.is_grad_enabled() and tensor.requires_grad:
                raise ValueError(f"{name} requires grad, which a cache cannot keep; use torch.no_grad() or detach it.")
        if k.shape[2] == 0:
            raise ValueError("k has 0 rows, expected at least 1; skip the call when there is nothing to write.")
        _check_same("v", _layout(v) | {"rows": v.shape[2]}, "k", _layout(k) | {"rows": k.shape[2]})
        if self._stores[0] is not None:
            _check_same("k", _layout(k), "the cache", _layout(self._stores[0][0]))

    def _check_settled(self, operation: str) -> None:
        if any(stop != self._committed for stop in self._stops) or self._overwritten:
            raise ValueError(f"{operation} got uncommitted rows, expected none; call commit() or rollback() first.")


@final
class AppendKVCache(KVCache):
    """Append-only storage, for stages: memory for all rows is taken at once, so none is ever copied."""

    def scatter(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError("AppendKVCache cannot scatter, rows of earlier stages never change; use ScatterKVCache.")

    def evict(self, sinks: int, window: int) -> None:
        raise ValueError("AppendKVCache cannot evict, earlier stages stay visible; use RingKVCache.")

    def _new_store(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        # Only rows that were written are ever read, so filling memory first would be for nothing.
        return like.new_empty(shape)


@final
class RingKVCache(KVCache):
    """Ring buffer with attention sinks, for video: memory stays the same however long the stream.

    Only free slots are written, so a rollback finds all committed rows in place, and evicting moves no data. Where
    the ring wraps, reading joins its pieces: a copy, of one layer at a time.

    Args:
        num_layers: attention layers L.
        capacity: most rows a layer holds at a time, uncommitted ones included: window + chunk.
        static: `append` and `read` return all slots, (B, H, capacity, d), as they lie, without any copy. `columns` says
            what is in each; empty ones and dropped ones must be masked. One shape for all calls suits compiled code.
    """

    def __init__(self, num_layers: int, capacity: int, static: bool = False):
        super().__init__(num_layers, capacity)
        self.static = static

    def columns(self, new_rows: int = 0, group: int = 1) -> list[int]:
        """Positions of the rows that `append` of `new_rows` rows will return, in their order; -1 = an empty slot.

        Args:
            new_rows: rows to come.
            group: count in groups of so many rows that are always appended and dropped together.
        """
        _check_count("new_rows", new_rows, 0, self.capacity - self.length)
        sinks, start, stop = self._sinks // group, self._start // group, (self._stops[0] + new_rows) // group
        positions = [*range(sinks), *range(start, stop)]
        if not self.static:
            return positions
        slots, ring = [-1] * (self.capacity // group), self.capacity // group - sinks
        for position in positions:
            behind = position - sinks
            slots[position if behind < 0 else sinks + behind % ring] = position
        return slots

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, length or capacity, d) that `layer` may read now; the same caveat as for `append`."""
        _check_count("layer", layer, 0, self.num_layers - 1)
        store = self._stores[layer]
        if self.static and store is not None:
            return store[0], store[1]
        return super().read(layer)

    def rollback(self) -> None:
        """Drop what was appended since the last commit; a static layout forgets it, as it goes on to read the slots."""
        if self.static:
            for layer, (store, stop) in enumerate(zip(self._stores, self._stops, strict=True)):
                if store is not None and stop > self._committed:
                    for piece in self._slots(self._committed, stop):
                        self._writable(layer, store)[:, :, :, piece] = 0
        super().rollback()

    def scatter(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError("RingKVCache cannot scatter, rows of earlier chunks never change; use ScatterKVCache.")

    def evict(self, sinks: int, window: int) -> None:
        """Keep the first `sinks` rows and the latest `window - sinks`; call it after `commit`.

        Args:
            sinks: rows that stay for ever, 0 .. window - 1; fixed by the first call that drops any row.
            window: most rows kept, sinks among them, 1 .. capacity.

        Source: sinks, Xiao et al. 2024, section 3.2; window of clean frames, Gao et al. 2025 (Ca2-VDM).
        """
        _check_count("window", window, 1, self.capacity)
        _check_count("sinks", sinks, 0, window - 1)
        self._check_settled("evict")
        if self._start > self._sinks and sinks != self._sinks:
            raise ValueError(f"sinks got {sinks}, expected {self._sinks} as in the first eviction.")
        if self.length > window:
            self._sinks, self._start = sinks, self._committed - (window - sinks)


@final
class ScatterKVCache(KVCache):
    """Storage with rows overwritten in place, for ReCAP: a full step appends all rows, light steps scatter a group."""

    def scatter(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrite `rows` and return what `layer` may read; no other row changes. A pass may append first.

        Args:
            layer: 0 .. L - 1, in order within a pass.
            rows: int64 (B, R), distinct rows of each sample in 0 .. length - 1; -1 pads a shorter group and writes
                nothing. Pass one tensor to all layers: it is checked once, at the price of a device sync.
            k: keys (B, H, R, d).
            v: values, like `k`.

        Returns: keys and values (B, H, length, d), with the same caveat as for `append`.

        Source: Liu et al. 2025 (ReCAP), light steps.
        """
        self._check_layout(k, v)
        if layer != self._scatter_turn:
            raise ValueError(f"layer {layer} is out of order, expected layer {self._scatter_turn}.")
        if self._stops[layer] != self._stops[0]:
            raise ValueError(f"layer {layer} is out of order, expected an append to it before the scatter.")
        places, taken = entries = self._entries(layer, rows, k)
        # By numbers of vectors in memory: indexing samples and rows apart takes four times as long.
        vectors = self._writable(layer, k).view(2, -1, k.shape[3])
        self._overwritten.append((layer, rows, entries, vectors.index_select(1, places)))
        for part, new in zip(vectors, (k, v), strict=True):
            new = new.transpose(1, 2).reshape(-1, k.shape[3])
            part.index_copy_(0, places, new if taken is None else new.index_select(0, taken))
        return self.read(layer)

    def evict(self, sinks: int, window: int) -> None:
        raise ValueError("ScatterKVCache cannot evict, rows are addressed by number; use RingKVCache.")

    def _entries(self, layer: int, rows: Tensor, k: Tensor) -> tuple[Tensor, Tensor | None]:
        """Numbers of the vectors to write, among (B, H, capacity), and of those to take, among (B, R, H); None: all."""
        got = (tuple(rows.shape), rows.dtype, rows.device)
        expected = ((k.shape[0], k.shape[2]), torch.int64, k.device)
        if got != expected:
            raise ValueError(f"rows has (shape, dtype, device) = {got}, expected {expected} as for k.")
        if layer > 0 and self._overwritten[-1][1] is rows:
            return self._overwritten[-1][2]
        if ((rows < -1) | (rows >= self.length)).any():
            low, high = int(rows.min()), int(rows.max())
            raise ValueError(f"rows has {low} .. {high}, expected 0 .. length - 1 = {self.length - 1}, or -1 to pad.")
        sample, entry = (rows >= 0).nonzero(as_tuple=True)
        row = rows[sample, entry]
        if (sample * self.capacity + row).unique().numel() < row.numel():
            raise ValueError("rows has a row twice in one sample, expected distinct ones; pad with -1.")
        heads = torch.arange(k.shape[1], device=rows.device)
        places = ((sample[:, None] * len(heads) + heads) * self.capacity + row[:, None]).flatten()
        if row.numel() == rows.numel():
            return places, None
        taken = (sample * rows.shape[1] + entry)[:, None] * len(heads) + heads
        return places, taken.flatten()


def _layout(rows: Tensor) -> dict[str, object]:
    batch, heads, _, dim = rows.shape
    return {"batch": batch, "heads": heads, "head dim": dim, "dtype": rows.dtype, "device": rows.device}


def _check_same(name: str, got: dict[str, object], owner: str, expected: dict[str, object]) -> None:
    for field, value in expected.items():
        if got[field] != value:
            raise ValueError(f"{name} has {field} {got[field]}, expected {value} as in {owner}.")


def _check_count(name: str, value: int, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ValueError(f"{name} got {value!r}, expected an integer {low} .. {'any' if high is None else high}.")
