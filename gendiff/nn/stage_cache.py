"""What a transformer over stages remembers of one call: keys and values of earlier stages, and its modulations."""

from __future__ import annotations

from torch import Tensor

from gendiff.nn.kv_cache import AppendKVCache


class StageCache:
    """Append-only keys and values, and what adaptive norms make of the condition, which no stage changes.

    Args:
        num_layers: attention layers.
        num_tokens: L, of all stages together.

    Attributes:
        keys_values: the cache of keys and values.
        modulations: what the network made of the condition at the first stage; None before it.
    """

    def __init__(self, num_layers: int, num_tokens: int) -> None:
        self.keys_values = AppendKVCache(num_layers, num_tokens)
        self.modulations: list[Tensor] | None = None

    @property
    def length(self) -> int:
        """Tokens of the stages written so far."""
        return self.keys_values.length

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self.keys_values.nbytes + sum(part.nbytes for part in self.modulations or ())

    @property
    def cost_key(self) -> int:
        """What the cost of attending to this cache depends on."""
        return self.length
