"""Memory for tensors, used again: the kernel zeroes each fresh page, which costs as much as reading into it."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from multimodal_builder.checkpoints.tensors import Array

KEPT_BYTES: Final = 256 * 2**20
"""Most bytes that wait for the next tensor."""
_SMALL: Final = 2**20
"""Bytes below which the allocator itself uses memory again."""


class BufferPool:
    """Gives arrays whose memory comes back when the last view of them is gone. Threads may share it."""

    def __init__(self, kept: int = KEPT_BYTES) -> None:
        self._kept = kept
        self._free: dict[int, Array] = {}
        """Each step on it is one of the interpreter's own, so that no lock is needed: memory may come back at any
        time, also in the middle of a step."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Make an array of any content, as `numpy.empty` does."""
        size = prod(shape) * dtype.itemsize
        if size < _SMALL:
            return np.empty(shape, dtype)
        lease = _Lease(self._take(size), self._free)
        return np.asarray(lease)[:size].view(dtype).reshape(shape)

    def _take(self, size: int) -> Array:
        """Find memory of about the wanted size."""
        for key, memory in sorted(self._free.copy().items(), key=lambda item: len(item[1])):
            if size <= len(memory) <= 2 * size and self._free.pop(key, None) is not None:
                return memory
        while sum(map(len, self._free.copy().values())) > self._kept:
            self._free.pop(next(iter(self._free.copy())), None)  # the one that has waited longest
        return np.empty(size, np.uint8)


class _Lease:
    """Stands behind an array and all its views, and ends with them."""

    def __init__(self, memory: Array, free: dict[int, Array]) -> None:
        self._memory = memory
        self._free = free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        """Give the memory back."""
        self._free[id(self._memory)] = self._memory


empty: Final = BufferPool().empty
"""Of the pool that all readers share."""
