"""Key/value memory of all running sequences: one bounded pool, allocated once."""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from transformers.cache_utils import Cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

GRAIN: Final = 16
"""Places begin at multiples of this many positions: then every sequence's memory is aligned alike for the CPU's vector
units, and what is computed from it does not depend on where it lies."""


class KvShape(NamedTuple):
    """Keys of one layer and position; values have the same shape."""

    heads: int
    size: int


class KvPool:
    """Keys and values for a number of positions; a sequence takes consecutive ones for its whole life."""

    def __init__(self, shapes: Sequence[KvShape], positions: int, *, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate.

        Args:
            shapes: Of each layer.
            positions: That fit; rounded down to whole grains.
            dtype: Of keys and values.
            device: Where they lie.
        """
        self.positions = positions // GRAIN * GRAIN
        sizes = [(1, shape.heads, self.positions, shape.size) for shape in shapes]
        # Never read before written; the CPU's pages are not there before that either.
        self.keys = tuple(torch.empty(size, dtype=dtype, device=device) for size in sizes)
        """[1, heads, positions, size] for each layer."""
        self.values = tuple(torch.empty(size, dtype=dtype, device=device) for size in sizes)
        """Alike."""
        self._taken: list[range] = []

    @property
    def used(self) -> int:
        """Positions taken."""
        return sum(map(len, self._taken))

    def reserve(self, length: int) -> SequenceCache | None:
        """Take the first place that is long enough; None when there is none now."""
        length = whole_grains(length)
        begin = 0
        for taken in self._taken:
            if taken.start - begin >= length:
                break
            begin = taken.stop
        if begin + length > self.positions:
            return None
        place = range(begin, begin + length)
        insort(self._taken, place, key=lambda taken: taken.start)
        return SequenceCache(self, place)

    def release(self, cache: SequenceCache) -> None:
        """Give a place back; what it held is not read any more."""
        self._taken.remove(cache.place)


class SequenceCache(Cache):
    """One sequence's part of the pool, in the shape in which transformers' models ask for it.

    A forward pass writes behind `length`; whoever called it moves `length` on afterwards.
    """

    def __init__(self, pool: KvPool, place: range) -> None:
        super().__init__(layers=[])
        self._pool = pool
        self.place = place
        self.length = 0

    def __len__(self) -> int:
        """Count the layers: transformers takes a cache of none for no cache."""
        return len(self._pool.keys)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write new positions and give all: [1, heads, new, size] → [1, heads, length + new, size]."""
        begin = self.place.start
        written = begin + self.length
        end = written + key_states.shape[2]
        keys, values = self._pool.keys[layer_idx], self._pool.values[layer_idx]
        keys[:, :, written:end] = key_states
        values[:, :, written:end] = value_states
        return keys[:, :, begin:end], values[:, :, begin:end]

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 -- transformers' signature
        """Count the positions held."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002 -- the same
        """Say how many positions a pass sees, and that none is left out."""
        return self.length + query_length, 0


def whole_grains(length: int) -> int:
    """Round up to what a sequence of this length takes."""
    return -(-length // GRAIN) * GRAIN
